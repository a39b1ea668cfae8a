"""Part of analyse: paths that run beside several levels, and what the levels are without them.

A shortcut over several stages (a ResNet of ResNets, a skip from the stem to the last stage), or the image that is
fed in again later, leaves no single tensor between its ends: all that it spans would be one block, at the
resolution of the last. Where such a path is light - it has one layer at most, and meets the others once - it is
set aside, and the network is cut as if it were not there:

- A *shortcut over levels* stays with the level in which it ends, and reads that level's entry, as cells of order
two do
  (`bu2td.analyse.back_reads`): it runs over those of its blocks that stand at this level.
- An *image that is fed in again* is left out: a top-down network feeds it in at every level, by its laterals.

Anything heavier - a second stream - stays, and the network is refused where it is cut into blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from bu2td.analyse.back_reads import goes_on_between
from bu2td.graph import GraphView
from bu2td.ir import is_feature_map
from bu2td.ops import Role

#: How many layers a path may have that is set aside: a shortcut over levels, and one from the image.
_SHORTCUT, _IMAGE = 1, 2

#: How many layers that look around make a stage.
_SEVERAL = 2

#: Finds the trunk with some reads set aside.
FindTrunk = Callable[[Mapping[tuple[str, str], str]], list[str]]


@dataclass(frozen=True)
class LongPaths:
    """The paths that were set aside.

    Attributes:
        aside: (source, reader) -> the trunk tensor that the reader follows.
        sources: where shortcuts over levels begin.
        again: where the image is fed in again -> what it is joined with.
        left_out: the nodes between the image and there.
        notes: what a user should know.
    """

    aside: Mapping[tuple[str, str], str]
    sources: tuple[str, ...] = ()
    again: Mapping[str, str] = field(default_factory=dict)
    left_out: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Path:
    """A path beside others: it begins where a reader reads a source, and ends where it joins a main path.

    ``joins`` are (what is joined, where, with what of the main path), in order.
    """

    source: str
    reader: str
    nodes: frozenset[str]
    joins: tuple[tuple[str, str, str], ...]

    @property
    def join(self) -> str:
        """The first join."""
        return self.joins[0][1]

    def aside(self, image: bool) -> dict[tuple[str, str], str]:
        """The reads to set aside; of an image that is fed in again those of the joins."""
        if image:
            return {(operand, join): main for operand, join, main in self.joins}
        return {(self.source, self.reader): self.joins[0][2]}


def find_long_paths(
    view: GraphView, trunk: Sequence[str], aside: Mapping[tuple[str, str], str], find_trunk: FindTrunk
) -> LongPaths:
    """Set aside what runs beside several levels.

    Needs: a probed graph, its trunk with the reads ``aside``, and how a trunk is found with others.
    Returns: `LongPaths`, the given reads included.
    Guarantees: every path that is set aside opens a stretch of the trunk.
    """
    finder = _Finder(view, find_trunk, dict(aside))
    given, seen = list(trunk), set[tuple[str, str]]()
    while True:
        spans = (pair for pair in pairwise(given) if pair not in seen)
        span = next((pair for pair in spans if finder.concerns(given[0], *pair)), None)
        if span is None:
            return finder.result()
        seen.add(span)
        given = finder.open(given, *span)


class _Finder:
    def __init__(self, view: GraphView, find_trunk: FindTrunk, aside: dict[tuple[str, str], str]) -> None:
        self.view = view
        self.find_trunk = find_trunk
        self.aside = aside
        self.again: dict[str, str] = {}
        self.shortcuts: list[_Path] = []
        self.left_out: set[str] = set()
        self.notes: list[str] = []

    def result(self) -> LongPaths:
        """What was found; where a shortcut goes is known once all are."""
        trunk = self.find_trunk(self.aside) if self.shortcuts else []
        places = {(path.source, path.reader): self._place(path, trunk) for path in self.shortcuts}
        sources = tuple(path.source for path in self.shortcuts)
        left_out, notes = frozenset(self.left_out), tuple(self.notes)
        return LongPaths(self.aside | places, sources, self.again, left_out, notes)

    def concerns(self, image: str, entry: str, exit_: str) -> bool:
        """Whether paths of a stretch may be long ones."""
        reduces = self.view.reduction(entry) != self.view.reduction(exit_)
        return reduces and (_is_image(self.view, image, entry) or _spans_stages(self.view, entry, exit_))

    def open(self, trunk: list[str], entry: str, exit_: str) -> list[str]:
        """Set the light paths of a stretch aside; returns the trunk, the same one where there are none."""
        image = _is_image(self.view, trunk[0], entry)
        paths = [p for p in _beside(self.view, entry, exit_, image) if _is_light(self.view, p, image)]
        reads = {read: main for path in paths for read, main in path.aside(image).items()}
        found = self.find_trunk({**self.aside, **reads}) if paths else []
        if len(found) <= len(trunk):
            return trunk
        self.aside |= reads
        for path in paths:
            if image:
                self.again |= {join: main for _, join, main in path.joins}
                self.left_out |= path.nodes
            else:
                self.shortcuts.append(path)
            self.notes.append(self._note(path, image))
        return found

    def _place(self, path: _Path, trunk: Sequence[str]) -> str:
        """What a path follows: the last trunk tensor before its join, or the entry of the level's only block."""
        view = self.view
        before = [name for name in trunk if view.order[name] < view.order[path.join] and name not in path.nodes]
        at = len(before) - 1
        reduction = view.reduction(path.join)
        first = next((i for i, name in enumerate(before) if view.reduction(name) == reduction), None)
        if first is None or first == 0:
            return before[at]
        steps = [_has_layers(view, between(view, a, b)) for a, b in pairwise(before[first - 1 :])]
        return before[first - 1] if steps[0] and sum(steps) == 1 else before[at]

    def _note(self, path: _Path, image: bool) -> str:
        view = self.view
        if image:
            return (
                f"the image that {view.where(path.reader)} feeds in again comes in by the laterals, as everywhere"
            )
        return (
            f"the path from {view.where(path.source)} over several levels, to {view.where(path.join)}, begins at "
            f"the level in which it ends (r{view.reduction(path.join)})"
        )


