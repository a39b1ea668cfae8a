"""Pass 3, analyse: a probed graph -> trunk, blocks, levels, stem and head of the bottom-up network.

The trunk is the chain of immediate dominators of the output that are clean (N, C, H, W) maps; what lies
between two of them is a region. Regions are read like a sentence: a conv takes the norm and activation
behind it, a norm or activation that follows anything else waits for the next conv or branching region
(pre-activation), and what still waits at the end belongs to the head. `design vocabulary`: see `Block`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import networkx as nx

from bu2td.capture import source_line
from bu2td.converter import Site, converter_for
from bu2td.errors import ModelOutputError, NoReductionError, TopologyError
from bu2td.plan import Analysis, Block, BottomUpLevel, Capture, Head, Stem, Value
from bu2td.probe import is_feature_map, is_spatial, is_tensor, reduction_of

#: Roles that a shortcut may consist of, beside one pointwise convolution.
_SHORTCUT_ROLES = ("pass", "pool", "dropout", "norm", "norm_act", "act", "mul", "pad", "resample")


class GraphView:
    """Read-only access to a captured graph: roles, modules, regions. Shared by analysis and arrangement."""

    def __init__(self, capture: Capture, dims: Mapping[str, Value]) -> None:
        self.graph_module = capture.graph_module
        self.dims = dims
        self.nodes = {node.name: node for node in capture.graph_module.graph.nodes}
        self.order = {name: i for i, name in enumerate(self.nodes)}
        self.modules = dict(capture.graph_module.named_modules())
        self._roles: dict[str, str] = {}

    def site(self, name: str) -> Site:
        """The node as its converter sees it."""
        return Site(self.nodes[name], self.module(name), self.dims)

    def module(self, name: str) -> Any:
        """The module that a node calls, or None."""
        node = self.nodes[name]
        return self.modules.get(str(node.target)) if node.op == "call_module" else None

    def converter(self, name: str) -> Any:
        """The converter of a node."""
        return converter_for(self.nodes[name], self.module(name))

    def role(self, name: str) -> str:
        """The role of a node, as its converter states it."""
        if name not in self._roles:
            self._roles[name] = self.converter(name).role
        return self._roles[name]

    def kernel(self, name: str) -> tuple[int, int]:
        """Window of a node over the image plane."""
        return self.converter(name).kernel(self.site(name))

    def stride(self, name: str) -> tuple[int, int]:
        """Stride of a node over the image plane."""
        return self.converter(name).stride(self.site(name))

    def width(self, name: str) -> int:
        """Channels of a feature map."""
        return self.dims[name][1].size

    def reduction(self, name: str) -> Any:
        """Reduction of a feature map, None for anything else."""
        return reduction_of(self.dims[name])

    def inputs(self, name: str) -> list[str]:
        """The producers of spatial values that a node reads, without repetition."""
        return [n.name for n in self.nodes[name].all_input_nodes if is_spatial(self.dims.get(n.name))]

    def path(self, name: str) -> str:
        """Module path of a node: the module that it calls, or the one whose forward holds it."""
        node = self.nodes[name]
        return str(node.target) if node.op == "call_module" else node.meta.get("path", "")

    def depthwise(self, name: str) -> bool:
        """Whether a node is a depthwise convolution."""
        conv = self.module(name)
        return self.role(name) == "conv" and 1 < conv.groups == conv.in_channels

    def where(self, name: str) -> str:
        """A node for messages: its path and source line."""
        return f"{self.path(name) or name} at {source_line(self.nodes[name])}"


@dataclass
class _Unit:
    """A conv unit, branching region or pool in the making."""

    kind: str
    nodes: list[str]
    entry: str
    exit: str
    conv: str | None = None
    prefix: list[str] = field(default_factory=list)
    roles: set[str] = field(default_factory=set)
    closed: bool = False
    dropouts: list[str] = field(default_factory=list)

    def append(self, region: _Region) -> None:
        self.nodes += region.nodes
        self.exit = region.exit
        self.roles |= region.roles


@dataclass
class _Region:
    """The nodes between two neighbouring trunk tensors."""

    entry: str
    exit: str
    nodes: list[str]
    kind: str = "pass"
    conv: str | None = None
    roles: set[str] = field(default_factory=set)


def analyse(capture: Capture, dims: Mapping[str, Value]) -> Analysis:
    """Find the levels of a bottom-up network.

    Needs: a `Capture` and its probe.
    Returns: an `Analysis`; it serves all arrangements.
    Guarantees: at least two reductions, at least one level with a body, reductions fall monotonically,
        and every node between image and logits belongs to exactly one of stem, level, downsampler, head.

    Raises:
        ModelOutputError: the output is not one tensor of logits (N, classes).
        NoReductionError: nothing reduces resolution.
        TopologyError: there is no trunk of single tensors to build levels from.
    """
    view = GraphView(capture, dims)
    logits = _logits(view)
    trunk = _trunk(view, logits)
    regions, tail = _regions(view, trunk)
    _check_tail(view, tail)
    for region in regions:
        _classify(view, region)
    units, waiting = _parse(view, regions)
    plain = not any(u.kind == "multi" or (u.conv and view.depthwise(u.conv)) for u in units)
    units = _steal_preactivation(view, units)
    blocks, pools = _group(view, units, plain)
    if not blocks:
        raise TopologyError(
            "the network has no convolution on its trunk between image and head; a chain of blocks is needed"
        )
    return _assemble(view, capture, blocks, pools, waiting, tail, plain, logits)


# --- trunk and regions --------------------------------------------------------------------------------


def _logits(view: GraphView) -> str:
    output = next(n for n in view.nodes.values() if n.op == "output")
    node = output.args[0]
    value = view.dims[node.name]
    kinds = [d.kind for d in value] if is_tensor(value) else None
    if kinds != ["batch", "channel"]:
        shape = tuple(d.size for d in value) if is_tensor(value) else "several tensors"
        raise ModelOutputError(
            f"the model returns {shape} ({view.where(node.name)}); one tensor of logits (N, classes) is needed"
        )
    return node.name


def _trunk(view: GraphView, logits: str) -> list[str]:
    """The trunk tensors in order, from the image to the last before the head."""
    image = next(n.name for n in view.nodes.values() if n.op == "placeholder")
    graph = nx.DiGraph()
    reachable = {image}
    for name, node in view.nodes.items():
        for source in node.all_input_nodes:
            if source.name in reachable and view.dims.get(source.name) is not None:
                graph.add_edge(source.name, name)
                reachable.add(name)
    if logits not in reachable:
        raise ModelOutputError("the logits do not depend on the image")
    dominators = nx.immediate_dominators(graph, image)
    chain = [logits]
    while chain[-1] != image:
        chain.append(dominators[chain[-1]])
    chain.reverse()
    trunk = []
    for name in chain:
        value = view.dims[name]
        if not is_spatial(value) or (name != image and _covers_map(view, name)):
            break
        if is_feature_map(value):
            trunk.append(name)
    reductions = [view.reduction(name) for name in trunk]
    if not trunk or max(reductions) == 1:
        raise NoReductionError(
            "nothing in this network reduces resolution before its head: the features keep the size "
            "of the image, and there is nothing to turn upside down"
        )
    return trunk


def _covers_map(view: GraphView, name: str) -> bool:
    """Whether a node belongs to a head by its window: it covers the whole map without padding."""
    if view.role(name) == "head":
        return True
    if view.role(name) != "conv" or view.kernel(name) == (1, 1):
        return False
    source = view.inputs(name)[0]
    size = tuple(d.size for d in view.dims[source][2:])
    conv = view.module(name)
    return view.kernel(name) == size and conv.padding in ((0, 0), 0, "valid")


def _regions(view: GraphView, trunk: list[str]) -> tuple[list[_Region], list[str]]:
    """Deal all nodes out to the regions between trunk tensors; what follows the last is the tail."""
    index = {name: i for i, name in enumerate(trunk)}
    place: dict[str, int] = {}
    for name, node in view.nodes.items():
        before = [index.get(n.name, place.get(n.name, -1)) for n in node.all_input_nodes if n.op != "get_attr"]
        place[name] = max(before, default=-1)
    for name in reversed(view.nodes):
        node = view.nodes[name]
        if node.op == "get_attr" or (place[name] < 0 and node.op not in ("placeholder", "output")):
            place[name] = min((place[user.name] for user in node.users), default=-1)
    regions = [_Region(a, b, []) for a, b in itertools.pairwise(trunk)]
    tail: list[str] = []
    for name, node in view.nodes.items():
        if node.op in ("placeholder", "output"):
            continue
        at = place[name]
        (regions[at].nodes if 0 <= at < len(regions) else tail).append(name)
    return [r for r in regions if r.nodes], tail


def _classify(view: GraphView, region: _Region) -> None:
    """Name what a region is, by the roles of its operations."""
    operations = [n for n in region.nodes if view.nodes[n].op != "get_attr" and view.dims[n]]
    region.roles = {view.role(n) for n in operations}
    convs = [n for n in operations if view.role(n) in ("conv", "linear") and is_spatial(view.dims[n])]
    several_paths = any(len(view.inputs(n)) > 1 for n in operations)
    if several_paths or len(convs) > 1 or "opaque" in region.roles:
        region.kind = "multi"
    elif convs:
        region.kind, region.conv = "conv", convs[0]
    elif {"norm", "norm_act"} & region.roles:
        region.kind = "norm"
    elif "gate" in region.roles:
        region.kind = "gate"
    elif "pool" in region.roles:
        region.kind = "pool"
    elif "act" in region.roles:
        region.kind = "act"
    elif "dropout" in region.roles:
        region.kind = "dropout"
    elif view.reduction(region.entry) != view.reduction(region.exit):
        region.kind = "multi"


# --- units --------------------------------------------------------------------------------------------


def _parse(view: GraphView, regions: list[_Region]) -> tuple[list[_Unit], list[_Region]]:
    """Read the regions into units; returns them and the regions that still wait at the end."""
    units: list[_Unit] = []
    waiting: list[_Region] = []
    act_first = any(_starts_with_act(view, r) for r in regions if r.kind == "multi")

    def attach(region: _Region) -> None:
        if units and not waiting:
            units[-1].append(region)
        else:
            waiting.append(region)

    for region in regions:
        last = units[-1] if units else None
        if region.kind in ("conv", "multi"):
            unit = _Unit(region.kind, [], region.entry, region.exit, conv=region.conv)
            unit.entry = waiting[0].entry if waiting else region.entry
            for before in waiting:
                unit.nodes += before.nodes
                if before.kind in ("norm", "act"):
                    unit.prefix += before.nodes
            unit.nodes += region.nodes
            unit.roles = set(region.roles)
            waiting = []
            units.append(unit)
        elif region.kind == "pool":
            reduces = view.reduction(region.entry) != view.reduction(region.exit)
            if reduces:
                if waiting and last:
                    for before in waiting:
                        last.append(before)
                    waiting = []
                units.append(_Unit("pool", list(region.nodes), region.entry, region.exit, closed=True))
            else:
                attach(region)
        elif region.kind == "norm":
            open_conv = last and last.kind == "conv" and not {"norm", "norm_act"} & last.roles
            if open_conv and not waiting and "act" not in last.roles:  # type: ignore[union-attr]
                last.append(region)  # type: ignore[union-attr]
            else:
                waiting.append(region)
        elif region.kind == "dropout":
            if last and last.kind == "pool" and not waiting:
                last.append(region)
                last.dropouts += region.nodes
            else:
                waiting.append(region)
        elif region.kind == "act" and last and (last.closed or (act_first and last.kind == "multi")):
            waiting.append(region)
        else:
            attach(region)
    return units, waiting


def _starts_with_act(view: GraphView, region: _Region) -> bool:
    """Whether a residual region activates its entry on the main path and adds it raw (norm-free nets).

    In such a net the activation between two blocks belongs to the second.
    """
    join = residual_join(view, region.exit, region.nodes)
    if join is None or region.entry not in view.inputs(join):
        return False
    readers = [u.name for u in view.nodes[region.entry].users if u.name in region.nodes]
    return any(view.role(r) == "act" for r in readers if r != join)


def _steal_preactivation(view: GraphView, units: list[_Unit]) -> list[_Unit]:
    """Give the norm-act behind a conv to the pre-activation block that follows without a border.

    In ``conv, norm, act, (conv, norm, act, conv) + projection`` the first norm-act belongs to the block:
    its main path ends on a bare convolution, so the block's own order is norm-act-conv.
    """
    for before, unit in itertools.pairwise(units):
        if unit.kind != "multi" or unit.prefix or before.kind != "conv" or before.exit != unit.entry:
            continue
        if not {"norm", "norm_act"} & before.roles or before.conv is None:
            continue
        if not _ends_on_bare_conv(view, unit):
            continue
        at = before.nodes.index(before.conv) + 1
        stolen = before.nodes[at:]
        before.nodes, before.exit = before.nodes[:at], before.conv
        before.roles = {"conv"}
        unit.prefix = [n for n in stolen if view.role(n) in ("norm", "act", "norm_act")]
        unit.nodes, unit.entry = stolen + unit.nodes, before.exit
    return units


def _ends_on_bare_conv(view: GraphView, unit: _Unit) -> bool:
    join = residual_join(view, unit.exit, unit.nodes)
    if join != unit.exit or not {"norm", "norm_act"} & unit.roles:
        return False
    operands = view.inputs(join)
    bare = [view.role(o) in ("conv", "dropout") for o in operands]
    direct = [o for o in operands if view.role(o) == "conv" and view.kernel(o) == (1, 1)]
    return all(bare) and bool(direct)


# --- shortcuts ----------------------------------------------------------------------------------------


def residual_join(view: GraphView, exit_: str, nodes: Iterable[str]) -> str | None:
    """The add that joins a block's main path with its shortcut: the last join before its exit."""
    inside = set(nodes)
    name = exit_
    while name in inside:
        inputs = view.inputs(name)
        if len(inputs) > 1:
            return name if view.role(name) == "add" else None
        if not inputs or view.role(name) in ("conv", "linear", "pool"):
            return None
        name = inputs[0]
    return None


