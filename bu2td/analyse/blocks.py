"""Part of analyse: regions -> conv units (`bu2td.analyse.units`) -> the blocks of the bottom-up network.

Units are grouped into blocks, see `bu2td.ir.bottom_up.Block`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from bu2td.analyse.trunk import Region
from bu2td.analyse.units import Segment, read_units
from bu2td.errors import TopologyError
from bu2td.graph.view import GraphView, follows_entry, residual_join, shortcut_of
from bu2td.ir.bottom_up import Block
from bu2td.ir.values import is_spatial
from bu2td.ops.roles import Role


@dataclass(frozen=True)
class Blocks:
    """The blocks in order, the downsamplers between them, what waits for the head, and the first convolution."""

    blocks: tuple[Block, ...]
    pools: tuple[Segment, ...]
    waiting: tuple[Region, ...]
    first_conv: str
    plain: bool


def find_blocks(view: GraphView, regions: list[Region], classes: int = 0) -> Blocks:
    """Read regions into blocks.

    Needs: the regions of `find_regions`; the number of classes if the head has no weights, so that a last 1x1
        conv unit of this width is the classifier, and part of no block.
    Returns: `Blocks`; ``plain`` means that no block has more than one path and none is depthwise-separable.
    Guarantees: every node of the regions is in one block, one downsampler, or waits for the head. The same net
        written flat or nested gives the same blocks.

    Raises:
        TopologyError: there is no convolution on the trunk, or a reduction is no whole number.
    """
    units, waiting = read_units(view, regions)
    plain = not any(u.kind == "multi" or (u.conv and view.depthwise(u.conv)) for u in units)
    last = units[-1] if units else None
    classifies = last is not None and _pointwise(view, last) and view.width(last.exit) == classes
    grouped, pools = _group(view, units[:-1] if classifies else units, plain)
    grouped += [(last, True)] if classifies and last else []
    if not grouped:
        raise TopologyError(
            "the network has no convolution on its trunk between image and head; a chain of blocks is needed"
        )
    blocks = _named(view, [_block(view, unit, plain_conv) for unit, plain_conv in grouped])
    first = next((n for b in blocks for n in b.nodes if view.role(n) == Role.CONV), None)
    if first is None:
        raise TopologyError("the blocks of this network have no convolution with a converter")
    return Blocks(tuple(blocks), tuple(pools), tuple(waiting), first, plain)


def _concatenates_entry(view: GraphView, unit: Segment) -> bool:
    """Whether the entry's channels are handed on to the exit by concat.

    In blocks that grow, branches may have been added to them on the way (dual path, partial residual).
    """
    inside = set(unit.nodes)
    grows = view.width(unit.exit) > view.width(unit.entry)
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
        inputs = view.inputs(name)
        hands_on = role in (Role.PASS, Role.POOL, Role.DROPOUT, Role.ACT, Role.PAD) and len(inputs) == 1
        joined = joined or role == Role.CONCAT
        if role == Role.CONCAT or hands_on or (joined and grows and role in (Role.ADD, Role.SPLIT)):
            stack += inputs
    return False


def _is_preactivated(view: GraphView, unit: Segment) -> bool:
    """Whether the main path starts with norm-act before a convolution."""
    inside = set(unit.nodes)
    for name in unit.nodes:
        if unit.entry not in view.inputs(name) or not view.role(name).normalises:
            continue
        acted = view.role(name) == Role.NORM_ACT
        while True:
            users = [u.name for u in view.nodes[name].users if u.name in inside]
            if any(view.role(u) == Role.CONV for u in users):
                if acted:
                    return True
                break
            following = [u for u in users if view.role(u) in (Role.ACT, Role.PASS, Role.DROPOUT, Role.CONCAT)]
            if not following:
                break
            name = following[0]
            acted = acted or view.role(name) == Role.ACT
    return False


def _pointwise(view: GraphView, unit: Segment) -> bool:
    return unit.kind == "conv" and unit.conv is not None and view.kernel(unit.conv) == (1, 1)


def _group(view: GraphView, units: list[Segment], plain: bool) -> tuple[list[tuple[Segment, bool]], list[Segment]]:
    """Group units into blocks; returns (unit, is a plain conv unit) in order, and the downsamplers."""
    if not plain:
        units = _group_depthwise(view, units)
        units = _group_aggregations(view, units)
        units = _group_squeezes(view, units)
        units = _group_transitions(view, units)
    blocks = [(u, u.kind == "conv") for u in units if u.kind != "pool"]
    return blocks, [u for u in units if u.kind == "pool"]


def _join(units: list[Segment]) -> Segment:
    return Segment(
        "block",
        [n for u in units for n in u.nodes],
        units[0].entry,
        units[-1].exit,
        conv=units[0].conv,
        prefix=units[0].prefix,
        roles=set().union(*(u.roles for u in units)),
    )


def _group_depthwise(view: GraphView, units: list[Segment]) -> list[Segment]:
    """Put a depthwise or grouped conv (or several in branches) with its 1x1 convs into one block.

    Its 1x1 convs are those in the smallest submodule that holds it and one of them, if that submodule
    holds nothing else; in a net written flat, the 1x1 conv behind it and an expanding one before it.
    """
    result: list[Segment] = []
    at = 0
    spans: list[tuple[int, int]] = []
    for i, unit in enumerate(units):
        if _all_convs(view, unit, view.grouped) and (not spans or i > spans[-1][1]):
            span = _depthwise_span(view, units, i, spans[-1][1] + 1 if spans else 0)
            if span[0] < span[1] or _all_convs(view, unit, view.depthwise):
                spans.append(span)
    for first, last in spans:
        result += units[at:first]
        result.append(_join(units[first : last + 1]))
        at = last + 1
    return result + units[at:]


def _all_convs(view: GraphView, unit: Segment, test: Callable[[str], bool]) -> bool:
    """Whether a unit has convolutions over the map, all of which pass a test, and no other layers."""
    layers = [n for n in unit.nodes if view.role(n).layer and is_spatial(view.dims[n])]
    return (
        unit.kind in ("conv", "multi")
        and bool(layers)
        and all(view.role(n) == Role.CONV and test(n) for n in layers)
    )


def _depthwise_span(view: GraphView, units: list[Segment], at: int, low: int) -> tuple[int, int]:
    def pointwise(name: str) -> bool:
        return view.kernel(name) == (1, 1)

    def fits(i: int) -> bool:
        return low <= i < len(units) and (_all_convs(view, units[i], pointwise) or depthwise(i))

    def depthwise(i: int) -> bool:
        return _all_convs(view, units[i], view.grouped)

    path = view.path(next(n for n in units[at].nodes if view.role(n) == Role.CONV))
    while "." in path:
        path = path.rpartition(".")[0]
        inside = [i for i, u in enumerate(units) if u.kind != "pool" and _under(view, u, path)]
        if len(inside) > 1:
            span = (inside[0], inside[-1])
            a_stage = view.is_container(path) and sum(map(depthwise, inside)) > 1
            between = {*range(span[0], span[1])} - {*inside}  # a pool may stand between them (anti-aliasing)
            if all(units[i].kind == "pool" for i in between) and all(map(fits, inside)) and not a_stage:
                return span
            break
    first = last = at
    if fits(last + 1) and not depthwise(last + 1) and not _apart(view, units, at, last + 1):
        last += 1
    fits_before = fits(at - 1) and units[at - 1].conv and not _apart(view, units, at, at - 1)
    before = view.module(str(units[at - 1].conv)) if fits_before else None
    if before is not None and before.kernel_size == (1, 1) and before.out_channels > before.in_channels:
        first -= 1
    return first, last


def _apart(view: GraphView, units: list[Segment], a: int, b: int) -> bool:
    """Whether a submodule holds one of two units and a third, but not the other: its border keeps them apart."""
    for one, other in ((a, b), (b, a)):
        path = next(view.path(n) for n in units[one].nodes if view.role(n).layer)
        while "." in path:
            path = path.rpartition(".")[0]
            if _under(view, units[other], path):
                break
            if any(_under(view, u, path) for i, u in enumerate(units) if i != one):
                return True
    return False


def _under(view: GraphView, unit: Segment, path: str) -> bool:
    convs = [n for n in unit.nodes if view.role(n).dense]
    return any(view.path(n).startswith(path + ".") for n in convs)


def _group_aggregations(view: GraphView, units: list[Segment]) -> list[Segment]:
    """Put a region that appends to its entry together with the 1x1 convs that aggregate right behind.

    These are all that the smallest submodule holds beside it and one 1x1 conv that it may begin with; in a net
    written flat, the next unit, unless a pool follows (that is a transition).
    """
    result: list[Segment] = []
    end = joined = 0
    for i, unit in enumerate(units):
        if i < end:
            continue
        concatenates = unit.kind == "multi" and _concatenates_entry(view, unit)
        first, end = _aggregation(view, units, i, joined) if concatenates else (i, i + 1)
        del result[len(result) - (i - first) :]
        joined = end if end > first + 1 else joined
        result.append(_join(units[first:end]) if joined == end else unit)
    return result


def _aggregation(view: GraphView, units: list[Segment], at: int, low: int) -> tuple[int, int]:
    """From where (``low`` at least) to where units belong to the region at a place, which appends to its entry."""

    def chained(i: int) -> bool:
        unit = units[i]
        reduces = view.reduction(unit.exit) != view.reduction(unit.entry)
        follows = i == 0 or units[i - 1].exit == unit.entry
        return _pointwise(view, unit) and not unit.prefix and follows and not reduces

    def expands(i: int) -> bool:
        return i >= low and chained(i) and units[i].exit == units[at].entry

    own = path = _block_name(view, units[at])
    while path:
        inside = [i for i, u in enumerate(units) if _under(view, u, path)]
        first = at - 1 if inside[:1] == [at - 1] and expands(at - 1) else at
        if not inside or inside != list(range(first, first + len(inside))):
            break
        if inside[-1] > at:
            return (first, inside[-1] + 1) if all(map(chained, range(at + 1, inside[-1] + 1))) else (at, at + 1)
        path = path.rpartition(".")[0]
    if at + 1 == len(units) or not chained(at + 1):
        return at, at + 1
    pooled = at + 2 < len(units) and units[at + 2].kind == "pool"
    flat = not own or view.path(str(units[at + 1].conv)).startswith(f"{own}.")
    return at, at + 2 if flat and not pooled else at + 1


def _group_squeezes(view: GraphView, units: list[Segment]) -> list[Segment]:
    """Put a 1x1 conv unit together with the region right behind it that branches and joins by concat.

    Fire modules squeeze before they expand, cross-stage partial stages expand before they split.
    """
    result: list[Segment] = []
    for i, unit in enumerate(units):
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
            and not _apart(view, units, i - 1, i)
        ):
            result[-1] = _join([before, unit])
        else:
            result.append(unit)
    return result


def _joins_by_concat(view: GraphView, unit: Segment) -> bool:
    name = unit.exit
    while name in unit.nodes:
        inputs = view.inputs(name)
        if view.role(name) == Role.CONCAT:
            return True
        if len(inputs) != 1 or view.role(name).transforms:
            return False
        name = inputs[0]
    return False


def _group_transitions(view: GraphView, units: list[Segment]) -> list[Segment]:
    """Put a 1x1 conv unit together with the pool behind it (behind the stem of a branching net)."""
    result: list[Segment] = []
    body = False
    for unit in units:
        if body and unit.kind == "pool" and result and _pointwise(view, result[-1]):
            result[-1] = _join([result[-1], unit])
        else:
            result.append(unit)
        body = body or unit.kind in ("multi", "block")
    return result


def _block(view: GraphView, unit: Segment, plain_conv: bool) -> Block:
    join = None if plain_conv else residual_join(view, unit.exit, unit.nodes)
    shortcut = join is not None and (shortcut_of(view, join, unit.entry, unit.nodes, unit.prefix) is not None)
    return Block(
        name=_block_name(view, unit),
        nodes=tuple(sorted(set(unit.nodes), key=view.order.__getitem__)),
        entry=unit.entry,
        exit=unit.exit,
        kind="conv" if plain_conv else "block",
        width=view.width(unit.exit),
        reduction=whole_reduction(view, unit.exit),
        entry_width=view.width(unit.entry),
        entry_reduction=whole_reduction(view, unit.entry),
        shortcut=shortcut,
        concatenates_entry=not plain_conv and _concatenates_entry(view, unit),
        keeps_entry_width=follows_entry(view, unit.exit, unit.entry, unit.nodes),
        preactivation=_is_preactivated(view, unit),
    )


def whole_reduction(view: GraphView, name: str) -> int:
    """The reduction of a trunk tensor; fractions make no levels."""
    reduction = view.reduction(name)
    if reduction.denominator != 1:
        raise TopologyError(
            f"the reduction at {view.where(name)} is {reduction}: only whole reductions make levels"
        )
    return int(reduction)


def _block_name(view: GraphView, unit: Segment) -> str:
    called = [n for n in unit.nodes if view.nodes[n].op == "call_module"]
    # An activation may be shared by the whole network, and says nothing about where a block is.
    paths = [view.path(n) for n in called if view.role(n) not in (Role.ACT, Role.DROPOUT)] or list(
        map(view.path, called)
    )
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
        convs = [n for n in block.nodes if view.role(n) == Role.CONV]
        alone = len(shared) == 1 or not convs
        result.append(block if alone else replace(block, name=view.path(convs[0])))
    return result
