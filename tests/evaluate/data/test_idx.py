"""MNIST and Fashion-MNIST: where they are found, what is read, what is said of other files."""

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bu2td.errors import DataError
from bu2td.evaluate.data import idx
from bu2td.evaluate.data.sets import load_data

RANDOM = np.random.default_rng(0)
IMAGES = {
    "train": RANDOM.integers(0, 256, (12, 28, 28), np.uint8),
    "t10k": RANDOM.integers(0, 256, (10, 28, 28), np.uint8),
}
FILES = [f"{part}-{kind}-ubyte" for part in IMAGES for kind in ("images-idx3", "labels-idx1")]


def _bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def _write(place: Path, packed: bool = False, joint: str = "-", first: int = 0) -> None:
    """The four files; ``first`` is the value of the first pixel, by which a place is told from another."""
    place.mkdir(parents=True, exist_ok=True)
    for part, images in IMAGES.items():
        images = images.copy()
        images[0, 0, 0] = first
        for kind, array in (("images", images), ("labels", np.arange(len(images)) % 10)):
            content = _bytes(array)
            name = f"{part}-{kind}{joint}idx{array.ndim}-ubyte"
            (place / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(content) if packed else content)


@pytest.fixture(autouse=True)
def _no_debian(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idx, "DEBIAN", tmp_path / "debian")


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("joint", ["-", "."])
@pytest.mark.parametrize("place", ["FashionMNIST/raw", ".", "fashion-mnist", "../debian/fashion-mnist"])
def test_files_are_found(tmp_path: Path, place: str, packed: bool, joint: str) -> None:
    _write(tmp_path / "data" / place, packed, joint)
    data = load_data("fashion-mnist", tmp_path / "data")
    image, label = data.test[3]
    assert (image * 255).round().numpy().astype(np.uint8).tolist() == [IMAGES["t10k"][3].tolist()]
    assert (label, len(data.train), len(data.test)) == (3, 12, 10)
    assert data.shape == (1, 28, 28)


def test_the_first_complete_place_counts(tmp_path: Path) -> None:
    places = [tmp_path / "data" / p for p in ("../debian/mnist", "mnist", ".", "MNIST/raw")]
    for value, place in enumerate(places):
        _write(place, first=value)
        assert load_data("mnist", tmp_path / "data").train[0][0][0, 0, 0] == pytest.approx(value / 255)
    (places[3] / "t10k-labels-idx1-ubyte").unlink()  # an interrupted download
    assert load_data("mnist", tmp_path / "data").train[0][0][0, 0, 0] == pytest.approx(2 / 255)


def test_class_names_are_torchvisions() -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    assert list(idx.SETS["fashion-mnist"][1]) == datasets.FashionMNIST.classes
    assert [name[0] for name in datasets.MNIST.classes] == list(idx.SETS["mnist"][1])


def test_images_are_torchvisions(tmp_path: Path) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    _write(tmp_path / "FashionMNIST" / "raw")
    for train, part in ((True, "train"), (False, "test")):
        theirs = datasets.FashionMNIST(str(tmp_path), train=train)
        ours = getattr(load_data("fashion-mnist", tmp_path), part)
        assert (ours.images[:, 0] == theirs.data).all()
        assert (ours.labels == theirs.targets).all()


def test_debians_fashion_mnist(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()
    if not (idx.DEBIAN / "fashion-mnist").is_dir():
        pytest.skip("the package dataset-fashion-mnist is not installed")
    data = load_data("fashion-mnist", tmp_path)
    assert (len(data.train), len(data.test)) == (60_000, 10_000)
    labels = data.test.labels.bincount()  # type: ignore[attr-defined]
    assert labels.tolist() == [1000] * 10
    assert data.train.images.float().mean().item() / 255 == pytest.approx(0.2860, abs=1e-4)  # type: ignore[attr-defined]


def _cut(content: bytes) -> bytes:
    return content[:-10]


def _flip(content: bytes) -> bytes:
    return content[:-5] + bytes([content[-5] ^ 1]) + content[-4:]


@pytest.mark.parametrize(
    ("file", "packed", "change", "message"),
    [
        (0, False, _cut, "train-images-idx3-ubyte is damaged: 9398 bytes for 12 x 28 x 28, expected 9408"),
        (0, False, lambda c: c + b"more", "is damaged: 9412 bytes"),
        (1, False, lambda c: c[:3], "train-labels-idx1-ubyte is not an idx file .* it starts with 00 00 08"),
        (1, False, lambda c: b"", "it starts with nothing"),
        (2, False, lambda c: _bytes(np.zeros(10)), "expected 00 00 08 03"),
        (2, False, lambda c: b"<html>", "it starts with 3c 68 74 6d"),
        (3, False, lambda c: _bytes(np.zeros(9)), "10 images and 9 labels of 't10k'"),
        (3, False, lambda c: _bytes(np.full(10, 11)), "labels of its test images are not those of 10 classes"),
        (0, True, _cut, "train-images-idx3-ubyte.gz is damaged .*end-of-stream"),
        (2, True, _flip, "t10k-images-idx3-ubyte.gz is damaged .*(CRC|crc|length)"),
        (2, True, lambda c: gzip.decompress(c), "t10k-images-idx3-ubyte.gz is damaged .*[Nn]ot a gzipped file"),
    ],
)
def test_files_that_are_something_else(
    tmp_path: Path, file: int, packed: bool, change: Callable[[bytes], bytes], message: str
) -> None:
    _write(tmp_path, packed)
    path = tmp_path / (FILES[file] + ".gz" * packed)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataError, match=message) as caught:
        load_data("mnist", tmp_path)
    assert "\n" not in str(caught.value)
    assert "mnist" in str(caught.value)


@pytest.mark.parametrize(("name", "debian"), [("mnist", False), ("fashion-mnist", True)])
def test_missing_files_name_the_package(tmp_path: Path, name: str, debian: bool) -> None:
    with pytest.raises(DataError, match="--download") as caught:
        load_data(name, tmp_path)
    assert ("dataset-fashion-mnist" in str(caught.value)) == debian
    assert "\n" not in str(caught.value)
