"""The charts and the section of frequencies: what they show is what the rows say."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

pytest.importorskip("matplotlib")

from bu2td.evaluate.report.frequency_figures import (
    bands_figure,
    figures,
    filters_figure,
    maps_figure,
    spectra_figure,
)
from bu2td.evaluate.report.frequency_section import frequency_section
from bu2td.evaluate.report.page import Missing, Picture, Table, to_html, to_markdown
from bu2td.evaluate.report.read import Run
from bu2td.evaluate.report.sections import Drawer
from bu2td.evaluate.robustness.frequency import filter_radii, white_power

SIDE = 8


def _tables(
    arrangements: tuple[str, ...] = ("bu", "td"), repeats: int = 3, norms: tuple[float, ...] = (1.25,)
) -> Any:
    random = np.random.default_rng(0)
    axis = range(-SIDE // 2, SIDE // 2)
    tables: dict[str, list[dict[str, Any]]] = {name: [] for name in ("fourier", "bands", "spectra", "filtered")}
    for arrangement in arrangements:
        for repeat in range(repeats):
            own = {"arrangement": arrangement, "repeat": repeat, "samples": 20}
            for norm in norms:
                tables["fourier"] += [
                    {**own, "vertical": k, "horizontal": m, "norm": norm, "error": random.random()}
                    for k in axis for m in axis
                ]  # fmt: skip
                tables["bands"] += [
                    {
                        **own,
                        "low": low,
                        "high": high,
                        "norm": norm,
                        "error": random.random(),
                        "clean_error": 0.1 + repeat / 10,
                    }
                    for low, high in ((0, 1), (1, 2), (2, 4), (4, 8))
                ]
            for attack in ("fgsm", "gaussian-blur"):
                tables["spectra"] += [
                    {**own, "attack": attack, "radius": radius, "power": random.random(), "white": white}
                    for radius, white in enumerate(white_power(SIDE, SIDE))
                ]
            tables["filtered"] += [
                {**own, "kept": kept, "radius": radius, "accuracy": random.random()}
                for kept in ("low", "high") for radius in filter_radii(SIDE, SIDE)
            ]  # fmt: skip
    return tables


def test_nothing_to_draw() -> None:
    for figure in (maps_figure, bands_figure, filters_figure, spectra_figure):
        assert figure([]) is None
        assert figure(pd.DataFrame()) is None
    assert figures({}) == []


@pytest.mark.parametrize("frames", [True, False])
def test_maps_show_means_and_differences(frames: bool) -> None:
    rows = _tables()["fourier"]
    figure = maps_figure(pd.DataFrame(rows) if frames else rows)
    assert figure is not None
    maps = [axes for axes in figure.axes if axes.get_title(loc="left")]
    assert [axes.get_title(loc="left") for axes in maps] == ["bottom-up", "top-down", "TD less BU"]
    mean = pd.DataFrame(rows).groupby(["arrangement", "vertical", "horizontal"]).error.mean()
    arrays = [np.asarray(axes.collections[0].get_array()).reshape(9, 9) for axes in maps]
    for name, values in zip(("bu", "td"), arrays, strict=False):
        assert values[4, 4] == pytest.approx(100 * mean[name, 0, 0])  # zero in the middle
        assert values[1, 6] == pytest.approx(100 * mean[name, -3, 2])
        np.testing.assert_allclose(values[0], values[-1])  # 4 is -4
        np.testing.assert_allclose(values[:, 0], values[:, -1])
    np.testing.assert_allclose(arrays[2], arrays[1] - arrays[0])
    low, high = maps[2].collections[0].get_clim()
    assert -low == high == pytest.approx(np.abs(arrays[2]).max())


def test_maps_of_many_networks() -> None:
    for arrangements, titles in (
        (("td",), ["top-down"]),
        (("bu", "td", "uni", "rev"), ["bottom-up", "top-down", "top-down (uni)", "top-down (rev)",
                              "TD less BU", "TD uni less BU", "TD rev less BU"]),
    ):  # fmt: skip
        figure = maps_figure(_tables(arrangements, 1)["fourier"])
        assert figure is not None
        assert [title for axes in figure.axes if (title := axes.get_title(loc="left"))] == titles


def test_maps_that_are_not_whole() -> None:
    rows = [r for r in _tables()["fourier"] if r["arrangement"] == "bu" or abs(r["vertical"]) <= 1]
    figure = maps_figure(rows)
    assert figure is not None
    difference = np.ma.getmaskarray(figure.axes[2].collections[0].get_array()).reshape(9, 9)
    assert difference[:, 4].tolist() == [True] * 3 + [False] * 3 + [True] * 3


def test_bars_are_confidence_intervals() -> None:
    rows = _tables()["bands"]
    figure = bands_figure(rows)
    assert figure is not None
    own = [r["error"] for r in rows if (r["arrangement"], r["low"]) == ("td", 2)]
    interval = stats.t.interval(0.95, 2, np.mean(own), stats.sem(own))
    (bars,) = figure.axes[0].containers[1].lines[2]
    assert bars.get_segments()[2][:, 1].tolist() == pytest.approx(list(interval))
    single = bands_figure(_tables(repeats=1)["bands"])
    assert single is not None
    assert not single.axes[0].containers[0].has_yerr


def test_the_error_without_a_wave_is_shown() -> None:
    figure = bands_figure(_tables(("bu",))["bands"])
    assert figure is not None
    assert any(np.allclose(line.get_ydata(), 0.2) for line in figure.axes[0].lines)


def test_spectra_and_filters_show_means() -> None:
    tables = _tables()
    figure = spectra_figure(tables["spectra"])
    assert figure is not None
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["fgsm", "gaussian-blur"]
    frame = pd.DataFrame(tables["spectra"])
    mean = frame[(frame.attack == "fgsm") & (frame.arrangement == "td")].groupby("radius").power.mean()
    assert any(
        np.allclose(line.get_ydata(), 100 * mean) for line in figure.axes[0].lines if len(line.get_ydata()) > 2
    )
    figure = filters_figure(tables["filtered"])
    assert figure is not None
    frame = pd.DataFrame(tables["filtered"])
    mean = frame[(frame.kept == "high") & (frame.arrangement == "bu")].groupby("radius").accuracy.mean()
    assert any(np.allclose(line.get_ydata(), mean) for line in figure.axes[1].lines)


def test_a_section(tmp_path: Path) -> None:
    tables = _tables(norms=(1.25, 2.5))
    drawer = Drawer(tmp_path)
    blocks = frequency_section(Run(tmp_path, {}, tables, None), drawer)
    pictures = [block for block in blocks if isinstance(block, Picture)]
    assert [p.path.name for p in pictures] == [
        "frequency-maps-1.25.png", "frequency-maps-2.5.png", "frequency-bands-1.25.png", "frequency-bands-2.5.png",
        "frequency-spectra.png", "frequency-filters.png",
    ]  # fmt: skip
    assert all(p.path.read_bytes().startswith(b"\x89PNG") for p in pictures)
    assert ["n = 3 trainings" in p.caption for p in pictures] == [True, True, False, False, True, False]
    words = [block for block in blocks if isinstance(block, Table)]
    assert len(words) == 2
    assert [row[0] for row in words[0].rows] == ["no wave", "0", "1\N{EN DASH}2", "2\N{EN DASH}4", "4\N{EN DASH}8"]
    assert words[0].rows[0][1:] == ["20.0 ± 10.0", "20.0 ± 10.0", "+0.0"]
    frame = pd.DataFrame(tables["bands"])
    frame = frame[(frame.norm == 1.25) & (frame.low == 2)]
    bu, td = (100 * frame[frame.arrangement == a].error for a in ("bu", "td"))
    assert words[0].rows[3][1:] == [
        f"{bu.mean():.1f} ± {bu.std():.1f}", f"{td.mean():.1f} ± {td.std():.1f}", f"{td.mean() - bu.mean():+.1f}"
    ]  # fmt: skip
    to_html("title", "", blocks)
    to_markdown("title", "", blocks)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    blocks = frequency_section(Run(tmp_path, {}, {}, None), Drawer(tmp_path))
    assert [b.command for b in blocks if isinstance(b, Missing)] == [
        f"bu2td evaluate frequency -o {tmp_path} --resume"
    ]
    tables = {**_tables(), "spectra": []}
    blocks = frequency_section(Run(tmp_path, {}, tables, None), Drawer(tmp_path))
    assert [b.command.split()[2] for b in blocks if isinstance(b, Missing)] == ["robustness", "frequency"]
