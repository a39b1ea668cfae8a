"""Means over repeats, and where a top-down network is better than its bottom-up network, and where not."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bu2td.evaluate.report.read import ARRANGEMENTS, Row, Run

__all__ = [
    "BETTER",
    "RULE",
    "UNCLEAR",
    "UNDECIDED",
    "WORSE",
    "Comparison",
    "Statistic",
    "aggregate",
    "compare",
    "compare_run",
    "statistic",
]

BETTER, WORSE, UNCLEAR, UNDECIDED = "better", "worse", "no clear difference", "not decided"
VERDICTS = (BETTER, UNCLEAR, WORSE, UNDECIDED)
RULE = (
    "The rule: a difference of means over repeats counts only if it is larger than the spread, which is the "
    "standard deviation of the difference between one run and another, √(s₁² + s₂²); larger than twice its "
    "standard error, "
    "√(s₁²/n₁ + s₂²/n₂); and, for accuracies, larger than one image. Anything smaller is no clear difference. "
    "With fewer than two repeats of either network nothing is decided."
)


@dataclass(frozen=True)
class Statistic:
    """Mean and standard deviation over repeats.

    Attributes:
        mean: nan without values; inf if a value is.
        std: with n - 1 in the denominator; nan for fewer than two values or where a value is inf.
        n: how many repeats have a value.
        values: theirs, in the order of the repeats.
    """

    mean: float
    std: float
    n: int
    values: tuple[float, ...]


def statistic(values: Iterable[float]) -> Statistic:
    """Mean, standard deviation (ddof=1) and number of the values that are not nan."""
    kept = tuple(float(v) for v in values if not math.isnan(v))
    if not kept:
        return Statistic(math.nan, math.nan, 0, ())
    if not all(map(math.isfinite, kept)):
        return Statistic(math.inf, math.nan, len(kept), kept)
    std = float(np.std(kept, ddof=1)) if len(kept) > 1 else math.nan
    return Statistic(float(np.mean(kept)), std, len(kept), kept)


def aggregate(rows: Iterable[Row], keys: Sequence[str], value: str) -> dict[tuple[Any, ...], Statistic]:
    """Statistics of one column for every combination of ``keys``, in the order of first appearance."""
    groups: dict[tuple[Any, ...], list[float]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row[value])
    return {key: statistic(values) for key, values in groups.items()}


@dataclass(frozen=True)
class Comparison:
    """One measure of a top-down network against the bottom-up network.

    Attributes:
        arrangement: of the top-down network.
        experiment: accuracy, robustness, corruptions, localisation or faithfulness.
        measure: what was measured.
        subject: the attack, the corruption, the normalisation; empty for the test accuracy.
        higher_is_better: whether the larger number is the better one.
        bottom_up, top_down: over repeats.
        difference: top-down less bottom-up.
        standard_error: of the difference, sqrt(s_bu^2 / n_bu + s_td^2 / n_td).
        spread: of the difference between one run and another, sqrt(s_bu^2 + s_td^2).
        ratio: top-down over bottom-up.
        floor: the smallest difference that the measure can show.
        verdict: better, worse, no clear difference or not decided.
        chance: probability of a clear verdict for equal networks (Student's t with n_bu + n_td - 2 degrees of
            freedom, normal repeats of one variance).
    """

    arrangement: str
    experiment: str
    measure: str
    subject: str
    higher_is_better: bool
    bottom_up: Statistic
    top_down: Statistic
    difference: float
    standard_error: float
    spread: float
    ratio: float
    floor: float
    verdict: str
    chance: float

    def record(self) -> dict[str, Any]:
        """As a dict for JSON."""
        return asdict(self)


def compare(
    bottom_up: Statistic,
    top_down: Statistic,
    *,
    higher_is_better: bool = True,
    floor: float = 0.0,
    arrangement: str = "td",
    experiment: str = "",
    measure: str = "",
    subject: str = "",
) -> Comparison:
    """Compare two sets of repeats by the rule that `RULE` states.

    The repeats are taken as independent. With n repeats of spread s each, the standard error is s * sqrt(2 / n) and
    the spread s * sqrt(2): twice the former is the larger one below four repeats, the latter above.
    """
    numbers = [bottom_up.mean, top_down.mean]
    finite = all(map(math.isfinite, numbers))
    difference = numbers[1] - numbers[0] if finite else math.nan
    variances = [bottom_up.std**2, top_down.std**2]
    spread = math.sqrt(sum(variances))
    counts = (bottom_up.n, top_down.n)
    error = math.sqrt(sum(v / n for v, n in zip(variances, counts, strict=True))) if min(counts) > 0 else math.nan
    ratio = numbers[1] / numbers[0] if numbers[0] and any(map(math.isfinite, numbers)) else math.nan
    verdict = _verdict(bottom_up, top_down, difference, max(spread, 2 * error, floor), higher_is_better)
    return Comparison(
        arrangement=arrangement,
        experiment=experiment,
        measure=measure,
        subject=subject,
        higher_is_better=higher_is_better,
        bottom_up=bottom_up,
        top_down=top_down,
        difference=difference,
        standard_error=error,
        spread=spread,
        ratio=ratio,
        floor=floor,
        verdict=verdict,
        chance=_chance(spread, error, sum(counts) - 2),
    )


def _verdict(bottom_up: Statistic, top_down: Statistic, difference: float, least: float, higher: bool) -> str:
    if min(bottom_up.n, top_down.n) < 2:
        return UNDECIDED
    if math.isnan(difference):  # a distance without an end in some repeat: decided only if all repeats agree
        ends = [{math.isfinite(v) for v in s.values} for s in (bottom_up, top_down)]
        if ends == [{False}, {False}]:
            return UNCLEAR
        if {True, False} in ends:
            return UNDECIDED
        return BETTER if (ends[1] == {False}) == higher else WORSE
    if not abs(difference) > least + 1e-12:
        return UNCLEAR
    return BETTER if (difference > 0) == higher else WORSE


def _chance(spread: float, error: float, freedom: int) -> float:
    if freedom < 1 or not error > 0:
        return math.nan
    from scipy.special import stdtr

    return float(2 * stdtr(freedom, -max(2.0, spread / error)))


# --- a run --------------------------------------------------------------------------------------------


def compare_run(run: Run) -> list[Comparison]:
    """All comparisons that the files of a run allow, by arrangement, in the paper's order of experiments."""
    found = []
    for arrangement in ARRANGEMENTS[1:]:
        for part in (_accuracy, _robustness, _corruptions, _explanation):
            found += part(run, arrangement)
    return found


