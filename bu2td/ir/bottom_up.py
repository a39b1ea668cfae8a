"""The bottom-up network as the stages hand it on: captured, and cut into levels.

Nodes of the captured graph are named by their fx names, which are unique in it. Everything that lists levels
lists them coarse to fine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from torch import Tensor, fx, nn

from bu2td.ir.frozen import EMPTY, FrozenMap
from bu2td.ir.tables import format_table
from bu2td.ir.values import Dims

if TYPE_CHECKING:
    from bu2td.graph.view import GraphView


@dataclass(frozen=True)
class Capture:
    """A model as a canonical graph on the meta device.

    ``graph_module`` shares nothing with the model; ``source`` is the model itself, never written to. Where a
    parameter or buffer of the graph has another name in the model, or none, ``tensors`` has it with its values.
    Models of one ``fingerprint`` compute the same up to weights, settings and dropout, those of one ``identity``
    are built in the same way.
    """

    graph_module: fx.GraphModule
    source: nn.Module
    image_shape: tuple[int, int, int, int]
    constants: Mapping[str, float]
    fingerprint: str
    tensors: FrozenMap[str, Tensor] = EMPTY
    notes: tuple[str, ...] = ()
    identity: str = ""

    @property
    def weights(self) -> dict[str, Tensor]:
        """Parameters and buffers of the model by their names in the graph, with their values."""
        own = self.source
        return {**dict(own.named_parameters()), **dict(own.named_buffers()), **dict(self.tensors)}


class BlockKind(Enum):
    """What a block consists of: one plain conv unit, or anything else."""

    CONV = "conv"
    COMPOUND = "compound"


class ShortcutKind(Enum):
    """What an add in a block reads beside its main path.

    Members:
        IDENTITY: the entry, at most pooled or scaled.
        PADDED: the entry with channels of zeros (option A).
        PROJECTION: the entry through one pointwise convolution.
        CHANGED: the entry behind a norm or an activation, which belongs to the main path as well.
        TIED: a map inside the block whose width is tied to the entry's.
    """

    IDENTITY = "identity"
    PADDED = "padded"
    PROJECTION = "projection"
    CHANGED = "changed"
    TIED = "tied"


@dataclass(frozen=True)
class Shortcut:
    """An operand of an add in a block that does not come over the main path.

    Attributes:
        join, operand: the add, and what it reads.
        width: of the sum.
        conv, norm: a projection's convolution, and the norm behind it, if there is one.
    """

    join: str
    operand: str
    kind: ShortcutKind
    width: int
    conv: str | None = None
    norm: str | None = None

    @property
    def from_entry(self) -> bool:
        """Whether a chain of operations leads to it from the entry."""
        return self.kind != ShortcutKind.TIED


@dataclass(frozen=True)
class Preactivation:
    """The norm that a pre-activation block starts with, and its activation unless the norm has it inside."""

    norm: str
    act: str | None = None

    @property
    def exit(self) -> str:
        """The activated entry, which a projection reads."""
        return self.act or self.norm


@dataclass(frozen=True)
class Block:
    """A block of the bottom-up network: the nodes between two trunk tensors.

    Attributes:
        name: the module path that holds it, or of its first module.
        nodes: in graph order, norm-act prefix and trailing activation included.
        entry, exit: the trunk tensors that it reads and produces.
        width, reduction: of its exit.
        entry_width, entry_reduction: of its entry.
        shortcut: the operand of its last add that is a shortcut from its entry, if there is one.
        inner_shortcuts: those of the adds before, and what is tied to the entry's width.
        concatenates_entry: its entry's channels are handed on to its exit by concat.
        keeps_entry_width: its exit is as wide as its entry because nothing in between can change a width.
        preactivation: the norm-act before the first conv of its main path, if there is one.
    """

    name: str
    nodes: tuple[str, ...]
    entry: str
    exit: str
    kind: BlockKind
    width: int
    reduction: int
    entry_width: int
    entry_reduction: int
    shortcut: Shortcut | None = None
    inner_shortcuts: tuple[Shortcut, ...] = ()
    concatenates_entry: bool = False
    keeps_entry_width: bool = False
    preactivation: Preactivation | None = None

    @property
    def shortcuts(self) -> tuple[Shortcut, ...]:
        """All shortcuts, in graph order."""
        return (*self.inner_shortcuts, self.shortcut) if self.shortcut else self.inner_shortcuts

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
        pooled_reader: the node that binds it, and is to read a map of this size.
    """

    nodes: tuple[str, ...]
    entry: str
    output: str
    convs: tuple[Block, ...] = ()
    pooled_size: tuple[int, int] | None = None
    pooled_reader: str = ""

    @property
    def pools(self) -> Mapping[str, tuple[int, int]]:
        """The node that is to read a map of a certain size, and this size."""
        return {self.pooled_reader: self.pooled_size} if self.pooled_size else {}


@dataclass(frozen=True)
class Analysis:
    """What `bu2td.analyze` returns: the bottom-up network as levels, coarse to fine.

    ``view`` is how everybody looks at its graph; ``aside`` has the reads (source, reader) that reach back over the
    trunk (`bu2td.analyse.back_reads`, `bu2td.analyse.long_paths`), ``stand_ins`` what takes a node's place: that of
    a join where the image is fed in again what it is joined with, that of a slice of the image all of it;
    ``input_nodes`` what prepares the image before features are looked for, and ``input_exit`` the prepared image.
    """

    view: GraphView
    levels: tuple[BottomUpLevel, ...]
    stem: Stem
    head: Head
    first_conv: str
    preactivation: bool
    plain: bool
    notes: tuple[str, ...]
    aside: Mapping[tuple[str, str], str]
    stand_ins: Mapping[str, str]
    input_nodes: tuple[str, ...] = ()
    input_exit: str = ""

    @property
    def capture(self) -> Capture:
        """The network as it was captured."""
        return self.view.capture

    @property
    def dims(self) -> Mapping[str, Dims]:
        """Kinds, sizes and strides of all dimensions, by node."""
        return self.view.dims

    @property
    def image_width(self) -> int:
        """Channels of the image that the pyramid reduces: of the prepared one where there is such."""
        return self.view.width(self.input_exit) if self.input_exit else self.capture.image_shape[1]

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
