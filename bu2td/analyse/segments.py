"""Part of analyse: regions -> segments: conv units, branching regions and pools.

Regions are read like a sentence: a conv takes the norm and activation behind it; a norm or activation that
follows anything else waits for the next conv or branching region (pre-activation), and what still waits at
the end belongs to the head. So does arithmetic that the network does at its end alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

from bu2td.analyse.arithmetic import arithmetic_of_the_head
from bu2td.analyse.joins import concatenates_entry, residual_join
from bu2td.analyse.trunk import Region, RegionKind
from bu2td.graph import GraphView
from bu2td.ops import Role

#: Roles of what a gate consists of.
_GATING = {
    *(Role.ACT, Role.MUL, Role.ADD, Role.PASS, Role.SPLIT, Role.CONCAT),
    *(Role.ATTRIBUTE, Role.GATE, Role.DROPOUT),
}


class SegmentKind(Enum):
    """What a segment is: a conv unit, a branching region, a pool that reduces, or several that form one block."""

    CONV = "conv"
    BRANCHING = "branching"
    POOL = "pool"
    GROUP = "group"


@dataclass(frozen=True)
class Segment:
    """A run of regions that belong together.

    Attributes:
        conv: the convolution (or linear layer) of a conv unit, the first one's in a group that begins with one.
        prefixed: a norm or an activation stands before its first convolution.
        dropouts: those that follow a pool.
    """

    kind: SegmentKind
    nodes: tuple[str, ...]
    entry: str
    exit: str
    roles: frozenset[Role]
    conv: str | None = None
    prefixed: bool = False
    dropouts: tuple[str, ...] = ()

    def followed_by(self, *regions: Region) -> Segment:
        """The segment with regions that follow."""
        nodes = (*self.nodes, *(n for r in regions for n in r.nodes))
        return replace(
            self, nodes=nodes, exit=regions[-1].exit, roles=self.roles.union(*(r.roles for r in regions))
        )


def joined(segments: Sequence[Segment]) -> Segment:
    """Consecutive segments as one block."""
    first, last = segments[0], segments[-1]
    nodes = tuple(n for s in segments for n in s.nodes)
    roles = frozenset[Role]().union(*(s.roles for s in segments))
    return Segment(SegmentKind.GROUP, nodes, first.entry, last.exit, roles, first.conv, first.prefixed)


def read_segments(view: GraphView, regions: Sequence[Region]) -> tuple[list[Segment], list[Region]]:
    """Read regions into conv units, branching regions and pools.

    Needs: the regions of `bu2td.analyse.trunk.find_regions`, in order.
    Returns: the segments in order, and the regions that wait for the head.
    Guarantees: every region is in one segment or waits.
    """
    end = arithmetic_of_the_head(view, regions)
    reader = _Reader(view, regions[:end])
    for at, region in enumerate(reader.regions):
        if region.kind == RegionKind.IMAGE:
            reader.waiting.append(region)
        elif computes_only(view, region):
            reader.take(region)
        elif region.kind in (RegionKind.CONV, RegionKind.BRANCHING):
            reader.open(region)
        elif _reduces(view, region):
            reader.reduce(region)
        elif reader.closes_last(at):
            reader.append(region)
        else:
            reader.waiting.append(region)
    return reader.segments, [*reader.waiting, *regions[end:]]


class _Reader:
    """What was read so far: the segments, and the regions that wait for the next one."""

    def __init__(self, view: GraphView, regions: Sequence[Region]) -> None:
        self.view = view
        self.regions = regions
        self.activates_sums = not any(_reads_raw_sum(view, r) for r in regions if r.kind == RegionKind.BRANCHING)
        self.segments: list[Segment] = []
        self.waiting: list[Region] = []

    def open(self, region: Region) -> None:
        """Begin a segment with a layer; what waits stands in front of it."""
        kind = SegmentKind.CONV if region.kind == RegionKind.CONV else SegmentKind.BRANCHING
        run = [*self.waiting, region]
        nodes = tuple(n for r in run for n in r.nodes)
        prefixed = any(r.kind in (RegionKind.NORM, RegionKind.ACT) for r in self.waiting)
        self.segments.append(Segment(kind, nodes, run[0].entry, region.exit, region.roles, region.conv, prefixed))
        self.waiting = []

    def take(self, region: Region) -> None:
        """Take paths without layers: a gate belongs to the layer that it reads, what appends to the next one."""
        behind_layer = self.segments and self.segments[-1].kind != SegmentKind.POOL
        if self.waiting or not behind_layer or _appends(self.view, region):
            self.waiting.append(region)
        else:
            self.segments[-1] = self.segments[-1].followed_by(region)

    def reduce(self, region: Region) -> None:
        """A pool that reduces: what waits belongs to the segment before it."""
        if self.waiting and self.segments:
            self.segments[-1] = self.segments[-1].followed_by(*self.waiting)
            self.waiting = []
        self.segments.append(Segment(SegmentKind.POOL, region.nodes, region.entry, region.exit, region.roles))

    def closes_last(self, at: int) -> bool:
        """Whether a region belongs to the segment in front of it."""
        region = self.regions[at]
        if self.waiting or not self.segments:
            return False
        last = self.segments[-1]
        if region.kind == RegionKind.NORM:
            bare = last.kind == SegmentKind.CONV and not any(r.normalises or r == Role.ACT for r in last.roles)
            return bare and not self._opens_preactivated(at)
        if region.kind == RegionKind.DROPOUT:
            return last.kind == SegmentKind.POOL
        if region.kind == RegionKind.ACT:
            return last.kind == SegmentKind.CONV or (last.kind == SegmentKind.BRANCHING and self.activates_sums)
        return True

    def append(self, region: Region) -> None:
        """Take a region into the last segment."""
        last = self.segments[-1].followed_by(region)
        dropped = region.nodes if region.kind == RegionKind.DROPOUT else ()
        self.segments[-1] = replace(last, dropouts=last.dropouts + dropped)

    def _opens_preactivated(self, at: int) -> bool:
        """Whether the norm behind a conv is the pre-activation of the block that follows.

        In ``conv, norm, act, (conv, norm, act, conv) + projection`` the first norm-act belongs to the block:
        its main path and its projection end on bare convolutions, so the block's own order is norm-act-conv.
        """
        between = (RegionKind.ACT, RegionKind.PASS, RegionKind.GATE, RegionKind.DROPOUT)
        ahead = next((i for i in range(at + 1, len(self.regions)) if self.regions[i].kind not in between), None)
        if ahead is None or self.regions[ahead].kind != RegionKind.BRANCHING:
            return False
        behind = self.regions[ahead + 1].kind if ahead + 1 < len(self.regions) else None
        goes_on = behind in (RegionKind.ACT, RegionKind.PASS, RegionKind.GATE)
        return not goes_on and _ends_on_bare_convs(self.view, self.regions[ahead])


def computes_only(view: GraphView, region: Region) -> bool:
    """Whether the paths of a region compute value by value, without layers: a maximum of halves, say.

    They are what an activation is, written with several paths.
    """
    same = view.reduction(region.exit) == view.reduction(region.entry)
    return region.kind == RegionKind.BRANCHING and same and all(_computes(view, n) for n in region.nodes)


def _computes(view: GraphView, name: str) -> bool:
    """Whether an operation may be part of a gate, as an unknown function without weights may."""
    role = view.role(name)
    weights = any(n.op == "get_attr" for n in view.nodes[name].all_input_nodes)
    return role in _GATING or (role == Role.OPAQUE and view.module(name) is None and not weights)


def _appends(view: GraphView, region: Region) -> bool:
    """Whether a region puts a little beside its entry, as coordinates."""
    entry, exit_ = view.width(region.entry), view.width(region.exit)
    return entry < exit_ < 2 * entry and concatenates_entry(view, region)


def _reduces(view: GraphView, region: Region) -> bool:
    return region.kind == RegionKind.POOL and view.reduction(region.entry) != view.reduction(region.exit)


def _reads_raw_sum(view: GraphView, region: Region) -> bool:
    """Whether a residual region adds its entry raw and activates it on the main path (norm-free nets).

    Whether the activation between two blocks belongs to the first or the second is one convention of the whole
    network, and only an identity shortcut shows it: where one reads raw sums, all sums are handed on raw.
    """
    join = residual_join(view, region)
    if join is None or region.entry not in view.inputs(join):
        return False
    readers = [u.name for u in view.nodes[region.entry].users if u.name in region.nodes]
    return any(view.role(r) == Role.ACT for r in readers if r != join)


def _ends_on_bare_convs(view: GraphView, region: Region) -> bool:
    """Whether a region is the sum of a main path and a 1x1 projection that both end on a convolution."""
    join = residual_join(view, region)
    if join != region.exit or not any(role.normalises for role in region.roles):
        return False
    operands = view.inputs(join)
    bare = [view.role(o) in (Role.CONV, Role.DROPOUT) for o in operands]
    direct = [o for o in operands if view.role(o) == Role.CONV and view.kernel(o) == (1, 1)]
    return all(bare) and bool(direct)
