"""The plan of a top-down network: frozen data, from `bu2td.arrange` to `bu2td.rewrite`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from bu2td.ir.tables import format_table
from bu2td.options import Options


@dataclass(frozen=True)
class UnitSpec:
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
    unit: UnitSpec


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
    entry_adapter: UnitSpec | None = None
    exit_adapter: UnitSpec | None = None
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
    def relaxations(self) -> tuple[str, ...]:
        """Relaxations of the level's pieces."""
        return tuple(r for piece in (self.up, self.body) if piece for r in piece.relaxations)


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
