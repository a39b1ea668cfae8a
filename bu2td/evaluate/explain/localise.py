"""Weakly supervised localisation: how well a heat map covers the object (the paper's figure 9).

**Against pixels** (`localisation`). The object is what is brighter than a threshold t in the image, the prediction
what is hotter than t in the heat map; t = 0.2 in the paper. TP, FP and FN are counted in pixels per sample,

    precision = TP / (TP + FP)        recall = TP / (TP + FN)

per sample too, and then averaged over the samples. The denominator is the number of samples that are kept and have
an object. A kept sample without object pixels has no recall and is left out of every mean (and counted); a sample
whose heat map has no pixel above t predicts nothing, and its precision counts as 0, as does its recall.

**Against boxes** (`box_accuracy`). MaxBoxAccV2 (Choe et al., 2020, and their journal version): at a threshold of
the heat map, a sample is right if the box around a connected component of what is hotter overlaps one of its boxes
with an intersection over union of at least delta. The share of right samples at the best threshold, **one threshold
for the whole set**, is taken for delta = 0.3, 0.5 and 0.7; MaxBoxAccV2 is their mean. V2 looks at all components,
the first version (MaxBoxAcc, delta = 0.5) at the largest one alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from bu2td.errors import NonFiniteError, OptionError, nearest
from bu2td.evaluate.checks import check_images, check_number

#: Thresholds of a heat map that MaxBoxAcc tries.
BOX_THRESHOLDS = tuple(i / 100 for i in range(100))

#: Overlaps at which MaxBoxAccV2 counts a box as right.
DELTAS = (0.3, 0.5, 0.7)

COMPONENTS = ("all", "largest")

#: Weights of red, green and blue in a grey value (ITU-R BT.601, as PIL's and torchvision's grey).
_GREY = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Localisation:
    """Heat maps against object masks at one threshold; one entry per measured sample.

    Attributes:
        threshold: of the heat map.
        index: which of the given samples were measured (n,).
        tp, fp, fn: pixels (n,), int64.
        precision, recall: (n,), float64.
        without_object: kept samples that have no object pixel; they are not among the measured ones.
        without_prediction: measured samples without a pixel above the threshold.
    """

    threshold: float
    index: Tensor
    tp: Tensor
    fp: Tensor
    fn: Tensor
    precision: Tensor
    recall: Tensor
    without_object: int
    without_prediction: int

    def row(self) -> dict[str, Any]:
        """Means over the measured samples: threshold, samples, tp, fp, fn (pixels), precision, recall."""
        row: dict[str, Any] = {"threshold": self.threshold, "samples": len(self.index)}
        for name in ("tp", "fp", "fn", "precision", "recall"):
            row[name] = float(getattr(self, name).double().mean())
        return row


@dataclass(frozen=True)
class BoxAccuracy:
    """MaxBoxAcc at several overlaps.

    Attributes:
        samples: how many samples were measured; all have boxes.
        deltas: the overlaps.
        accuracy: by overlap the share of samples that are right at the best threshold.
        best: by overlap that threshold (the lowest of equally good ones).
        curve: shares by threshold and overlap (T, D), float64.
    """

    samples: int
    deltas: tuple[float, ...]
    accuracy: tuple[float, ...]
    best: tuple[float, ...]
    curve: Tensor

    @property
    def mean(self) -> float:
        """MaxBoxAccV2: the mean over the overlaps."""
        return sum(self.accuracy) / len(self.accuracy)

    def row(self) -> dict[str, Any]:
        """``samples``, ``max_box_acc_v2``, and by overlap ``accuracy_30`` and ``threshold_30``."""
        row: dict[str, Any] = {"samples": self.samples, "max_box_acc_v2": self.mean}
        for delta, accuracy, best in zip(self.deltas, self.accuracy, self.best, strict=True):
            percent = f"{100 * delta:g}"
            row |= {f"accuracy_{percent}": accuracy, f"threshold_{percent}": best}
        return row


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
    """The pixels inside any box of every sample: (N, H, W), bool. A pixel is inside if its centre is.

    Raises:
        OptionError: as `check_boxes`.
    """
    checked = check_boxes(boxes, None, size)
    rows, columns = (torch.arange(side, dtype=torch.float64) + 0.5 for side in size)
    masks = torch.zeros(len(checked), *size, dtype=torch.bool)
    for mask, sample in zip(masks, checked, strict=True):
        for x0, y0, x1, y1 in sample:
            mask |= ((rows >= y0) & (rows < y1))[:, None] & ((columns >= x0) & (columns < x1))[None]
    return masks


def localisation(
    heat: Tensor, masks: Tensor, *, keep: Tensor | None = None, threshold: float = 0.2
) -> Localisation:
    """Compare heat maps with object masks, as this module's docstring defines it.

    Args:
        heat: (N, H, W) in [0, 1].
        masks: (N, H, W), bool: the object.
        keep: (N,), bool: which samples count, for instance those that all compared networks classify correctly.
        threshold: of the heat map, in [0, 1).

    Returns:
        The `Localisation`.

    Raises:
        OptionError: shapes, values or the threshold are wrong, or no sample that counts has an object.
    """
    heat, masks, keep = check_heat(heat), check_masks(masks, heat), check_keep(keep, len(heat))
    _check_threshold(threshold)
    flat = masks.flatten(1)
    index = (keep & flat.any(1)).nonzero()[:, 0]
    if not len(index):
        raise OptionError(
            f"none of the {int(keep.sum())} samples that count has an object pixel; lower the threshold of the "
            f"object, or give boxes"
        )
    hot, there = heat.flatten(1)[index] > threshold, flat[index]
    tp, fp, fn = ((a & b).sum(1) for a, b in ((hot, there), (hot, ~there), (~hot, there)))
    predicted = tp + fp
    precision = tp.double() / predicted.clamp(min=1)  # 0 where nothing is predicted
    return Localisation(
        threshold=float(threshold),
        index=index,
        tp=tp,
        fp=fp,
        fn=fn,
        precision=precision,
        recall=tp.double() / (tp + fn),
        without_object=int(keep.sum()) - len(index),
        without_prediction=int((predicted == 0).sum()),
    )


def box_accuracy(
    heat: Tensor,
    boxes: Any,
    *,
    keep: Tensor | None = None,
    thresholds: Sequence[float] = BOX_THRESHOLDS,
    deltas: Sequence[float] = DELTAS,
    components: str = "all",
) -> BoxAccuracy:
    """MaxBoxAccV2 of heat maps, as this module's docstring defines it.

    Components are joined over edges and corners. At each threshold that leaves no pixel a sample is wrong.

    Args:
        heat: (N, H, W) in [0, 1].
        boxes: (N, 4), or for every sample (M, 4): left, top, right, bottom in pixels, right and bottom exclusive.
        keep: (N,), bool: which samples count.
        thresholds: that are tried for the whole set.
        deltas: overlaps, each in (0, 1].
        components: whose boxes are compared: "all" (V2) or the "largest" by pixels (first version).

    Returns:
        The `BoxAccuracy`.

    Raises:
        OptionError: shapes or values are wrong, or no sample counts.
    """
    heat, keep = check_heat(heat), check_keep(keep, len(heat))
    checked = check_boxes(boxes, len(heat), (heat.shape[1], heat.shape[2]))
    if components not in COMPONENTS:
        raise OptionError(
            f"components={components!r} is unknown; it must be one of {', '.join(map(repr, COMPONENTS))}."
            f"{nearest(str(components), COMPONENTS)}"
        )
    levels = [_check_threshold(t, "every threshold") for t in thresholds]
    deltas = tuple(float(d) for d in deltas)
    if not levels or not deltas or not all(0 < d <= 1 for d in deltas):
        raise OptionError(f"deltas={deltas!r} must be overlaps in (0, 1], and there must be thresholds")
    index = keep.nonzero()[:, 0].tolist()
    overlaps = np.stack([_overlaps(heat[i].numpy(), checked[i], levels, components == "all") for i in index])
    right = overlaps[:, :, None] >= np.asarray(deltas) - 1e-9  # samples, thresholds, deltas
    curve = torch.from_numpy(right.mean(0))
    best = curve.argmax(0)  # the first of equally good ones
    return BoxAccuracy(
        samples=len(index),
        deltas=deltas,
        accuracy=tuple(float(curve[best[d], d]) for d in range(len(deltas))),
        best=tuple(levels[int(b)] for b in best),
        curve=curve,
    )


def _overlaps(heat: np.ndarray, boxes: np.ndarray, thresholds: Sequence[float], several: bool) -> np.ndarray:
    """By threshold the largest intersection over union of a component's box with a box."""
    found = np.zeros(len(thresholds))
    seen: dict[int, float] = {0: 0.0}
    for i, threshold in enumerate(thresholds):
        hot = heat > threshold
        count = int(hot.sum())
        if count not in seen:  # what is hotter is nested, so that equally many pixels are the same pixels
            seen[count] = float(_iou(_component_boxes(hot, several), boxes).max())
        found[i] = seen[count]
    return found