def shortcut_of(
    view: GraphView, join: str, entry: str, nodes: Iterable[str], prefix: Iterable[str] = ()
) -> tuple[str, list[str]] | None:
    """The operand of an add that is a shortcut from the entry, and the nodes on it from the entry on.

    A shortcut is a chain of operations that do not look around: at most one pointwise (or k = stride)
    convolution, its norm, a pool that reduces. The norm-act prefix of a block may lie on it.
    """
    inside, before = set(nodes), set(prefix)
    found: list[tuple[int, int, str, list[str]]] = []
    for position, operand in enumerate(view.inputs(join)):
        chain: list[str] = []
        name, convs = operand, 0
        while name != entry and name in inside:
            inputs = view.inputs(name)
            role = view.role(name)
            if role == "conv":
                convs += 1
                pointwise = view.kernel(name) in ((1, 1), view.stride(name))
                if convs > 1 or not pointwise or len(inputs) != 1:
                    break
            elif len(inputs) != 1 or role not in _SHORTCUT_ROLES:
                break
            chain.append(name)
            name = inputs[0]
        if name == entry:
            length = len([n for n in chain if n not in before])
            found.append((length, position, operand, chain[::-1]))
    if not found:
        return None
    _, _, operand, chain = min(found)
    return operand, chain


