"""Part of analyse: which consecutive segments form one block.

`GROUPINGS` lists the criteria in the order in which they are applied. A criterion is asked for every segment
whether a block forms around it. A net without branches and depthwise convolutions is not grouped at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

from bu2td.analyse.joins import concatenates_entry, joins_by_concat
from bu2td.analyse.names import block_name
from bu2td.analyse.segments import Segment, SegmentKind, joined
from bu2td.graph import GraphView
from bu2td.ir import is_spatial
from bu2td.ops import Role

#: From which segment on (``low`` at least) and up to which (not included) one block forms around the segment
#: ``at``; None where none does. Called as criterion(view, segments, at, low).
Criterion: TypeAlias = Callable[[GraphView, Sequence[Segment], int, int], tuple[int, int] | None]


def group(view: GraphView, segments: Sequence[Segment]) -> list[Segment]:
    """Join what forms one block, criterion after criterion."""
    for criterion in GROUPINGS:
        segments = _joined_by(criterion, view, segments)
    return list(segments)


def _joined_by(criterion: Criterion, view: GraphView, segments: Sequence[Segment]) -> list[Segment]:
    result: list[Segment] = []
    end = 0
    for at in range(len(segments)):
        span = criterion(view, segments, at, end) if at >= end else None
        if span:
            first, stop = span
            result += [*segments[end:first], joined(segments[first:stop])]
            end = stop
    return [*result, *segments[end:]]


# -- separable -----------------------------------------------------------------------------------------


def separable(view: GraphView, segments: Sequence[Segment], at: int, low: int) -> tuple[int, int] | None:
    """A depthwise or grouped conv (or several in branches) with its 1x1 convs.

    These are what the smallest submodule that holds it and another layer consists of; in a net written flat, the
    1x1 conv behind it and an expanding one before it. A depthwise conv without any is a block alone.
    """
    if not _all_convs(view, segments[at], view.grouped):
        return None
    first, stop = _separable_module(view, segments, at, low) or _separable_run(view, segments, at, low)
    return (first, stop) if stop - first > 1 or _all_convs(view, segments[at], view.depthwise) else None


def _separable_module(view: GraphView, segments: Sequence[Segment], at: int, low: int) -> tuple[int, int] | None:
    """The segments of the smallest submodule that holds a grouped conv and another layer, if they are one block."""
    conv = next(n for n in segments[at].nodes if view.role(n) == Role.CONV)
    for path in _around(view.path(conv)):
        inside = [i for i, s in enumerate(segments) if s.kind != SegmentKind.POOL and _under(view, s, path)]
        if len(inside) > 1:
            whole = inside[0] >= low and _is_separable(view, segments, inside, path)
            return (inside[0], inside[-1] + 1) if whole else None
    return None


def _is_separable(view: GraphView, segments: Sequence[Segment], inside: Sequence[int], path: str) -> bool:
    """Whether the segments of a module are nothing but grouped and 1x1 convs.

    A container that lists several grouped convs is a stage of blocks. A pool may stand between (anti-aliasing).
    """
    grouped = [_all_convs(view, segments[i], view.grouped) for i in inside]
    fits = all(g or _all_pointwise(view, segments[i]) for g, i in zip(grouped, inside, strict=True))
    unbroken = all(segments[i].kind == SegmentKind.POOL for i in {*range(inside[0], inside[-1])} - {*inside})
    stage = view.is_container(path) and sum(grouped) > 1
    return fits and unbroken and not stage


def _separable_run(view: GraphView, segments: Sequence[Segment], at: int, low: int) -> tuple[int, int]:
    """A grouped conv with the 1x1 conv behind it and an expanding one before it, where no module parts them."""
    first, stop = at, at + 1
    if stop < len(segments) and _all_pointwise(view, segments[stop]) and not _apart(view, segments, at, stop):
        stop += 0 if _all_convs(view, segments[stop], view.grouped) else 1
    conv = segments[at - 1].conv if at > low and _all_pointwise(view, segments[at - 1]) else None
    if conv is not None and not _apart(view, segments, at, at - 1):
        first -= 1 if view.width(conv) > view.width(view.inputs(conv)[0]) else 0
    return first, stop


def _all_convs(view: GraphView, segment: Segment, test: Callable[[str], bool]) -> bool:
    """Whether a segment has convolutions over the map, all of which pass a test, and no other layers."""
    if segment.kind not in (SegmentKind.CONV, SegmentKind.BRANCHING):
        return False
    layers = [n for n in segment.nodes if view.role(n).layer and is_spatial(view.dims[n])]
    return bool(layers) and all(view.role(n) == Role.CONV and test(n) for n in layers)


def _all_pointwise(view: GraphView, segment: Segment) -> bool:
    return _all_convs(view, segment, lambda name: view.kernel(name) == (1, 1))


def _around(path: str) -> Iterator[str]:
    """The modules around a path, from the innermost on."""
    while "." in path:
        path = path.rpartition(".")[0]
        yield path


def _under(view: GraphView, segment: Segment, path: str) -> bool:
    """Whether a module holds a layer of a segment."""
    return any(view.path(n).startswith(path + ".") for n in segment.nodes if view.role(n).dense)


def _apart(view: GraphView, segments: Sequence[Segment], a: int, b: int) -> bool:
    """Whether a submodule holds one of two segments and a third, but not the other: its border keeps them apart."""
    for one, other in ((a, b), (b, a)):
        layer = next((n for n in segments[one].nodes if view.role(n).layer), None)
        for path in _around(view.path(layer)) if layer else ():
            if _under(view, segments[other], path):
                break
            if any(_under(view, s, path) for i, s in enumerate(segments) if i != one):
                return True
    return False


# -- aggregated ----------------------------------------------------------------------------------------


def aggregated(view: GraphView, segments: Sequence[Segment], at: int, low: int) -> tuple[int, int] | None:
    """A region that appends to its entry, with the 1x1 convs that aggregate right behind.

    These are all that the smallest submodule holds beside it and one 1x1 conv that it may begin with; where its
    own module holds more than that, the next segment of this module, unless a pool follows (that is a transition).
    """
    if segments[at].kind != SegmentKind.BRANCHING or not concatenates_entry(view, segments[at]):
        return None
    begins = at > low and _chained(view, segments, at - 1) and segments[at - 1].exit == segments[at].entry
    own = path = block_name(view, segments[at])
    while path:
        inside = [i for i, s in enumerate(segments) if _under(view, s, path)]
        first = at - 1 if begins and inside[:1] == [at - 1] else at
        if not inside or inside != list(range(first, first + len(inside))):
            break
        if inside[-1] > at:
            aggregates = all(_chained(view, segments, i) for i in range(at + 1, inside[-1] + 1))
            return (first, inside[-1] + 1) if aggregates else None
        path = path.rpartition(".")[0]
    return (at, at + 2) if _goes_on(view, segments, at, own) else None


def _goes_on(view: GraphView, segments: Sequence[Segment], at: int, own: str) -> bool:
    """Whether the next segment is a 1x1 conv unit of the same module without a pool behind it."""
    if at + 1 == len(segments) or not _chained(view, segments, at + 1):
        return False
    transition = at + 2 < len(segments) and segments[at + 2].kind == SegmentKind.POOL
    return not transition and view.path(str(segments[at + 1].conv)).startswith(f"{own}.")


def _chained(view: GraphView, segments: Sequence[Segment], at: int) -> bool:
    """Whether a segment is a 1x1 conv unit that reads the one before it as it is."""
    segment = segments[at]
    follows = at == 0 or segments[at - 1].exit == segment.entry
    return follows and is_pointwise(view, segment) and not segment.prefixed and _keeps(view, segment)


def is_pointwise(view: GraphView, segment: Segment) -> bool:
    """Whether a segment is one 1x1 conv unit."""
    return segment.kind == SegmentKind.CONV and view.kernel(str(segment.conv)) == (1, 1)


def _keeps(view: GraphView, segment: Segment) -> bool:
    """Whether a segment keeps the resolution."""
    return bool(view.reduction(segment.exit) == view.reduction(segment.entry))


# -- squeezed ------------------------------------------------------------------------------------------


def squeezed(view: GraphView, segments: Sequence[Segment], at: int, low: int) -> tuple[int, int] | None:
    """A region that branches and joins by concat, with the 1x1 conv unit right before it.

    Fire modules squeeze before they expand, cross-stage partial stages expand before they split.
    """
    segment = segments[at]
    if at == low or segment.kind != SegmentKind.BRANCHING or segment.prefixed:
        return None
    before = segments[at - 1]
    chained = is_pointwise(view, before) and before.exit == segment.entry
    if not chained or not (_keeps(view, before) and _keeps(view, segment)) or not joins_by_concat(view, segment):
        return None
    return None if _apart(view, segments, at - 1, at) else (at - 1, at + 1)


# -- narrowed ------------------------------------------------------------------------------------------

#: A concat so many times as wide as what a convolution right behind makes of it is no width of the network.
_NARROWS = 3


def narrowed(view: GraphView, segments: Sequence[Segment], at: int, low: int) -> tuple[int, int] | None:
    """A region that joins by concat, with the 1x1 conv unit right behind that makes a level's width of it.

    The root of a tree reads all of its nodes (deep layer aggregation); a pool behind makes the unit a transition.
    """
    if (
        segments[at].kind != SegmentKind.BRANCHING
        or at + 1 == len(segments)
        or not _chained(view, segments, at + 1)
    ):
        return None
    wide = view.width(segments[at].exit) >= _NARROWS * view.width(segments[at + 1].exit)
    transition = at + 2 < len(segments) and segments[at + 2].kind == SegmentKind.POOL
    fits = wide and not transition and joins_by_concat(view, segments[at])
    return (at, at + 2) if fits and not _apart(view, segments, at, at + 1) else None


# -- pooled --------------------------------------------------------------------------------------------


def pooled(view: GraphView, segments: Sequence[Segment], at: int, low: int) -> tuple[int, int] | None:
    """A pool with the 1x1 conv unit before it: the transition of a branching net, behind its stem."""
    if segments[at].kind != SegmentKind.POOL or at == low or not is_pointwise(view, segments[at - 1]):
        return None
    in_body = any(s.kind in (SegmentKind.BRANCHING, SegmentKind.GROUP) for s in segments[: at - 1])
    return (at - 1, at + 1) if in_body else None


#: The criteria in order: what one has joined is a group for those behind it, and is joined no more.
GROUPINGS: tuple[Criterion, ...] = (separable, aggregated, squeezed, narrowed, pooled)
