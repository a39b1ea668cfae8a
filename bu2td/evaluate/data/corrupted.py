"""Sets of corrupted images and of perturbation sequences, as Hendrycks and Dietterich (2019) publish theirs.

A folder holds, for every corruption NAME,

* as in CIFAR-10-C: NAME.npy, (5 n, H, W, C) uint8, the n images at severity 1, then at severity 2, up to 5, and
  labels.npy for all of them (of 5 n numbers, or of n);
* as in ImageNet-C: NAME/SEVERITY/CLASS/*.JPEG, or CATEGORY/NAME/SEVERITY/CLASS/*.JPEG;

and for every perturbation NAME, of which neighbouring frames differ a little,

* as in CIFAR-10-P: NAME.npy, (n, frames, H, W, C) uint8;
* as in ImageNet-P, but with frames as images: NAME/CLASS/SEQUENCE/*.png, or CATEGORY/NAME/CLASS/SEQUENCE/*.png.

Arrays are mapped, image files are opened when they are asked for; nothing is in memory as a whole.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bu2td.errors import DataError, first_line
from bu2td.evaluate.data.pictures import FileImages
from bu2td.evaluate.data.sets import Data, batch_of

SEVERITIES = (1, 2, 3, 4, 5)
LABELS = "labels.npy"
_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm")
_WNID = re.compile(r"n\d{8}")
#: ImageNet's names of the classes of imagenette, in the order of their labels.
_IMAGENETTE = (
    *("n01440764", "n02102040", "n02979186", "n03000684", "n03028079"),
    *("n03394916", "n03417042", "n03425413", "n03445777", "n03888257"),
)


@dataclass(frozen=True)
class Corrupted(ABC):
    """The images of a test set under one corruption, at every severity.

    Attributes:
        name: of the corruption.
        identity: what tells its files from others.
    """

    name: str
    identity: str

    @abstractmethod
    def __len__(self) -> int:
        """Images of a severity."""

    @abstractmethod
    def read(self, severity: int, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Images (N, C, H, W) float32 in [0, 1], and their labels (N,)."""


@dataclass(frozen=True)
class Sequences(ABC):
    """Sequences of frames under one perturbation; attributes as `Corrupted`."""

    name: str
    identity: str

    @abstractmethod
    def __len__(self) -> int:
        """Sequences."""

    @abstractmethod
    def read(self, index: int) -> Tensor:
        """The frames (T, C, H, W) of a sequence, float32 in [0, 1]."""


@dataclass(frozen=True)
class CorruptedData:
    """What a folder holds.

    Attributes:
        name: of the folder.
        corruptions, sequences: by name, sorted.
    """

    name: str
    corruptions: tuple[Corrupted, ...]
    sequences: tuple[Sequences, ...]


def open_corrupted(folder: str | Path, data: Data) -> CorruptedData:
    """Open a folder of corrupted images, and check what it holds.

    Args:
        folder: in one of the forms above.
        data: which classes there are, and the shape of an image; files are resized to it, arrays must have it.

    Returns:
        `CorruptedData`. Class folders of ImageNet that imagenette lacks are passed over.

    Raises:
        DataError: there is nothing of that kind, an array is cut off or of another shape, labels are missing or out
            of range, a class folder is not known, or sequences are videos.
    """
    place = Path(folder).expanduser()
    if not place.is_dir():
        raise DataError(f"corrupted_data = {str(folder)!r} is not a folder")
    corruptions: list[Corrupted] = []
    sequences: list[Sequences] = []
    for path in sorted(place.glob("*.npy")):
        if path.name == LABELS:
            continue
        array = _array(path, data)
        if array.ndim == 5:
            sequences.append(_ArraySequences(path.stem, _identity(path), array))
        else:
            corruptions.append(
                _ArrayCorruption(path.stem, _identity(path), array, _labels(place, len(array), data))
            )
    for path in _named(place):
        if _has_severities(path):
            corruptions.append(_files_of(path, data))
        elif _has_sequences(path):
            sequences.append(_sequences_of(path, data))
    if not corruptions and not sequences:
        found = ", ".join(sorted(p.name for p in place.iterdir())[:8])
        raise DataError(
            f"{place} holds no corrupted images: expected NAME.npy and {LABELS}, NAME/SEVERITY/CLASS/*.JPEG, or "
            f"NAME/CLASS/SEQUENCE/*.png; found {found or 'nothing'}"
        )
    return CorruptedData(place.name, _sorted(corruptions, place), _sorted(sequences, place))


