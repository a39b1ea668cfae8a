"""The bottom-up network as the stages hand it on: captured, and cut into levels.

Nodes of the captured graph are named by their fx names, which are unique in it. Everything that lists levels
lists them coarse to fine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import fx, nn

from bu2td.ir.tables import format_table
from bu2td.ir.values import Dims


@dataclass(frozen=True)
class Capture:
    """A model as a canonical graph on the meta device.

    ``graph_module`` shares nothing with the model; ``source`` is the model itself, never written to.
    """

    graph_module: fx.GraphModule
    source: nn.Module
    image_shape: tuple[int, int, int, int]
    constants: Mapping[str, float]
    fingerprint: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Block:
    """A block of the bottom-up network: the nodes between two trunk tensors.

    Attributes:
        name: the module path that holds it, or of its first module.
        nodes: in graph order, norm-act prefix and trailing activation included.
        entry, exit: the trunk tensors that it reads and produces.
        kind: "conv" for a plain conv unit, "block" for anything else.
        width, reduction: of its exit.
        entry_width, entry_reduction: of its entry.
        shortcut: an add joins its main path with a shortcut from its entry.
        concatenates_entry: its entry's channels are handed on to its exit by concat.
        keeps_entry_width: its exit is as wide as its entry because nothing in between can change a width.
        preactivation: its main path starts with norm-act before a conv.
    """

    name: str
    nodes: tuple[str, ...]
    entry: str
    exit: str
    kind: Literal["conv", "block"]
    width: int
    reduction: int
    entry_width: int
    entry_reduction: int
    shortcut: bool = False
    concatenates_entry: bool = False
    keeps_entry_width: bool = False
    preactivation: bool = False

    @property
    def strides(self) -> bool:
        """Whether the block reduces resolution."""
        return self.reduction != self.entry_reduction


@dataclass(frozen=True)
class BottomUpLevel:
    """A level of the bottom-up network. One without blocks belongs to the stem or to the image.

    ``size`` is (H, W) of its output for the model's own image, None where the network has no tensor there.
    """

    reduction: int
    width: int
    size: tuple[int, int] | None = None
    blocks: tuple[Block, ...] = ()
    dropouts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stem:
    """The plain conv units and pools before the first block with more than one path."""

    nodes: tuple[str, ...] = ()
    strides: tuple[int, ...] = ()


@dataclass(frozen=True)
class Head:
    """Everything after the last block.

    Attributes:
        nodes: from the last block's exit to the logits, classifier conv included.
        entry: the trunk tensor that it reads.
        convs: 1x1 head convs before the global pool, which are moved with their level.
        pooled_size: (H, W) of the map that a flattening head binds, else None.
    """

    nodes: tuple[str, ...]
    entry: str
    output: str
    convs: tuple[Block, ...] = ()
    pooled_size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Analysis:
    """What `bu2td.analyze` returns: the bottom-up network as levels, coarse to fine.

    ``aside`` has the reads (source, reader) that reach back over the trunk (`bu2td.analyse.back_reads`),
    ``input_nodes`` what prepares the image before anything looks around, and ``input_exit`` the prepared image.
    """

    capture: Capture
    dims: Mapping[str, Dims]
    levels: tuple[BottomUpLevel, ...]
    stem: Stem
    head: Head
    first_conv: str
    preactivation: bool
    plain: bool
    notes: tuple[str, ...] = ()
    aside: Mapping[tuple[str, str], str] = field(default_factory=dict)
    input_nodes: tuple[str, ...] = ()
    input_exit: str = ""

    @property
    def ladder(self) -> tuple[int, ...]:
        """Reductions of the top-down network, coarse to fine."""
        return tuple(level.reduction for level in self.levels)

    @property
    def bodies(self) -> tuple[BottomUpLevel, ...]:
        """The levels with a body, coarse to fine."""
        return tuple(level for level in self.levels if level.blocks)

    def rows(self) -> list[dict[str, Any]]:
        """One dict per level: reduction, width, size of its map, number of blocks, their names."""
        return [
            {
                "level": f"r{level.reduction}",
                "reduction": level.reduction,
                "width": level.width,
                "size": level.size,
                "blocks": len(level.blocks),
                "first": level.blocks[0].name if level.blocks else "",
                "last": level.blocks[-1].name if level.blocks else "",
            }
            for level in self.levels
        ]

    def __str__(self) -> str:
        lines = [
            f"bottom-up {type(self.capture.source).__name__}, image {self.capture.image_shape}",
            format_table(self.rows()),
        ]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])
