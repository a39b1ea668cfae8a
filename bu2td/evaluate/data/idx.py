"""MNIST and Fashion-MNIST: where their four files lie, and what is in them.

The files have the idx format (Y. LeCun, the MNIST database, "File formats"): two zero bytes, a byte for the type of
the numbers (8: unsigned bytes), a byte for the number of dimensions, each of these as a big-endian word of 4 bytes,
the numbers.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bu2td.errors import DataError

#: Of each data set its name in torchvision's folders, and its classes.
SETS = {
    "mnist": ("MNIST", tuple("0123456789")),
    "fashion-mnist": (
        "FashionMNIST",
        (
            *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
            *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        ),
    ),
}
PARTS = ("train", "t10k")
#: Where Debian's package dataset-fashion-mnist puts its files.
DEBIAN = Path("/usr/share/datasets")
_BYTES = 8
#: How many bytes are read at once: no memory is taken for what a header says and the file does not hold.
_PIECE = 2**20


def find(name: str, root: Path) -> Path | None:
    """The first folder that has the four files of a data set, packed or not: torchvision's, root itself, root/name,
    Debian's.
    """
    places = (root / SETS[name][0] / "raw", root, root / name, DEBIAN / name)
    return next((place for place in places if all(_file(place, *one) for one in _FILES)), None)


def read_part(place: Path, part: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images (N, H, W) and labels (N,) of a part ("train" or "t10k").

    Raises:
        DataError: a file is missing, cut off, or something else.
    """
    images, labels = (_read(_there(place, part, kind), dims) for kind, dims in _DIMENSIONS.items())
    if len(images) != len(labels):
        raise DataError(f"{place} has {len(images)} images and {len(labels)} labels of {part!r}: fetch it anew")
    return images, labels


_FILES = [(part, kind) for part in PARTS for kind in ("images", "labels")]
_DIMENSIONS = {"images": 3, "labels": 1}


def _file(place: Path, part: str, kind: str) -> Path | None:
    stems = [f"{part}-{kind}{joint}idx{_DIMENSIONS[kind]}-ubyte" for joint in "-."]
    return next((f for s in stems for f in (place / s, place / f"{s}.gz") if f.is_file()), None)


def _there(place: Path, part: str, kind: str) -> Path:
    found = _file(place, part, kind)
    if found is None:
        raise DataError(f"{place} has no {kind} of {part!r}")
    return found


def _read(path: Path, dimensions: int) -> NDArray[np.uint8]:
    start = 4 + 4 * dimensions
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = bytearray(file.read(start))
            shape = tuple(int(n) for n in np.frombuffer(content[4:], ">u4")) if len(content) == start else (0,)
            size = math.prod(shape)
            while len(content) <= start + size and (piece := file.read(_PIECE)):
                content += piece
    except (OSError, EOFError, zlib.error) as error:  # a wrong checksum is gzip.BadGzipFile, an OSError
        raise DataError(f"{path} is damaged ({error}); fetch it anew") from error
    if content[:3] != bytes((0, 0, _BYTES)) or len(content) < start or content[3] != dimensions:
        found = content[:4].hex(" ") or "nothing"
        raise DataError(
            f"{path} is not an idx file of bytes in {dimensions} dimensions: it starts with {found}, expected "
            f"{bytes((0, 0, _BYTES, dimensions)).hex(' ')}"
        )
    if size == 0 or len(content) - start != size:
        sides = _sides(shape)
        raise DataError(
            f"{path} is damaged: {len(content) - start} bytes for {sides}, expected {size}; fetch it anew"
        )
    return np.frombuffer(content, np.uint8, size, start).reshape(shape)


def _sides(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
