"""What a run decides: every measure of a top-down network against the bottom-up network, on both levels.

A family of questions (all attacks, all corruptions, ...) has one primary measure; the probabilities of a family on
a level are adjusted together by Holm's rule. Under an attack it is the mean distance up to the limit that all
networks share: the area under the paper's figure 6 times the limit, a restricted mean (Royston and Parmar, 2013,
BMC Medical Research Methodology 13:152). It has a value for every image, also for those without a perturbation,
which are censored at the limit; a median has none where half of them are, and says nothing of the other half.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

import numpy as np
import pandas as pd

from bu2td.evaluate.report import statistics
from bu2td.evaluate.report.read import Run
from bu2td.evaluate.report.statistics import ALPHA, NOTHING, Difference
from bu2td.evaluate.schema import ARRANGEMENTS

#: The heat map that the paper measures: of the last convolution, centred as by the authors' code.
PAPERS_LAYER, PAPERS_NORMALISATION = "last-convolution", "centred"
#: The smallest perturbation of an image under any attack, and under those of a kind, are attacks in all tables.
STRONGEST = "strongest"
#: Where none of n images differs, up to 3 / n of all images may (Hanley and Lippman-Hand, 1983, JAMA 249).
RULE_OF_THREE = 3.0


class Family(Enum):
    """Questions that are answered together."""

    ACCURACY = "Accuracy"
    ATTACKS = "Attacks"
    CORRUPTIONS = "Corruptions"
    BANDS = "Frequency bands"
    LOCALISATION = "Localisation"
    FAITHFULNESS = "Faithfulness"


class Level(Enum):
    """Of what a verdict speaks."""

    NETWORKS = "these networks"
    ARCHITECTURE = "as an architecture"


class Verdict(Enum):
    """Of a top-down network against the bottom-up network."""

    BETTER = "better"
    EQUAL = "equal"
    WORSE = "worse"
    UNDECIDED = "not decided"


#: Per family, a difference that is too small to choose a network for; under attacks a share of the bottom-up value.
MARGINS = {
    Family.ACCURACY: 0.005,
    Family.ATTACKS: 0.05,
    Family.CORRUPTIONS: 0.01,
    Family.BANDS: 0.01,
    Family.LOCALISATION: 0.02,
    Family.FAITHFULNESS: 0.02,
}


@dataclass(frozen=True)
class Sample:
    """One measure of one subject.

    Attributes:
        values: by image (rows) and network (columns: arrangement, repeat); nan where it was not measured.
        subject: the attack, the corruption, ...; empty where a family has one alone.
        per_image: False where the table has a row per run only, its value standing for one image.
        limit: larger values count as this one in means; it is also the largest difference there can be.
    """

    family: Family
    measure: str
    subject: str
    values: pd.DataFrame
    primary: bool = True
    higher_is_better: bool = True
    per_image: bool = True
    limit: float = 1.0


@dataclass(frozen=True)
class Comparison:
    """One measure of a top-down network against the bottom-up network, on one level.

    Attributes:
        arrangement: of the top-down network.
        primary: whether the verdict of the family rests on it.
        n: images, or the runs of the network with the fewer.
        bottom_up, top_down: means.
        estimate, low, high: top-down less bottom-up, with a 95 % interval.
        p, adjusted_p: two-sided, and by Holm's rule over the primary (or the other) measures of the family.
        margin: differences below it count for nothing.
        reason: why a verdict is not decided.
    """

    arrangement: str
    family: Family
    measure: str
    subject: str
    level: Level
    primary: bool
    higher_is_better: bool
    n: int
    bottom_up: float
    top_down: float
    estimate: float
    low: float
    high: float
    p: float
    adjusted_p: float
    margin: float
    verdict: Verdict
    reason: str

    def record(self) -> dict[str, Any]:
        """As a dict for JSON."""
        return {k: v.value if isinstance(v, Enum) else v for k, v in asdict(self).items()}


# --- from samples to verdicts -------------------------------------------------------------------------


def compare(samples: Sequence[Sample], arrangement: str) -> list[Comparison]:
    """Compare a top-down network with the bottom-up network wherever both have values."""
    found: list[Comparison] = []
    for level in Level:
        pairs = [(s, d) for s in samples if (d := _difference(s, arrangement, level)).n]
        groups = [(s.family, s.primary) for s, _ in pairs]
        adjusted = [math.nan] * len(pairs)
        for group in set(groups):
            own = [i for i, g in enumerate(groups) if g == group]
            for i, p in zip(own, statistics.holm([pairs[i][1].p for i in own]), strict=True):
                adjusted[i] = p
        found += [_judged(s, arrangement, level, d, p) for (s, d), p in zip(pairs, adjusted, strict=True)]
    return found


def _difference(sample: Sample, arrangement: str, level: Level) -> Difference:
    """On one level; of repeats that both networks have, only images that both have count."""
    repeats: dict[str, list[int]] = {"bu": [], arrangement: []}
    for name, repeat in sample.values.columns:
        if name in repeats:
            repeats[name].append(repeat)
    if not all(repeats.values()) or not len(sample.values):
        return NOTHING
    before, after = ({k: sample.values[a, k].to_numpy(float) for k in own} for a, own in repeats.items())
    both = [k for k in before if k in after]
    for k in both:
        missing = np.isnan(before[k]) | np.isnan(after[k])
        before[k], after[k] = (np.where(missing, np.nan, values) for values in (before[k], after[k]))
    if level is Level.NETWORKS:
        if not both or not sample.per_image:
            return NOTHING
        paired = [np.stack([own[k] for k in both], axis=1) for own in (before, after)]
        return statistics.between_networks(paired[0], paired[1], sample.limit)
    runs = [np.stack(list(own.values()), axis=1) for own in (before, after)]
    return statistics.between_architectures(runs[0], runs[1], sample.limit)


def _judged(sample: Sample, arrangement: str, level: Level, found: Difference, adjusted: float) -> Comparison:
    margin = MARGINS[sample.family] * (found.bottom_up if sample.family is Family.ATTACKS else 1)
    images = len(sample.values) if sample.per_image else math.inf
    narrow = -margin <= found.low and found.high <= margin and margin * images >= RULE_OF_THREE * sample.limit
    clear = found.low > 0 or found.high < 0
    agree = found.sign == np.sign(found.estimate)
    verdict, reason = Verdict.UNDECIDED, ""
    if adjusted <= ALPHA and clear and agree:
        verdict = Verdict.BETTER if (found.estimate > 0) == sample.higher_is_better else Verdict.WORSE
    elif narrow:
        verdict = Verdict.EQUAL
    elif level is Level.ARCHITECTURE and found.n < 2:
        reason = "with 1 run"
    elif adjusted <= ALPHA:
        reason = "mean and ranks disagree" if clear else "the interval holds 0"
    reach = math.inf if sample.family is Family.BANDS else sample.limit  # of what a difference can be
    return Comparison(
        arrangement=arrangement,
        level=level,
        low=float(np.clip(found.low, -reach, reach)),
        high=float(np.clip(found.high, -reach, reach)),
        adjusted_p=adjusted,
        margin=margin,
        verdict=verdict,
        reason=reason,
        **{k: getattr(sample, k) for k in ("family", "measure", "subject", "primary", "higher_is_better")},
        **{k: v for k, v in asdict(found).items() if k not in ("sign", "low", "high")},
    )


# --- from tables to samples ---------------------------------------------------------------------------


def compare_run(run: Run) -> list[Comparison]:
    """All comparisons that the tables of a run allow, by arrangement, level and family."""
    samples = [
        sample
        for of in (_accuracy, _attacks, _corruptions, _bands, _localisation, _faithfulness)
        for sample in of(run.tables)
    ]
    return [comparison for a in ARRANGEMENTS[1:] for comparison in compare(samples, a)]


Tables = dict[str, pd.DataFrame]


def _wide(frame: pd.DataFrame, value: str) -> pd.DataFrame:
    if "image" not in frame:
        frame = frame.assign(image=0)
    return frame.pivot(index="image", columns=["arrangement", "repeat"], values=value).astype(float)


def _samples(
    tables: Tables, names: Sequence[str], keys: Sequence[str], value: str, family: Family, measure: str, **more: Any
) -> Iterator[Sample]:
    """A sample per subject (what ``keys`` say), of the first of the tables that has such values."""
    for name in names:
        frame = tables[name]
        frame = frame[frame[value].notna()]
        if len(frame):
            for key, own in frame.groupby(list(keys), sort=False):
                options = {"subject": ", ".join(str(k) for k in key), **more}
                yield Sample(
                    family, measure, values=_wide(own, value), per_image="image" in frame.columns, **options
                )
            return


def _accuracy(tables: Tables) -> Iterator[Sample]:
    family, said, rows = Family.ACCURACY, tables["predictions"], tables["accuracy"]
    if len(said):
        right = said.assign(right=(said["predicted"] == said["label"]).astype(float))
        yield Sample(family, "test accuracy", "", _wide(right, "right"))
    elif len(rows):
        yield Sample(family, "test accuracy", "", _wide(rows, "test_accuracy"), per_image=False)
    for column, title, higher in (
        ("top5_accuracy", "top-5 accuracy", True),
        ("calibration_error", "calibration error", False),
    ):
        known = rows[rows[column].notna()]
        if len(known):
            yield Sample(family, title, "", _wide(known, column), False, higher, per_image=False)


def strongest_first(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with those of the strongest attacks in front."""
    return rows.sort_values("attack", key=lambda names: ~names.str.startswith(STRONGEST), kind="stable")


