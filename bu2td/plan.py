"""The frozen data that passes between the passes, and the tables made of it.

    capture -> Capture    probe -> Dims    analyse -> Analysis    arrange -> Plan    verify -> Report

Nodes of the captured graph are named by their fx names, which are unique in it. Everything that lists
levels lists them coarse to fine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal

from torch import fx, nn

ARRANGEMENTS = ("td", "uni", "rev")

#: What a dimension of a tensor is: it moves with the batch, the image height, the image width, both
#: (tokens), several of them at once (mixed), or never (channel; constants such as 1 included).
DimKind = Literal["batch", "height", "width", "token", "mixed", "channel"]


@dataclass(frozen=True)
class Dim:
    """One dimension of one tensor: its kind, its size at the probe, its stride against the image."""

    kind: DimKind
    size: int
    stride: Fraction | None = None


#: Dimensions of a node's value: a tuple of Dim for a tensor, a tuple of Values for several, else None.
Value = Any


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
        appends: its entry's channels are handed on to its exit by concat.
        carries: its exit is as wide as its entry because nothing in between can change a width.
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
    appends: bool = False
    carries: bool = False
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

    ``aside`` has the reads (source, reader) that reach back over the trunk (`bu2td.severed`), ``input_nodes`` what
    prepares the image before anything looks around, and ``input_exit`` the prepared image.
    """

    capture: Capture
    dims: Mapping[str, Value]
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


@dataclass(frozen=True)
class Unit:
    """A conv unit to build: kinds are copied from nodes of the bottom-up graph.

    Attributes:
        kernel: (k_h, k_w).
        conv: node whose class and bias the convolution copies.
        norm, act: nodes whose class and settings are copied, or None.
        preactivation: norm-act-conv instead of conv-norm-act.
    """

    in_channels: int
    out_channels: int
    kernel: tuple[int, int]
    conv: str
    norm: str | None = None
    act: str | None = None
    preactivation: bool = False


@dataclass(frozen=True)
class Projection:
    """A shortcut's 1x1 conv that the bottom-up block lacks: ``join`` reads it in place of ``operand``."""

    join: str
    operand: str
    source: str
    unit: Unit


@dataclass(frozen=True)
class Edits:
    """What changes inside a piece, apart from widths.

    Attributes:
        bypass: node -> the node that takes its place (dropped pools and projections).
        stride_one: strided nodes that are rebuilt with stride 1.
        kernels: node -> new kernel.
        upsample: producers (after bypass) -> the consumers that read them upsampled; "" is the exit.
        projections: shortcuts to build.
        pools: nodes that read their input through an adaptive average pool of this size.
        excursions: nodes at a resolution below the piece's own, which stay as they are.
    """

    bypass: Mapping[str, str] = field(default_factory=dict)
    stride_one: frozenset[str] = frozenset()
    kernels: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    upsample: Mapping[str, frozenset[str]] = field(default_factory=dict)
    projections: tuple[Projection, ...] = ()
    pools: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    excursions: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Piece:
    """A run of bottom-up nodes as it is emitted into the top-down network.

    Attributes:
        sizes: node -> sizes of its value's dimensions (None where they are not channels).
        factor: upsampling inside the piece (1: none).
        entry_adapter, exit_adapter: 1x1 conv units where the widths could not be met.
        relaxations: of the channel system, in the order in which they were tried.
    """

    name: str
    nodes: tuple[str, ...]
    entry: str
    exit: str
    entry_width: int
    exit_width: int
    edits: Edits
    sizes: Mapping[str, Any]
    factor: int = 1
    entry_adapter: Unit | None = None
    exit_adapter: Unit | None = None
    relaxations: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cost:
    """Parameters, multiply-accumulates and forward activations (in elements), both for one image."""

    parameters: int = 0
    macs: int = 0
    activations: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.parameters + other.parameters,
            self.macs + other.macs,
            self.activations + other.activations,
        )


@dataclass(frozen=True)
class LevelPlan:
    """One level of the top-down network.

    Attributes:
        shape: "coarsest" (no merge), "chain" (merge, then all blocks), "block" (up-block, merge, rest)
            or "bare" (merge only).
        source: the bottom-up level whose blocks it has, or None.
        merge_width: C, the width of lateral and merge.
        width: of its output.
    """

    reduction: int
    shape: Literal["coarsest", "chain", "block", "bare"]
    source: int | None
    entry_width: int
    merge_width: int
    width: int
    lateral: Unit | None
    transition: Unit | None = None
    merge: Unit | None = None
    up: Piece | None = None
    body: Piece | None = None
    dropouts: tuple[str, ...] = ()
    blocks: tuple[str, ...] = ()
    cost: Cost = Cost()

    @property
    def name(self) -> str:
        """Name of the level in the network, ``r16`` for a reduction of 16."""
        return f"r{self.reduction}"

    @property
    def relaxations(self) -> tuple[str, ...]:
        """Relaxations of the level's pieces."""
        return tuple(r for piece in (self.up, self.body) if piece for r in piece.relaxations)


