"""What the object in an image is taken to be, so that a heat map can be compared with it.

* **boxes**: what lies in a box of the data.
* **bright**: the bright pixels, as the paper does with MNIST and Fashion-MNIST. That is sound only where things are
  drawn in light grey on black.
* **none**: nothing is known of the objects: no localisation and no pointing game; deletion and insertion need none.

``auto`` takes boxes where the data have them, and bright pixels where the images themselves say that they are like
MNIST: all are grey, and in 90 % of them more than half of the pixels along the border are black (at most 0.1). Over
256 test images of digits the share of those images is 100 %, of Fashion-MNIST's 99.9 %, of photographs about 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bu2td.errors import DataError, OptionError, nearest
from bu2td.evaluate.explain.localise import box_masks, check_boxes, object_masks
from bu2td.evaluate.settings import OBJECTS

LOOKED_AT = 256  # images that ``auto`` looks at, however many are explained
_BLACK, _BORDER, _IMAGES = 0.1, 0.5, 0.9


@dataclass(frozen=True)
class Choice:
    """What is taken as the object ("bright", "boxes" or "none"), and why, in words."""

    kind: str
    why: str


@dataclass(frozen=True)
class Objects:
    """The objects of some images.

    Attributes:
        masks: their pixels (N, H, W), bool, on the CPU; None where nothing is known of them.
        boxes: of every image (M, 4); None where there are none.
    """

    masks: Tensor | None = None
    boxes: list[np.ndarray] | None = None

    def take(self, index: Tensor) -> Objects:
        """Those of some images, by position."""
        boxes = None if self.boxes is None else [self.boxes[i] for i in index.tolist()]
        return Objects(None if self.masks is None else self.masks[index], boxes)


def choose_objects(wanted: str, images: Tensor, has_boxes: bool) -> Choice:
    """What is to be taken as the object, as this module's docstring defines it.

    Args:
        wanted: "auto", "bright", "boxes" or "none".
        images: (N, C, H, W) in [0, 1], some of the data.
        has_boxes: whether the data have boxes.

    Raises:
        OptionError: an unknown word.
        DataError: boxes are wanted, and the data have none.
    """
    if wanted not in OBJECTS:
        raise OptionError(f"objects={wanted!r}: expected {', '.join(OBJECTS)}.{nearest(str(wanted), OBJECTS)}")
    if wanted == "boxes" and not has_boxes:
        raise DataError(
            "the data have no boxes: put boxes.csv into the folder of the data (folder:PATH), or choose objects "
            "auto, bright or none"
        )
    if wanted != "auto":
        return Choice(wanted, f"{wanted!r} was asked for")
    if has_boxes:
        return Choice("boxes", "the data have boxes")
    if is_drawn(images):
        return Choice("bright", "the images are grey on black")
    return Choice(
        "none", "the images are not drawn in grey on black, and the data have no boxes: what is bright is no object"
    )


def is_drawn(images: Tensor) -> bool:
    """Whether images (N, C, H, W) in [0, 1] are like MNIST's: grey, with a black border."""
    if not torch.equal(images, images[:, :1].expand_as(images)):
        return False
    inner = images[:, 0].clone()
    inner[:, 1:-1, 1:-1] = torch.nan
    border = inner.flatten(1)
    black = (border <= _BLACK).sum(1) / (~border.isnan()).sum(1)
    return bool((black > _BORDER).double().mean() >= _IMAGES)


def find_objects(kind: str, images: Tensor, boxes: Any, threshold: float) -> Objects:
    """The objects of images.

    Args:
        kind: "bright", "boxes" or "none".
        images: (N, C, H, W) in [0, 1].
        boxes: (N, 4), or (M, 4) for every image; read where the kind is "boxes".
        threshold: of the grey value of a bright pixel.

    Raises:
        OptionError: boxes are of the wrong kind.
    """
    size = (images.shape[2], images.shape[3])
    if kind == "bright":
        return Objects(object_masks(images, threshold).cpu())
    if kind == "boxes":
        return Objects(box_masks(boxes, size), check_boxes(boxes, len(images), size))
    return Objects()
