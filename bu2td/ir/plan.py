"""The plan of a top-down network: frozen data, from `bu2td.arrange` to `bu2td.rewrite`.

Nodes are nodes of the captured bottom-up graph, by name. Everything that lists levels lists them coarse to fine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bu2td.ir.bottom_up import BottomUpLevel
from bu2td.ir.frozen import EMPTY, FrozenMap, Word
from bu2td.ir.tables import format_table
from bu2td.options import Options


class Relaxation(Word):
    """What the channel system gave up where the widths that were asked for could not be met.

    Members:
        REGROUP: groups of grouped convolutions and norms.
        ENTRY_ADAPTER: the width at the entry; a 1x1 conv makes the one that was found.
        EXIT_ADAPTER: the width at the exit; a 1x1 conv makes the one that was asked for.
        ADAPTERS: both.
        FROZEN: all widths; they are the bottom-up ones.
    """

    REGROUP = "regroup"
    ENTRY_ADAPTER = "entry adapter"
    EXIT_ADAPTER = "exit adapter"
    ADAPTERS = "entry and exit adapter"
    FROZEN = "frozen"


class LevelShape(Word):
    """How the coarser features enter a level.

    Members:
        COARSEST: they do not, it is the first.
        CHAIN: upsampled, then merged, then all blocks.
        BLOCK: through the first block, which upsamples, then merged, then the other blocks.
        BARE: upsampled, then merged; the level has no blocks.
    """

    COARSEST = "coarsest"
    CHAIN = "chain"
    BLOCK = "block"
    BARE = "bare"


@dataclass(frozen=True)
class UnitSpec:
    """A conv unit to build, after the kinds of nodes.

    Attributes:
        in_channels, out_channels: of the convolution.
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
    """A shortcut's 1x1 conv that the bottom-up block lacks.

    Attributes:
        join: the node that reads the projection.
        operand: what it reads in the bottom-up network.
        source: what the projection reads.
        unit: the projection.
    """

    join: str
    operand: str
    source: str
    unit: UnitSpec


@dataclass(frozen=True)
class Edits:
    """What changes inside a piece, apart from widths; `bu2td.graph.edited.Edited` tells what follows from it.

    Attributes:
        bypass: node -> the node that takes its place (dropped pools and projections).
        stride_one: strided nodes that are rebuilt with stride 1.
        kernels: node -> new kernel.
        upsample: (producer after bypass, or operand that a projection stands in for; the reader that gets it
            upsampled, "" for the exit).
        projections: shortcuts to build.
        pools: nodes that read their input through an adaptive average pool of this size.
        excursions: nodes at a resolution below the piece's own, which stay as they are.
    """

    bypass: FrozenMap[str, str] = EMPTY
    stride_one: frozenset[str] = frozenset()
    kernels: FrozenMap[str, tuple[int, int]] = EMPTY
    upsample: frozenset[tuple[str, str]] = frozenset()
    projections: tuple[Projection, ...] = ()
    pools: FrozenMap[str, tuple[int, int]] = EMPTY
    excursions: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Piece:
    """A run of bottom-up nodes as it is emitted into the top-down network.

    Attributes:
        name: of the level that it belongs to, or "input", "head".
        nodes: in graph order.
        entry, exit: the nodes whose values the run reads and produces.
        entry_width, exit_width: of the piece, adapters included.
        edits: what changes, apart from widths.
        sizes: node -> sizes of its value's dimensions (None where they are not channels), structured as the value.
        factor: upsampling inside the piece (1: none).
        entry_adapter, exit_adapter: 1x1 conv units where the widths could not be met.
        relaxations: of the channel system, in the order in which they were found.
        opaque: nodes without a converter, whose channels stay as they are.
    """

    name: str
    nodes: tuple[str, ...]
    entry: str
    exit: str
    entry_width: int
    exit_width: int
    edits: Edits
    sizes: FrozenMap[str, Any]
    factor: int = 1
    entry_adapter: UnitSpec | None = None
    exit_adapter: UnitSpec | None = None
    relaxations: tuple[Relaxation, ...] = ()
    opaque: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cost:
    """Parameters, multiply-accumulates and forward activations (in elements), both for one image."""

    parameters: int = 0
    macs: int = 0
    activations: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.parameters + other.parameters, self.macs + other.macs, self.activations + other.activations
        )


@dataclass(frozen=True)
class LevelPlan:
    """One level of the top-down network.

    Attributes:
        reduction: of its output.
        source: reduction of the bottom-up level whose blocks it has, or None.
        entry_width: of the coarser level's output; of the image at the coarsest level.
        merge_width: C, the width of lateral and merge.
        width: of its output.
        lateral: None where the body itself reads the image.
        transition: None where the coarser features have the right width.
        merge: None at the coarsest level.
        up: the first block, where it upsamples.
        body: the other blocks.
        dropouts: nodes of the bottom-up dropouts that follow the merge.
        blocks: names of the blocks, head convs included.
        cost: measured on the emitted network.
    """

    reduction: int
    shape: LevelShape
    source: int | None
    entry_width: int
    merge_width: int
    width: int
    lateral: UnitSpec | None
    transition: UnitSpec | None = None
    merge: UnitSpec | None = None
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
    def pieces(self) -> tuple[Piece, ...]:
        """The up-block and the body, as far as there are such."""
        return tuple(piece for piece in (self.up, self.body) if piece)

    @property
    def relaxations(self) -> tuple[Relaxation, ...]:
        """Relaxations of the level's pieces."""
        return tuple(r for piece in self.pieces for r in piece.relaxations)


@dataclass(frozen=True)
class Plan:
    """What the top-down network is.

    Attributes:
        model: class of the bottom-up network.
        image_shape: (N, C, H, W) of the image that the bottom-up network was captured with.
        bottom_up: the levels of the bottom-up network.
        bottom_up_cost, cost: measured on the two networks.
        inherited: how many values of the network's parameters were copied, and how many there are.
        check_sizes: (H, W) of the images that verification runs.
        notes: what a user should know.
        input: what prepares the image in front of the pyramid, where the bottom-up network does so.
    """

    options: Options
    model: str
    image_shape: tuple[int, int, int, int]
    levels: tuple[LevelPlan, ...]
    head: Piece
    bottom_up: tuple[BottomUpLevel, ...]
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
    def relaxations(self) -> tuple[tuple[str, Relaxation], ...]:
        """Every relaxation of the channel system as (level, what)."""
        found = [(level.name, r) for level in self.levels for r in level.relaxations]
        return (*found, *(("head", r) for r in self.head.relaxations))

    def rows(self) -> list[dict[str, Any]]:
        """One dict per level, coarse to fine."""
        return [
            {
                "level": level.name,
                "shape": level.shape.value,
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
            "relaxations": [[level, what.value] for level, what in self.relaxations],
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