def _sorted(sets: list[Any], place: Path) -> tuple[Any, ...]:
    names = [one.name for one in sets]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{place} holds {twice} twice; keep one of them")
    return tuple(sorted(sets, key=lambda one: one.name))


# --- arrays -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _ArrayCorruption(Corrupted):
    array: np.ndarray = field(repr=False)
    labels: np.ndarray = field(repr=False)

    def __len__(self) -> int:
        return len(self.array) // len(SEVERITIES)

    def read(self, severity: int, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        rows = np.asarray(indices, dtype=np.int64) + (severity - 1) * len(self)
        labels = self.labels[rows % len(self.labels)]
        return _as_images(self.array[rows]), torch.from_numpy(labels.astype(np.int64))


@dataclass(frozen=True)
class _ArraySequences(Sequences):
    array: np.ndarray = field(repr=False)

    def __len__(self) -> int:
        return len(self.array)

    def read(self, index: int) -> Tensor:
        return _as_images(self.array[index])


def _as_images(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(pixels)).movedim(-1, 1).float() / 255


def _identity(path: Path) -> str:
    return f"{path.name}, {path.stat().st_size} bytes"


def _array(path: Path, data: Data) -> np.ndarray:
    channels, height, width = data.shape
    array = _mapped(path)
    forms = f"(5 n, {height}, {width}, {channels}) or (n, frames, {height}, {width}, {channels}) of uint8"
    if array.dtype != np.uint8 or array.ndim not in (4, 5) or array.shape[-3:] != (height, width, channels):
        raise DataError(f"{path} holds {array.shape} of {array.dtype}; expected {forms} for {data.name}")
    if (
        not array.size
        or (array.ndim == 4 and len(array) % len(SEVERITIES))
        or (array.ndim == 5 and array.shape[1] < 2)
    ):
        raise DataError(
            f"{path} holds {array.shape}; expected as many images for each of five severities, or sequences of two "
            f"frames or more"
        )
    return array


def _mapped(path: Path) -> np.ndarray:
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # what numpy raises on damage depends on the damage
        raise DataError(f"{path} is cut off, or no array ({first_line(error)}); fetch it anew") from error
    if not isinstance(found, np.ndarray):
        raise DataError(f"{path} is an archive of arrays, not one array; fetch it anew")
    return found


def _labels(place: Path, rows: int, data: Data) -> np.ndarray:
    path = place / LABELS
    if not path.is_file():
        raise DataError(f"{path} is missing: the labels of the arrays in {place}")
    labels = _mapped(path)
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) not in (rows, rows // len(SEVERITIES)):
        raise DataError(
            f"{path} holds {labels.shape} of {labels.dtype}; expected a whole number for each of {rows} images, or "
            f"for each of the {rows // len(SEVERITIES)} of a severity"
        )
    if int(labels.min()) < 0 or int(labels.max()) >= len(data.classes):
        raise DataError(
            f"{path} holds labels from {labels.min()} to {labels.max()}, but {data.name} has {len(data.classes)} "
            f"classes"
        )
    return labels


# --- image files --------------------------------------------------------------------------------------


def _read(samples: list[tuple[Path, int]], shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    images = FileImages(samples, shape)
    return batch_of(images, range(len(images)))


@dataclass(frozen=True)
class _FileCorruption(Corrupted):
    """The files of one severity stand for those of all: CLASS/FILE, and their labels."""

    place: Path
    files: tuple[tuple[str, int], ...] = field(repr=False)
    shape: tuple[int, int, int]

    def __len__(self) -> int:
        return len(self.files)

    def read(self, severity: int, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        chosen = [self.files[i] for i in indices]
        return _read([(self.place / str(severity) / file, label) for file, label in chosen], self.shape)


@dataclass(frozen=True)
class _FileSequences(Sequences):
    folders: tuple[Path, ...] = field(repr=False)
    shape: tuple[int, int, int]

    def __len__(self) -> int:
        return len(self.folders)

    def read(self, index: int) -> Tensor:
        frames = [path for path in sorted(self.folders[index].iterdir()) if _is_image(path)]
        if len(frames) < 2:
            raise DataError(f"{self.folders[index]} holds {len(frames)} frames; a sequence needs two or more")
        return _read([(path, 0) for path in frames], self.shape)[0]


def _files_of(place: Path, data: Data) -> _FileCorruption:
    missing = [str(s) for s in SEVERITIES if not (place / str(s)).is_dir()]
    if missing:
        raise DataError(f"{place} lacks the severities {', '.join(missing)}; expected folders 1 to 5")
    files = tuple(
        (f"{folder.name}/{path.name}", label)
        for folder, label in _classes(place / "1", data)
        for path in sorted(folder.iterdir())
        if _is_image(path)
    )
    if not files:
        raise DataError(f"{place / '1'} holds no images of the classes of {data.name}")
    return _FileCorruption(place.name, f"{len(files)} files", place, files, data.shape)


def _sequences_of(place: Path, data: Data) -> _FileSequences:
    folders = tuple(path for folder, _ in _classes(place, data) for path in _folders(folder))
    if not folders:
        raise DataError(f"{place} holds no sequences of the classes of {data.name}")
    return _FileSequences(place.name, f"{len(folders)} sequences", folders, data.shape)


def _classes(place: Path, data: Data) -> Iterator[tuple[Path, int]]:
    """The class folders, sorted, and their labels."""
    known = {name: label for label, name in enumerate(data.classes)}
    if data.name == "imagenette":
        known |= {name: label for label, name in enumerate(_IMAGENETTE)}
    for folder in _folders(place):
        if folder.name in known:
            yield folder, known[folder.name]
        elif not (data.name == "imagenette" and _WNID.fullmatch(folder.name)):
            raise DataError(
                f"{folder} is no class of {data.name}: expected {', '.join(list(known)[:8])}"
                f"{', ...' if len(known) > 8 else ''}. Rename it, or take it out"
            )


def _named(place: Path) -> Iterator[Path]:
    """The folders of corruptions and perturbations, directly in a folder or one category deeper."""
    for path in _folders(place):
        inner = [path] if _holds(path) else [one for one in _folders(path) if _holds(one)]
        yield from inner


def _holds(place: Path) -> bool:
    if any(one.suffix.lower() == ".mp4" for folder in _folders(place)[:1] for one in folder.iterdir()):
        raise DataError(
            f"{place} holds sequences as videos, which need a decoder. Make images of their frames: for each "
            f"FILE.mp4 a folder FILE with `ffmpeg -i FILE.mp4 FILE/%03d.png`"
        )
    return _has_severities(place) or _has_sequences(place)


def _has_severities(place: Path) -> bool:
    inner = _folders(place)
    return bool(inner) and all(p.name in map(str, SEVERITIES) for p in inner) and bool(_folders(inner[0]))


def _has_sequences(place: Path) -> bool:
    first = [sequence for folder in _folders(place)[:1] for sequence in _folders(folder)[:1]]
    return any(_is_image(path) for folder in first for path in folder.iterdir())


def _folders(place: Path) -> list[Path]:
    return sorted(path for path in place.iterdir() if path.is_dir() and not path.name.startswith("."))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in _SUFFIXES and not path.name.startswith(".")