@dataclass(frozen=True)
class Options:
    """Every option of `bu2td.convert`, as recorded in the plan and in saved files."""

    arrangement: str | tuple[int, ...] = "td"
    width: int | None = None
    stem: str = "mirror"
    reductions: tuple[int, ...] | None = None
    finest_reduction: int = 1
    upsample: str = "nearest"
    merge: str = "add_concat"
    merge_kernel: int = 3
    pyramid: str = "gaussian"
    sigma: float = 0.5
    inherit: str | None = None
    max_macs_ratio: float | None = 64.0
    seed: int | None = None


@dataclass(frozen=True)
class Plan:
    """What the top-down network is: levels coarse to fine, head, cost, what was inherited, notes.

    ``input`` prepares the image in front of the pyramid, where the bottom-up network does so.
    """

    options: Options
    model: str
    image_shape: tuple[int, int, int, int]
    levels: tuple[LevelPlan, ...]
    head: Piece
    bottom_up: tuple[dict[str, Any], ...]
    bottom_up_cost: Cost = Cost()
    cost: Cost = Cost()
    inherited: tuple[int, int] | None = None
    check_sizes: tuple[tuple[int, int], ...] = ()
    notes: tuple[str, ...] = ()
    input: Piece | None = None

    @property
    def ladder(self) -> tuple[int, ...]:
        """Reductions of the levels, coarse to fine."""
        return tuple(level.reduction for level in self.levels)

    @property
    def widths(self) -> tuple[int, ...]:
        """Output widths of the levels, coarse to fine."""
        return tuple(level.width for level in self.levels)

    @property
    def relaxations(self) -> tuple[tuple[str, str], ...]:
        """Every relaxation of the channel system as (level, what)."""
        found = [(level.name, r) for level in self.levels for r in level.relaxations]
        return (*found, *(("head", r) for r in self.head.relaxations))

    def rows(self) -> list[dict[str, Any]]:
        """One dict per level, coarse to fine."""
        return [
            {
                "level": level.name,
                "shape": level.shape,
                "from": f"r{level.source}" if level.source else "",
                "in": level.entry_width,
                "merge": level.merge_width,
                "out": level.width,
                "blocks": len(level.blocks),
                "parameters": level.cost.parameters,
                "MMACs": round(level.cost.macs / 1e6, 1),
                "relaxations": ", ".join(level.relaxations),
            }
            for level in self.levels
        ]

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON-ready data."""
        return {
            "model": self.model,
            "arrangement": self.options.arrangement,
            "image_shape": list(self.image_shape),
            "levels": self.rows(),
            "relaxations": [list(r) for r in self.relaxations],
            "bottom_up": vars(self.bottom_up_cost),
            "top_down": vars(self.cost),
            "inherited": self.inherited,
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        ratio = self.cost.macs / self.bottom_up_cost.macs if self.bottom_up_cost.macs else 0.0
        head = [
            f"top-down {self.model}, arrangement {self.options.arrangement}, "
            f"image {self.image_shape[-2]}x{self.image_shape[-1]}",
            format_table(self.rows()),
            f"parameters {self.cost.parameters:,} (bottom-up {self.bottom_up_cost.parameters:,}), "
            f"MACs {self.cost.macs / 1e6:,.1f} M ({ratio:.2f} x bottom-up), "
            f"relaxations {len(self.relaxations)}",
        ]
        if self.inherited is not None:
            copied, total = self.inherited
            head.append(f"inherited {copied:,} of {total:,} values ({copied / max(total, 1):.1%})")
        return "\n".join([*head, *(f"note: {note}" for note in self.notes)])


def format_table(rows: list[dict[str, Any]]) -> str:
    """Lay dicts out as a plain text table; a column is empty where a row has no such key."""
    if not rows:
        return "(empty)"
    titles = list(dict.fromkeys(title for row in rows for title in row))
    cells = [[_cell(row[t]) if t in row else "" for t in titles] for row in rows]
    widths = [max(len(line[i]) for line in [titles, *cells]) for i in range(len(titles))]
    right = [all(isinstance(row[t], int | float) for row in rows if t in row) for t in titles]
    lines = []
    for line in [titles, *cells]:
        padded = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True))
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int | float) else str(value)
