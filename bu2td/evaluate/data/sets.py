"""Data sets of images in [0, 1], by name: scikit-learn's digits, torchvision's, and any folder of images."""

from __future__ import annotations

import pickle
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from bu2td.errors import DataError, OptionError, first_line, nearest
from bu2td.evaluate.data import idx
from bu2td.evaluate.data.boxes import FILE as BOXES
from bu2td.evaluate.data.boxes import Box, read_boxes
from bu2td.evaluate.data.pictures import FileImages
from bu2td.packages import imported

_FOLDER = "folder:"
_FORMS = "Data are digits, digits-padded, mnist, fashion-mnist, cifar10, imagenette or folder:PATH."
_DIGITS_TEST_SHARE = 6  # every sixth of a class, shuffled once: 1,797 -> 297 or so test images
_DIGITS_SPLIT_SEED = 0  # the test set of digits is the same in every run


class Images(Protocol):
    """Images with labels: indexing gives (image (C, H, W) float32 in [0, 1], label)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Tensor, int]: ...


class TensorImages:
    """Images that fit into memory.

    Args:
        images: (N, C, H, W), uint8 in 0..255 or float32 in [0, 1].
        labels: (N,), int64.
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.images[index]
        return (image.float() / 255 if image.dtype == torch.uint8 else image), int(self.labels[index])

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Several images at once, see `batch_of`."""
        images = self.images[indices]
        return (images.float() / 255 if images.dtype == torch.uint8 else images), self.labels[indices]


class Part:
    """Some images of a set."""

    def __init__(self, images: Images, indices: Sequence[int]) -> None:
        self.source, self.indices = images, list(indices)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.source[self.indices[index]]

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Several images at once, see `batch_of`."""
        return batch_of(self.source, [self.indices[index] for index in indices])


@dataclass(frozen=True)
class Data:
    """A data set, split into what is trained on and what is tested on.

    Attributes:
        name: as it was asked for.
        train: all images to train and validate with.
        test: images that training never sees.
        classes: their names, by label.
        shape: of an image, (C, H, W).
        boxes: per test image its boxes (left, top, right, bottom) in pixels; None where the data have none.
    """

    name: str
    train: Images = field(repr=False)
    test: Images = field(repr=False)
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    boxes: tuple[list[Box], ...] | None = field(default=None, repr=False)


def list_data() -> list[str]:
    """The names that `load_data` knows (besides ``folder:PATH``)."""
    return list(_LOADERS)


def load_data(
    name: str, root: str | Path = "data", *, input_size: tuple[int, int, int] | None = None, download: bool = False
) -> Data:
    """Load a data set.

    Args:
        name: ``digits`` (scikit-learn's 8 x 8 digits enlarged to 32 x 32), ``digits-padded`` (20 x 20 in the middle
            of 32 x 32, so that most of an image is background, as in MNIST), ``mnist``, ``fashion-mnist``,
            ``cifar10``, ``imagenette``, or ``folder:PATH`` with PATH/train/CLASS/*, PATH/val/CLASS/* (or test) and,
            where objects have boxes, PATH/boxes.csv (`bu2td.evaluate.data.boxes`).
        root: the folder of torchvision's data sets. mnist and fashion-mnist may also lie in it, or in root/NAME, as
            four idx files, packed (.gz) or not; fashion-mnist is found where Debian's package puts it, too.
        input_size: (C, H, W) of the images; by default the data set's own (128 x 128 for imagenette and folders).
        download: fetch torchvision's data sets where they are missing.

    Returns:
        `Data`.

    Raises:
        OptionError: no such data set, or an image size that it cannot have.
        DataError: files are missing, truncated or of another form.
        MissingPackageError: scikit-learn or torchvision is not installed.
    """
    if name.startswith(_FOLDER):
        return _folder(name, input_size)
    if name not in _LOADERS:
        raise OptionError(f"there are no data {name!r}.{nearest(name, _LOADERS) or ' ' + _FORMS}")
    if input_size is not None and input_size[0] not in (1, 3):
        raise OptionError(f"images of {input_size[0]} channels: expected 1 or 3")
    return _LOADERS[name](name, Path(root), input_size, download)


def split(images: Images, seed: int, share: float = 0.1) -> tuple[Images, Images]:
    """Shuffle and split into a training and a validation part (90/10 by default; Lelekas et al., section 4).

    Raises:
        OptionError: one of the parts would be empty.
    """
    held_out = round(len(images) * share)
    if not 0 < held_out < len(images):
        raise OptionError(
            f"a validation share of {share:g} leaves {held_out} of {len(images)} images for validation; choose one "
            f"that leaves at least one image on either side"
        )
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).tolist()
    return Part(images, order[held_out:]), Part(images, order[:held_out])