def _appends(view: GraphView, unit: _Unit) -> bool:
    """Whether the entry's channels are handed on to the exit by concat."""
    inside = set(unit.nodes)
    stack = [unit.exit]
    joined = False
    seen = set()
    while stack:
        name = stack.pop()
        if name == unit.entry:
            return joined
        if name in seen or name not in inside:
            continue
        seen.add(name)
        role = view.role(name)
        if role == "concat":
            joined = True
            stack += view.inputs(name)
        elif role in ("pass", "pool", "dropout", "act", "pad") and len(view.inputs(name)) == 1:
            stack += view.inputs(name)
    return False


def _is_preactivated(view: GraphView, unit: _Unit) -> bool:
    """Whether the main path starts with norm-act before a convolution."""
    inside = set(unit.nodes)
    for name in unit.nodes:
        if unit.entry not in view.inputs(name) or view.role(name) not in ("norm", "norm_act"):
            continue
        acted = view.role(name) == "norm_act"
        while True:
            users = [u.name for u in view.nodes[name].users if u.name in inside]
            if any(view.role(u) == "conv" for u in users):
                if acted:
                    return True
                break
            following = [u for u in users if view.role(u) in ("act", "pass", "dropout", "concat")]
            if not following:
                break
            name = following[0]
            acted = acted or view.role(name) == "act"
    return False


