"""The smallest perturbation of every image, and what it says about a classifier: curves, medians, areas."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from bu2td.errors import OptionError
from bu2td.evaluate.schema import CurvePoint, Robustness

#: Points of a curve, l2 = 0 and the limit included.
POINTS = 101
#: Share of the distances that lie below the limit (`shared_limit`).
LIMIT_SHARE = 0.95


@dataclass(frozen=True)
class Perturbations:
    """The smallest perturbation that one attack found for every image.

    Attributes:
        distance: (N,) float64, its L2 norm over all pixel values of the image in [0, 1]; inf where none was found,
            0 where the classifier is wrong without any.
        clean: (N,) bool, whether the classifier is right about the image itself.
        images: (N, C, H, W) float32, the perturbed images; the image itself where there is none.
        dropped: (N,) int64, how often the attack claimed success (over the repeats) and a second look did not
            confirm it.
        queries: (N,) float64, for how many images the attack (all repeats) asked the network per image that it is
            right about, gradients counted as well; a mean over the batch, 0 for the other images.
        converged: (N,) bool, False: the attack was still on its way, so that the distance is an upper bound.
    """

    distance: np.ndarray
    clean: np.ndarray
    images: np.ndarray
    dropped: np.ndarray
    queries: np.ndarray
    converged: np.ndarray

    def __len__(self) -> int:
        return len(self.distance)


def join(parts: Sequence[Perturbations]) -> Perturbations:
    """Perturbations of several batches, one after the other."""
    return Perturbations(*(np.concatenate([getattr(part, name) for part in parts]) for name in ARRAYS))


#: The arrays of `Perturbations`, as files name them.
ARRAYS = tuple(field.name for field in fields(Perturbations))


def strongest(attacks: Mapping[str, Perturbations]) -> Perturbations:
    """The smallest perturbation of every image under any of some attacks.

    Args:
        attacks: at least one, all in one norm, of the same images; of those that are not there for all attacks
            (the last ones) nothing is said.

    Returns:
        Queries and dropped claims are those of all attacks together.
    """
    count = min(map(len, attacks.values()))
    stacked = {name: np.stack([getattr(one, name)[:count] for one in attacks.values()]) for name in ARRAYS}
    nearest, every = stacked["distance"].argmin(0), np.arange(count)
    found = {name: array[nearest, every] for name, array in stacked.items()}
    totals = {name: stacked[name].sum(0) for name in ("dropped", "queries")}
    return Perturbations(**{**found, **totals, "clean": stacked["clean"].all(0)})


def accuracy_curve(perturbations: Perturbations, grid: Sequence[float] | np.ndarray) -> np.ndarray:
    """Accuracy against the size of the perturbation (the paper's figure 6).

    Args:
        perturbations: of N images.
        grid: L2 norms, from 0 up.

    Returns:
        For every norm r: the share of ALL N images that are still classified correctly when their smallest
        perturbation is applied wherever its norm is at most r. At r = 0 that is the clean accuracy.

    Raises:
        OptionError: the grid is empty, or has a negative or non-finite norm.
    """
    radii = np.asarray(grid, dtype=np.float64)
    if radii.ndim != 1 or not len(radii) or not (np.isfinite(radii) & (radii >= 0)).all():
        raise OptionError(f"grid must be a list of finite L2 norms from 0 up, found {grid!r}")
    ordered = np.sort(perturbations.distance)
    return (len(ordered) - np.searchsorted(ordered, radii, side="right")) / len(ordered)


def summarise(perturbations: Perturbations, limit: float) -> dict[str, Any]:
    """What one row of robustness.csv says of an attack.

    Args:
        perturbations: of N images.
        limit: L2 norm up to which the curve is integrated.

    Returns:
        samples (N); clean_accuracy (of all N); success_rate (of the images that are classified correctly without
        perturbation); median_l2 (over the same images, those without adversarial image counted as inf); auc, the
        area under `accuracy_curve` from 0 to limit divided by the limit; limit. success_rate and median_l2 are nan
        where no image is classified correctly.

        The curve falls by 1/N at the distance d_i of every image, so its integral is the sum of
        min(d_i, limit) / N, exactly.

    Raises:
        OptionError: the limit is not a positive number.
    """
    if not (math.isfinite(limit) and limit > 0):
        raise OptionError(f"limit must be a positive L2 norm, found {limit!r}")
    distance = perturbations.distance[perturbations.clean]
    any_right = bool(len(distance))
    found = perturbations.clean & np.isfinite(perturbations.distance)
    return {
        "samples": len(perturbations),
        "clean_accuracy": float(perturbations.clean.mean()),
        "success_rate": float(np.isfinite(distance).mean()) if any_right else math.nan,
        "median_l2": float(np.median(distance)) if any_right else math.nan,
        "auc": float(np.minimum(perturbations.distance, limit).mean() / limit),
        "limit": float(limit),
        "failures": int(np.isinf(distance).sum()),
        "dropped": int(perturbations.dropped.sum()),
        "queries": float(perturbations.queries[perturbations.clean].mean()) if any_right else math.nan,
        "converged": float(perturbations.converged[found].mean()) if found.any() else math.nan,
    }


def shared_limit(perturbations: Sequence[Perturbations]) -> float:
    """Up to which L2 norm the curves of several classifiers under one attack go, and their areas.

    The 95th percentile of all finite distances of all these classifiers, of images that are right: a few outliers,
    which may be ten times as far as the rest, would squeeze all differences into the first tenth of the area. All
    classifiers share one limit, so that their areas can be compared; it is 1 where nothing was found at all.
    """
    distance = np.concatenate([p.distance[p.clean & np.isfinite(p.distance)] for p in perturbations])
    return float(np.quantile(distance, LIMIT_SHARE)) if len(distance) else 1.0


Results = Mapping[tuple[str, int], Mapping[str, Perturbations]]


def robustness_rows(results: Results, points: int = POINTS) -> tuple[list[Robustness], list[CurvePoint]]:
    """Rows of robustness.csv and curves.csv for several classifiers.

    Args:
        results: (arrangement, repeat) -> attack -> perturbations.
        points: of a curve.

    Returns:
        (rows of the table, rows of the curves). All classifiers share one limit (`shared_limit`) and one grid per
        attack, so that their areas can be compared.

    Raises:
        OptionError: fewer than two points.
    """
    if points < 2:
        raise OptionError(f"a curve needs at least 2 points, found {points}")
    attacks = list(dict.fromkeys(name for found in results.values() for name in found))
    limits = {name: shared_limit([found[name] for found in results.values() if name in found]) for name in attacks}
    table, curves = [], []
    for (arrangement, repeat), found in results.items():
        for name in (name for name in attacks if name in found):
            table.append(Robustness(arrangement, repeat, name, **summarise(found[name], limits[name])))
            grid = np.linspace(0, limits[name], points)
            for radius, accuracy in zip(grid, accuracy_curve(found[name], grid), strict=True):
                curves.append(CurvePoint(arrangement, repeat, name, float(radius), float(accuracy)))
    return table, curves
