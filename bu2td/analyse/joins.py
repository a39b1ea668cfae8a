"""Part of analyse: where the paths between two tensors of the trunk meet again."""

from __future__ import annotations

from typing import Protocol

from bu2td.graph import GraphView
from bu2td.ops import Role


class Stretch(Protocol):
    """The nodes between two tensors of the trunk: a region, a segment, a block."""

    @property
    def entry(self) -> str:
        """The tensor that it reads."""

    @property
    def exit(self) -> str:
        """The tensor that it produces."""

    @property
    def nodes(self) -> tuple[str, ...]:
        """What is computed from the one to the other."""


def residual_join(view: GraphView, stretch: Stretch) -> str | None:
    """The add that joins a main path with its shortcut: the last join before the exit."""
    join = _last_join(view, stretch)
    return join if join and view.role(join) == Role.ADD else None


def joins_by_concat(view: GraphView, stretch: Stretch) -> bool:
    """Whether the last join before the exit is a concatenation."""
    join = _last_join(view, stretch)
    return bool(join) and view.role(str(join)) == Role.CONCAT


def _last_join(view: GraphView, stretch: Stretch) -> str | None:
    name = stretch.exit
    while name in stretch.nodes:
        inputs = view.inputs(name)
        if len(inputs) > 1:
            return name
        if not inputs or view.role(name).transforms:
            return None
        name = inputs[0]
    return None


def concatenates_entry(view: GraphView, stretch: Stretch) -> bool:
    """Whether the entry's channels are handed on to the exit by concat.

    In blocks that grow, branches may have been added to them on the way (dual path, partial residual).
    """
    grows = view.width(stretch.exit) > view.width(stretch.entry)
    stack = [stretch.exit]
    joined = False
    unseen = set(stretch.nodes)
    while stack:
        name = stack.pop()
        if name == stretch.entry or view.order[name] < view.order[stretch.entry]:
            return joined  # what reads back over the entry reads it in its place (`back_reads`)
        if name not in unseen:
            continue
        unseen.remove(name)
        role = view.role(name)
        inputs = view.inputs(name)
        hands_on = role in (Role.PASS, Role.POOL, Role.DROPOUT, Role.ACT, Role.PAD) and len(inputs) == 1
        joined = joined or role == Role.CONCAT
        if role == Role.CONCAT or hands_on or (joined and grows and role in (Role.ADD, Role.SPLIT)):
            stack += inputs
    return False
