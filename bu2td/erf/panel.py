"""What a figure of receptive fields shows of one network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from torch import Tensor

from bu2td.erf.subject import Subject
from bu2td.ops import Role, converter_for

__all__ = ["Level", "Panel"]

#: Roles of the operations that count as a layer of depth.
_LAYERS = (Role.CONV, Role.POOL, Role.ATTENTION, Role.LINEAR)


@dataclass(frozen=True)
class Level:
    """A level's field.

    Attributes:
        name, reduction: of the level.
        depth: its place on the axis of depths.
        size: the field's longer side, in pixels.
        box: (top, left, height, width) in pixels of the field of the unit in the image's centre; None: not shown.
    """

    name: str
    reduction: float
    depth: float
    size: int
    box: tuple[float, float, float, float] | None = None

    def __str__(self) -> str:
        if self.box is None:
            return f"{self.name}: {self.size}"
        height, width = (str(int(side)) for side in self.box[2:])
        size = height if height == width else f"{height}\N{MULTIPLICATION SIGN}{width}"
        return f"{self.name}: {size}"


@dataclass(frozen=True)
class Panel:
    """One network.

    Attributes:
        word: "bottom-up" or "top-down".
        image_size: (H, W).
        curve: the largest field (its longer side) at every depth.
        levels: coarse to fine.
        maps: gradients by layer, (H, W).
        counted: what depth counts.
    """

    word: str
    image_size: tuple[int, int]
    curve: Mapping[float, int] = field(default_factory=dict)
    levels: Sequence[Level] = ()
    maps: Mapping[str, Tensor] = field(default_factory=dict)
    counted: str = "depth (layers on the longest path)"

    @classmethod
    def of(
        cls,
        word: str,
        looked_at: Subject,
        rows: Sequence[Mapping[str, Any]],
        maps: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> Panel:
        """The panel of a network out of the rows of all its layers, and the heat maps of some."""
        depth = depths(looked_at)
        fields = {row["node"]: row for row in rows if row["size"] is not None}
        largest: dict[float, int] = {}
        for node, row in fields.items():
            largest[depth[node]] = max(largest.get(depth[node], 0), *row["size"])
        levels = [
            Level(name, found["reduction"], depth[node], max(found["size"]), _box(found, looked_at, node))
            for name, node in looked_at.levels.items()
            if (found := fields.get(node)) is not None
        ]
        size = (looked_at.image_shape[2], looked_at.image_shape[3])
        return cls(word, size, dict(sorted(largest.items())), levels, maps)

    @classmethod
    def of_rows(cls, title: str, rows: Sequence[Mapping[str, Any]], image_size: tuple[int, int]) -> Panel:
        """The panel of the rows of `bu2td.erf.Fields`: field size against the number of the row."""
        numbered = {i: row for i, row in enumerate(rows, start=1) if row["size"] is not None}
        levels = [
            Level(row["name"], row["reduction"] or 0, i, max(row["size"]))
            for i, row in numbered.items()
            if len(numbered) <= 12 or row["name"][1:].isdecimal()
        ]
        curve: dict[float, int] = {i: max(row["size"]) for i, row in numbered.items()}
        return cls(word_of(title), image_size, curve, levels, counted="layer")


def word_of(title: str) -> str:
    """Which of the two networks a title is of."""
    return "top-down" if title.startswith("top-down") else "bottom-up"


def depths(looked_at: Subject) -> dict[str, int]:
    """Per node the number of layers (convolutions, pools, attention, linear layers) on the longest path to it."""
    modules = dict(looked_at.graph_module.named_modules())
    found: dict[str, int] = {}
    for node in looked_at.graph_module.graph.nodes:
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        counts = node.op != "placeholder" and converter_for(node, module).role in _LAYERS
        found[node.name] = max((found[n.name] for n in node.all_input_nodes), default=0) + counts
    return found


def _box(row: Mapping[str, Any], looked_at: Subject, node: str) -> tuple[float, float, float, float]:
    """The field of the unit in the middle of a map."""
    value = looked_at.dims[node]
    corner = []
    for axis, side in enumerate(looked_at.axes(node)):
        centre = row["offset"][axis] + row["jump"][axis] * (value[side].size // 2)
        corner.append(centre - row["size"][axis] / 2)
    return (corner[0], corner[1], float(row["size"][0]), float(row["size"][1]))
