"""Top-down networks that a budget allows: `bu2td.propose`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from bu2td.conversion import analyze, convert
from bu2td.errors import Bu2tdError, OptionError, PredictionError, first_line
from bu2td.graph import undisturbed
from bu2td.ir import Analysis, format_table
from bu2td.measure import TrainingStep, training_step
from bu2td.options import ARRANGEMENTS, Arrangement, Merging, as_count
from bu2td.runtime import TopDownNetwork

#: What `set_grad_checkpointing` is given: nothing is recomputed, the levels are, the finest in pieces, too.
RECOMPUTING: dict[str, dict[str, Any] | None] = {"nothing": None, "levels": {}, "inside": {"inside": True}}
#: Merges and their kernels, cheapest first. "concat" costs what "add_concat" does.
_MERGES: tuple[tuple[Merging, int], ...] = (("add", 1), ("add_concat", 1), ("add", 3), ("add_concat", 3))
#: How many maps such a merge's convolution reads.
_TERMS: dict[Merging, int] = {"add": 1, "add_concat": 2}
#: Shares of the default width of arrangement "uni".
_WIDTHS = (1.0, 0.5)
#: Rows that are printed.
_SHOWN = 12


@dataclass(frozen=True)
class Proposal:
    """Options of a top-down network, and what a training step of it takes.

    Attributes:
        arrangement, width, finest_reduction, merge, merge_kernel: as `bu2td.convert` takes them.
        recomputing: a key of `RECOMPUTING`: "nothing"; "levels" (``set_grad_checkpointing()``); "inside"
            (``set_grad_checkpointing(inside=True)``).
        kept: its multiply-accumulates over those of its arrangement with default options.
        time, memory: of a training step, over the bottom-up network's.
        within: "both", "time", "memory" or "none": what stays below the budget.
    """

    arrangement: Arrangement | tuple[int, ...]
    width: int | None
    finest_reduction: int
    merge: Merging
    merge_kernel: int
    recomputing: str
    kept: float
    time: float
    memory: float
    within: str

    @property
    def options(self) -> dict[str, Any]:
        """The keywords of `bu2td.convert`."""
        given: dict[str, Any] = {} if self.width is None else {"width": self.width}
        return {
            "arrangement": self.arrangement, **given, "finest_reduction": self.finest_reduction,
            "merge": self.merge, "merge_kernel": self.merge_kernel,
        }  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """The proposal as JSON-ready data."""
        arrangement = self.arrangement if isinstance(self.arrangement, str) else list(self.arrangement)
        numbers = {name: round(getattr(self, name), 4) for name in ("kept", "time", "memory")}
        return {
            "options": {**self.options, "arrangement": arrangement}, "recomputing": self.recomputing, **numbers,
            "within": self.within,
        }  # fmt: skip

    def row(self) -> dict[str, Any]:
        """The proposal as a row of a table."""
        word = self.arrangement if isinstance(self.arrangement, str) else ",".join(map(str, self.arrangement))
        return {
            "arrangement": word, "width": self.width or "", "finest_reduction": self.finest_reduction,
            "merge": self.merge, "merge_kernel": self.merge_kernel, "recomputing": self.recomputing,
            "kept": f"{self.kept:.1%}", "x time": f"{self.time:.2f}", "x memory": f"{self.memory:.2f}",
            "within": self.within,
        }  # fmt: skip


@dataclass(frozen=True)
class Proposals:
    """What `propose` found.

    Attributes:
        budget: times the bottom-up network's training step.
        batch_size: images of that step.
        found: best first; none of them is beaten by another that keeps as much and takes no more.
        closest: the set that comes nearest to the budget, where nothing stays below it.
    """

    budget: float
    batch_size: int
    found: tuple[Proposal, ...]
    closest: Proposal | None = None

    def to_dict(self) -> dict[str, Any]:
        """The proposals as JSON-ready data."""
        return {
            "budget": self.budget, "batch_size": self.batch_size,
            "found": [proposal.to_dict() for proposal in self.found],
            "closest": None if self.closest is None else self.closest.to_dict(),
        }  # fmt: skip

    def __str__(self) -> str:
        limit = f"{self.budget:g} times the bottom-up network's training step (batch size {self.batch_size})"
        if self.closest is not None:
            return f"nothing stays below {limit}, in time or memory; closest:\n{format_table([self.closest.row()])}"
        more = len(self.found) - _SHOWN
        return "\n".join(
            [
                f"below {limit},",
                "as predicted for one core and the network as converted; those within in both first, then",
                "by what they keep of the multiply-accumulates of their arrangement with default options",
                format_table([proposal.row() for proposal in self.found[:_SHOWN]]),
                *([f"and {more} more"] if more > 0 else []),
            ]
        )


@undisturbed()
def propose(
    model: nn.Module | Analysis,
    budget: float = 2.0,
    arrangements: Sequence[Arrangement | Sequence[int]] = ARRANGEMENTS,
    *,
    batch_size: int = 32,
    example_inputs: Tensor | None = None,
) -> Proposals:
    """Propose options of top-down networks that train at a budget.

    Tried are every `finest_reduction` of the ladder, `merge` "add_concat" and "add", `merge_kernel` 3 and 1, the
    default `width` of arrangement "uni" and half of it, and what `set_grad_checkpointing` recomputes. Time and
    memory of forward and backward are predicted on the meta device (`bu2td.measure.training_step`) for one core of
    a CPU.

    Args:
        model: a live network, or the `Analysis` of one; it is not changed.
        budget: times the bottom-up network's training step, in time or in memory.
        arrangements: as `bu2td.convert` takes them; of level widths, those of dropped levels are left out.
        batch_size: images of a step.
        example_inputs: as of `bu2td.convert`.

    Returns:
        `Proposals`, best first: those within the budget in time and memory, then those in one of the two; within
        these by the share of the multiply-accumulates of their arrangement with default options that they keep,
        then by time. ``str()`` of it is a table.

    Raises:
        OptionError: a budget or batch size that is none, or no arrangement.
        PredictionError: the bottom-up network, or none of the others, has a training step on meta tensors.
        Bu2tdError: whatever `bu2td.convert` raises for an arrangement with default options.
    """
    limit = _checked(budget)
    if not arrangements:
        raise OptionError(f"arrangements={arrangements!r} must name at least one of {', '.join(ARRANGEMENTS)}")
    count = as_count("batch_size", batch_size)
    analysis = model if isinstance(model, Analysis) else analyze(model, example_inputs=example_inputs)
    shape = (count, *analysis.capture.image_shape[1:])
    before = _step(analysis.capture.source, shape)
    tried = [
        proposal
        for arrangement in arrangements
        for width in _widths(analysis, arrangement)
        for proposal in _Family(analysis, arrangement, width, shape, before, limit).proposals()
    ]
    if not tried:
        raise PredictionError(
            f"no training step of a top-down network of {list(arrangements)} can be predicted on images of "
            f"{shape}; measure it on this machine instead"
        )
    found = [proposal for proposal in tried if proposal.within != "none"]
    found = [proposal for proposal in found if not any(_beats(other, proposal) for other in found)]
    found.sort(key=lambda proposal: (proposal.within != "both", -proposal.kept, proposal.time))
    closest = None if found else min(tried, key=lambda proposal: min(proposal.time, proposal.memory))
    return Proposals(limit, count, tuple(found), closest)


def _checked(budget: Any) -> float:
    number = isinstance(budget, int | float) and not isinstance(budget, bool)
    if not number or not math.isfinite(budget) or budget <= 0:
        raise OptionError(
            f"budget={budget!r} must be a positive number: times the bottom-up network's training step"
        )
    return float(budget)


def _step(network: nn.Module, shape: tuple[int, ...]) -> TrainingStep:
    try:
        return training_step(network, shape)
    except (NotImplementedError, RuntimeError, ValueError) as error:
        raise PredictionError(
            f"a training step of {type(network).__name__} on images of {tuple(shape)} cannot be predicted: "
            f"{first_line(error)}. Measure it on this machine instead"
        ) from error


def _widths(analysis: Analysis, arrangement: Any) -> list[int | None]:
    """Widths to try: None is the default."""
    if arrangement != "uni":
        return [None]
    widest = _planned(analysis, arrangement).plan.widths[0]
    return [None, *(max(1, int(widest * share)) for share in _WIDTHS if share != 1)]


def _planned(analysis: Analysis, arrangement: Any, **options: Any) -> TopDownNetwork:
    return convert(analysis, arrangement, device="meta", max_macs_ratio=None, seed=0, **options)


def _beats(one: Proposal, other: Proposal) -> bool:
    """Whether a proposal keeps as much and takes no more, and is better in one of them."""
    first, second = ((-p.kept, p.time, p.memory) for p in (one, other))
    comparable = one.arrangement == other.arrangement
    return comparable and all(a <= b for a, b in zip(first, second, strict=True)) and first != second


class _Family:
    """The option sets of one arrangement and width."""

    def __init__(
        self, analysis: Analysis, arrangement: Any, width: int | None, shape: tuple[int, ...],
        before: TrainingStep, budget: float,
    ) -> None:  # fmt: skip
        self.analysis, self.arrangement, self.width, self.shape = analysis, arrangement, width, shape
        self.before, self.budget = before, budget
        whole = _planned(analysis, arrangement)
        self.ladder, self.macs = whole.plan.ladder, max(whole.plan.cost.macs, 1)

    def proposals(self) -> Iterator[Proposal]:
        """Every set, coarse networks first; those that cost more than one beyond the budget are not tried."""
        beyond: list[tuple[int, int]] = []
        for finest in self.ladder[1:]:
            for merge, kernel in _MERGES:
                terms = _TERMS[merge]
                if any(terms >= other_terms and kernel >= other for other_terms, other in beyond):
                    continue
                made = list(self._ways(finest, merge, kernel))
                yield from made
                if made and all(proposal.within == "none" for proposal in made):
                    beyond.append((terms, kernel))

    def _ways(self, finest: int, merge: Merging, kernel: int) -> Iterator[Proposal]:
        """A network in the ways of recomputing that may bring it below the budget; none if it cannot be made."""
        options: dict[str, Any] = {"finest_reduction": finest, "merge": merge, "merge_kernel": kernel}
        arrangement = self.arrangement
        if not isinstance(arrangement, str):
            arrangement = tuple(arrangement)[: self.ladder.index(finest) + 1]
        try:
            network = _planned(
                self.analysis, arrangement, **options, **({} if self.width is None else {"width": self.width})
            )
        except Bu2tdError:
            return
        draft = Proposal(
            arrangement, self.width, finest, merge, kernel, "nothing", network.plan.cost.macs / self.macs,
            math.inf, math.inf, "none",
        )  # fmt: skip
        for way, keywords in RECOMPUTING.items():
            network.set_grad_checkpointing(keywords is not None, **(keywords or {}))
            try:
                step = _step(network, self.shape)
            except PredictionError:
                return
            made = self._weighed(replace(draft, recomputing=way), step)
            yield made
            if made.memory < self.budget:
                return  # what recomputes more takes longer, for memory that is not needed

    def _weighed(self, draft: Proposal, step: TrainingStep) -> Proposal:
        time = step.seconds / self.before.seconds
        memory = step.memory.peak / max(self.before.memory.peak, 1)
        fits = (time < self.budget, memory < self.budget)
        within = {(True, True): "both", (True, False): "time", (False, True): "memory"}.get(fits, "none")
        return replace(draft, time=time, memory=memory, within=within)
