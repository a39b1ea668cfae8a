"""Pass 3, analyse: a probed graph -> levels, stem and head of the bottom-up network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from bu2td.analyse.back_reads import GIANT_STEP
from bu2td.analyse.blocks import Blocks, Segment, find_blocks, whole_reduction
from bu2td.analyse.channels_last import expose_maps
from bu2td.analyse.trunk import covers_map, find_regions
from bu2td.errors import ModelOutputError, NoReductionError, TopologyError
from bu2td.graph.view import GraphView
from bu2td.ir.bottom_up import Analysis, Block, BottomUpLevel, Capture, Head, Stem
from bu2td.ir.values import Dims, is_feature_map, is_tensor
from bu2td.ops.roles import Role


def analyse(capture: Capture, dims: Mapping[str, Dims]) -> Analysis:
    """Find the levels of a bottom-up network.

    Needs: a `Capture` and its probe.
    Returns: an `Analysis`; it serves all arrangements.
    Guarantees: at least two reductions, at least one level with a body, reductions fall monotonically,
        and every node between image and logits belongs to exactly one of what prepares the image, stem, level,
        downsampler, head.

    Raises:
        ModelOutputError: the output is not one tensor of logits (N, classes).
        NoReductionError: nothing reduces resolution.
        TopologyError: there is no trunk of single tensors to build levels from.
    """
    logits = _logits(GraphView(capture, dims))
    capture, dims = expose_maps(capture, dims, logits)
    view = GraphView(capture, dims)
    found = find_regions(view, logits)
    weights_behind = any(view.role(n) in (Role.CONV, Role.LINEAR, Role.HEAD) for n in found.tail)
    classes = 0 if weights_behind else view.dims[logits][1].size
    analysis = _assemble(view, capture, find_blocks(view, found.regions, classes), found.tail, logits, classes)
    leading = tuple(n for region in found.leading for n in region.nodes)
    prepared = found.leading[-1].exit if leading else ""
    return replace(analysis, aside=found.aside, input_nodes=leading, input_exit=prepared)


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


def _assemble(
    view: GraphView, capture: Capture, found: Blocks, tail: list[str], logits: str, classes: int
) -> Analysis:
    blocks, pools = list(found.blocks), found.pools
    notes: list[str] = []
    for a, b in pairwise(blocks):
        if b.reduction < a.reduction:
            raise TopologyError(
                f"resolution rises inside the network, at {view.where(b.exit)} (from 1/{a.reduction} to "
                f"1/{b.reduction}); only networks whose resolution falls with depth can be turned upside "
                f"down"
            )
    for block in blocks:
        if block.kind == "block" and block.reduction >= GIANT_STEP * block.entry_reduction:
            raise TopologyError(
                f"{block.name} goes from 1/{block.entry_reduction} to 1/{block.reduction} of the image in one "
                f"piece: its parts read several resolutions at once, so there is no trunk to cut into levels"
            )
    split = 0
    if not found.plain:
        split = next((i for i, b in enumerate(blocks) if b.kind == "block"), len(blocks))
        if len({b.reduction for b in blocks[split:]}) == 1 < len({b.reduction for b in blocks}):
            split = 0  # all that reduces are plain conv units: they are the levels
    stem_blocks, body = blocks[:split], blocks[split:]
    if not body:
        raise TopologyError("the network has no block behind its stem")
    stem = _stem(view, stem_blocks, pools, body[0])
    head_nodes = [n for r in found.waiting for n in r.nodes] + tail
    body, head_convs, classifier = _head_convs(view, body, stem_blocks, classes, found.plain)
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
        dropped = ", ".join(f"r{whole_reduction(view, p.exit)}" for p in trailing)
        notes.append(
            f"the trailing level without parameters ({dropped}, {view.path(trailing[0].nodes[0])}) is dropped"
        )
    levels = _levels(view, stem_blocks, body, [p for p in pools if p not in trailing], found.first_conv)
    if len(levels) < 2:
        raise NoReductionError(
            "nothing in this network reduces resolution before its last block; there is nothing to turn upside down"
        )
    bodies = [level for level in levels if level.blocks]
    if len(bodies) < 2:
        raise NoReductionError(
            f"all blocks of this network end at one resolution (1/{bodies[0].reduction} of the image): they are "
            f"isotropic, and there is nothing to turn upside down"
        )
    head = Head(
        nodes=tuple(sorted(set(head_nodes), key=order)),
        entry=head_entry,
        output=logits,
        convs=tuple(head_convs),
        pooled_size=_pooled_size(view, tail),
    )
    typical = [b for b in body if b.shortcut or b.concatenates_entry]
    return Analysis(
        capture=capture,
        dims=view.dims,
        levels=levels,
        stem=stem,
        head=head,
        first_conv=found.first_conv,
        preactivation=bool(typical) and typical[0].preactivation,
        plain=found.plain,
        notes=(*capture.notes, *notes),
    )


def _stem(view: GraphView, blocks: list[Block], pools: Sequence[Segment], first: Block) -> Stem:
    if not blocks:
        return Stem()
    nodes = [n for b in blocks for n in b.nodes]
    steps = [(view.order[b.exit], b.reduction // b.entry_reduction) for b in blocks]
    for pool in pools:
        if view.order[pool.exit] <= view.order[first.entry]:
            nodes += pool.nodes
            steps.append(
                (view.order[pool.exit], whole_reduction(view, pool.exit) // whole_reduction(view, pool.entry))
            )
    return Stem(
        nodes=tuple(sorted(nodes, key=view.order.__getitem__)),
        strides=tuple(factor for _, factor in sorted(steps) if factor > 1),
    )


def _head_convs(
    view: GraphView, body: list[Block], stem: list[Block], classes: int, plain: bool
) -> tuple[list[Block], list[Block], list[Block]]:
    """Split trailing 1x1 conv units off: (body, head convs, classifier convs)."""
    convs: list[Block] = []
    classifier: list[Block] = []
    body = list(body)
    while len(body) > 1:
        last, before = body[-1], body[-2]
        node = next((n for n in last.nodes if view.role(n) == Role.CONV), None)
        if last.kind != "conv" or last.strides or node is None or view.kernel(node) != (1, 1):
            break
        if last.width == classes and not convs and not classifier:
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
    view: GraphView, stem: list[Block], body: list[Block], pools: Sequence[Segment], first_conv: str
) -> tuple[BottomUpLevel, ...]:
    widths: dict[int, tuple[int, int]] = {}
    sizes: dict[int, tuple[int, int]] = {}
    for exit_ in [b.exit for b in [*stem, *body]] + [p.exit for p in pools]:
        reduction, position = whole_reduction(view, exit_), view.order[exit_]
        if widths.get(reduction, (-1, 0))[0] < position:
            widths[reduction] = (position, view.width(exit_))
            sizes[reduction] = tuple(d.size for d in view.dims[exit_][2:])
    first = view.width(first_conv)
    dropouts = {whole_reduction(view, p.exit): tuple(p.dropouts) for p in pools}
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
        if covers_map(view, name):
            return view.kernel(name)
        if len(value) == 2 and view.role(name) == Role.PASS and view.inputs(name):
            # A flattening of a map without an adaptive pool: its size is that of the model's own image.
            source = view.dims[view.inputs(name)[0]]
            if is_feature_map(source):
                return (source[2].size, source[3].size)
    return None
