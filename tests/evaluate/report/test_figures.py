"""Verdicts by the stated rule, and figures: what they show, and what odd data make of them."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_folders import ACCURACY, put_accuracy, put_branches, put_explanations, start

from bu2td.evaluate.report import figures, heatmaps
from bu2td.evaluate.report.compare import Statistic, compare, corruption_means, statistic
from bu2td.evaluate.report.read import Explanations, read_run, read_table

# --- verdicts -----------------------------------------------------------------------------------------


def test_the_rule_against_one_written_again() -> None:
    random = np.random.default_rng(0)
    verdicts = set()
    for _ in range(300):
        n, m = random.integers(2, 6, 2)
        a, b = random.normal(0, 1, n), random.normal(random.uniform(-4, 4), 1.5, m)
        variances = a.var(ddof=1), b.var(ddof=1)
        least = max(math.sqrt(sum(variances)), 2 * math.sqrt(variances[0] / n + variances[1] / m))
        gain = b.mean() - a.mean()
        expected = "no clear difference" if abs(gain) <= least else "better" if gain > 0 else "worse"
        assert compare(statistic(a), statistic(b)).verdict == expected
        turned = {"better": "worse", "worse": "better"}.get(expected, expected)
        assert compare(statistic(a), statistic(b), higher_is_better=False).verdict == turned
        assert compare(statistic(b), statistic(a)).verdict == turned
        verdicts.add(expected)
    assert len(verdicts) == 3


def test_the_chance_of_a_verdict_is_that_of_equal_networks() -> None:
    """Four repeats each, drawn from one normal distribution: the stated chance is the share of clear verdicts."""
    random = np.random.default_rng(1)
    clear, stated = 0, []
    for _ in range(3000):
        found = compare(statistic(random.normal(size=4)), statistic(random.normal(size=4)))
        clear += found.verdict != "no clear difference"
        stated.append(found.chance)
    assert clear / 3000 == pytest.approx(np.mean(stated), abs=0.02)
    assert stated[0] == pytest.approx(0.0924, abs=1e-3)  # twice the tail of Student's t beyond 2, 6 degrees


@pytest.mark.parametrize(
    ("bottom_up", "top_down", "verdict"),
    [
        ([0.5], [0.9], "not decided"),
        ([0.5, 0.5], [0.9], "not decided"),
        ([math.inf, math.inf], [math.inf, math.inf], "no clear difference"),
        ([1.0, 1.1], [math.inf, math.inf], "better"),
        ([math.inf, math.inf], [1.0, 1.1], "worse"),
        ([1.0, 1.1], [1.0, math.inf], "not decided"),
        ([math.nan, math.nan], [1.0, 2.0], "not decided"),
        ([0.5, 0.5], [0.5, 0.5], "no clear difference"),
        ([0.5, 0.5], [0.6, 0.6], "better"),
        ([0.5, 0.5], [0.501, 0.501], "no clear difference"),  # less than the floor
        ([0.0, 0.0], [1.0, 1.0], "better"),
    ],
)
def test_verdicts_at_the_edges(bottom_up: list[float], top_down: list[float], verdict: str) -> None:
    found = compare(statistic(bottom_up), statistic(top_down), floor=0.01)
    assert found.verdict == verdict


def test_statistics() -> None:
    values = [0.1, math.nan, 0.4, 0.7]
    assert statistic(values) == Statistic(pytest.approx(0.4), pytest.approx(0.3), 3, (0.1, 0.4, 0.7))
    assert statistic([2.0]).n == 1
    assert math.isnan(statistic([2.0]).std)
    assert statistic([1.0, math.inf]).mean == math.inf
    assert math.isnan(statistic([]).mean)


def test_corruptions_are_averaged_over_the_severities_that_all_have() -> None:
    def row(arrangement: str, severity: int, accuracy: float) -> dict[str, Any]:
        return {"arrangement": arrangement, "repeat": 0, "corruption": "fog", "severity": severity, "samples": 9,
                "accuracy": accuracy}  # fmt: skip

    rows = [row("bu", s, 1 - s / 10) for s in range(6)] + [row("td", s, 1 - s / 5) for s in range(3)]
    found = {r["arrangement"]: r for r in corruption_means(rows)}
    assert found["bu"]["severities"] == [1, 2]  # a run that was stopped says nothing about severities 3 to 5
    assert (found["bu"]["accuracy"], found["td"]["accuracy"]) == (pytest.approx(0.85), pytest.approx(0.7))


# --- figures ------------------------------------------------------------------------------------------


def test_levels_stand_in_the_order_of_their_network(tmp_path: Path) -> None:
    put_explanations(tmp_path)
    found = read_run(start(tmp_path)).explanations
    assert found is not None
    for arrangement, names in (("bu", ["r1", "r2", "r4"]), ("td", ["r4", "r2", "r1"])):
        turned = Explanations(found.images, found.labels, {arrangement: names[::-1]}, found.maps)
        for stored in (found, turned):  # whatever their order in the file
            assert [stored.levels[arrangement][i] for i in stored.order(arrangement)] == names
    figure = heatmaps.levels_figure(found, "centred", [1], [*"ABC"])
    assert figure is not None
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == ["B", "r1", "r2", "r4", "r4", "r2", "r1"]
    shown = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    assert np.array_equal(shown[5], found.maps["td"]["centred"][1, 0])


def test_the_last_level_is_the_one_that_the_head_reads(tmp_path: Path) -> None:
    put_explanations(tmp_path)
    found = read_run(start(tmp_path)).explanations
    assert found is not None
    figure = heatmaps.images_figure(found, [2])
    assert figure is not None
    shown = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    assert np.array_equal(shown[0], found.images[2, 0])
    assert np.array_equal(shown[1], found.maps["bu"]["plain"][2, 2])  # r4
    assert np.array_equal(shown[2], found.maps["td"]["plain"][2, 2])  # r1
    assert np.array_equal(shown[4], found.maps["td"]["centred"][2, 2])


def test_curves_show_the_loss_of_accuracy() -> None:
    rows = [
        {"arrangement": a, "repeat": r, "attack": "pgd", "l2": d, "accuracy": clean - fall * d}
        for a, fall in (("bu", 0.2), ("td", 0.1)) for r, clean in ((0, 0.9), (1, 0.8)) for d in (0.0, 1.0, 2.0)
    ]  # fmt: skip
    figure = figures.curves_figure(rows)
    assert figure is not None
    lines = {line.get_color(): line for line in figure.axes[0].lines}
    x, y = lines[figures.COLORS["bu"]].get_data()
    assert np.interp([0, 1, 2], x, y) == pytest.approx([0, 20, 40])
    x, y = lines[figures.COLORS["td"]].get_data()
    assert np.interp([0, 1, 2], x, y) == pytest.approx([0, 10, 20])


def test_the_table_of_inputs(tmp_path: Path) -> None:
    put_branches(tmp_path)
    rows = read_table(tmp_path / "branches.csv")
    order = ["none", "highest", "medium", "lowest", "highest+medium", "highest+lowest", "medium+lowest", "all"]
    assert heatmaps.inputs_of(rows[::-1]) == order
    figure = heatmaps.branches_figure(rows)
    assert figure is not None
    values = figure.axes[0].images[0].get_array()
    assert np.asarray(values) == pytest.approx(np.tile(90 - 10 * np.arange(8.0), (2, 1)))
    frame = figure.axes[0].patches[0]
    assert round(frame.get_x() + 0.44) == 3  # of the single inputs, the lowest costs most


def test_inputs_of_a_deep_pyramid() -> None:
    names = {"lowest": "16", "r8": "8", "none": "", "all": "1+2+8+16", "highest": "1", "r2+r8": "2+8", "r2": "2"}
    rows = [{"inputs": name, "reductions": where} for name, where in names.items()]
    assert heatmaps.inputs_of(rows) == ["none", "highest", "r2", "r8", "lowest", "r2+r8", "all"]


@pytest.mark.parametrize(
    "draw",
    [
        figures.accuracy_figure,
        figures.training_figure,
        figures.curves_figure,
        figures.corruptions_figure,
        figures.localisation_figure,
        heatmaps.branches_figure,
    ],
)
def test_nothing_to_draw(draw: Callable[[list[dict[str, Any]]], Any]) -> None:
    assert draw([]) is None


def test_odd_values_do_not_stop_a_figure(tmp_path: Path) -> None:
    nan, inf = math.nan, math.inf
    base = {"arrangement": "td", "repeat": 0}
    drawn = [
        figures.accuracy_figure([{**base, "test_accuracy": 1.0}]),
        figures.accuracy_figure([{**base, "test_accuracy": 0.0}, {**base, "repeat": 1, "test_accuracy": 0.0}]),
        figures.training_figure([{**base, "epoch": 1, "train_loss": nan, "validation_accuracy": nan}]),
        figures.training_figure([{**base, "epoch": 1, "train_loss": inf, "validation_accuracy": 1.0}]),
        figures.training_figure([{**base, "epoch": 1, "train_loss": 0.0, "validation_accuracy": 0.5}]),
        figures.curves_figure([{**base, "attack": "a", "l2": 0.0, "accuracy": 0.5}]),
        figures.curves_figure([{**base, "attack": "a", "l2": float(i), "accuracy": 0.5} for i in range(9)]),
        figures.corruptions_figure([{**base, "corruption": "a", "severity": 1, "accuracy": 0.0}]),
        figures.localisation_figure(
            [{**base, "normalisation": "plain", "threshold": 0.2, "precision": nan, "recall": 0.5}]
        ),
        heatmaps.branches_figure(
            [{**base, "attack": "猫" * 40, "inputs": "all", "reductions": "1", "accuracy": 0.5}]
        ),
    ]
    for number, figure in enumerate(drawn):
        assert figure is not None
        figures.save_figure(figure, tmp_path / f"{number}.png")
    assert figures.localisation_figure([{**base, "normalisation": "plain", "threshold": 0.2, "precision": nan,
                                         "recall": nan}]) is None  # fmt: skip
    assert figures.curves_figure([{**base, "attack": "a", "l2": inf, "accuracy": 0.5}]) is None


@pytest.mark.parametrize(("channels", "count"), [(1, 1), (3, 3), (2, 12)])
def test_images_of_any_kind(tmp_path: Path, channels: int, count: int) -> None:
    put_explanations(start(tmp_path), channels, count)
    found = read_run(tmp_path).explanations
    assert found is not None
    for figure in (heatmaps.levels_figure(found, samples=(0, 1)), heatmaps.images_figure(found, range(8))):
        assert figure is not None
        figures.save_figure(figure, tmp_path / "x.png")
    assert heatmaps.levels_figure(found, samples=(99,)) is None
    none = Explanations(found.images, found.labels, {}, {})
    assert heatmaps.levels_figure(none) is None
    assert heatmaps.images_figure(none, [0]) is None


def test_the_users_matplotlib_is_left_alone(tmp_path: Path) -> None:
    code = (
        "import matplotlib, sys; matplotlib.rcParams['font.size'] = 23\n"
        "from bu2td.evaluate.report.writing import write_report; write_report(sys.argv[1])\n"
        "assert matplotlib.rcParams['font.size'] == 23, matplotlib.rcParams['font.size']\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    put_accuracy(start(tmp_path), ACCURACY)
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
