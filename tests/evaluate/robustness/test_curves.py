"""Curves, areas and tables of the smallest perturbations."""

import math
from typing import Any

import numpy as np
import pytest

from bu2td.errors import OptionError
from bu2td.evaluate.robustness.curves import (
    Perturbations,
    accuracy_curve,
    join,
    robustness_rows,
    shared_limit,
    strongest,
    summarise,
)


def perturbations(distances: list[float]) -> Perturbations:
    distance = np.array(distances)
    count, clean = len(distance), distance > 0
    images, dropped = np.zeros((count, 1, 2, 2)), np.ones(count, dtype=int)
    return Perturbations(distance, clean, images, dropped, 10.0 * clean, np.ones(count, dtype=bool))


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
        "failures": 1,
        "dropped": 8,
        "queries": 10.0,
        "converged": 1.0,
    }
    walking = perturbations(SOME)
    walking.converged[[0, 3, 5]] = False  # wrong, found, not found: only the second is an upper bound of anything
    assert summarise(walking, 2.0)["converged"] == pytest.approx(4 / 5)
    assert summarise(perturbations([0.0, 1.0, np.inf, np.inf]), 1.0)["median_l2"] == np.inf
    none = summarise(perturbations([0.0, 0.0]), 1.0)
    assert none["auc"] == none["failures"] == 0
    assert all(math.isnan(none[name]) for name in ("success_rate", "median_l2", "queries", "converged"))
    robust = summarise(perturbations([np.inf]), 1.0)
    assert (robust["success_rate"], robust["median_l2"], robust["auc"]) == (0, np.inf, 1)
    assert robust["failures"] == 1
    assert math.isnan(robust["converged"])


@pytest.mark.parametrize("grid", [[], [-1.0], [np.nan], [np.inf], [[0.0]]])
def test_bad_grids(grid: Any) -> None:
    with pytest.raises(OptionError, match="grid"):
        accuracy_curve(perturbations(SOME), grid)


@pytest.mark.parametrize("limit", [0, -1, np.inf, np.nan])
def test_bad_limits(limit: float) -> None:
    with pytest.raises(OptionError, match="limit"):
        summarise(perturbations(SOME), limit)


def test_tables_share_a_limit_and_start_at_the_clean_accuracy() -> None:
    results = {
        ("bu", 0): {"pgd": perturbations(SOME), "shifts": perturbations([0.0, np.inf])},
        ("td", 0): {"pgd": perturbations([0.0, 6.0, np.inf]), "shifts": perturbations([np.inf] * 2)},
        ("td", 1): {"pgd": perturbations([0.0, 0.0])},
    }
    table, curves = robustness_rows(results, points=7)
    assert [(r.arrangement, r.repeat, r.attack) for r in table] == [
        (a, r, n) for (a, r), found in results.items() for n in found
    ]
    limits = {"pgd": pytest.approx(5.5), "shifts": 1.0}  # of 0.5, 0.5, 1, 2.5, 4, 6: 95 % of the way to the last
    assert all(r.limit == limits[r.attack] for r in table)
    assert len(curves) == 7 * 5
    for row, found in zip(table, (p for f in results.values() for p in f.values()), strict=True):
        key = (row.arrangement, row.repeat, row.attack)
        points = [c for c in curves if (c.arrangement, c.repeat, c.attack) == key]
        assert (points[0].l2, points[0].accuracy) == (0, row.clean_accuracy)
        assert points[-1].l2 == row.limit
        np.testing.assert_allclose([p.accuracy for p in points], accuracy_curve(found, [p.l2 for p in points]))
        assert row.samples == len(found)
    with pytest.raises(OptionError, match="2 points"):
        robustness_rows(results, points=1)


def test_limit() -> None:
    assert shared_limit([perturbations([0.0, np.inf])]) == 1
    assert shared_limit([perturbations([1.0] * 10), perturbations([3.0] * 10)]) == pytest.approx(3)
    many = perturbations([1.0] * 99)
    assert shared_limit([many, perturbations([50.0])]) == 1  # one outlier does not decide
    wrong = Perturbations(**{**vars(many), "clean": np.zeros(99, dtype=bool)})
    assert shared_limit([wrong, perturbations([2.0])]) == 2


def test_strongest() -> None:
    first, second = perturbations([0.0, 3.0, np.inf, 1.0]), perturbations([0.0, 2.0, np.inf, 4.0, 5.0])
    first.images[:], second.images[:] = 1, 2
    first.converged[3] = False
    found = strongest({"a": first, "b": second})
    assert found.distance.tolist() == [0, 2, np.inf, 1]
    assert found.images[:, 0, 0, 0].tolist()[1::2] == [2, 1]
    assert found.clean.tolist() == [False, True, True, True]
    assert found.converged.tolist() == [True, True, True, False]
    assert found.queries.tolist() == [0, 20, 20, 20]
    assert found.dropped.tolist() == [2] * 4


def test_join() -> None:
    found = join([perturbations([1.0]), perturbations(SOME)])
    assert found.distance.tolist() == [1.0, *SOME]
    assert found.queries.tolist() == [10 * (d > 0) for d in (1.0, *SOME)]
