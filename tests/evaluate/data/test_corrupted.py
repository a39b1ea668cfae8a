"""Folders of corrupted images and of sequences: small ones in every form, and what is wrong with others."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("torchvision")

from bu2td.errors import DataError
from bu2td.evaluate.data.corrupted import SEVERITIES, open_corrupted
from bu2td.evaluate.data.sets import Data, TensorImages

SIDE, COUNT = 6, 4


def some_data(classes: tuple[str, ...] = ("cat", "dog", "owl"), channels: int = 3, name: str = "folder:x") -> Data:
    none = TensorImages(torch.zeros(0, channels, SIDE, SIDE), torch.zeros(0).long())
    return Data(name, none, none, classes, (channels, SIDE, SIDE))


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_arrays(place: Path, labels: int = 5 * COUNT) -> None:
    place.mkdir(exist_ok=True)
    np.save(place / "fog.npy", pixels(5 * COUNT, SIDE, SIDE, 3))
    np.save(place / "brightness.npy", pixels(5 * COUNT, SIDE, SIDE, 3, seed=1))
    np.save(place / "labels.npy", np.arange(labels) % COUNT % 3)


def write_files(place: Path, classes: tuple[str, ...] = ("cat", "dog")) -> dict[str, np.ndarray]:
    """Two pictures per class and severity; returns them by path below the corruption's folder."""
    written = {}
    for severity in SEVERITIES:
        for index, name in enumerate(classes):
            for number in range(2):
                file = place / str(severity) / name / f"{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                values = pixels(SIDE, SIDE, 3, seed=100 * severity + 10 * index + number)
                Image.fromarray(values).save(file)
                written[f"{severity}/{name}/{number}.png"] = values
    return written


def as_tensor(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values).movedim(-1, -3).float() / 255


# --- what is read -------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [5 * COUNT, COUNT])
def test_arrays_of_five_severities(tmp_path: Path, labels: int) -> None:
    write_arrays(tmp_path / "CIFAR-10-C", labels)
    found = open_corrupted(tmp_path / "CIFAR-10-C", some_data())
    assert found.name == "CIFAR-10-C"
    assert [one.name for one in found.corruptions] == ["brightness", "fog"]
    assert found.sequences == ()
    fog = found.corruptions[1]
    assert len(fog) == COUNT
    array = np.load(tmp_path / "CIFAR-10-C" / "fog.npy")
    for severity in SEVERITIES:
        images, own = fog.read(severity, [2, 0])
        rows = [(severity - 1) * COUNT + 2, (severity - 1) * COUNT]
        torch.testing.assert_close(images, as_tensor(array[rows]))
        assert own.tolist() == [2, 0]
        assert own.dtype == torch.int64


def test_arrays_stay_on_the_disk(tmp_path: Path) -> None:
    write_arrays(tmp_path / "c")
    fog = open_corrupted(tmp_path / "c", some_data()).corruptions[1]
    assert isinstance(fog.array, np.memmap)  # type: ignore[attr-defined]


@pytest.mark.parametrize("category", ["", "weather"])
def test_files_of_five_severities(tmp_path: Path, category: str) -> None:
    written = write_files(tmp_path / "ImageNet-C" / category / "fog")
    found = open_corrupted(tmp_path / "ImageNet-C", some_data())
    (fog,) = found.corruptions
    assert (found.name, fog.name, len(fog)) == ("ImageNet-C", "fog", 4)
    images, labels = fog.read(3, [3, 0])
    torch.testing.assert_close(images[0], as_tensor(written["3/dog/1.png"]))
    torch.testing.assert_close(images[1], as_tensor(written["3/cat/0.png"]))
    assert labels.tolist() == [1, 0]


def test_files_are_resized_to_the_networks_shape(tmp_path: Path) -> None:
    file = tmp_path / "c" / "fog"
    write_files(file)
    for severity in SEVERITIES:
        Image.fromarray(pixels(20, 30, 3)).save(file / str(severity) / "cat" / "0.png")
    images, _ = open_corrupted(tmp_path / "c", some_data(channels=1)).corruptions[0].read(1, [0, 1])
    assert images.shape == (2, 1, SIDE, SIDE)


def test_ten_of_imagenets_classes_are_imagenettes(tmp_path: Path) -> None:
    write_files(tmp_path / "c" / "fog", ("n01440764", "n03888257", "n01443537"))  # tench, parachute, goldfish
    classes = ("tench", "English springer", "cassette player", "chain saw", "church", "French horn",
               "garbage truck", "gas pump", "golf ball", "parachute")  # fmt: skip
    fog = open_corrupted(tmp_path / "c", some_data(classes, name="imagenette")).corruptions[0]
    assert fog.read(1, range(len(fog)))[1].tolist() == [0, 0, 9, 9]


def test_imagenettes_names_are_torchvisions() -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    from bu2td.evaluate.data.corrupted import _IMAGENETTE

    assert sorted(datasets.Imagenette._WNID_TO_CLASS) == list(_IMAGENETTE)


