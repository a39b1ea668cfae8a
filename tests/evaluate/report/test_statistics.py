"""Tests and intervals against scipy's, against enumeration, and by simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from bu2td.evaluate.report import statistics
from bu2td.evaluate.report.statistics import (
    between_architectures,
    between_networks,
    difference_of,
    holm,
    least_p,
    signed_rank,
)

INF, NAN = math.inf, math.nan


@pytest.fixture(autouse=True)
def few_redrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "REDRAWN", 400)


def column(*values: float) -> np.ndarray:
    return np.array(values, float)[:, None]


# --- images as units ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n", [5, 12, 14])
def test_few_images_as_by_scipys_exact_test(n: int, seed: int) -> None:
    d = np.random.default_rng(seed).normal(0.5, 1, n)
    found = stats.wilcoxon(d, method="exact")
    assert signed_rank(d[:, None])[0] == pytest.approx(found.pvalue)


@pytest.mark.parametrize("seed", range(5))
def test_many_images_with_ties_and_zeros_as_by_scipys_normal_test(seed: int) -> None:
    d = np.round(np.random.default_rng(seed).normal(0.2, 1, 200), 1)
    found = stats.wilcoxon(d, method="asymptotic", correction=False)
    greater = stats.wilcoxon(d, method="asymptotic", correction=False, alternative="greater").pvalue
    assert signed_rank(d[:, None]) == (pytest.approx(found.pvalue), 1 if greater < 0.5 else -1)


def test_few_images_with_ties_against_enumeration() -> None:
    d = np.array([1.0, 1, 2, -2, 3, 0, 5])
    ranks = stats.rankdata(np.abs(d[d != 0])) * np.sign(d[d != 0])
    sums = [abs(np.dot(signs, ranks)) for signs in itertools.product((-1, 1), repeat=6)]
    assert signed_rank(d[:, None])[0] == pytest.approx(np.mean(np.array(sums) >= abs(ranks.sum())))


@pytest.mark.parametrize(("gained", "lost"), [(9, 1), (0, 7), (30, 15), (1, 0)])
def test_right_and_wrong_is_mcnemars_exact_test(gained: int, lost: int) -> None:
    d = column(*[1.0] * gained, *[-1.0] * lost, *[0.0] * 20)
    assert signed_rank(d)[0] == pytest.approx(stats.binomtest(gained, gained + lost).pvalue)


def test_images_of_several_networks_turn_as_a_whole() -> None:
    """The images are the units: what is written twice is not known better, unlike by a test of all differences."""
    d = np.random.default_rng(3).normal(0.4, 1, 40)[:, None]
    assert signed_rank(np.tile(d, 5))[0] == pytest.approx(signed_rank(d)[0], rel=0.05)  # ties have mean ranks
    pooled = stats.wilcoxon(np.tile(d, 5).ravel(), method="asymptotic", correction=False).pvalue
    assert pooled < 0.1 * signed_rank(d)[0]


def test_several_networks_against_scipys_permutations() -> None:
    d = np.random.default_rng(4).normal(0.3, 1, (10, 3))
    sums = (stats.rankdata(np.abs(d)).reshape(d.shape) * np.sign(d)).sum(axis=1)
    found = stats.permutation_test((sums,), np.sum, permutation_type="samples", n_resamples=np.inf)
    assert signed_rank(d)[0] == pytest.approx(found.pvalue)


def test_an_infinite_distance_is_larger_than_any_other() -> None:
    bu, td = column(1, 2, 3, 4, 5, INF, INF, 2), column(2, INF, 5, 4.5, INF, INF, 1, 2.5)
    d = difference_of(bu, td)
    assert d[5] == 0  # both are without an end: tied
    assert (d[1], d[6]) == (INF, -INF)
    finite = np.where(np.isinf(d), np.sign(d) * 1e6, d)
    assert signed_rank(d) == signed_rank(finite)
    assert signed_rank(-d) == (signed_rank(d)[0], -signed_rank(d)[1])


def test_nothing_but_infinite_distances() -> None:
    found = between_networks(column(*[INF] * 9), column(*[INF] * 9), limit=3)
    assert (found.p, found.estimate, found.low, found.high, found.bottom_up) == (1, 0, 0, 0, 3)
    one_sided = between_networks(column(*[1.0] * 9), column(*[INF] * 9), limit=3)
    assert (one_sided.p, one_sided.sign) == (pytest.approx(2 / 2**9), 1)
    assert one_sided.estimate == 2  # the mean is taken up to the limit


def test_only_images_that_both_have_count() -> None:
    bu, td = column(1, 2, NAN, 4), column(2, NAN, 3, 4.5)
    found = between_networks(bu, td, limit=10)
    assert (found.n, found.bottom_up, found.estimate) == (2, 2.5, 0.75)
    assert between_networks(column(NAN), column(1), limit=1) == statistics.NOTHING


def test_the_interval_over_images_covers() -> None:
    random = np.random.default_rng(5)
    hits = 0
    for k in range(300):
        bu = random.gamma(2, 1, (60, 1))
        td = bu + random.normal(0.3, 1, (60, 1)).clip(-1)
        found = between_networks(bu, td, limit=INF, seed=k)
        hits += found.low <= CLIPPED <= found.high
    assert 0.9 <= hits / 300 <= 0.99


#: Mean of a normal variable (0.3, 1) clipped at -1: 0.3 + s * (pdf(z) - z * sf(z)) with z = 1.3.
CLIPPED = 0.3 + float(stats.norm.pdf(1.3) - 1.3 * stats.norm.sf(1.3))


# --- runs as units ------------------------------------------------------------------------------------


def test_runs_as_by_welchs_test() -> None:
    random = np.random.default_rng(6)
    bu, td = random.normal(0, 1, (1, 5)), random.normal(1, 2, (1, 4))
    welch = stats.ttest_ind(td[0], bu[0], equal_var=False)
    found = between_architectures(bu, td, limit=INF)
    assert found.p == pytest.approx(welch.pvalue)
    interval = welch.confidence_interval(0.95)
    width = interval.high - interval.low
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=0.15 * width)
    assert (found.n, found.estimate) == (4, pytest.approx(td.mean() - bu.mean()))


def test_the_interval_of_an_architecture_knows_of_the_images() -> None:
    """Runs that nearly agree: what is left is the spread over images, as of a paired test."""
    random = np.random.default_rng(7)
    d = random.normal(0, 1, 50)
    noise = random.normal(0, 1e-3, (50, 4))
    found = between_architectures(noise, d[:, None] + noise[:, ::-1], limit=INF)
    half, error = (found.high - found.low) / 2, d.std() / math.sqrt(50)
    assert half == pytest.approx(stats.t.ppf(0.975, 6) * error, rel=0.3)  # 3 to 6 degrees of freedom


def test_an_architecture_of_one_run_is_not_tested() -> None:
    found = between_architectures(np.zeros((9, 1)), np.ones((9, 5)), limit=1)
    assert (found.n, found.estimate) == (1, 1)
    assert all(math.isnan(v) for v in (found.low, found.high, found.p))


def test_runs_without_spread_are_permuted() -> None:
    found = between_architectures(np.zeros((9, 3)), np.ones((9, 3)), limit=1)
    assert (found.p, math.isnan(found.low)) == (pytest.approx(0.1), True)
    assert between_architectures(np.ones((9, 3)), np.ones((9, 3)), limit=1).p == 1


@pytest.mark.parametrize(("n", "m"), [(2, 2), (3, 3), (4, 4), (2, 3), (4, 2)])
def test_the_smallest_p_of_a_permutation_test(n: int, m: int) -> None:
    found = stats.permutation_test(
        (np.arange(n) + 100.0, np.arange(m) * 1.0),
        lambda x, y: abs(np.mean(x) - np.mean(y)),
        alternative="greater",
        vectorized=False,
    )
    assert least_p(n, m) == pytest.approx(found.pvalue)


def test_equal_architectures_are_seldom_told_apart() -> None:
    """Also where the images are few, and where they decide most."""
    random = np.random.default_rng(8)
    errors = covered = 0
    for k in range(400):
        image = random.normal(0, 1, (30, 1))
        bu, td = (image + random.normal(0, 0.3, (1, 3)) + random.normal(0, 0.5, (30, 3)) for _ in range(2))
        found = between_architectures(bu, td, limit=INF, seed=k)
        errors += found.p <= 0.05 and (found.low > 0 or found.high < 0)
        covered += found.low <= 0 <= found.high
    assert errors / 400 <= 0.05
    assert covered / 400 >= 0.95


# --- families -----------------------------------------------------------------------------------------


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, NAN, 0.005]) == pytest.approx([0.03, 0.06, 0.06, NAN, 0.02], nan_ok=True)
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_lies_between_no_correction_and_bonferronis(p: list[float]) -> None:
    found = holm(p)
    assert all(a <= b <= min(1, len(p) * a) + 1e-12 for a, b in zip(p, found, strict=True))
    assert [found[i] for i in np.argsort(p, kind="stable")] == sorted(found)
    # any number below a level is rejected as step by step
    rejected = 0
    for k, value in enumerate(sorted(p)):
        if value > 0.05 / (len(p) - k):
            break
        rejected += 1
    assert abs(sum(b <= 0.05 for b in found) - rejected) <= sum(abs(b - 0.05) < 1e-9 for b in found)


@limits(deadline=None, max_examples=60)
@given(
    arrays(float, (6, 2), elements=st.sampled_from([0.0, 0.5, 1.0, 2.0, INF, NAN])),
    arrays(float, (6, 3), elements=st.sampled_from([0.0, 0.5, 1.0, 2.0, INF, NAN])),
)
def test_no_values_stop_a_test(bu: np.ndarray, td: np.ndarray) -> None:
    for found in (between_networks(bu, td[:, :2], 1.5), between_architectures(bu, td, 1.5)):
        assert math.isnan(found.p) or 0 <= found.p <= 1
        assert math.isnan(found.low) or found.low - 1e-9 <= found.estimate <= found.high + 1e-9
        assert not found.n or math.isfinite(found.estimate)
