"""Means over repeats, for what the experiments print and what the report shows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class Statistic:
    """Mean and standard deviation over repeats.

    Attributes:
        mean: nan without values; inf if a value is.
        std: with n - 1 in the denominator; nan for fewer than two values or where a value is inf.
        n: how many repeats have a value.
        values: theirs, in the order of the repeats.
    """

    mean: float
    std: float
    n: int
    values: tuple[float, ...]


NO_VALUE = Statistic(math.nan, math.nan, 0, ())


def statistic(values: Iterable[float]) -> Statistic:
    """Mean, standard deviation (ddof=1) and number of the values that are not nan."""
    kept = tuple(float(v) for v in values if not math.isnan(v))
    if not kept:
        return NO_VALUE
    if not all(map(math.isfinite, kept)):
        return Statistic(math.inf, math.nan, len(kept), kept)
    std = float(np.std(kept, ddof=1)) if len(kept) > 1 else math.nan
    return Statistic(float(np.mean(kept)), std, len(kept), kept)


def aggregate(
    rows: pd.DataFrame | Iterable[dict[str, Any]], keys: Sequence[str], value: str
) -> dict[tuple[Any, ...], Statistic]:
    """Statistics of one column for every combination of ``keys``, in the order of first appearance."""
    frame = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows))
    if not len(frame):
        return {}
    return {key: statistic(own) for key, own in frame.groupby(list(keys), sort=False)[value]}