# --- blocks -------------------------------------------------------------------------------------------


def _pointwise(view: GraphView, unit: _Unit) -> bool:
    return unit.kind == "conv" and unit.conv is not None and view.kernel(unit.conv) == (1, 1)


def _group(view: GraphView, units: list[_Unit], plain: bool) -> tuple[list[tuple[_Unit, bool]], list[_Unit]]:
    """Group units into blocks; returns (unit, is a plain conv unit) in order, and the downsamplers."""
    if not plain:
        units = _group_depthwise(view, units)
        units = _group_aggregations(view, units)
        units = _group_squeezes(view, units)
        units = _group_transitions(view, units)
    blocks = [(u, u.kind == "conv") for u in units if u.kind != "pool"]
    return blocks, [u for u in units if u.kind == "pool"]


def _join(units: list[_Unit]) -> _Unit:
    return _Unit(
        "block",
        [n for u in units for n in u.nodes],
        units[0].entry,
        units[-1].exit,
        conv=units[0].conv,
        prefix=units[0].prefix,
        roles=set().union(*(u.roles for u in units)),
    )


def _group_depthwise(view: GraphView, units: list[_Unit]) -> list[_Unit]:
    """Put a depthwise conv with its 1x1 convs into one block.

    Its 1x1 convs are those in the smallest submodule that holds it and one of them, if that submodule
    holds nothing else; in a net written flat, the 1x1 conv behind it and an expanding one before it.
    """
    result: list[_Unit] = []
    at = 0
    spans: list[tuple[int, int]] = []
    for i, unit in enumerate(units):
        if unit.kind == "conv" and unit.conv and view.depthwise(unit.conv) and (not spans or i > spans[-1][1]):
            low = spans[-1][1] + 1 if spans else 0
            spans.append(_depthwise_span(view, units, i, low))
    for first, last in spans:
        result += units[at:first]
        result.append(_join(units[first : last + 1]))
        at = last + 1
    return result + units[at:]