# -- what a stretch holds ------------------------------------------------------------------------------


def holds_levels(view: GraphView, entry: str, exit_: str, nodes: Iterable[str]) -> bool:
    """Whether a stretch of the graph that reduces holds levels of its own.

    It does where paths meet or layers work at a resolution strictly between those of its ends.
    """
    fine, coarse = view.reduction(entry), view.reduction(exit_)
    if fine == coarse:
        return False
    nodes = list(nodes)
    if goes_on_between(view, entry, exit_, nodes):
        return True
    return any(view.role(n).dense and fine < (view.reduction(n) or fine) < coarse for n in nodes)


def _spans_stages(view: GraphView, entry: str, exit_: str) -> bool:
    """Whether a stretch holds levels, or has residual blocks or several layers at two resolutions."""
    if view.reduction(entry) == view.reduction(exit_):
        return False
    nodes = between(view, entry, exit_)
    residual = {view.reduction(n) for n in nodes if _closes_residual_block(view, entry, n)}
    held = holds_levels(view, entry, exit_, nodes) or len(residual) > 1
    return held or _works_at_both(view, entry, exit_, nodes)


def _works_at_both(view: GraphView, entry: str, exit_: str, nodes: Iterable[str]) -> bool:
    """Whether one path has several layers that look around at the resolution of both ends of a stretch."""
    fine, coarse = view.reduction(entry), view.reduction(exit_)
    found = {entry: (0, 0)}
    for name in nodes:
        high, low = max((found[n] for n in view.inputs(name) if n in found), default=(0, 0))
        looks = view.role(name) == Role.CONV and view.kernel(name) != (1, 1) and not view.depthwise(name)
        reduction = view.reduction(name)
        found[name] = (high + (looks and reduction == fine), low + (looks and reduction == coarse))
    return any(high >= _SEVERAL and low >= _SEVERAL for high, low in found.values())


def between(view: GraphView, entry: str, exit_: str) -> list[str]:
    """The nodes on the paths from one tensor to another, the second included, in graph order."""
    ahead = _closure(
        entry, lambda n: (u.name for u in view.nodes[n].users), lambda n: view.order[n] <= view.order[exit_]
    )
    behind = _closure(exit_, lambda n: view.inputs(n), lambda n: view.order[n] > view.order[entry])
    return sorted((ahead & behind) - {entry}, key=view.order.__getitem__)


def _closure(start: str, step: Callable[[str], Iterable[str]], within: Callable[[str], bool]) -> set[str]:
    seen, stack = {start}, [start]
    while stack:
        for name in step(stack.pop()):
            if name not in seen and within(name):
                seen.add(name)
                stack.append(name)
    return seen


def _closes_residual_block(view: GraphView, entry: str, join: str) -> bool:
    """Whether a node adds a shortcut that begins behind the entry to what layers make of the same tensor."""
    if view.role(join) != Role.ADD or not is_feature_map(view.dims[join]) or len(view.inputs(join)) != 2:
        return False
    for operand, other in (view.inputs(join), view.inputs(join)[::-1]):
        name, convs = operand, 0
        while len(view.nodes[name].users) == 1 and len(view.inputs(name)) == 1:
            role = view.role(name)
            convs += role == Role.CONV
            if convs > 1 or not (role.on_shortcut or role == Role.CONV):
                break
            name = view.inputs(name)[0]
        inside = name != entry or view.reduction(join) == view.reduction(entry)
        if len(view.nodes[name].users) > 1 and inside and view.order[name] >= view.order[entry]:
            path = between(view, name, other)
            if path and _has_layers(view, path):
                return True
    return False