def test_sequences(tmp_path: Path) -> None:
    place = tmp_path / "p"
    place.mkdir()
    array = pixels(3, 4, SIDE, SIDE, 3)
    np.save(place / "tilt.npy", array)
    frames = pixels(2, 5, SIDE, SIDE, 3, seed=1)
    for index, name in enumerate(("cat", "owl")):
        folder = place / "noises" / "shot_noise" / name / "1"  # a category deeper; a sequence named like a severity
        folder.mkdir(parents=True)
        for number, frame in enumerate(frames[index]):
            Image.fromarray(frame).save(folder / f"{number:03d}.png")
    found = open_corrupted(place, some_data())
    assert [(one.name, len(one)) for one in found.sequences] == [("shot_noise", 2), ("tilt", 3)]
    torch.testing.assert_close(found.sequences[1].read(2), as_tensor(array[2]))
    torch.testing.assert_close(found.sequences[0].read(1), as_tensor(frames[1]))
    assert not found.corruptions


# --- what is refused ----------------------------------------------------------------------------------


def _cut(place: Path) -> None:
    file = place / "fog.npy"
    file.write_bytes(file.read_bytes()[:-100])


WRONG: list[tuple[Callable[[Path], object], str]] = [
    (_cut, r"fog\.npy is cut off"),
    (lambda p: (p / "fog.npy").write_bytes(b""), r"fog\.npy is cut off"),
    (lambda p: (p / "fog.npy").write_text("hello"), r"fog\.npy is cut off, or no array"),
    (lambda p: np.save(p / "fog.npy", pixels(20, 8, 6, 3)), r"fog\.npy holds \(20, 8, 6, 3\).*\(5 n, 6, 6, 3\)"),
    (lambda p: np.save(p / "fog.npy", pixels(20, SIDE, SIDE)), r"\(20, 6, 6\).*expected"),
    (lambda p: np.save(p / "fog.npy", pixels(20, 6, 6, 3).astype(float)), "float64; expected .* of uint8"),
    (lambda p: np.save(p / "fog.npy", pixels(19, SIDE, SIDE, 3)), "for each of five severities"),
    (lambda p: np.save(p / "fog.npy", pixels(3, 1, SIDE, SIDE, 3)), "two frames or more"),
    (lambda p: (p / "labels.npy").unlink(), r"labels\.npy is missing"),
    (lambda p: np.save(p / "labels.npy", np.zeros(7, int)), r"\(7,\).*for each of 20 images.*4 of a severity"),
    (lambda p: np.save(p / "labels.npy", np.zeros(20)), "float64; expected a whole number"),
    (lambda p: np.save(p / "labels.npy", np.full(20, 3)), "labels from 3 to 3, but folder:x has 3 classes"),
    (lambda p: write_files(p / "fog"), "fog twice"),
    (lambda p: write_files(p / "rain", ("cat", "cow")), r"cow is no class of folder:x: expected cat, dog, owl"),
    (lambda p: (write_files(p / "rain"), (p / "rain" / "4").rename(p / "4"))[1], "lacks the severities 4"),
]


@pytest.mark.parametrize(("spoil", "message"), WRONG)
def test_what_is_wrong_is_named(tmp_path: Path, spoil: Callable[[Path], object], message: str) -> None:
    write_arrays(tmp_path)
    spoil(tmp_path)
    with pytest.raises(DataError, match=message):
        open_corrupted(tmp_path, some_data())


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no corrupted images.*found nothing"):
        open_corrupted(tmp_path, some_data())
    (tmp_path / "train" / "cat").mkdir(parents=True)
    with pytest.raises(DataError, match=r"no corrupted images.*found train"):
        open_corrupted(tmp_path, some_data())
    with pytest.raises(DataError, match="not a folder"):
        open_corrupted(tmp_path / "nothing", some_data())


def test_videos_need_a_decoder(tmp_path: Path) -> None:
    for place in (tmp_path / "a" / "tilt" / "cat", tmp_path / "b" / "digital" / "tilt" / "cat"):
        place.mkdir(parents=True)
        (place / "1.mp4").write_bytes(b"video")
    for name in ("a", "b"):
        with pytest.raises(DataError, match=r"tilt holds sequences as videos.*ffmpeg"):
            open_corrupted(tmp_path / name, some_data())


def test_files_that_are_damaged_or_missing(tmp_path: Path) -> None:
    write_files(tmp_path / "fog")
    (tmp_path / "fog" / "4" / "dog" / "1.png").unlink()
    (tmp_path / "fog" / "5" / "dog" / "1.png").write_bytes(b"no picture")
    fog = open_corrupted(tmp_path, some_data()).corruptions[0]
    fog.read(3, [3])
    for severity in (4, 5):
        with pytest.raises(DataError, match=rf"{severity}/dog/1\.png cannot be read"):
            fog.read(severity, [3])


def test_a_sequence_of_one_frame(tmp_path: Path) -> None:
    folder = tmp_path / "tilt" / "cat" / "0"
    folder.mkdir(parents=True)
    Image.fromarray(pixels(SIDE, SIDE, 3)).save(folder / "0.png")
    (tilt,) = open_corrupted(tmp_path, some_data()).sequences
    with pytest.raises(DataError, match="holds 1 frames"):
        tilt.read(0)
