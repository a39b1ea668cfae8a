"""Part of arrange: rows and columns that blocks add to their maps, take away, or move.

In a top-down level every map has the size of the level, and windows keep it. So most of what pads and crops make up
for what windows did in the bottom-up network, and go. What stays is a *move*: additions and removals that cancel,
with nothing but operations on single positions between them, as in shift modules and differences of neighbours.
Where they only choose anew which positions a stride of window 1 picks (`x[:, :, 1:, 1:]` in front of a strided 1x1
convolution), there is no stride left to pick any, and the move goes with it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from bu2td.graph import GraphView
from bu2td.ir import is_spatial


def kept_moves(view: GraphView, nodes: Sequence[str], end: str) -> frozenset[str]:
    """The nodes that add, take away or move rows and columns and stay.

    Args:
        view: the graph.
        nodes: a run of blocks, in graph order.
        end: what it produces.
    """
    if not any(is_spatial(view.dims[n]) and view.moves(n) for n in nodes):
        return frozenset()
    found = _Moves(view)
    for name in nodes:
        if is_spatial(view.dims[name]) and view.inputs(name):
            found.read(name)
    found.leave(end)
    return found.kept


class _Moves:
    """What was read of a run: by how many rows and columns maps are off their size, and who is off together."""

    def __init__(self, view: GraphView) -> None:
        self.view = view
        self._off: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
        self._group: dict[str, int] = {}
        self._members: list[set[str]] = []
        self._open: set[int] = set()

    @property
    def kept(self) -> frozenset[str]:
        """The moves of groups that are closed."""
        groups = {self._group[n] for n in self._group} - self._open
        return frozenset(n for g in groups for n in self._members[g] if self.view.moves(n) and not self._picked(g))

    def read(self, name: str) -> None:
        """Read the next node."""
        view, sources = self.view, self.view.inputs(name)
        same = all(view.at_one_scale(s, name) for s in sources)
        if not (same and (view.moves(name) or self._works_on_positions(name))):
            for source in sources:
                self.leave(source)
            return
        # A strip of a few rows or columns fits wherever it is joined.
        offs = {self._behind(name, source) for source in sources if len(view.side(source)) != 1} or {(0, 0)}
        if len(offs) > 1:
            for source in sources:
                self.leave(source)
            return
        self._off[name] = off = offs.pop()
        off_sources = [
            s for s in sources if self._off[s] != (0, 0) or (s in self._group and len(view.side(s)) == 1)
        ]
        if off != (0, 0) or off_sources or view.moves(name):
            self._join(name, off_sources)

    def leave(self, name: str) -> None:
        """A map is read by what must have it at its level's size."""
        if self._off[name] != (0, 0):
            self._open.add(self._group[name])

    def _behind(self, name: str, source: str) -> tuple[int, int]:
        """By how much a node is off behind one of its sources."""
        before, after = self.view.side(source), self.view.side(name)
        high, wide = (after.get(k, 0) - before.get(k, after.get(k, 0)) for k in ("height", "width"))
        return self._off[source][0] + high, self._off[source][1] + wide

    def _works_on_positions(self, name: str) -> bool:
        role = self.view.role(name)
        if role.windowed:
            return self.view.kernel(name) == (1, 1) and not self.view.converter(name).pads(self.view.site(name))
        return role.local

    def _join(self, name: str, sources: Iterable[str]) -> None:
        """Let a node and the groups of its sources be one."""
        new = len(self._members)
        members = {name}
        for group in {self._group[s] for s in sources}:
            members |= self._members[group]
            if group in self._open:
                self._open.add(new)
        self._members.append(members)
        for member in members:
            self._group[member] = new

    def _picked(self, group: int) -> bool:
        """Whether all that comes out of a group is read by strides of window 1."""
        ends = [n for n in self._members[group] if self._off[n] == (0, 0)]
        readers = [u.name for n in ends for u in self.view.nodes[n].users if u.name not in self._members[group]]
        return bool(readers) and all(self._picks(reader) for reader in readers)

    def _picks(self, reader: str) -> bool:
        view, sources = self.view, self.view.inputs(reader)
        if not sources or not view.role(reader).windowed or view.kernel(reader) != (1, 1):
            return False
        users = [u.name for u in view.nodes[reader].users]
        reduces = view.reduction(reader) != view.reduction(sources[0])
        return reduces or (bool(users) and all(map(self._picks, users)))
