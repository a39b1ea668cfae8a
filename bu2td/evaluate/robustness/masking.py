"""Signs that white-box attacks are weaker than they look: checks of an evaluation against itself.

Source: Athalye, Carlini, Wagner (2018), section 3.1: more steps, black-box attacks, and unbounded attacks.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from bu2td.evaluate.robustness.curves import Perturbations

#: What searches that end a little sooner or later differ by, as a share of a distance.
NOISE = 0.05
#: How many times as many steps the check of more steps takes, and on how many images at most.
FACTOR, IMAGES = 2, 50


def compare(stronger: Perturbations, weaker: Perturbations) -> dict[str, Any]:
    """Where an attack that should be at least as strong is behind.

    Args:
        stronger, weaker: of the same images; where there are more of one, the first ones count.

    Returns:
        The columns `images`, `violations`, `largest`, `median_change` of `bu2td.evaluate.schema.Masking`. Where
        only the weaker attack found anything, the stronger is behind by infinity.
    """
    count = min(len(stronger), len(weaker))
    right = stronger.clean[:count] & weaker.clean[:count]
    near, far = weaker.distance[:count][right], stronger.distance[:count][right]
    known = np.isfinite(near)
    behind = far[known] / near[known] - 1
    return {
        "images": int(right.sum()),
        "violations": int((behind > NOISE).sum()),
        "largest": float(behind.max()) if len(behind) else math.nan,
        "median_change": _change(near, far),
    }


def _change(near: np.ndarray, far: np.ndarray) -> float:
    """The median of the second, as a share more than that of the first; nan where neither is finite."""
    if not len(near) or not np.isfinite(np.median(near)):
        return math.nan
    return float(np.median(far) / np.median(near) - 1)


def more_steps(fewer: Perturbations, more: Perturbations) -> dict[str, Any]:
    """The columns of a check "more-steps:ATTACK"."""
    found = compare(more, fewer)
    return {**found, "holds": int(not found["median_change"] > NOISE)}


def black_box(white: Perturbations, black: Perturbations) -> dict[str, Any]:
    """The columns of the check "black-box"."""
    found = compare(white, black)
    return {**found, "holds": int(found["violations"] == 0)}


def unbounded(white: Perturbations) -> dict[str, Any]:
    """The columns of the check "unbounded"."""
    distance = white.distance[white.clean]
    missed = int(np.isinf(distance).sum())
    return {
        "images": len(distance),
        "violations": missed,
        "largest": math.inf if missed else 0.0,
        "median_change": math.nan,
        "holds": int(missed == 0),
    }
