"""Verdicts: what a run decides, on which level, how often wrongly, and what the page says of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as limits
from hypothesis import strategies as st
from run_folders import (
    ACCURACY,
    IMAGES,
    put_accuracy,
    put_all,
    put_bands,
    put_boxes,
    put_corruptions,
    put_explanations,
    put_predictions,
    put_robustness,
    start,
)

from bu2td.evaluate import schema
from bu2td.evaluate.means import Statistic, aggregate, statistic
from bu2td.evaluate.report import statistics
from bu2td.evaluate.report.compare import (
    Comparison,
    Family,
    Level,
    Sample,
    Verdict,
    compare,
    compare_run,
    corruption_means,
)
from bu2td.evaluate.report.read import Run, empty, read_run
from bu2td.evaluate.report.statistics import holm
from bu2td.evaluate.report.summary import phrase, sentence, verdict_table
from bu2td.evaluate.schema import TABLES, Kind, columns

NETWORKS, ARCHITECTURE = Level.NETWORKS, Level.ARCHITECTURE


@pytest.fixture(autouse=True)
def few_redrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "REDRAWN", 400)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Comparison]:
    return compare_run(read_run(put_all(start(tmp_path_factory.mktemp("run")))))


def of(found: Sequence[Comparison], level: Level, **wanted: Any) -> Comparison:
    rows = [c for c in found if c.level is level and all(getattr(c, k) == v for k, v in wanted.items())]
    assert len(rows) == 1, (wanted, rows)
    return rows[0]


def sample(
    bu: np.ndarray, td: np.ndarray, subject: str = "", family: Family = Family.ATTACKS, **more: Any
) -> Sample:
    """Values (images, runs) of both networks."""
    names = [(a, k) for a, v in (("bu", bu), ("td", td)) for k in range(v.shape[1])]
    values = pd.DataFrame(np.hstack([bu, td]), columns=pd.MultiIndex.from_tuples(names))
    return Sample(family, "measure", subject, values, **more)


# --- a run --------------------------------------------------------------------------------------------


def test_accuracy_on_both_levels(found: list[Comparison]) -> None:
    networks, architecture = (of(found, level, arrangement="td", measure="test accuracy") for level in Level)
    assert (networks.n, architecture.n) == (IMAGES, 4)
    for c in (networks, architecture):
        assert c.estimate == pytest.approx(np.mean(ACCURACY["td"]) - np.mean(ACCURACY["bu"]))
        assert c.low < c.estimate < c.high < 0
        assert c.verdict is Verdict.WORSE
        assert c.adjusted_p == c.p  # one question in the family
    for arrangement in ("uni", "rev"):
        assert of(found, ARCHITECTURE, arrangement=arrangement, primary=True).verdict is Verdict.UNDECIDED


@pytest.mark.parametrize("level", Level)
@pytest.mark.parametrize(
    ("attack", "verdict"),
    [("strongest", "better"), ("pgd", "better"), ("gaussian-blur", "worse"), ("shifts", "not decided"),
     ("single-pixel", "better")],
)  # fmt: skip
def test_attacks_also_where_none_is_found(found: list[Comparison], level: Level, attack: str, verdict: str) -> None:
    c = of(found, level, subject=attack)
    assert c.verdict.value == verdict
    assert math.isfinite(c.top_down)


def test_the_measure_of_an_attack_is_the_area_of_figure_6(tmp_path: Path) -> None:
    put_robustness(start(tmp_path))
    run = read_run(tmp_path)
    rows = run.tables["robustness"]
    for c in compare_run(run):
        own = rows[rows["attack"] == c.subject]
        for name, value in (("bu", c.bottom_up), ("td", c.top_down)):
            one = own[own["arrangement"] == name]
            assert value == pytest.approx((one["auc"] * one["limit"]).mean(), rel=1e-4)


def test_corruptions_bands_and_heat_maps(found: list[Comparison]) -> None:
    verdicts = {
        "gaussian-noise": Verdict.BETTER,
        "contrast": Verdict.WORSE,
        "3\N{EN DASH}6 cycles per image": Verdict.BETTER,  # less error
        "0\N{EN DASH}3 cycles per image": Verdict.UNDECIDED,
    }
    for subject, verdict in verdicts.items():
        assert of(found, NETWORKS, subject=subject).verdict is verdict
    assert of(found, NETWORKS, measure="deletion", primary=True).verdict is Verdict.BETTER  # less is better
    assert of(found, NETWORKS, measure="precision", primary=True).n == 28  # two heat maps are empty


def test_the_verdict_on_precision_is_that_of_the_papers_layer(found: list[Comparison]) -> None:
    own = {c.subject: c for c in found if c.measure == "precision" and c.level is NETWORKS}
    assert [s for s, c in own.items() if c.primary] == ["last-convolution, centred"]
    assert own["last-convolution, centred"].verdict is Verdict.WORSE
    assert own["last-level, centred"].verdict is Verdict.BETTER
    text = sentence([c for c in found if c.arrangement == "td"], Family.LOCALISATION)
    assert "precision bottom-up better by 9.57 points" in text
    others = sentence([c for c in own.values() if not c.primary], Family.LOCALISATION)
    assert "not measured as in the paper (last convolution, centred)" in others


def test_p_values_are_adjusted_within_a_family_and_a_level(found: list[Comparison]) -> None:
    for level in Level:
        own = [c for c in found if c.family is Family.ATTACKS and c.level is level]
        assert [c.adjusted_p for c in own] == pytest.approx(holm([c.p for c in own]))
        assert len(own) == 5


def test_the_strongest_of_a_kind_of_attack_is_no_question_of_its_own(tmp_path: Path) -> None:
    put_robustness(start(tmp_path), {"pgd": 2.0, "strongest-white-box": 2.0, "strongest": 2.0})
    own = [c for c in compare_run(read_run(tmp_path)) if c.level is NETWORKS]
    assert [(c.subject, c.primary) for c in own] == [
        ("strongest-white-box", False),
        ("strongest", True),
        ("pgd", True),
    ]


def test_tables_without_rows_per_image(tmp_path: Path) -> None:
    start(tmp_path)
    for put in (put_accuracy, put_corruptions, put_explanations, put_bands, put_boxes):
        put(tmp_path)
    for name in ("corrupted_images", "explained_images", "band_images"):
        (tmp_path / f"{name}.csv").unlink()
    own = compare_run(read_run(tmp_path))
    assert {c.level for c in own} == {ARCHITECTURE}
    assert {c.family for c in own} == set(Family) - {Family.ATTACKS}
    assert "not measured image by image" in sentence(own, Family.ACCURACY)
    noise = of(own, ARCHITECTURE, subject="gaussian-noise")
    assert noise.estimate == pytest.approx(0.02 * (2 - 1) * 3)  # mean severity 3


def test_one_run(tmp_path: Path) -> None:
    put_accuracy(start(tmp_path), {"bu": (0.96,), "td": (0.5,)})
    put_predictions(tmp_path, {"bu": (0.96,), "td": (0.5,)})
    own = compare_run(read_run(tmp_path))
    assert of(own, NETWORKS, primary=True).verdict is Verdict.WORSE
    assert of(own, ARCHITECTURE, primary=True).verdict is Verdict.UNDECIDED
    text = sentence(own, Family.ACCURACY)
    assert text.startswith("these networks: bottom-up better by 46.00 points (95 % ")
    assert text.endswith("; p < 0.001); as an architecture: not decided with 1 run.")


def test_networks_with_other_images_and_repeats() -> None:
    values = sample(np.arange(12.0).reshape(6, 2), np.arange(6.0)[:, None] + 9).values
    values.loc[0, ("td", 0)] = np.nan
    own = compare([Sample(Family.ATTACKS, "m", "a", values, limit=99)], "td")
    assert of(own, NETWORKS).n == 5  # repeat 0 alone is in both
    assert of(own, NETWORKS).bottom_up == pytest.approx(np.mean([2, 4, 6, 8, 10]))
    assert of(own, ARCHITECTURE).n == 1
    values.columns = pd.MultiIndex.from_tuples([("bu", 0), ("bu", 1), ("td", 5)])
    assert [c.level for c in compare([Sample(Family.ATTACKS, "m", "a", values, limit=99)], "td")] == [ARCHITECTURE]


# --- how often a verdict is wrong, and how often one is given -------------------------------------------


def family(random: np.random.Generator, images: int, runs: int, gain: float, subjects: int = 5) -> list[Sample]:
    """Distances under several attacks, which share their images; the far ones are not found."""
    image = random.gamma(3, 1, (images, 1))
    samples = []
    for k in range(subjects):
        bu, td = (
            image * np.exp(random.normal(0, 0.2, (1, runs)) + random.normal(0, 0.4, (images, runs)) + shift)
            for shift in (0, gain if k == 0 else 0)
        )
        bu, td = (np.where(d > 6, np.inf, d) for d in (bu, td))
        samples.append(sample(bu, td, f"attack {k}", limit=6.0))
    return samples


@pytest.mark.slow
@pytest.mark.parametrize("runs", [1, 3])
def test_a_family_of_equal_networks_seldom_has_a_verdict(runs: int) -> None:
    """On the level of networks, equal means that no run differs: the same weights twice, but for the noise."""
    random = np.random.default_rng(20 + runs)
    errors = dict.fromkeys(Level, 0)
    for _ in range(200):
        samples = family(random, 40, runs, 0.0)
        for level in Level:
            if level is NETWORKS:  # without the spread between runs
                samples = [noise_only(random, 40, runs, k) for k in range(5)]
            own = [c for c in compare(samples, "td") if c.level is level]
            errors[level] += any(c.verdict in (Verdict.BETTER, Verdict.WORSE) for c in own)
    assert errors[NETWORKS] / 200 <= 0.05
    assert errors[ARCHITECTURE] / 200 <= 0.05


def noise_only(random: np.random.Generator, images: int, runs: int, k: int) -> Sample:
    image = random.gamma(3, 1, (images, 1))
    bu, td = (image * np.exp(random.normal(0, 0.4, (images, runs))) for _ in range(2))
    return sample(np.where(bu > 6, np.inf, bu), np.where(td > 6, np.inf, td), f"attack {k}", limit=6.0)


def test_a_real_difference_is_found() -> None:
    random = np.random.default_rng(30)
    found = dict.fromkeys(Level, 0)
    for _ in range(50):
        for c in compare(family(random, 60, 4, 0.8), "td"):
            found[c.level] += c.subject == "attack 0" and c.verdict is Verdict.BETTER
    assert found[NETWORKS] >= 45
    assert found[ARCHITECTURE] >= 35


def test_equal_means_within_the_margin_and_takes_enough_images() -> None:
    random = np.random.default_rng(31)

    def verdict(images: int, flips: int) -> Verdict:
        right = (random.random((images, 1)) < 0.9).astype(float)
        other = right.copy()
        other[: flips // 2] = 0
        other[flips // 2 : flips] = 1
        return of(compare([sample(right, other, family=Family.ACCURACY)], "td"), NETWORKS).verdict

    assert verdict(2000, 0) is Verdict.EQUAL
    assert verdict(300, 0) is Verdict.UNDECIDED  # 3 / 300 of all images may differ
    text = phrase(
        of(compare([sample(np.ones((2000, 1)), np.ones((2000, 1)), family=Family.ACCURACY)], "td"), NETWORKS)
    )
    assert text == "equal within 0.50 points (95 % 0.00 to 0.00)"


def test_mean_and_ranks_that_disagree_decide_nothing() -> None:
    gains = np.concatenate([np.full(200, 0.01), np.full(40, -0.5)])[:, None]
    c = of(compare([sample(np.ones((240, 1)), 1 + gains, limit=9.0)], "td"), NETWORKS)
    assert (c.adjusted_p < 0.05, c.high < 0) == (True, True)
    assert (c.verdict, c.reason) == (Verdict.UNDECIDED, "mean and ranks disagree")


# --- words --------------------------------------------------------------------------------------------


def test_sentences(found: list[Comparison]) -> None:
    own = [c for c in found if c.arrangement == "td"]
    text = sentence(own, Family.ATTACKS)
    assert text.startswith("these networks: the strongest attack per image: top-down better by 0.")
    assert "top-down better under 2 (PGD (L2) and Single pixel), worse under 1 (Gaussian blur), not decided" in text
    assert "; as an architecture: " in text
    assert sentence(own, Family.CORRUPTIONS).startswith(
        "these networks: top-down better under 1 (Gaussian noise), worse under 1 (Contrast); as an architecture"
    )


def test_the_table_of_verdicts_has_them_all(found: list[Comparison]) -> None:
    (table,) = verdict_table(found, Family.LOCALISATION)
    own = [c for c in found if c.family is Family.LOCALISATION]
    assert len(table.rows) == len(own)
    assert "last convolution, centred" in table.rows[0]
    assert sum(str(row[1]).endswith("*") for row in table.rows) == sum(not c.primary for c in own)
    assert verdict_table([c for c in found if c.family is Family.ACCURACY], Family.LOCALISATION) == []


# --- any table ----------------------------------------------------------------------------------------


def cell(kind: Kind, of: type, name: str) -> st.SearchStrategy[Any]:
    """What a column may hold, odd values among it."""
    if name == "image":
        return st.integers(0, 4)
    few: list[Any] = [0, 1, 2, 5] if of is int else [0.0, 0.5, 1.0, 3.0, math.inf, math.nan]
    if of is str:
        few = [*schema.ARRANGEMENTS, *schema.NORMALISATIONS, *schema.LAYERS, "pgd", "fog"]
    return st.sampled_from([value for value in few if kind.holds(value)])


@st.composite
def tables(draw: st.DrawFn) -> dict[str, pd.DataFrame]:
    made = {Path(file).stem: empty(table) for file, table in TABLES.items()}
    for name in draw(st.lists(st.sampled_from(sorted(made)), min_size=1, max_size=4)):
        table = TABLES[next(file for file in TABLES if Path(file).stem == name)]
        row = st.fixed_dictionaries({n: cell(kind, of, n) for n, (of, kind) in columns(table).items()})
        frame = pd.DataFrame(draw(st.lists(row, max_size=12)), columns=list(columns(table)))
        made[name] = frame.drop_duplicates(list(table.key)) if table.key else frame
    return made


@limits(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(tables())
def test_no_table_stops_a_comparison(made: dict[str, pd.DataFrame]) -> None:
    for c in compare_run(Run(Path(), {}, made, None)):
        assert c.n > 0
        assert phrase(c)
        assert math.isnan(c.p) or 0 <= c.p <= c.adjusted_p <= 1


# --- means over repeats -------------------------------------------------------------------------------


def test_statistics() -> None:
    values = [0.1, math.nan, 0.4, 0.7]
    assert statistic(values) == Statistic(pytest.approx(0.4), pytest.approx(0.3), 3, (0.1, 0.4, 0.7))
    assert statistic([2.0]).n == 1
    assert math.isnan(statistic([2.0]).std)
    assert statistic([1.0, math.inf]).mean == math.inf
    assert math.isnan(statistic([]).mean)
    rows = [{"a": "x", "v": 1.0}, {"a": "y", "v": 5.0}, {"a": "x", "v": 3.0}]
    found = aggregate(rows, ["a"], "v")
    assert {key: s.mean for key, s in found.items()} == {("x",): 2, ("y",): 5}
    assert aggregate([], ["a"], "v") == {}


def test_corruptions_are_averaged_over_the_severities_that_all_have() -> None:
    def row(arrangement: str, severity: int, accuracy: float) -> dict[str, Any]:
        return {"arrangement": arrangement, "repeat": 0, "corruption": "fog", "severity": severity, "samples": 9,
                "accuracy": accuracy}  # fmt: skip

    rows = [row("bu", s, 1 - s / 10) for s in range(6)] + [row("td", s, 1 - s / 5) for s in range(3)]
    found = corruption_means(pd.DataFrame(rows)).set_index("arrangement")
    assert list(found.loc["bu", ["low", "high"]]) == [1, 2]  # a stopped run says nothing about severities 3 to 5
    assert found["accuracy"].to_dict() == {"bu": pytest.approx(0.85), "td": pytest.approx(0.7)}
    assert not len(corruption_means(empty(schema.Corruption)))