def _attacks(tables: Tables) -> Iterator[Sample]:
    limits = tables["robustness"].groupby("attack")["limit"].max()
    for attack, own in strongest_first(tables["distances"]).groupby("attack", sort=False):
        finite = own["distance"][np.isfinite(own["distance"])]
        limit = float(limits.get(attack, finite.max() if len(finite) else math.nan))
        yield Sample(
            Family.ATTACKS,
            "mean distance up to the limit",
            str(attack),
            _wide(own, "distance"),
            primary=attack == STRONGEST or not str(attack).startswith(STRONGEST),
            limit=limit if limit > 0 else 1.0,
        )


def corruption_means(rows: pd.DataFrame) -> pd.DataFrame:
    """Accuracy of every run under every corruption: the mean over the severities from 1 up that every run has."""
    rows = rows[rows["severity"] > 0]
    runs = rows.groupby("corruption").apply(
        lambda own: own.groupby(["arrangement", "repeat"]).ngroups, include_groups=False
    )
    having = rows.groupby(["corruption", "severity"])["accuracy"].transform("count")
    shared = rows[having == rows["corruption"].map(runs)] if len(rows) else rows
    groups = shared.groupby(["corruption", "arrangement", "repeat"], sort=False)
    return groups.agg(
        accuracy=("accuracy", "mean"), samples=("samples", "min"), low=("severity", "min"), high=("severity", "max")
    ).reset_index()


