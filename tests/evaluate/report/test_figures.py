"""Figures: what they show, and what odd data make of them."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from run_folders import INPUTS, put_accuracy, put_branches, put_explanations, start

from bu2td.evaluate.report import branch_figures, figures, heatmaps
from bu2td.evaluate.report.read import Explanations, read_run, read_table

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
    figure = figures.curves_figure(pd.DataFrame(rows))
    assert figure is not None
    lines = {line.get_color(): line for line in figure.axes[0].lines}
    x, y = lines[figures.COLORS["bu"]].get_data()
    assert np.interp([0, 1, 2], x, y) == pytest.approx([0, 20, 40])
    x, y = lines[figures.COLORS["td"]].get_data()
    assert np.interp([0, 1, 2], x, y) == pytest.approx([0, 10, 20])


def test_the_strongest_attack_stands_first() -> None:
    rows = [
        {"arrangement": "bu", "repeat": 0, "attack": name, "l2": d, "accuracy": 1 - d / 2}
        for name in ("pgd", "strongest") for d in (0.0, 1.0)
    ]  # fmt: skip
    figure = figures.curves_figure(pd.DataFrame(rows))
    assert figure is not None
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Strongest attack", "PGD (L2)"]


def test_accuracy_against_the_scale_of_a_perturbation(tmp_path: Path) -> None:
    put_branches(tmp_path)
    rows = read_table(tmp_path / "branches.csv")
    assert branch_figures.inputs_of(rows[::-1]) == list(INPUTS)
    figure = branch_figures.branches_figure(rows)
    assert figure is not None
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["PGD (L2)", "Gaussian blur"]
    lines = figure.axes[0].lines
    assert len(lines) == len(INPUTS)
    for i, line in enumerate(lines):
        x, y = line.get_data()
        assert list(x) == [1, 1.5, 2, 3]
        assert list(y) == pytest.approx([0.9 - 0.02 * i * scale for scale in x])
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts[:3] == ["none", "highest (r1)", "medium (r2)"]
    assert len({(line.get_color(), line.get_gapcolor(), line.get_linestyle()) for line in lines}) == len(INPUTS)


def test_inputs_of_a_deep_pyramid() -> None:
    names = {"lowest": "16", "r8": "8", "none": "", "all": "1+2+8+16", "highest": "1", "r2+r8": "2+8", "r2": "2"}
    rows = pd.DataFrame({"inputs": list(names), "reductions": list(names.values())})
    assert branch_figures.inputs_of(rows) == ["none", "highest", "r2", "r8", "lowest", "r2+r8", "all"]
    assert [branch_figures.input_title(n, names[n]) for n in ("r8", "lowest", "r2+r8", "all")] == [
        "r8", "lowest (r16)", "r2 + r8", "all"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("draw", "name"),
    [
        (figures.accuracy_figure, "accuracy"),
        (figures.training_figure, "log"),
        (figures.curves_figure, "curves"),
        (figures.corruptions_figure, "corruptions"),
        (figures.localisation_figure, "localisation"),
        (branch_figures.branches_figure, "branches"),
    ],
)
def test_nothing_to_draw(draw: Callable[[pd.DataFrame], Any], name: str, tmp_path: Path) -> None:
    assert draw(read_run(start(tmp_path)).tables[name]) is None


def frame(*rows: dict[str, Any], **more: Any) -> pd.DataFrame:
    return pd.DataFrame([{"arrangement": "td", "repeat": 0, **more, **row} for row in rows])


def test_odd_values_do_not_stop_a_figure(tmp_path: Path) -> None:
    nan, inf = math.nan, math.inf
    heat = {"layer": "last-level", "normalisation": "plain", "threshold": 0.2, "precision": nan}
    branch = {"attack": "猫" * 40, "inputs": "all", "reductions": "1", "scale": 1.0}
    drawn = [
        figures.accuracy_figure(frame({"test_accuracy": 1.0})),
        figures.accuracy_figure(frame({"test_accuracy": 0.0}, {"repeat": 1, "test_accuracy": 0.0})),
        figures.training_figure(frame({"epoch": 1, "train_loss": nan, "validation_accuracy": nan})),
        figures.training_figure(frame({"epoch": 1, "train_loss": inf, "validation_accuracy": 1.0})),
        figures.training_figure(frame({"epoch": 1, "train_loss": 0.0, "validation_accuracy": 0.5})),
        figures.curves_figure(frame({"attack": "a", "l2": 0.0, "accuracy": 0.5})),
        figures.curves_figure(frame(*({"l2": float(i), "accuracy": 0.5} for i in range(9)), attack="a")),
        figures.corruptions_figure(frame({"corruption": "a", "severity": 1, "accuracy": 0.0})),
        figures.localisation_figure(frame({**heat, "recall": 0.5})),
        branch_figures.branches_figure(frame({**branch, "accuracy": 0.5})),
    ]
    for number, figure in enumerate(drawn):
        assert figure is not None
        figures.save_figure(figure, tmp_path / f"{number}.png")
    assert figures.localisation_figure(frame({**heat, "recall": nan})) is None
    assert figures.curves_figure(frame({"attack": "a", "l2": inf, "accuracy": 0.5})) is None
    assert branch_figures.branches_figure(frame({**branch, "accuracy": nan})) is None


@pytest.mark.parametrize(("suffix", "start_of"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_a_figure_is_the_same_file_twice(tmp_path: Path, suffix: str, start_of: bytes) -> None:
    paths = [tmp_path / f"{k}.{suffix}" for k in range(2)]
    for path in paths:
        figure = figures.accuracy_figure(frame({"test_accuracy": 0.5}))
        assert figure is not None
        figures.save_figure(figure, path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert paths[0].read_bytes().startswith(start_of)


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
    put_accuracy(start(tmp_path))
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
