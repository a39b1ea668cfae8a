"""Measures of predictions, against their definitions written out."""

import numpy as np
import pytest

from bu2td.evaluate.train.calibration import calibration_error, per_class_accuracy, top_k_accuracy


def _by_definition(confidence: list[float], right: list[bool], bins: int) -> float:
    """Guo et al. (2017), equations 1 to 3, bin by bin and image by image."""
    total = 0.0
    for m in range(1, bins + 1):
        own = [i for i, c in enumerate(confidence) if (m - 1) / bins < c <= m / bins]
        if own:
            accuracy = sum(right[i] for i in own) / len(own)
            total += len(own) / len(confidence) * abs(accuracy - sum(confidence[i] for i in own) / len(own))
    return total


@pytest.mark.parametrize("bins", [1, 2, 10, 15])
def test_the_calibration_error_is_guos(bins: int) -> None:
    random = np.random.default_rng(0)
    for count in (1, 7, 500):
        confidence = random.uniform(0.1, 1, count)
        right = random.uniform(size=count) < confidence**2
        expected = _by_definition(confidence.tolist(), right.tolist(), bins)
        assert calibration_error(confidence, right, bins) == pytest.approx(expected, abs=1e-12)


def test_golden_calibration_errors() -> None:
    # two bins: one image at .3 that is wrong, three at .9, of which two are right: .25 x .3 + .75 x |2/3 - .9|
    confidence, right = np.array([0.3, 0.9, 0.9, 0.9]), np.array([False, True, True, False])
    assert calibration_error(confidence, right, 2) == pytest.approx(0.25)
    assert calibration_error(np.ones(4), np.ones(4, bool)) == 0
    assert calibration_error(np.ones(4), np.zeros(4, bool)) == 1
    # a confidence on a border belongs to the bin below it
    assert calibration_error(np.array([0.5, 0.6]), np.array([True, True]), 2) == pytest.approx(0.45)


def test_top_k_and_classes() -> None:
    rank = np.array([1, 2, 5, 6, 1])
    assert [top_k_accuracy(rank, k) for k in (1, 5, 6)] == pytest.approx([0.4, 0.8, 1.0])
    found = per_class_accuracy(np.array([0, 0, 2, 2]), np.array([0, 1, 2, 2]), 4)
    assert found[[0, 2]].tolist() == [0.5, 1.0]
    assert np.isnan(found[[1, 3]]).all()
