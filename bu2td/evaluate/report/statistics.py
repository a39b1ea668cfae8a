"""Tests and intervals for the difference of two kinds of networks, on two levels that are kept apart.

*These networks*: the trained networks are given, the images are a sample. The difference of every image is taken
between the repeats that belong together (same split, same seed of the weights), and images are the units. *As an
architecture*: the trainings are a sample too, and they are the units, for what another training would give is the
question. Ranks, Student's t and the bootstrap of the mean are scipy's; what scipy does not have is by hand, and
says so.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

#: Probability of an error that a family of tests is allowed, and of which intervals miss.
ALPHA = 0.05
#: Up to so many images that differ, all signs are tried; beyond, the sum of ranks is as good as normal.
EXACT = 14
#: Redrawn samples of a bootstrap.
REDRAWN = 2000
_CHUNK = 100


@dataclass(frozen=True)
class Difference:
    """Top-down less bottom-up.

    Attributes:
        n: images that both have, or the runs of the network with the fewer.
        bottom_up, top_down: means.
        estimate: of the difference of the means.
        low, high: its 95 % interval; nan where there is none.
        p: two-sided; nan where nothing can be tested.
        sign: of what was tested, -1, 0 or 1.
    """

    n: int
    bottom_up: float
    top_down: float
    estimate: float
    low: float
    high: float
    p: float
    sign: int


NOTHING = Difference(0, *(math.nan,) * 6, 0)


def difference_of(bottom_up: np.ndarray, top_down: np.ndarray) -> np.ndarray:
    """Top-down less bottom-up, where both may be inf: then they are tied, and the difference is 0."""
    with np.errstate(invalid="ignore"):
        return np.where(np.isinf(bottom_up) & (bottom_up == top_down), 0.0, top_down - bottom_up)


def signed_rank(differences: np.ndarray) -> tuple[float, int]:
    """Wilcoxon's signed-rank test for images that several networks share.

    Ranks run over all differences that are not 0, and are added up per image; under the null hypothesis the sums
    change their signs as a whole (Rosner, Glynn and Lee, 2006, Biometrics 62, eq. 2). With one network it is
    Wilcoxon's test, and with differences of one size the sign test (McNemar's exact test where they are those of
    right answers). Ranks know no size: an infinite difference is the largest there is, and as large as any other.

    scipy.stats.wilcoxon takes one difference per image, hence by hand.

    Args:
        differences: (N, K) of N images and K pairs of networks; nan where a pair has none.

    Returns:
        The two-sided probability, exact for up to `EXACT` images that differ and for differences of one size, else
        from the normal distribution; and the sign of the sum of ranks. (1, 0) where nothing differs.
    """
    counted = ~np.isnan(differences) & (differences != 0)
    ranks = np.zeros(differences.shape)
    ranks[counted] = stats.rankdata(np.abs(differences[counted]))
    sums = (np.sign(np.where(counted, differences, 0)) * ranks).sum(axis=1)
    sums = sums[sums != 0]
    if not len(sums):
        return 1.0, 0
    total = float(sums.sum())
    sign, sizes = int(np.sign(total)), np.abs(sums)
    if sizes.min() == sizes.max():
        return float(stats.binomtest(int((sums > 0).sum()), len(sums)).pvalue), sign
    if len(sums) <= EXACT:
        signs = np.array(list(itertools.product((-1, 1), repeat=len(sums))))
        return float((np.abs(signs @ sizes) >= abs(total) - 1e-9).mean()), sign
    return float(2 * stats.norm.sf(abs(total) / math.sqrt(float((sums**2).sum())))), sign


def between_networks(bottom_up: np.ndarray, top_down: np.ndarray, limit: float, seed: int = 0) -> Difference:
    """The difference between trained networks, images being the units.

    The test is `signed_rank`; the estimate is the mean difference of values up to the limit, over the pairs of an
    image and then over the images; its interval takes the 2.5 and 97.5 per cent points of a bootstrap over images.

    Args:
        bottom_up, top_down: (N, K), column k of one belongs to column k of the other; nan where there is nothing.
        limit: larger values count as this one in means (not in ranks), so that inf has a mean.
        seed: of the bootstrap.
    """
    shared = ~np.isnan(bottom_up) & ~np.isnan(top_down)
    some = shared.any(axis=1)
    if not some.any():
        return NOTHING
    p, sign = signed_rank(np.where(shared, difference_of(bottom_up, top_down), np.nan)[some])
    means = [
        np.nanmean(np.where(shared, np.minimum(v, limit), np.nan)[some], axis=1) for v in (bottom_up, top_down)
    ]
    before, after = (float(m.mean()) for m in means)
    differences = means[1] - means[0]
    low = high = float(differences.mean())
    if len(differences) < 2:
        low = high = math.nan
    elif np.ptp(differences) > 0:
        found = stats.bootstrap(
            (differences,),
            np.mean,
            n_resamples=REDRAWN,
            batch=_CHUNK,
            confidence_level=1 - ALPHA,
            method="percentile",
            random_state=np.random.default_rng(seed),
        ).confidence_interval
        low, high = float(found.low), float(found.high)
    return Difference(len(differences), before, after, float(differences.mean()), low, high, p, sign)


def between_architectures(bottom_up: np.ndarray, top_down: np.ndarray, limit: float, seed: int = 0) -> Difference:
    """The difference between architectures, runs being the units.

    The test is Welch's, over the runs' means. The interval is the estimate ± Student's t (with Welch's degrees of
    freedom) times the standard error of a bootstrap on two levels: images, the same for all runs, and runs, n - 1
    of n, for which the variance of a redrawn mean is s² / n without bias (Rao and Wu, 1988, JASA 83, section 2).
    The percentiles of so few runs would be too narrow, and runs alone would take the images for all there are.

    Where neither network's runs differ among themselves, their spread is not known: then the test is the exact
    permutation test, and there is no interval.

    Args:
        bottom_up: (N, R) of N images and R runs; nan where a run lacks an image.
        top_down: (N, S).
        limit: larger values count as this one.
        seed: of the bootstrap.
    """
    values = [np.minimum(v, limit)[:, ~np.isnan(v).all(axis=0)] for v in (bottom_up, top_down)]
    counts = [v.shape[1] for v in values]
    if not min(counts):
        return NOTHING
    runs = [np.nanmean(v, axis=0) for v in values]
    before, after = (float(r.mean()) for r in runs)
    estimate = after - before
    sign = int(np.sign(estimate))
    if min(counts) < 2:
        return Difference(min(counts), before, after, estimate, math.nan, math.nan, math.nan, sign)
    variances = [float(r.var(ddof=1)) / len(r) for r in runs]
    if max(variances) <= 1e-24:
        p = 1.0 if abs(estimate) <= 1e-12 else least_p(*counts)
        return Difference(min(counts), before, after, estimate, math.nan, math.nan, p, sign)
    described = [x for r in runs[::-1] for x in (float(r.mean()), float(r.std(ddof=1)), len(r))]
    p = float(stats.ttest_ind_from_stats(*described, equal_var=False).pvalue)
    freedom = sum(variances) ** 2 / sum(v**2 / (n - 1) for v, n in zip(variances, counts, strict=True))
    half = float(stats.t.ppf(1 - ALPHA / 2, freedom)) * _standard_error(values, np.random.default_rng(seed))
    return Difference(min(counts), before, after, estimate, estimate - half, estimate + half, p, sign)


def _standard_error(values: Sequence[np.ndarray], random: np.random.Generator) -> float:
    """Of the difference of two means, from images and runs that are drawn again."""
    images = len(values[0])
    known = [(~np.isnan(v)).astype(float) for v in values]
    filled = [np.nan_to_num(v) for v in values]
    found = []
    for _ in range(REDRAWN // _CHUNK):
        drawn = random.multinomial(images, np.full(images, 1 / images), _CHUNK).astype(float)
        means = []
        for value, have in zip(filled, known, strict=True):
            with np.errstate(invalid="ignore"):
                run = (drawn @ value) / (drawn @ have)  # nan where a run lost all its images
            chosen = random.integers(value.shape[1], size=(_CHUNK, value.shape[1] - 1))
            means.append(np.take_along_axis(run, chosen, axis=1).mean(axis=1))
        found.append(means[1] - means[0])
    return float(np.nanstd(np.concatenate(found), ddof=1))


def least_p(n: int, m: int) -> float:
    """The smallest probability of the exact two-sided permutation test for n and m runs: 2 / C(2n, n) if n = m."""
    return (2 if n == m else 1) / math.comb(n + m, n)


def holm(probabilities: Sequence[float]) -> list[float]:
    """Probabilities of a family, adjusted so that any error has at most the stated one (Holm, 1979).

    nan stands for no test, and counts for none. scipy adjusts for the false discovery rate only, hence by hand.
    """
    known = sorted((p, i) for i, p in enumerate(probabilities) if not math.isnan(p))
    adjusted = [math.nan] * len(probabilities)
    least = 0.0
    for place, (p, i) in enumerate(known):
        least = max(least, min(1.0, (len(known) - place) * p))
        adjusted[i] = least
    return adjusted
