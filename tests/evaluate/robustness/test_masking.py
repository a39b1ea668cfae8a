"""Signs of masked gradients, on distances by hand."""

import math

import numpy as np
import pytest

from bu2td.evaluate.robustness.curves import Perturbations
from bu2td.evaluate.robustness.masking import black_box, more_steps, unbounded

INF = math.inf


def at(*distances: float) -> Perturbations:
    distance = np.array(distances)
    count = len(distance)
    images, zeros = np.zeros((count, 0)), np.zeros(count)
    return Perturbations(distance, distance > 0, images, zeros.astype(int), zeros, np.ones(count, dtype=bool))


def test_black_box_attacks_that_are_nearer() -> None:
    white, black = at(0.0, 1.0, 1.04, 1.2, INF, INF, 3.0), at(0.0, 2.0, 1.0, 1.0, 4.0, INF, INF)
    found = black_box(white, black)
    assert (found["images"], found["violations"], found["largest"], found["holds"]) == (6, 2, INF, 0)
    assert found["median_change"] == pytest.approx(np.median([1, 1.04, 1.2, 3, INF, INF]) / 3 - 1)
    fine = black_box(at(1.0, 1.04), at(1.0, 1.0))
    assert (fine["violations"], fine["holds"]) == (0, 1)
    assert fine["largest"] == pytest.approx(0.04)


@pytest.mark.parametrize(
    ("fewer", "more", "change", "holds"),
    [
        ((1.0, 2.0, 3.0), (1.0, 1.9, 3.5), -0.05, 1),  # one image is farther, the median is not
        ((1.0, 2.0, 3.0), (1.0, 2.09, 3.0), 0.045, 1),
        ((1.0, 2.0, 3.0), (1.0, 2.2, 2.0), 0.0, 1),
        ((1.0, 2.0, 3.0), (1.0, 2.2, 3.0), 0.1, 0),
        ((1.0, 2.0, 3.0), (1.0, INF, INF), INF, 0),
        ((1.0, INF, INF), (1.0, INF, INF), math.nan, 1),  # nothing to compare
        ((1.0, INF, INF), (1.0, 1.0, 1.0), math.nan, 1),
        ((0.0, 0.0), (0.0, 0.0), math.nan, 1),
    ],
)
def test_more_steps(fewer: tuple[float, ...], more: tuple[float, ...], change: float, holds: int) -> None:
    found = more_steps(at(*fewer), at(*more))
    assert found["median_change"] == pytest.approx(change, nan_ok=True)
    assert found["holds"] == holds


def test_the_first_images_are_compared() -> None:
    assert more_steps(at(1.0, 2.0, 0.1), at(1.0, 2.0))["images"] == 2


@pytest.mark.parametrize(
    ("distances", "expected"),
    [((0.0, 1.0, 9.0), (2, 0, 0.0, 1)), ((0.0, 1.0, INF), (2, 1, INF, 0)), ((0.0,), (0, 0, 0.0, 1))],
)
def test_unbounded(distances: tuple[float, ...], expected: tuple[float, ...]) -> None:
    found = unbounded(at(*distances))
    assert tuple(found[name] for name in ("images", "violations", "largest", "holds")) == expected