def _depthwise_span(view: GraphView, units: list[_Unit], at: int, low: int) -> tuple[int, int]:
    def fits(i: int) -> bool:
        conv = units[i].conv
        return (
            low <= i < len(units)
            and units[i].kind == "conv"
            and conv is not None
            and (view.kernel(conv) == (1, 1) or view.depthwise(conv))
        )

    path = view.path(str(units[at].conv))
    while "." in path:
        path = path.rpartition(".")[0]
        inside = [i for i, u in enumerate(units) if _under(view, u, path)]
        if len(inside) > 1:
            span = (inside[0], inside[-1])
            if inside == list(range(span[0], span[1] + 1)) and all(fits(i) for i in inside):
                return span
            break
    first = last = at
    if last + 1 < len(units) and fits(last + 1) and not view.depthwise(str(units[last + 1].conv)):
        last += 1
    if fits(at - 1):
        conv = view.module(str(units[at - 1].conv))
        if conv.kernel_size == (1, 1) and conv.out_channels > conv.in_channels:
            first -= 1
    return first, last


def _under(view: GraphView, unit: _Unit, path: str) -> bool:
    convs = [n for n in unit.nodes if view.role(n) in ("conv", "linear")]
    return any(view.path(n).startswith(path + ".") for n in convs)


def _group_aggregations(view: GraphView, units: list[_Unit]) -> list[_Unit]:
    """Put a region that appends to its entry together with the 1x1 conv that aggregates right behind."""
    result: list[_Unit] = []
    for i, unit in enumerate(units):
        before = result[-1] if result else None
        pooled = i + 1 < len(units) and units[i + 1].kind == "pool"
        if (
            before
            and before.kind == "multi"
            and before.exit == unit.entry
            and _pointwise(view, unit)
            and not unit.prefix
            and view.reduction(unit.exit) == view.reduction(unit.entry)
            and not pooled
            and _appends(view, before)
        ):
            result[-1] = _join([before, unit])
        else:
            result.append(unit)
    return result


