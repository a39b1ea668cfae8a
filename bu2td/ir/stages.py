"""The top graph of a converted network by its parts: which node is what, coarse to fine.

The node of a call has the name of the module that it calls.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import fx


@dataclass(frozen=True)
class Stage:
    """The nodes of one level, in the order in which features pass them; None where the level has no such part.

    Attributes:
        reduction: of the level.
        image: the level's image of the pyramid.
        output: the node that holds the level's features.
        upsampling: the upsampling, or the up-block.
        dropouts: between merge and body.
        body: the level's blocks, but an up-block.
    """

    reduction: int
    image: str
    output: str
    lateral: str | None = None
    transition: str | None = None
    upsampling: str | None = None
    merge: str | None = None
    dropouts: tuple[str, ...] = ()
    body: str | None = None

    @property
    def calls(self) -> tuple[str, ...]:
        """All of its calls."""
        found = (self.lateral, self.transition, self.upsampling, self.merge, *self.dropouts, self.body)
        return tuple(name for name in found if name is not None)

    def within(self, names: Iterable[str]) -> Stage:
        """The stage without the calls that are not among names."""
        known = set(names)
        parts = {part: getattr(self, part) for part in ("lateral", "transition", "upsampling", "merge", "body")}
        gone: dict[str, Any] = {part: None for part, name in parts.items() if name not in known}
        return replace(self, dropouts=tuple(name for name in self.dropouts if name in known), **gone)


@dataclass(frozen=True)
class Stages:
    """The nodes of a top graph.

    Attributes:
        pyramid: the node that holds the images of all levels.
        levels: coarse to fine.
        head: the node that holds the logits.
    """

    pyramid: str
    levels: tuple[Stage, ...]
    head: str

    @property
    def outputs(self) -> tuple[str, ...]:
        """The nodes that hold the features of the levels, coarse to fine."""
        return tuple(stage.output for stage in self.levels)

    def within(self, graph: fx.Graph) -> Stages:
        """What of the stages is a node of a graph: calls that a rewrite took away, or swallowed, are left out."""
        names = [node.name for node in graph.nodes]
        return replace(self, levels=tuple(stage.within(names) for stage in self.levels))


def stages_of(graph: fx.Graph, ladder: Sequence[int]) -> Stages:
    """Name the parts of a top graph as `bu2td.rewrite` emits it, for the reductions of its levels."""
    names = [node.name for node in graph.nodes if node.op != "output"]
    return Stages("pyramid", tuple(_stage_of(names, reduction) for reduction in ladder), "head")


def _stage_of(names: Sequence[str], reduction: int) -> Stage:
    level = f"r{reduction}"
    dropouts = tuple(name for name in names if name.startswith(f"{level}_dropout"))
    stage = Stage(
        reduction=reduction,
        image=f"{level}_image",
        output="",
        lateral=f"{level}_lateral",
        transition=f"{level}_transition",
        upsampling=f"{level}_up",
        merge=f"{level}_merge",
        dropouts=dropouts,
        body=level,
    ).within(names)
    return replace(stage, output=stage.calls[-1])
