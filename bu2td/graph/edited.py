"""A run of nodes as its edits leave it: the one reading of `bu2td.ir.plan.Edits`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from bu2td.graph.view import GraphView
from bu2td.ir import Edits, Projection


@dataclass(frozen=True, eq=False)
class Edited:
    """What nodes of a captured graph read, and which of them are left, once they are edited."""

    view: GraphView
    nodes: tuple[str, ...]
    exit: str
    edits: Edits

    def producer(self, name: str) -> str:
        """Whose value the readers of a node get: its own, or that of what takes its place."""
        while name in self.edits.bypass:
            name = self.edits.bypass[name]
        return name

    def projection(self, operand: str, reader: str) -> Projection | None:
        """The shortcut that is built for a reader in place of an operand."""
        found = (p for p in self.edits.projections if (p.join, p.operand) == (reader, operand))
        return next(found, None)

    def source(self, operand: str, reader: str) -> str:
        """The producer of what a reader gets for an operand; of a projection that of what the projection reads."""
        built = self.projection(operand, reader)
        return self.producer(built.source if built else operand)

    def upsampled_as(self, operand: str, reader: str) -> str:
        """The name under which `Edits.upsample` lists what a reader gets for an operand.

        A projection is upsampled behind its convolution, for its one reader.
        """
        return operand if self.projection(operand, reader) else self.producer(operand)

    def upsampled(self, operand: str, reader: str) -> bool:
        """Whether a reader ("": the exit) gets an operand at the higher resolution."""
        return (self.upsampled_as(operand, reader), reader) in self.edits.upsample

    @cached_property
    def alive(self) -> frozenset[str]:
        """The nodes that still reach the exit; dropped projections and what stands behind them do not."""
        inside, alive = set(self.nodes), set[str]()
        stack = [self.producer(self.exit)]
        while stack:
            name = stack.pop()
            if name in inside and name not in alive:
                alive.add(name)
                stack += [self.source(n.name, name) for n in self.view.nodes[name].all_input_nodes]
        return frozenset(alive)
