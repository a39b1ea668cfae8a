"""Curves, areas and tables of the smallest perturbations."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bu2td.errors import OptionError
from bu2td.evaluate.report.read import read_table
from bu2td.evaluate.robustness.curves import Perturbations, robustness_rows, shared_limit
from bu2td.evaluate.robustness.smallest import accuracy_curve, summarise, write_robustness


def perturbations(distances: list[float]) -> Perturbations:
    distance = np.array(distances)
    return Perturbations(
        distance, distance > 0, np.zeros((len(distance), 1, 2, 2)), np.zeros(len(distance), dtype=int)
    )


SOME = [0.0, 0.5, 0.5, 1.0, 2.5, np.inf, 0.0, 4.0]


def test_curve_against_counting() -> None:
    found = perturbations(SOME)
    grid = [0.0, 0.2, 0.5, 0.50001, 1.0, 3.0, 100.0]
    expected = [sum(d > r for d in SOME) / 8 for r in grid]
    np.testing.assert_allclose(accuracy_curve(found, grid), expected)
    assert accuracy_curve(found, [0.0])[0] == found.clean.mean() == 0.75


@pytest.mark.parametrize("limit", [0.3, 0.5, 2.0, 10.0])
def test_area_against_a_fine_sum(limit: float) -> None:
    found = perturbations(SOME)
    middle = (np.arange(200_000) + 0.5) / 200_000 * limit
    assert summarise(found, limit)["auc"] == pytest.approx(float(accuracy_curve(found, middle).mean()), abs=1e-4)


def test_summary() -> None:
    assert summarise(perturbations(SOME), 2.0) == {
        "samples": 8,
        "clean_accuracy": 0.75,
        "success_rate": pytest.approx(5 / 6),
        "median_l2": 1.75,
        "auc": pytest.approx((0.5 + 0.5 + 1 + 2 + 2 + 2) / 8 / 2),
        "limit": 2.0,
    }
    assert summarise(perturbations([0.0, 1.0, np.inf, np.inf]), 1.0)["median_l2"] == np.inf
    none = summarise(perturbations([0.0, 0.0]), 1.0)
    assert (none["success_rate"], none["median_l2"], none["auc"]) == (None, None, 0)
    robust = summarise(perturbations([np.inf]), 1.0)
    assert (robust["success_rate"], robust["median_l2"], robust["auc"]) == (0, np.inf, 1)


@pytest.mark.parametrize("grid", [[], [-1.0], [np.nan], [np.inf], [[0.0]]])
def test_bad_grids(grid: Any) -> None:
    with pytest.raises(OptionError, match="grid"):
        accuracy_curve(perturbations(SOME), grid)


@pytest.mark.parametrize("limit", [0, -1, np.inf, np.nan])
def test_bad_limits(limit: float) -> None:
    with pytest.raises(OptionError, match="limit"):
        summarise(perturbations(SOME), limit)


def test_tables_share_a_limit_and_start_at_the_clean_accuracy(tmp_path: Path) -> None:
    results = {
        ("bu", 0): {"pgd": perturbations(SOME), "shifts": perturbations([0.0, np.inf])},
        ("td", 0): {"pgd": perturbations([0.0, 6.0, np.inf]), "shifts": perturbations([np.inf] * 2)},
        ("td", 1): {"pgd": perturbations([0.0, 0.0])},
    }
    write_robustness(results, tmp_path, points=7)
    table, curves = read_table(tmp_path / "robustness.csv"), read_table(tmp_path / "curves.csv")
    assert [(r["arrangement"], r["repeat"], r["attack"]) for r in table] == [
        (a, r, n) for (a, r), found in results.items() for n in found
    ]
    assert {(r["attack"], r["limit"]) for r in table} == {("pgd", 6.0), ("shifts", 1.0)}
    assert len(curves) == 7 * 5
    for row, found in zip(table, (p for f in results.values() for p in f.values()), strict=True):
        key = (row["arrangement"], row["repeat"], row["attack"])
        points = [r for r in curves if (r["arrangement"], r["repeat"], r["attack"]) == key]
        assert (points[0]["l2"], points[0]["accuracy"]) == (0, row["clean_accuracy"])
        assert points[-1]["l2"] == row["limit"]
        np.testing.assert_allclose(
            [p["accuracy"] for p in points], accuracy_curve(found, [p["l2"] for p in points])
        )
        assert row["samples"] == len(found)
    with (tmp_path / "robustness.csv").open() as file:
        raw = {(r["arrangement"], r["repeat"], r["attack"]): r for r in csv.DictReader(file)}
    assert raw["td", "0", "shifts"]["median_l2"] == "inf"
    assert raw["td", "1", "pgd"]["success_rate"] == raw["td", "1", "pgd"]["median_l2"] == ""
    with pytest.raises(OptionError, match="2 points"):
        robustness_rows(results, points=1)


def test_limit() -> None:
    assert shared_limit([perturbations(SOME), perturbations([5.0])]) == 5
    assert shared_limit([perturbations([0.0, np.inf])]) == 1