def _group_squeezes(view: GraphView, units: list[_Unit]) -> list[_Unit]:
    """Put a 1x1 conv unit together with the region right behind it that branches and joins by concat.

    Fire modules squeeze before they expand, cross-stage partial stages expand before they split.
    """
    result: list[_Unit] = []
    for unit in units:
        before = result[-1] if result else None
        if (
            before
            and unit.kind == "multi"
            and not unit.prefix
            and before.exit == unit.entry
            and _pointwise(view, before)
            and view.reduction(before.exit) == view.reduction(before.entry)
            and view.reduction(unit.exit) == view.reduction(unit.entry)
            and _joins_by_concat(view, unit)
        ):
            result[-1] = _join([before, unit])
        else:
            result.append(unit)
    return result


def _joins_by_concat(view: GraphView, unit: _Unit) -> bool:
    name = unit.exit
    while name in unit.nodes:
        inputs = view.inputs(name)
        if view.role(name) == "concat":
            return True
        if len(inputs) != 1 or view.role(name) in ("conv", "linear", "pool"):
            return False
        name = inputs[0]
    return False


def _group_transitions(view: GraphView, units: list[_Unit]) -> list[_Unit]:
    """Put a 1x1 conv unit together with the pool behind it (behind the stem of a branching net)."""
    result: list[_Unit] = []
    body = False
    for unit in units:
        if body and unit.kind == "pool" and result and _pointwise(view, result[-1]):
            result[-1] = _join([result[-1], unit])
        else:
            result.append(unit)
        body = body or unit.kind in ("multi", "block")
    return result


def _block(view: GraphView, unit: _Unit, plain_conv: bool) -> Block:
    join = None if plain_conv else residual_join(view, unit.exit, unit.nodes)
    shortcut = join is not None and (shortcut_of(view, join, unit.entry, unit.nodes, unit.prefix) is not None)
    return Block(
        name=_block_name(view, unit),
        nodes=tuple(sorted(unit.nodes, key=view.order.__getitem__)),
        entry=unit.entry,
        exit=unit.exit,
        kind="conv" if plain_conv else "block",
        width=view.width(unit.exit),
        reduction=_whole(view, unit.exit),
        entry_width=view.width(unit.entry),
        entry_reduction=_whole(view, unit.entry),
        shortcut=shortcut,
        appends=not plain_conv and _appends(view, unit),
        preactivation=_is_preactivated(view, unit),
    )


def _whole(view: GraphView, name: str) -> int:
    reduction = view.reduction(name)
    if reduction.denominator != 1:
        raise TopologyError(
            f"the reduction at {view.where(name)} is {reduction}: only whole reductions make levels"
        )
    return int(reduction)


def _block_name(view: GraphView, unit: _Unit) -> str:
    paths = [view.path(n) for n in unit.nodes if view.nodes[n].op == "call_module"]
    if not paths:
        return unit.exit
    parts = [p.split(".") for p in paths]
    common = []
    for step in zip(*parts, strict=False):
        if len(set(step)) > 1:
            break
        common.append(step[0])
    return ".".join(common) or paths[0]


