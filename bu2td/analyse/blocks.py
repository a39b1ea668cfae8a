"""Part of analyse: regions -> segments (`bu2td.analyse.segments`) -> the blocks of the bottom-up network.

Segments are grouped into blocks by `bu2td.analyse.groupings`; what a block is, says `bu2td.ir.bottom_up.Block`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bu2td.analyse.groupings import group, is_pointwise
from bu2td.analyse.joins import Stretch, concatenates_entry, residual_join
from bu2td.analyse.names import block_name, told_apart
from bu2td.analyse.segments import Segment, SegmentKind, read_segments
from bu2td.analyse.shortcuts import find_shortcuts, tied_to_entry
from bu2td.analyse.trunk import Region
from bu2td.errors import TopologyError
from bu2td.graph import GraphView
from bu2td.ir import Block, BlockKind, Preactivation
from bu2td.ops import Role


@dataclass(frozen=True)
class Blocks:
    """The blocks in order, the downsamplers between them, what waits for the head, and the first convolution."""

    blocks: tuple[Block, ...]
    pools: tuple[Segment, ...]
    waiting: tuple[Region, ...]
    first_conv: str
    plain: bool


def find_blocks(view: GraphView, regions: Sequence[Region], classes: int = 0) -> Blocks:
    """Read regions into blocks.

    Needs: the regions of `find_regions`; the number of classes if the head has no weights, so that a last 1x1
        conv unit of this width is the classifier, and part of no block.
    Returns: `Blocks`; ``plain`` means that no block has more than one path and none is depthwise-separable.
    Guarantees: every node of the regions is in one block, one downsampler, or waits for the head. The same net
        written flat or nested gives the same blocks.

    Raises:
        TopologyError: there is no convolution on the trunk, or a reduction is no whole number.
    """
    segments, waiting = read_segments(view, regions)
    plain = not any(s.kind == SegmentKind.BRANCHING or (s.conv and view.depthwise(s.conv)) for s in segments)
    if not plain:
        last = segments[-1]
        classifies = is_pointwise(view, last) and view.width(last.exit) == classes
        segments = [*group(view, segments[:-1]), last] if classifies else group(view, segments)
    pools = tuple(s for s in segments if s.kind == SegmentKind.POOL)
    blocks = told_apart(view, [_block(view, s) for s in segments if s.kind != SegmentKind.POOL])
    if not blocks:
        raise TopologyError(
            "the network has no convolution on its trunk between image and head; a chain of blocks is needed"
        )
    first = next((n for b in blocks for n in b.nodes if view.role(n) == Role.CONV), None)
    if first is None:
        raise TopologyError("the blocks of this network have no convolution with a converter")
    return Blocks(tuple(blocks), pools, tuple(waiting), first, plain)


def _block(view: GraphView, segment: Segment) -> Block:
    nodes = tuple(sorted(set(segment.nodes), key=view.order.__getitem__))
    tied = tied_to_entry(view, segment.entry, nodes)
    shortcuts = tuple(find_shortcuts(view, segment.entry, nodes, tied))
    last = shortcuts[-1] if shortcuts else None
    closed = last is not None and last.from_entry and last.join == residual_join(view, segment)
    conv_unit = segment.kind == SegmentKind.CONV
    return Block(
        name=block_name(view, segment),
        nodes=nodes,
        entry=segment.entry,
        exit=segment.exit,
        kind=BlockKind.CONV if conv_unit else BlockKind.COMPOUND,
        width=view.width(segment.exit),
        reduction=whole_reduction(view, segment.exit),
        entry_width=view.width(segment.entry),
        entry_reduction=whole_reduction(view, segment.entry),
        shortcut=last if closed else None,
        inner_shortcuts=shortcuts[:-1] if closed else shortcuts,
        concatenates_entry=not conv_unit and concatenates_entry(view, segment),
        keeps_entry_width=segment.exit in tied,
        preactivation=_preactivation(view, segment),
    )


def _preactivation(view: GraphView, stretch: Stretch) -> Preactivation | None:
    """The norm-act with which a main path starts, before a convolution."""
    for name in stretch.nodes:
        if stretch.entry in view.inputs(name) and view.role(name).normalises:
            found = _activated(view, stretch, name)
            if found:
                return found
    return None


def _activated(view: GraphView, stretch: Stretch, norm: str) -> Preactivation | None:
    """A norm with its activation, if a convolution reads them."""
    inside = set(stretch.nodes)
    acted = view.role(norm) == Role.NORM_ACT
    act: str | None = None
    name: str | None = norm
    while name:
        users = [u.name for u in view.nodes[name].users if u.name in inside]
        if any(view.role(u) == Role.CONV for u in users):
            return Preactivation(norm, act) if acted else None
        name = next((u for u in users if view.role(u) in (Role.ACT, Role.PASS, Role.DROPOUT, Role.CONCAT)), None)
        if name and not acted and view.role(name) == Role.ACT:
            acted, act = True, name
    return None


def whole_reduction(view: GraphView, name: str) -> int:
    """The reduction of a trunk tensor; fractions make no levels."""
    reduction = view.reduction(name)
    if reduction.denominator != 1:
        raise TopologyError(
            f"the reduction at {view.where(name)} is {reduction}: only whole reductions make levels"
        )
    return int(reduction)
