"""Pictures read from files: as they are seen, in [0, 1], in one size."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bu2td.errors import DataError
from bu2td.packages import imported

#: What Pillow raises on files that are cut off or something else (besides its own `DecompressionBombError`).
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, struct.error)
_ORIENTATION = 0x0112  # tag of EXIF; from 5 on, width and height change places
_TURNED = (5, 6, 7, 8)
_SIXTEEN = 65535


def fitted_sides(size: tuple[int, int], target: tuple[int, int]) -> tuple[int, int, int, int]:
    """How an image is made to fit: the shorter side is resized, the centre is cropped.

    Args:
        size: (H, W) of the image as it is.
        target: (h, w) as it is wanted.

    Returns:
        Height and width after resizing, and top and left of the crop.
    """
    scale = max(target[0] / size[0], target[1] / size[1])
    height, width = (max(round(side * scale), wanted) for side, wanted in zip(size, target, strict=True))
    return height, width, round((height - target[0]) / 2), round((width - target[1]) / 2)


class FileImages:
    """Images read from files when they are asked for, resized and cropped to one size.

    Args:
        samples: the files with their labels.
        shape: (C, H, W); the shorter side is resized, the centre is cropped.
    """

    def __init__(self, samples: Sequence[tuple[Any, int]], shape: tuple[int, int, int]) -> None:
        self.samples, self.shape = samples, shape

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.samples[index]
        return read_picture(Path(path), self.shape), int(label)


def read_picture(path: Path, shape: tuple[int, int, int]) -> Tensor:
    """Read a picture.

    It is turned as its EXIF data say. What is transparent is laid on black. Grey of 16 bits is divided by 65535;
    colours of 16 bits are read at 8, which is what Pillow does.

    Args:
        path: of the file.
        shape: (C, H, W) wanted, C = 1 (grey, by ITU-R 601) or 3; the shorter side is resized, the centre cropped.

    Returns:
        (C, H, W) in [0, 1].

    Raises:
        DataError: the file cannot be read, or holds numbers that are no brightness; it is named.
    """
    operations = imported("PIL.ImageOps", "pillow", "pictures need it:")
    with _opened(path) as picture:
        image = _values(operations.exif_transpose(picture), shape[0], path)
    *sides, top, left = fitted_sides((image.shape[1], image.shape[2]), shape[1:])
    if list(image.shape[1:]) != sides:
        image = F.interpolate(image[None], size=sides, mode="bilinear", align_corners=False, antialias=True)[0]
    return image[:, top : top + shape[1], left : left + shape[2]].clamp(0, 1).contiguous()


def seen_size(path: Path) -> tuple[int, int]:
    """Height and width of a picture as it is seen: turned as its EXIF data say.

    Raises:
        DataError: it cannot be read.
    """
    with _opened(path) as picture:
        turned = picture.getexif().get(_ORIENTATION) in _TURNED
        return (picture.width, picture.height) if turned else (picture.height, picture.width)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    pillow = imported("PIL.Image", "pillow", "pictures need it:")
    try:
        with pillow.open(path) as picture:
            yield picture
    except (*_DAMAGED, pillow.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read as an image ({error}); repair or remove it") from error


def _values(picture: Any, channels: int, path: Path) -> Tensor:
    """A PIL image of any mode as (channels, H, W) in [0, 1]."""
    if picture.mode.startswith("I") or picture.mode == "F":
        return _wide(picture, path).expand(channels, -1, -1)
    if picture.has_transparency_data:
        pillow = imported("PIL.Image", "pillow")
        coloured = picture.convert("RGBA")
        picture = pillow.alpha_composite(pillow.new("RGBA", coloured.size, (0, 0, 0, 255)), coloured)
    array = np.asarray(picture.convert("L" if channels == 1 else "RGB"), dtype=np.float32) / 255
    return torch.from_numpy(array.reshape(*array.shape[:2], channels)).permute(2, 0, 1)


def _wide(picture: Any, path: Path) -> Tensor:
    """A picture of one channel of 16 bits, or of floating point numbers in [0, 1], as (1, H, W)."""
    array = np.asarray(picture)
    values = array.astype(np.float64) / (1 if picture.mode == "F" else _SIXTEEN)
    if not (values >= 0).all() or not (values <= 1).all():
        expected = "0 to 1" if picture.mode == "F" else f"0 to {_SIXTEEN}"
        raise DataError(f"{path} holds values from {array.min():g} to {array.max():g}, expected {expected}")
    return torch.from_numpy(values.astype(np.float32))[None]