def first_images(images: Images, count: int | None = None) -> tuple[Tensor, Tensor]:
    """The first images as one batch: (N, C, H, W) float32 in [0, 1], and their labels (N,)."""
    return batch_of(images, range(len(images) if count is None else min(count, len(images))))


def batch_of(images: Images, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Images as one batch: (N, C, H, W) float32 in [0, 1], and their labels (N,).

    A set with a method ``batch`` gives it in one step: images that lie in memory are not taken one by one.
    """
    if not len(indices):
        raise OptionError("a batch needs at least one image")
    whole = getattr(images, "batch", None)
    return stacked(images, indices) if whole is None else whole(list(indices))


def stacked(images: Images, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
    """What `batch_of` returns, image by image."""
    pairs = [images[i] for i in indices]
    return torch.stack([image for image, _ in pairs]), torch.tensor([label for _, label in pairs])


# --- the data sets ------------------------------------------------------------------------------------


def _digits(name: str, root: Path, size: tuple[int, int, int] | None, download: bool) -> Data:
    bunch = imported("sklearn.datasets", "scikit-learn", "digits need it:").load_digits()
    images = torch.tensor(bunch.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(bunch.target, dtype=torch.int64)
    channels, height, width = size or (1, 32, 32)
    if name == "digits-padded":  # a border of 6/32 of the side, as in MNIST's 20 x 20 within 28 x 28
        inner = (max(round(height * 20 / 32), 1), max(round(width * 20 / 32), 1))
        top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
        images = F.interpolate(images, size=inner, mode="bilinear", align_corners=False)
        images = F.pad(images, (left, width - inner[1] - left, top, height - inner[0] - top))
    else:
        images = F.interpolate(images, size=(height, width), mode="bilinear", align_corners=False)
    images = images.clamp(0, 1).expand(-1, channels, -1, -1).contiguous()
    train, test = _stratified(labels)
    classes = tuple(str(c) for c in bunch.target_names)
    return Data(
        name,
        TensorImages(images[train], labels[train]),
        TensorImages(images[test], labels[test]),
        classes,
        (channels, height, width),
    )


def _stratified(labels: Tensor) -> tuple[Tensor, Tensor]:
    """A fixed test set with the same share of every class."""
    generator = torch.Generator().manual_seed(_DIGITS_SPLIT_SEED)
    train, test = [], []
    for label in labels.unique():
        own = (labels == label).nonzero().flatten()
        own = own[torch.randperm(len(own), generator=generator)]
        count = round(len(own) / _DIGITS_TEST_SHARE)
        test.append(own[:count])
        train.append(own[count:])
    shuffled = torch.randperm(sum(map(len, test)), generator=generator)
    return torch.cat(train).sort().values, torch.cat(test)[shuffled]


def _mnist(name: str, root: Path, size: tuple[int, int, int] | None, download: bool) -> Data:
    cls, classes = idx.SETS[name]
    if download and idx.find(name, root) is None:
        for train in (True, False):
            _fetch(cls, name, root, True, train=train)
    place = idx.find(name, root)
    if place is None:
        debian = "; Debian and Ubuntu have it as the package dataset-fashion-mnist" if name != "mnist" else ""
        raise DataError(
            f"{name} is not there: {root}, {root / cls / 'raw'} and {root / name} lack some of its four idx files; "
            f"add --download (download=True), or name their folder with --data-dir{debian}"
        )
    try:
        parts = [idx.read_part(place, part) for part in idx.PARTS]
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    return _in_memory(
        name, [torch.tensor(images)[:, None] for images, _ in parts], [y for _, y in parts], classes, size
    )


def _cifar10(name: str, root: Path, size: tuple[int, int, int] | None, download: bool) -> Data:
    files = [_fetch("CIFAR10", name, root, download, train=train) for train in (True, False)]
    images = [torch.as_tensor(part.data).permute(0, 3, 1, 2) for part in files]
    return _in_memory(name, images, [part.targets for part in files], tuple(map(str, files[0].classes)), size)


def _in_memory(
    name: str, images: list[Tensor], labels: list[Any], classes: tuple[str, ...], size: tuple[int, int, int] | None
) -> Data:
    """Data of uint8 images (N, C, H, W) and labels, those to train and those to test with."""
    train, test = (
        TensorImages(_resized(x, size), torch.tensor(y, dtype=torch.int64))
        for x, y in zip(images, labels, strict=True)
    )
    shape = cast("tuple[int, int, int]", tuple(train.images.shape[1:]))
    return _checked(Data(name, train, test, classes, shape))


def _imagenette(name: str, root: Path, size: tuple[int, int, int] | None, download: bool) -> Data:
    shape = size or (3, 128, 128)
    train = _fetch("Imagenette", name, root, download, split="train", size="160px")
    test = _fetch("Imagenette", name, root, False, split="val", size="160px")
    classes = tuple(str(names[0]) for names in train.classes)
    return Data(name, FileImages(train._samples, shape), FileImages(test._samples, shape), classes, shape)


def _folder(name: str, size: tuple[int, int, int] | None) -> Data:
    place = Path(name.removeprefix(_FOLDER)).expanduser()
    if not place.is_dir():
        raise DataError(f"{place} is not a folder: folder:PATH needs PATH/train/CLASS/* and PATH/val/CLASS/*")
    tests = [p for p in (place / "val", place / "test") if p.is_dir()]
    if not (place / "train").is_dir() or not tests:
        found = sorted(p.name for p in place.iterdir())[:8]
        raise DataError(f"{place} needs the folders train and val (or test), found {', '.join(found) or 'nothing'}")
    datasets = imported("torchvision.datasets", why="these data need it:")
    shape = size or (3, 128, 128)
    sets = []
    for part in (place / "train", tests[-1]):
        try:
            sets.append(datasets.ImageFolder(str(part)))
        except (FileNotFoundError, RuntimeError) as error:
            raise DataError(f"{part} needs a folder of images for every class ({first_line(error)})") from error
    if sets[0].classes != sets[1].classes:
        odd = sorted(set(sets[0].classes) ^ set(sets[1].classes))
        raise DataError(f"{place}: train and {tests[-1].name} differ in classes ({', '.join(odd[:8])})")
    boxes = None
    if (place / BOXES).is_file():
        boxes = read_boxes(place / BOXES, tests[-1], [file for file, _ in sets[1].samples], (shape[1], shape[2]))
    train, test = (FileImages(part.samples, shape) for part in sets)
    return Data(name, train, test, tuple(sets[0].classes), shape, boxes)


_LOADERS: dict[str, Callable[..., Data]] = {
    "digits": _digits,
    "digits-padded": _digits,
    "mnist": _mnist,
    "fashion-mnist": _mnist,
    "cifar10": _cifar10,
    "imagenette": _imagenette,
}


# --- reading ------------------------------------------------------------------------------------------


def _fetch(cls: str, name: str, root: Path, download: bool, **options: Any) -> Any:
    """Build a data set of torchvision, and say in one line what is wrong with its files."""
    constructor = getattr(imported("torchvision.datasets", why="these data need it:"), cls)
    try:
        return constructor(str(root), download=download, **options)
    except (RuntimeError, OSError) as error:
        reason = first_line(error)
        missing = "not found" in reason.lower()
    except (EOFError, ValueError, AssertionError, KeyError, pickle.UnpicklingError, zlib.error) as error:
        reason, missing = f"{type(error).__name__}: {error}".strip(), False
    if download:
        raise DataError(
            f"{name} could not be fetched into {root}: {reason}. Nothing that is complete is fetched twice: run "
            f"the command again; if the same file fails again, delete it first"
        )
    if missing:
        raise DataError(
            f"{name} is not complete in {root} ({reason}); add --download (download=True), or name its folder with "
            f"--data-dir"
        )
    raise DataError(f"{name} in {root} is damaged ({reason}); delete its folder there and fetch it with --download")


def _resized(images: Tensor, size: tuple[int, int, int] | None) -> Tensor:
    """uint8 images (N, C, H, W) in another size; grey is repeated, colour is never dropped."""
    if size is None or tuple(images.shape[1:]) == size:
        return images
    channels, *sides = size
    if tuple(images.shape[2:]) != tuple(sides):
        chunks = [
            F.interpolate(chunk.float(), size=sides, mode="bilinear", align_corners=False, antialias=True)
            for chunk in images.split(4096)
        ]
        images = torch.cat([chunk.round().clamp(0, 255).to(torch.uint8) for chunk in chunks])
    if images.shape[1] != channels:
        if images.shape[1] != 1:
            raise OptionError(f"images of {images.shape[1]} channels cannot be read with {channels}")
        images = images.expand(-1, channels, -1, -1)
    return images


def _checked(data: Data) -> Data:
    for part, images in (("train", data.train), ("test", data.test)):
        labels = cast("TensorImages", images).labels
        if not len(labels) or int(labels.min()) < 0 or int(labels.max()) >= len(data.classes):
            raise DataError(
                f"{data.name}: the labels of its {part} images are not those of {len(data.classes)} classes; its "
                f"files are damaged"
            )
    return data


__all__ = [
    "Data",
    "Images",
    "Part",
    "TensorImages",
    "batch_of",
    "first_images",
    "list_data",
    "load_data",
    "split",
    "stacked",
]