def _named(view: GraphView, blocks: list[Block]) -> list[Block]:
    """Name blocks that a common module does not tell apart after their first convolution."""
    names = [b.name for b in blocks]
    result = []
    for block in blocks:
        shared = [n for n in names if n == block.name or n.startswith(block.name + ".")]
        convs = [n for n in block.nodes if view.role(n) == "conv"]
        alone = len(shared) == 1 or not convs
        result.append(block if alone else replace(block, name=view.path(convs[0])))
    return result


# --- levels -------------------------------------------------------------------------------------------


def _assemble(
    view: GraphView,
    capture: Capture,
    grouped: list[tuple[_Unit, bool]],
    pools: list[_Unit],
    waiting: list[_Region],
    tail: list[str],
    plain: bool,
    logits: str,
) -> Analysis:
    blocks = _named(view, [_block(view, unit, plain_conv) for unit, plain_conv in grouped])
    notes: list[str] = []
    first_conv = str(grouped[0][0].conv or _first_conv(view, blocks))
    for a, b in itertools.pairwise(blocks):
        if b.reduction < a.reduction:
            raise TopologyError(
                f"resolution rises inside the network, at {view.where(b.exit)} (from 1/{a.reduction} to "
                f"1/{b.reduction}); only networks whose resolution falls with depth can be turned upside "
                f"down"
            )
    split = 0
    if not plain:
        split = next((i for i, b in enumerate(blocks) if b.kind == "block"), len(blocks))
    stem_blocks, body = blocks[:split], blocks[split:]
    if not body:
        raise TopologyError("the network has no block behind its stem")
    stem = _stem(view, stem_blocks, pools, body[0])
    head_nodes = [n for r in waiting for n in r.nodes] + tail
    body, head_convs, classifier = _head_convs(view, body, stem_blocks, tail, logits, plain)
    head_entry = body[-1].exit if body else ""
    if head_convs:
        head_entry = head_convs[-1].exit
    if not body:
        raise TopologyError("the network has no block before its classifier")
    head_nodes = [n for b in classifier for n in b.nodes] + head_nodes
    order = view.order.__getitem__
    trailing = [p for p in pools if view.order[p.exit] > view.order[(head_convs or body)[-1].exit]]
    if trailing:
        head_entry = trailing[-1].exit
        notes.append(
            f"the trailing level without parameters ({', '.join(f'r{_whole(view, p.exit)}' for p in trailing)}"
            f", {view.path(trailing[0].nodes[0])}) is dropped"
        )
    levels = _levels(view, stem_blocks, body, [p for p in pools if p not in trailing], first_conv)
    if len(levels) < 2:
        raise NoReductionError(
            "nothing in this network reduces resolution before its last block; there is nothing to turn upside down"
        )
    bodies = [level for level in levels if level.blocks]
    if len(bodies) < 2:
        raise NoReductionError(
            f"all blocks on the trunk of this network end at one resolution (1/{bodies[0].reduction} of the "
            f"image): it is isotropic, and there is nothing to turn upside down"
        )
    head = Head(
        nodes=tuple(sorted(set(head_nodes), key=order)),
        entry=head_entry,
        output=logits,
        convs=tuple(head_convs),
        pooled_size=_pooled_size(view, tail),
    )
    typical = [b for b in body if b.shortcut or b.appends]
    return Analysis(
        capture=capture,
        dims=view.dims,
        levels=levels,
        stem=stem,
        head=head,
        first_conv=first_conv,
        preactivation=bool(typical) and typical[0].preactivation,
        plain=plain,
        notes=(*capture.notes, *notes),
    )


def _check_tail(view: GraphView, tail: list[str]) -> None:
    """A head may not go on computing over positions in a form that is no (N, C, H, W) map."""
    for name in tail:
        value = view.dims[name]
        if view.role(name) in ("conv", "linear", "opaque") and is_spatial(value) and not is_feature_map(value):
            raise TopologyError(
                f"behind {view.where(tail[0])} the network works on tensors that are no (N, C, H, W) feature maps "
                f"(first weights: {view.where(name)}); only convolutional trunks can be turned upside down"
            )