def _has_layers(view: GraphView, nodes: Iterable[str]) -> bool:
    return any(view.role(n).layer and is_feature_map(view.dims[n]) for n in nodes)


# -- paths beside --------------------------------------------------------------------------------------


def _beside(view: GraphView, entry: str, exit_: str, image: bool) -> list[_Path]:
    """The paths from an entry that run beside the longest, over levels; those from an image over any layers."""
    inside = between(view, entry, exit_)
    depth: dict[str, int] = {}
    for name in reversed(inside):
        further = max((depth[u.name] for u in view.nodes[name].users if u.name in depth), default=0)
        depth[name] = further + view.role(name).layer
    readers = [u.name for u in view.nodes[entry].users if u.name in depth]
    first = max(readers, key=depth.__getitem__)
    known = set(inside)
    main = _closure(first, lambda n: (u.name for u in view.nodes[n].users), known.__contains__)
    paths = [_path(view, entry, reader, main, known) for reader in readers if reader != first]
    skips = _skips_finer_layers if image else _skips_levels
    return [p for p in paths if p is not None and skips(view, p)]


def _path(view: GraphView, entry: str, reader: str, main: set[str], inside: set[str]) -> _Path | None:
    """The path that begins at a reader, up to the main path; None where a join reads more of that than once."""
    if reader in main:
        nodes, found = set[str](), [(entry, reader)]
    else:
        nodes = _closure(
            reader, lambda n: (u.name for u in view.nodes[n].users), lambda n: n in inside and n not in main
        )
        found = [(n, u.name) for n in nodes for u in view.nodes[n].users if u.name in main]
    joins = []
    for operand, join in sorted(found, key=lambda pair: view.order[pair[1]]):
        others = [name for name in view.inputs(join) if name in main and name != operand]
        if not others:
            return None
        joins.append((operand, join, max(others, key=lambda name: _depth(view, entry, name))))
    return _Path(entry, reader, frozenset(nodes), tuple(joins)) if joins else None


def _depth(view: GraphView, entry: str, name: str) -> int:
    """How many layers stand between two tensors."""
    return sum(view.role(n).layer for n in between(view, entry, name))


def _skips_levels(view: GraphView, path: _Path) -> bool:
    return _spans_stages(view, path.source, path.join)


def _skips_finer_layers(view: GraphView, path: _Path) -> bool:
    """Whether the main path has layers before a join at a finer resolution than there."""
    ahead = set(between(view, path.source, path.joins[-1][1])) - path.nodes
    coarse = view.reduction(path.joins[-1][1])
    return any(view.role(n).layer and (view.reduction(n) or coarse) < coarse for n in ahead)


def _is_light(view: GraphView, path: _Path, image: bool) -> bool:
    """Whether a path may be set aside: few layers, and joins that do without it, or one that takes any width."""
    layers = sum(view.role(n).layer and is_feature_map(view.dims[n]) for n in path.nodes)
    roles = {view.role(join) for _, join, _ in path.joins}
    if image:
        whole = view.role(path.reader) != Role.SPLIT and all(_is_pair(view, *join) for join in path.joins)
        few = layers <= _IMAGE * len(path.joins) and not _is_branch(view, path)
        return whole and few and roles <= {Role.ADD, Role.CONCAT, Role.MUL}
    if len(path.joins) > 1:
        return False
    return layers <= _SHORTCUT if roles == {Role.CONCAT} else roles == {Role.ADD} and layers == _SHORTCUT


def _is_pair(view: GraphView, operand: str, join: str, main: str) -> bool:
    """Whether a node joins two things alone."""
    return set(view.inputs(join)) == {operand, main}


def _is_branch(view: GraphView, path: _Path) -> bool:
    """Whether a path is the branch of a block that reads the image: it strides by its layers, in one step."""
    layers = [n for n in path.nodes if view.role(n).layer and view.inputs(n)]
    strides = any(view.reduction(n) != view.reduction(view.inputs(n)[0]) for n in layers)
    return strides and not holds_levels(view, path.source, path.join, between(view, path.source, path.join))


def _is_image(view: GraphView, image: str, name: str) -> bool:
    """Whether a trunk tensor is the image, or a prepared one."""
    colours = view.width(image)
    return bool(view.reduction(name) == 1) and view.width(name) <= max(2 * colours, colours + 3)
