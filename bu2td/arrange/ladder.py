"""Part of arrange: which levels there are, which blocks each takes, and how wide each is to be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise

from bu2td.errors import ReductionError, WidthError, shown
from bu2td.ir import Analysis, Block, BottomUpLevel
from bu2td.options import Options


@dataclass(frozen=True)
class Slot:
    """A level to be.

    Attributes:
        reduction: of its output.
        body: the bottom-up level whose blocks it takes.
        place: the bottom-up level at this place, whose blocks it would take in `td`.
        width: of its output, where it is not that of the blocks.
        for_stem: its merge takes the place of a stride of the stem.
        factor: by which it upsamples what the coarser level hands on.
        dropouts: that follow the downsampler behind the coarser level.
    """

    reduction: int
    body: BottomUpLevel | None = None
    place: BottomUpLevel | None = None
    width: int | None = None
    for_stem: bool = False
    factor: int = 1
    dropouts: tuple[str, ...] = ()


def ladder(analysis: Analysis, options: Options) -> tuple[Slot, ...]:
    """Say which levels the top-down network has.

    Needs: an `Analysis` and `Options`.
    Returns: a `Slot` per level, coarse to fine.
    Guarantees: two levels at least, one of them with a body; their reductions fall.

    Raises:
        ReductionError: ``reductions`` or ``finest_reduction`` do not fit the network.
        WidthError: a custom arrangement has another number of widths than the network has levels.
    """
    coarse = options.stem == "coarse" and analysis.stem.strides
    slots = list(_stem_first(analysis, options) if coarse else _mirrored(analysis, options))
    slots = _with_widths(_kept(slots, options), analysis, options)
    return (slots[0], *(_behind(coarser, slot) for coarser, slot in pairwise(slots)))


def _given(analysis: Analysis, options: Options) -> dict[BottomUpLevel, BottomUpLevel]:
    """Which level's body each level with a body takes."""
    bodies = analysis.bodies
    return dict(zip(bodies, reversed(bodies) if options.arrangement == "rev" else bodies, strict=True))


def _mirrored(analysis: Analysis, options: Options) -> Iterator[Slot]:
    """A level per reduction of the bottom-up network; the stem's are the finest."""
    given = _given(analysis, options)
    for level in analysis.levels:
        yield Slot(level.reduction, given.get(level), place=level)


def _stem_first(analysis: Analysis, options: Options) -> Iterator[Slot]:
    """A merge per stride of the stem at the coarse end, then the levels with a body."""
    given = _given(analysis, options)
    reduction = analysis.ladder[0]
    for stride in analysis.stem.strides:
        yield Slot(reduction, for_stem=True)
        reduction //= stride
    coarser = analysis.bodies[0]
    for body in analysis.bodies:
        reduction //= coarser.reduction // body.reduction
        yield Slot(reduction, given[body], place=body)
        coarser = body
    if reduction > 1:
        yield Slot(1)


def _kept(slots: Sequence[Slot], options: Options) -> list[Slot]:
    """Apply ``reductions`` and ``finest_reduction``."""
    known = [slot.reduction for slot in slots]
    wanted, finest = options.reductions, options.finest_reduction
    for reduction in [*(wanted or ()), finest]:
        if reduction not in known:
            raise ReductionError(
                f"reduction {shown(reduction)} is not on the ladder of this network; it has {known}"
            )
    keep = set(wanted if wanted is not None else known)
    kept = [s for s in slots if s.reduction in keep and s.reduction >= finest]
    if not any(s.body for s in kept):
        raise ReductionError(
            f"none of the reductions {sorted(keep, reverse=True)} down to {finest} has a body; levels with a body "
            f"are {[s.reduction for s in slots if s.body]}"
        )
    if len(kept) < 2:
        raise ReductionError(
            f"a top-down network needs two levels at least; choose more than one reduction of {known}"
        )
    return kept


def _with_widths(slots: list[Slot], analysis: Analysis, options: Options) -> list[Slot]:
    arrangement = options.arrangement
    if arrangement == "uni":
        common = common_width(analysis, options)
        return [replace(s, width=common) if s.body else s for s in slots]
    if isinstance(arrangement, str):
        return slots
    bodied = [s for s in slots if s.body]
    if len(arrangement) not in (len(bodied), len(slots)):
        raise WidthError(
            f"arrangement={list(arrangement)} has {len(arrangement)} widths; this network has {len(bodied)} "
            f"levels with a body ({[s.reduction for s in bodied]}) and {len(slots)} in all "
            f"({[s.reduction for s in slots]})"
        )
    target = slots if len(arrangement) == len(slots) else bodied
    chosen = {s.reduction: w for s, w in zip(target, arrangement, strict=True)}
    return [replace(s, width=chosen.get(s.reduction)) for s in slots]


def _behind(coarser: Slot, slot: Slot) -> Slot:
    dropouts = coarser.place.dropouts if coarser.place else ()
    return replace(slot, factor=coarser.reduction // slot.reduction, dropouts=dropouts)


# -- widths --------------------------------------------------------------------------------------------


def common_width(analysis: Analysis, options: Options) -> int:
    """U of `uni`: bottom-up width of the middle level with a body; of an even number, the finer of the two."""
    bodies = analysis.bodies
    return options.width or bodies[len(bodies) // 2].width


def bare_width(slot: Slot, analysis: Analysis, options: Options) -> int | None:
    """Width of a level without a body; None where the bottom-up network has no level there."""
    if slot.width or slot.for_stem:
        return slot.width or _coarsest_stage(analysis, options)
    widths = (level.width for level in analysis.levels if level.reduction == slot.reduction and not level.blocks)
    return next(widths, None)


def _coarsest_stage(analysis: Analysis, options: Options) -> int:
    """Width at which the levels that stand for the stem merge: that of the coarsest stage."""
    arrangement, bodies = options.arrangement, analysis.bodies
    if arrangement == "uni":
        return common_width(analysis, options)
    if not isinstance(arrangement, str):
        return arrangement[-len(bodies)] if len(arrangement) == len(bodies) else arrangement[0]
    first = (bodies[-1] if arrangement == "rev" else bodies[0]).blocks[0]
    return fed_width(first, None) or first.width


def fed_width(block: Block, width: int | None) -> int | None:
    """The width that a block which hands its input on is fed with for an exit width; None for other blocks."""
    if not (block.concatenates_entry or block.keeps_entry_width):
        return None
    if width is None:
        return block.entry_width
    return max(1, round(Fraction(width * block.entry_width, block.width)))


def block_widths(blocks: Sequence[Block], width: int | None) -> dict[str, int]:
    """Exit width of every block: the common one, but what a block that appends is fed with keeps its share."""
    widths: dict[str, int] = {}
    following: Block | None = None
    for block in reversed(blocks):
        fed = fed_width(following, widths[following.exit] if width else None) if following else None
        widths[block.exit] = fed or width or block.width
        following = block
    return widths