def _first_conv(view: GraphView, blocks: list[Block]) -> str:
    return next(n for b in blocks for n in b.nodes if view.role(n) == "conv")


def _stem(view: GraphView, blocks: list[Block], pools: list[_Unit], first: Block) -> Stem:
    if not blocks:
        return Stem()
    nodes = [n for b in blocks for n in b.nodes]
    steps = [(view.order[b.exit], b.reduction // b.entry_reduction) for b in blocks]
    for pool in pools:
        if view.order[pool.exit] <= view.order[first.entry]:
            nodes += pool.nodes
            steps.append((view.order[pool.exit], _whole(view, pool.exit) // _whole(view, pool.entry)))
    return Stem(
        nodes=tuple(sorted(nodes, key=view.order.__getitem__)),
        strides=tuple(factor for _, factor in sorted(steps) if factor > 1),
    )


def _head_convs(
    view: GraphView, body: list[Block], stem: list[Block], tail: list[str], logits: str, plain: bool
) -> tuple[list[Block], list[Block], list[Block]]:
    """Split trailing 1x1 conv units off: (body, head convs, classifier convs)."""
    classes = view.dims[logits][1].size
    weights_behind = any(view.role(n) in ("conv", "linear", "head") for n in tail)
    convs: list[Block] = []
    classifier: list[Block] = []
    body = list(body)
    while len(body) > 1:
        last, before = body[-1], body[-2]
        node = next((n for n in last.nodes if view.role(n) == "conv"), None)
        if last.kind != "conv" or last.strides or node is None or view.kernel(node) != (1, 1):
            break
        if last.width == classes and not convs and not classifier and not weights_behind:
            classifier.append(body.pop())
            continue
        shared = _common_path(view.path(node), before.name)
        spans = any(
            b.reduction != last.reduction and (not shared or b.name.startswith(shared + "."))
            for b in [*stem, *body]
        )
        if plain or not spans or before.reduction != last.reduction:
            break
        convs.insert(0, body.pop())
    return body, convs, classifier


def _common_path(a: str, b: str) -> str:
    common = []
    for x, y in zip(a.split("."), b.split("."), strict=False):
        if x != y:
            break
        common.append(x)
    return ".".join(common)


def _levels(
    view: GraphView, stem: list[Block], body: list[Block], pools: list[_Unit], first_conv: str
) -> tuple[BottomUpLevel, ...]:
    widths: dict[int, tuple[int, int]] = {}
    sizes: dict[int, tuple[int, int]] = {}
    for exit_ in [b.exit for b in [*stem, *body]] + [p.exit for p in pools]:
        reduction, position = _whole(view, exit_), view.order[exit_]
        if widths.get(reduction, (-1, 0))[0] < position:
            widths[reduction] = (position, view.width(exit_))
            sizes[reduction] = tuple(d.size for d in view.dims[exit_][2:])
    first = view.module(first_conv).out_channels
    dropouts = {_whole(view, p.exit): tuple(p.dropouts) for p in pools}
    return tuple(
        BottomUpLevel(
            reduction=reduction,
            width=widths.get(reduction, (0, first))[1],
            size=sizes.get(reduction),
            blocks=tuple(b for b in body if b.reduction == reduction),
            dropouts=dropouts.get(reduction, ()),
        )
        for reduction in sorted({1, *widths}, reverse=True)
    )


def _pooled_size(view: GraphView, tail: list[str]) -> tuple[int, int] | None:
    """(H, W) of the map that the head binds by flattening it or by a window over all of it."""
    for name in tail:
        value = view.dims[name]
        if not is_tensor(value):
            continue
        if _covers_map(view, name):
            return view.kernel(name)
        if len(value) == 2 and view.role(name) == "pass" and view.inputs(name):
            # A flattening of a map without an adaptive pool: its size is that of the model's own image.
            source = view.dims[view.inputs(name)[0]]
            if is_feature_map(source):
                return (source[2].size, source[3].size)
    return None