def _pairs(
    rows: Sequence[Row], keys: Sequence[str], value: str, arrangement: str, **words: Any
) -> list[Comparison]:
    """Compare one column wherever both networks have it; the subject is what ``keys`` say."""
    by_floor: Callable[[Sequence[Row]], float] = words.pop("floor", lambda _: 0.0)
    statistics = aggregate(rows, ["arrangement", *keys], value)
    found = []
    for (word, *subject), of_td in statistics.items():
        of_bu = statistics.get(("bu", *subject))
        if word != arrangement or of_bu is None or not (of_bu.n and of_td.n):
            continue
        own = [r for r in rows if r["arrangement"] in ("bu", arrangement) and [r[k] for k in keys] == subject]
        name = ", ".join(str(s) for s in subject)
        found.append(compare(of_bu, of_td, floor=by_floor(own), arrangement=arrangement, subject=name, **words))
    return found


def _one_image(rows: Sequence[Row]) -> float:
    """The share that one image is, of the fewest that a row counts."""
    return 1 / max(1, min(row["samples"] for row in rows))


def _accuracy(run: Run, arrangement: str) -> list[Comparison]:
    images = run.settings["data"].get("test")
    return _pairs(
        run.tables["accuracy"],
        [],
        "test_accuracy",
        arrangement,
        experiment="accuracy",
        measure="test accuracy",
        floor=lambda _: 1 / images if isinstance(images, int) and images > 0 else 0.0,
    )


def _robustness(run: Run, arrangement: str) -> list[Comparison]:
    found = []
    for value, measure in (("auc", "area under the curve"), ("median_l2", "median L2")):
        found += _pairs(
            run.tables["robustness"], ["attack"], value, arrangement, experiment="robustness", measure=measure
        )
    return found


def corruption_means(rows: Sequence[Row]) -> list[Row]:
    """Accuracy of every run under every corruption: the mean over the severities from 1 up that every run has."""
    accuracies: dict[str, dict[tuple[str, int], dict[int, Row]]] = {}
    for row in rows:
        if row["severity"] > 0:
            run = (row["arrangement"], row["repeat"])
            accuracies.setdefault(row["corruption"], {}).setdefault(run, {})[row["severity"]] = row
    found = []
    for corruption, runs in accuracies.items():
        shared = set.intersection(*(set(own) for own in runs.values()))
        for (arrangement, repeat), own in runs.items() if shared else ():
            rows_of_run = [own[severity] for severity in sorted(shared)]
            found.append(
                {
                    "arrangement": arrangement,
                    "repeat": repeat,
                    "corruption": corruption,
                    "severities": sorted(shared),
                    "accuracy": float(np.mean([r["accuracy"] for r in rows_of_run])),
                    "samples": min(r["samples"] for r in rows_of_run),
                }
            )
    return found


def _corruptions(run: Run, arrangement: str) -> list[Comparison]:
    return _pairs(
        corruption_means(run.tables["corruptions"]),
        ["corruption"],
        "accuracy",
        arrangement,
        experiment="corruptions",
        measure="mean accuracy",
        floor=_one_image,
    )


def _explanation(run: Run, arrangement: str) -> list[Comparison]:
    found = []
    rows = run.tables["localisation"]
    several = len({row["threshold"] for row in rows}) > 1
    keys = ["normalisation", "threshold"] if several else ["normalisation"]
    for value in ("precision", "recall"):
        found += _pairs(rows, keys, value, arrangement, experiment="localisation", measure=value)
    words: dict[str, Any] = {"experiment": "localisation", "measure": "MaxBoxAccV2"}
    found += _pairs(run.tables["boxes"], ["normalisation"], "max_box_acc_v2", arrangement, **words)
    for value, higher in (("pointing", True), ("deletion", False), ("insertion", True)):
        found += _pairs(
            run.tables["faithfulness"],
            ["normalisation"],
            value,
            arrangement,
            experiment="faithfulness",
            measure=f"{value} game" if value == "pointing" else value,
            higher_is_better=higher,
        )
    return found
