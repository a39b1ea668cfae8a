"""What predictions are worth: top-k accuracy, accuracy per class, calibration. Arrays in, numbers out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BINS = 15


def top_k_accuracy(rank: NDArray[np.int64], k: int) -> float:
    """Share of images whose true class is among the first k.

    Args:
        rank: (N,), the place of the true class, 1 where the prediction is right.
        k: how many classes count.
    """
    return float((np.asarray(rank) <= k).mean())


def per_class_accuracy(label: NDArray[np.int64], predicted: NDArray[np.int64], classes: int) -> NDArray[np.float64]:
    """Share of the images of every class that are classified correctly.

    Args:
        label, predicted: (N,), classes from 0.
        classes: how many there are.

    Returns:
        (classes,); NaN for a class without images.
    """
    label = np.asarray(label)
    right = np.asarray(predicted) == label
    images = np.bincount(label, minlength=classes).astype(float)
    hits = np.bincount(label, weights=right, minlength=classes)
    return np.divide(hits, images, out=np.full(classes, np.nan), where=images > 0)


def calibration_error(confidence: NDArray[np.float64], right: NDArray[np.bool_], bins: int = BINS) -> float:
    """Expected calibration error: how far confidence is from accuracy.

    With B_m the images whose confidence lies in ((m - 1) / M, m / M], ECE = sum_m |B_m| / n |acc(B_m) - conf(B_m)|
    (Guo et al., 2017, On calibration of modern neural networks, equation 3; M = 15 there).

    Args:
        confidence: (N,), the probability of the predicted class.
        right: (N,), whether the prediction is right.
        bins: M, of equal width.

    Returns:
        From 0 (calibrated) to 1.
    """
    confidence = np.asarray(confidence, dtype=float)
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gap = np.bincount(index, weights=np.asarray(right) - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(confidence))
