"""Stage 3, analyse: a probed graph -> levels, stem and head of the bottom-up network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from bu2td.analyse.blocks import Blocks, find_blocks, whole_reduction
from bu2td.analyse.channels_last import expose_maps
from bu2td.analyse.head import dropped_level, make_head, part_head, trailing_pools
from bu2td.analyse.joins import Stretch
from bu2td.analyse.long_paths import holds_levels
from bu2td.analyse.preparation import count_preparing
from bu2td.analyse.segments import Segment
from bu2td.analyse.streams import slices_of_image
from bu2td.analyse.trunk import Regions, find_regions
from bu2td.errors import ModelOutputError, NoReductionError, TopologyError
from bu2td.graph import GraphView
from bu2td.ir import Analysis, Block, BlockKind, BottomUpLevel, Capture, Dims, Stem, is_tensor
from bu2td.ops import Role


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
    view = GraphView(capture, dims)
    logits = _logits(view)
    view = expose_maps(view, logits)
    regions = find_regions(view, logits)
    image = next(name for name, node in view.nodes.items() if node.op == "placeholder")
    end = count_preparing(view, image, regions.regions)
    leading, following = regions.regions[:end], regions.regions[end:]
    weights_behind = any(view.role(n) in (Role.CONV, Role.LINEAR, Role.HEAD) for n in regions.tail)
    classes = 0 if weights_behind else view.dims[logits][1].size
    analysis = _assemble(view, regions, find_blocks(view, following, classes), logits, classes)
    prepared = leading[-1].exit if leading else ""
    slices = slices_of_image(view, prepared or image, (b for level in analysis.bodies for b in level.blocks))
    if slices:
        named = ", ".join(view.where(name) for name in slices)
        note = f"streams that read parts of the image, at {named}, read all features here"
        analysis = replace(analysis, stand_ins={**analysis.stand_ins, **slices}, notes=(*analysis.notes, note))
    return replace(analysis, input_nodes=tuple(n for r in leading for n in r.nodes), input_exit=prepared)


_MAPS = (
    ": networks that return maps (for segmentation, generation, features) have no top-down form, but "
    "bu2td.dense(model, num_classes) makes one for pixels of their encoder"
)


def _logits(view: GraphView) -> str:
    output = next(n for n in view.nodes.values() if n.op == "output")
    node = output.args[0]
    value = view.dims[node.name]
    kinds = [d.kind for d in value] if is_tensor(value) else None
    if kinds != ["batch", "channel"]:
        shape = tuple(d.size for d in value) if is_tensor(value) else "several tensors"
        raise ModelOutputError(
            f"the model returns {shape} ({view.where(node.name)}); one tensor of logits (N, classes) is needed"
            f"{_MAPS if is_tensor(value) and len(value) == 4 else ''}"
        )
    return node.name


def _assemble(view: GraphView, regions: Regions, found: Blocks, logits: str, classes: int) -> Analysis:
    """Deal blocks and pools out to stem, levels and head."""
    _check_blocks(view, found.blocks)
    at = _body_from(view, found, regions.paths.sources)
    behind_stem, stem_blocks = found.blocks[at:], found.blocks[:at]
    if not behind_stem:
        raise TopologyError("the network has no block behind its stem")
    stem = _stem(view, stem_blocks, found.pools, behind_stem[0])
    parting = part_head(view, found, stem_blocks, behind_stem, classes)
    trailing = trailing_pools(view, found.pools, parting)
    pools = [p for p in found.pools if p not in trailing]
    levels = _levels(view, stem_blocks, parting.body, pools, _first_width(view, found))
    _check_levels(levels)
    typical = next((b for b in parting.body if b.shortcut or b.concatenates_entry), None)
    return Analysis(
        view=view,
        levels=levels,
        stem=stem,
        head=make_head(view, found, parting, trailing, regions.tail, logits),
        first_conv=found.first_conv,
        preactivation=typical is not None and typical.preactivation is not None,
        plain=found.plain,
        notes=(*view.capture.notes, *regions.paths.notes, *([dropped_level(view, trailing)] if trailing else [])),
        aside=regions.paths.aside,
        stand_ins=regions.paths.again,
    )


def _check_blocks(view: GraphView, blocks: Sequence[Block]) -> None:
    """Resolution falls from block to block, and no block holds several levels."""
    for a, b in pairwise(blocks):
        if b.reduction < a.reduction:
            raise TopologyError(
                f"resolution rises inside the network, at {view.where(b.exit)} (from 1/{a.reduction} to "
                f"1/{b.reduction}); only networks whose resolution falls with depth can be turned upside "
                f"down"
            )
    for block in blocks:
        if holds_levels(view, block.entry, block.exit, block.nodes):
            readers = [view.where(u.name) for u in view.nodes[block.entry].users if u.name in block.nodes]
            joins = [n for n in block.nodes if len(view.inputs(n)) > 1]
            raise TopologyError(
                f"{block.name} goes from 1/{block.entry_reduction} to 1/{block.reduction} of the image in one "
                f"piece: its parts read several resolutions at once, so there is no trunk to cut into levels. "
                f"They part behind {view.where(block.entry)}, which {' and '.join(readers)} read, and meet at last "
                f"at {view.where(joins[-1])}. A shortcut with one layer, joined once, may span levels; a second "
                f"stream may not"
            )


def _check_levels(levels: Sequence[BottomUpLevel]) -> None:
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


def _body_from(view: GraphView, found: Blocks, sources: Sequence[str]) -> int:
    """Where the stem ends: at the first block that is more than a conv unit, in a net that has such blocks.

    What stands behind the source of a shortcut over levels is part of what that runs over, and not of the stem.
    """
    reductions = [b.reduction for b in found.blocks]
    if found.plain:
        return 0
    begin = min((view.order[source] for source in sources), default=len(view.order))
    at = next(
        (i for i, b in enumerate(found.blocks) if b.kind == BlockKind.COMPOUND or view.order[b.entry] >= begin),
        len(reductions),
    )
    all_before = len(set(reductions[at:])) == 1 < len(set(reductions))
    return 0 if all_before else at  # where all that reduce are plain conv units, they are the levels


def _stem(view: GraphView, blocks: Sequence[Block], pools: Sequence[Segment], first: Block) -> Stem:
    """The conv units before the first block of the body, with the pools among them."""
    if not blocks:
        return Stem()
    parts: list[Stretch] = [*blocks, *(p for p in pools if view.order[p.exit] <= view.order[first.entry])]
    steps = sorted(
        (view.order[part.exit], whole_reduction(view, part.exit) // whole_reduction(view, part.entry))
        for part in parts
    )
    nodes = [n for part in parts for n in part.nodes]
    return Stem(
        nodes=tuple(sorted(nodes, key=view.order.__getitem__)),
        strides=tuple(factor for _, factor in steps if factor > 1),
    )


def _first_width(view: GraphView, found: Blocks) -> int:
    """Width of the first convolution, or of what a gate behind it leaves."""
    block = next(b for b in found.blocks if found.first_conv in b.nodes)
    return block.width if block.kind == BlockKind.CONV else view.width(found.first_conv)


def _levels(
    view: GraphView, stem: Sequence[Block], body: Sequence[Block], pools: Sequence[Segment], first: int
) -> tuple[BottomUpLevel, ...]:
    """One level per reduction, and the image; its width and size are those of the last map at this reduction."""
    exits = sorted([*(b.exit for b in (*stem, *body)), *(p.exit for p in pools)], key=view.order.__getitem__)
    last = {whole_reduction(view, name): name for name in exits}
    dropouts = {whole_reduction(view, p.exit): p.dropouts for p in pools}
    return tuple(
        BottomUpLevel(
            reduction=reduction,
            width=view.width(last[reduction]) if reduction in last else first,
            size=tuple(d.size for d in view.dims[last[reduction]][2:]) if reduction in last else None,
            blocks=tuple(b for b in body if b.reduction == reduction),
            dropouts=dropouts.get(reduction, ()),
        )
        for reduction in sorted({1, *last}, reverse=True)
    )