def _corruptions(tables: Tables) -> Iterator[Sample]:
    images = tables["corrupted_images"]
    images = images[images["severities"] > 0]
    made = {
        "images": images.assign(accuracy=images["right"] / images["severities"]),
        "runs": corruption_means(tables["corruptions"]),
    }
    yield from _samples(
        made, ["images", "runs"], ["corruption"], "accuracy", Family.CORRUPTIONS, "mean accuracy over severities"
    )


def _bands(tables: Tables) -> Iterator[Sample]:
    made = {}
    for name in ("band_images", "bands"):
        frame = tables[name]
        several = frame["norm"].nunique() > 1
        words = [
            f"{low:g}\N{EN DASH}{high:g} cycles per image" + (f", L2 {norm:g}" if several else "")
            for low, high, norm in zip(frame["low"], frame["high"], frame["norm"], strict=True)
        ]
        made[name] = frame.assign(
            band=np.array(words, object), added=frame["error"] - frame["clean_error"].fillna(0)
        )
    names = ["band_images", "bands"]
    yield from _samples(
        made, names, ["band"], "added", Family.BANDS, "error added by a wave", higher_is_better=False
    )


def _explained(tables: Tables, family: Family, run_table: str, value: str, title: str, **more: Any) -> list[Sample]:
    keys = ["layer", "normalisation"]
    if run_table == "localisation" and not len(tables["explained_images"]):
        keys += ["threshold"] if tables[run_table]["threshold"].nunique() > 1 else []
    names = ["explained_images", run_table] if value in tables["explained_images"] else [run_table]
    found = _samples(tables, names, keys, value, family, title, **more)
    papers = f"{PAPERS_LAYER}, {PAPERS_NORMALISATION}"
    return [dataclasses.replace(s, primary=s.primary and s.subject.startswith(papers)) for s in found]


def _localisation(tables: Tables) -> Iterator[Sample]:
    for value in ("precision", "recall"):
        yield from _explained(tables, Family.LOCALISATION, "localisation", value, value)
    yield from _explained(tables, Family.LOCALISATION, "boxes", "max_box_acc_v2", "MaxBoxAccV2", primary=False)


def _faithfulness(tables: Tables) -> Iterator[Sample]:
    for value, title, higher in (
        ("deletion", "deletion", False),
        ("insertion", "insertion", True),
        ("pointing", "pointing game", True),
    ):
        yield from _explained(tables, Family.FAITHFULNESS, "faithfulness", value, title, higher_is_better=higher)
