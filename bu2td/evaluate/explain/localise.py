"""Weakly supervised localisation: how well a heat map covers the object (the paper's figure 9).

**Against pixels** (`localisation`). The object is what is brighter than a threshold t in the image, or what lies in
a box; the prediction is what is hotter than t in the heat map; t = 0.2 in the paper. TP, FP and FN are counted in
pixels per image,

    precision = TP / (TP + FP)        recall = TP / (TP + FN)

and means are taken over images, not over pixels. What is not defined is no number (nan), and is left out of means
and counted instead of scored as 0: precision of an image without a pixel above t, both of an image without an
object, and both of a heat map of zeros, which says nothing.

**Against boxes** (`box_overlaps`, `box_accuracy`). MaxBoxAccV2 (Choe et al., 2020, and their journal version): at a
threshold of the heat map, an image is right if the box around a connected component of what is hotter overlaps one
of its boxes with an intersection over union of at least delta. The share of right images at the best threshold,
**one threshold for the whole set**, is taken for delta = 0.3, 0.5 and 0.7; MaxBoxAccV2 is their mean. Heat maps of
zeros are left out here too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from bu2td.errors import NonFiniteError, OptionError
from bu2td.evaluate.checks import check_images, check_number

#: Thresholds of a heat map that MaxBoxAcc tries.
BOX_THRESHOLDS = tuple(i / 100 for i in range(100))

#: Overlaps at which MaxBoxAccV2 counts a box as right.
DELTAS = (0.3, 0.5, 0.7)

#: Weights of red, green and blue in a grey value (ITU-R BT.601, as PIL's and torchvision's grey).
_GREY = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Localised:
    """Heat maps against object masks at one threshold, by image.

    Attributes:
        tp, fp, fn: pixels (N,), int64.
        precision, recall: (N,), float64; nan where they are not defined.
    """

    tp: Tensor
    fp: Tensor
    fn: Tensor
    precision: Tensor
    recall: Tensor


@dataclass(frozen=True)
class BoxAccuracy:
    """MaxBoxAcc at several overlaps.

    Attributes:
        accuracy: by overlap the share of images that are right at the best threshold; nan if there is no image.
        best: by overlap that threshold (the lowest of equally good ones).
        curve: shares by threshold and overlap (T, D), float64.
        right: by image the share of overlaps at which it is right at the best threshold (N,), float64; nan for a
            heat map of zeros. Their mean is MaxBoxAccV2.
    """

    accuracy: tuple[float, ...]
    best: tuple[float, ...]
    curve: np.ndarray
    right: np.ndarray

    @property
    def mean(self) -> float:
        """MaxBoxAccV2: the mean over the overlaps."""
        return sum(self.accuracy) / len(self.accuracy)


def object_masks(images: Tensor, threshold: float = 0.2) -> Tensor:
    """What is brighter than a threshold.

    Args:
        images: (N, C, H, W) in [0, 1]; three channels are weighted as red, green and blue, others averaged.
        threshold: of the grey value, in [0, 1).

    Returns:
        (N, H, W), bool, on the images' device.

    Raises:
        Bu2tdError: the images are none in [0, 1], or the threshold is out of range.
    """
    check_images(images)
    _check_threshold(threshold)
    if images.shape[1] == 3:
        weights = torch.tensor(_GREY, dtype=images.dtype, device=images.device)
        grey = (images * weights[:, None, None]).sum(1)
    else:
        grey = images.mean(1)
    return grey > threshold


def box_masks(boxes: Any, size: tuple[int, int]) -> Tensor:
    """The pixels inside any box of every image: (N, H, W), bool. A pixel is inside if its centre is.

    Raises:
        OptionError: as `check_boxes`.
    """
    checked = check_boxes(boxes, None, size)
    rows, columns = (torch.arange(side, dtype=torch.float64) + 0.5 for side in size)
    masks = torch.zeros(len(checked), *size, dtype=torch.bool)
    for mask, own in zip(masks, checked, strict=True):
        for x0, y0, x1, y1 in own:
            mask |= ((rows >= y0) & (rows < y1))[:, None] & ((columns >= x0) & (columns < x1))[None]
    return masks


def localisation(heat: Tensor, masks: Tensor, *, threshold: float = 0.2) -> Localised:
    """Compare heat maps with object masks, as this module's docstring defines it.

    Args:
        heat: (N, H, W) in [0, 1].
        masks: (N, H, W), bool: the object.
        threshold: of the heat map, in [0, 1).

    Raises:
        OptionError: shapes, values or the threshold are wrong.
    """
    heat = check_heat(heat)
    masks = check_masks(masks, heat).flatten(1)
    hot = heat.flatten(1) > _check_threshold(threshold)
    tp, fp, fn = ((a & b).sum(1) for a, b in ((hot, masks), (hot, ~masks), (~hot, masks)))
    nothing = ~masks.any(1) | (heat.flatten(1).amax(1) == 0)
    shares = [(tp.double() / (tp + other)).masked_fill(nothing, torch.nan) for other in (fp, fn)]  # 0 / 0 is nan
    return Localised(tp, fp, fn, *shares)


def box_overlaps(heat: Tensor, boxes: Any, *, thresholds: Sequence[float] = BOX_THRESHOLDS) -> np.ndarray:
    """By image and threshold the largest intersection over union of a component's box with one of its boxes.

    Components are joined over edges and corners. At a threshold that leaves no pixel it is 0.

    Args:
        heat: (N, H, W) in [0, 1].
        boxes: (N, 4), or for every image (M, 4): left, top, right, bottom in pixels, right and bottom exclusive.
        thresholds: of the heat map, each in [0, 1).

    Returns:
        (N, T), float64; nan for a heat map of zeros.

    Raises:
        OptionError: shapes or values are wrong.
    """
    heat = check_heat(heat)
    checked = check_boxes(boxes, len(heat), (heat.shape[1], heat.shape[2]))
    levels = [_check_threshold(t, "every threshold") for t in thresholds]
    return np.stack([_overlaps(h, b, levels) for h, b in zip(heat.numpy(), checked, strict=True)])


def box_accuracy(
    overlaps: np.ndarray, *, thresholds: Sequence[float] = BOX_THRESHOLDS, deltas: Sequence[float] = DELTAS
) -> BoxAccuracy:
    """MaxBoxAccV2 of a whole set, as this module's docstring defines it.

    Args:
        overlaps: of `box_overlaps` (N, T).
        thresholds: those of the overlaps.
        deltas: overlaps that count as right, each in (0, 1].

    Raises:
        OptionError: there are no thresholds, or deltas are none.
    """
    if overlaps.ndim != 2 or not len(thresholds) == overlaps.shape[1] > 0:
        raise OptionError(f"overlaps {overlaps.shape} must be those of {len(thresholds)} thresholds, at least one")
    if not deltas or not all(0 < float(d) <= 1 for d in deltas):
        raise OptionError(f"deltas={tuple(deltas)!r} must be overlaps in (0, 1], at least one")
    told = ~np.isnan(overlaps[:, 0])
    right = overlaps[told][:, :, None] >= np.asarray(deltas, dtype=float) - 1e-9  # images, thresholds, deltas
    curve = right.mean(0) if told.any() else np.full(right.shape[1:], np.nan)
    best, columns = curve.argmax(0), np.arange(len(deltas))  # the first of equally good ones
    by_image = np.full(len(overlaps), np.nan)
    by_image[told] = right[:, best, columns].mean(1)
    accuracy = tuple(float(share) for share in curve[best, columns])
    return BoxAccuracy(accuracy, tuple(float(thresholds[b]) for b in best), curve, by_image)


def _overlaps(heat: np.ndarray, boxes: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    if not heat.any():
        return np.full(len(thresholds), np.nan)
    found = np.zeros(len(thresholds))
    seen: dict[int, float] = {0: 0.0}
    for i, threshold in enumerate(thresholds):
        hot = heat > threshold
        count = int(hot.sum())
        if count not in seen:  # what is hotter is nested, so that equally many pixels are the same pixels
            parts = ndimage.find_objects(ndimage.label(hot, structure=np.ones((3, 3)))[0])
            around = np.array([(c.start, r.start, c.stop, r.stop) for r, c in parts], dtype=np.float64)
            seen[count] = float(_iou(around, boxes).max())
        found[i] = seen[count]
    return found


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes (A, 4) with boxes (B, 4): (A, B)."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(2)
    areas = [(box[:, 2:] - box[:, :2]).prod(1) for box in (a, b)]
    return shared / (areas[0][:, None] + areas[1][None] - shared)


# --- checks -------------------------------------------------------------------------------------------


def check_heat(heat: Any) -> Tensor:
    """Heat maps (N, H, W) on the CPU, or an error.

    Raises:
        OptionError: another shape, or values outside [0, 1].
        NonFiniteError: values that are not finite numbers.
    """
    if not isinstance(heat, Tensor) or heat.dim() != 3 or not heat.is_floating_point() or not heat.numel():
        found = tuple(heat.shape) if isinstance(heat, Tensor) else type(heat).__name__
        raise OptionError(f"heat maps must be floating point (N, H, W), found {found}")
    heat = heat.detach().cpu()
    if not bool(torch.isfinite(heat).all()):
        raise NonFiniteError("the heat maps hold values that are not finite numbers")
    low, high = float(heat.min()), float(heat.max())
    if low < 0 or high > 1 + 1e-6:
        raise OptionError(f"heat maps must lie in [0, 1], found values from {low:.4g} to {high:.4g}")
    return heat


def check_boxes(boxes: Any, count: int | None, size: tuple[int, int]) -> list[np.ndarray]:
    """The boxes of every image, (M, 4) each, M >= 1: left, top, right, bottom in pixels of the image.

    Raises:
        OptionError: another shape, not one entry per image, or a box that is empty or leaves the image.
    """
    try:
        found = [np.atleast_2d(np.asarray(own, dtype=np.float64)) for own in boxes]
    except (TypeError, ValueError) as error:
        raise OptionError(f"boxes must be (N, 4), or (M, 4) for every sample: {error}") from error
    if count is not None and len(found) != count:
        raise OptionError(f"there must be boxes for each of {count} samples, found boxes for {len(found)}")
    height, width = size
    for i, own in enumerate(found):
        if own.ndim != 2 or own.shape[1] != 4 or not len(own):
            raise OptionError(
                f"the boxes of sample {i} must be (M, 4), left, top, right, bottom; found shape {own.shape}"
            )
        low, high = own[:, :2], own[:, 2:]
        inside = (low >= 0).all() and (high <= (width, height)).all()
        if not (np.isfinite(own).all() and inside and (high > low).all()):
            raise OptionError(
                f"the boxes of sample {i} must have 0 <= left < right <= {width} and 0 <= top < bottom <= {height} "
                f"(pixels), found {own.tolist()}"
            )
    return found


def check_masks(masks: Any, heat: Tensor) -> Tensor:
    """Object masks of the shape of the heat maps, on the CPU, or an error.

    Raises:
        OptionError: another shape, or no bool.
    """
    if not isinstance(masks, Tensor) or masks.dtype != torch.bool or masks.shape != heat.shape:
        found = f"{tuple(masks.shape)} of {masks.dtype}" if isinstance(masks, Tensor) else type(masks).__name__
        raise OptionError(f"masks must be bool, of the heat maps' shape {tuple(heat.shape)}; found {found}")
    return masks.cpu()


def _check_threshold(threshold: Any, name: str = "threshold") -> float:
    found = check_number(name, threshold, 0, 1, "a number in [0, 1)")
    if found == 1:
        raise OptionError(f"{name} must be a number in [0, 1), found {threshold!r}: nothing is above it")
    return found