def _component_boxes(hot: np.ndarray, several: bool) -> np.ndarray:
    labels, _ = ndimage.label(hot, structure=np.ones((3, 3)))
    found = ndimage.find_objects(labels)
    if not several:
        largest = int(np.bincount(labels.ravel())[1:].argmax())
        found = [found[largest]]
    return np.array([(c.start, r.start, c.stop, r.stop) for r, c in found], dtype=np.float64)


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


def check_keep(keep: Any, count: int) -> Tensor:
    """Which samples count (N,), bool, on the CPU; by default all.

    Raises:
        OptionError: another shape or type, or no sample counts.
    """
    if keep is None:
        return torch.ones(count, dtype=torch.bool)
    if not isinstance(keep, Tensor) or keep.dtype != torch.bool or tuple(keep.shape) != (count,):
        found = f"{tuple(keep.shape)} of {keep.dtype}" if isinstance(keep, Tensor) else type(keep).__name__
        raise OptionError(f"keep must be a bool per sample, of shape ({count},); found {found}")
    if not bool(keep.any()):
        raise OptionError("keep is false for every sample: nothing is left to measure")
    return keep.cpu()


def check_boxes(boxes: Any, count: int | None, size: tuple[int, int]) -> list[np.ndarray]:
    """The boxes of every sample, (M, 4) each, M >= 1: left, top, right, bottom in pixels of the image.

    Raises:
        OptionError: another shape, not one entry per sample, or a box that is empty or leaves the image.
    """
    try:
        found = [np.atleast_2d(np.asarray(sample, dtype=np.float64)) for sample in boxes]
    except (TypeError, ValueError) as error:
        raise OptionError(f"boxes must be (N, 4), or (M, 4) for every sample: {error}") from error
    if count is not None and len(found) != count:
        raise OptionError(f"there must be boxes for each of {count} samples, found boxes for {len(found)}")
    height, width = size
    for i, sample in enumerate(found):
        if sample.ndim != 2 or sample.shape[1] != 4 or not len(sample):
            raise OptionError(
                f"the boxes of sample {i} must be (M, 4), left, top, right, bottom; found shape {sample.shape}"
            )
        low, high = sample[:, :2], sample[:, 2:]
        inside = (low >= 0).all() and (high <= (width, height)).all()
        if not (np.isfinite(sample).all() and inside and (high > low).all()):
            raise OptionError(
                f"the boxes of sample {i} must have 0 <= left < right <= {width} and 0 <= top < bottom <= {height} "
                f"(pixels), found {sample.tolist()}"
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
