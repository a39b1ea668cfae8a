"""Data sets: what they hold, read from small files in their own formats, and what is said of damaged ones."""

from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from small_data import write_cifar, write_imagenette, write_mnist, write_picture
from torch import Tensor

from bu2td.errors import DataError, OptionError
from bu2td.evaluate.data import idx
from bu2td.evaluate.data.augment import Augmented
from bu2td.evaluate.data.sets import Part, TensorImages, batch_of, first_images, list_data, load_data, split
from bu2td.evaluate.settings import Settings

pytest.importorskip("torchvision")


def _all(images: Any) -> tuple[Tensor, Tensor]:
    return first_images(images)


# --- digits -------------------------------------------------------------------------------------------


def test_digits_are_scikit_learns() -> None:
    data = load_data("digits")
    images, labels = _all(data.train)
    tests, test_labels = _all(data.test)
    assert data.shape == (1, 32, 32)
    assert data.classes == tuple("0123456789")
    assert len(images) + len(tests) == 1797
    assert images.min() == 0
    assert images.max() <= 1
    # a class has the same share in both parts, and no image is in both
    shares = [labels.bincount() / len(labels), test_labels.bincount() / len(test_labels)]
    assert torch.allclose(*shares, atol=0.005)
    # every small image is found again: the mean over 4 x 4 pixels of a bilinear enlargement is near the original
    originals = torch.tensor(load_digits().images, dtype=torch.float32) / 16
    small = torch.nn.functional.avg_pool2d(torch.cat([images, tests]), 4)[:, 0]
    nearest = torch.cdist(small.flatten(1), originals.flatten(1)).argmin(1)
    assert len(set(nearest.tolist())) > 1780


def test_the_test_set_is_always_the_same_and_shuffled() -> None:
    first, second = (_all(load_data("digits").test) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert len(set(first[1][:20].tolist())) > 4


def test_padded_digits_fill_the_middle() -> None:
    images, _ = _all(load_data("digits-padded").test)
    border = images.clone()
    border[:, :, 6:26, 6:26] = 0
    assert border.abs().sum() == 0
    full, _ = _all(load_data("digits").test)
    share = [(x > 0.2).float().mean().item() for x in (images, full)]
    assert share[0] == pytest.approx(0.19, abs=0.02)  # of all pixels, as against 48 %
    assert share[1] == pytest.approx(0.48, abs=0.02)


def test_digits_in_another_size_and_colour() -> None:
    data = load_data("digits", input_size=(3, 48, 40))
    image, _ = data.test[0]
    assert image.shape == (3, 48, 40)
    assert torch.equal(image[0], image[2])


# --- torchvision's formats ----------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "cls"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_mnist_files(tmp_path: Path, name: str, cls: str) -> None:
    made = write_mnist(tmp_path, cls)
    data = load_data(name, tmp_path)
    assert data.shape == (1, 28, 28)
    assert len(data.classes) == 10
    assert (len(data.train), len(data.test)) == (20, 10)
    image, label = data.test[3]
    assert torch.allclose(image[0], torch.tensor(made["t10k"][3] / 255, dtype=torch.float32))
    assert label == 3
    assert load_data(name, tmp_path, input_size=(3, 32, 32)).train[0][0].shape == (3, 32, 32)


def test_cifar_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = write_cifar(tmp_path, monkeypatch)
    data = load_data("cifar10", tmp_path)
    image, label = data.train[2]
    assert data.classes[:2] == ("plane", "car")
    assert label == 2
    assert torch.equal((image * 255).round().to(torch.uint8), torch.tensor(made[2]).view(3, 32, 32))
    with pytest.raises(OptionError, match="3 channels"):
        load_data("cifar10", tmp_path, input_size=(1, 32, 32))


def _folders(root: Path, parts: tuple[str, ...] = ("train", "val"), classes: str = "ab") -> None:
    for part in parts:
        for index, name in enumerate(classes):
            write_picture(root / part / name / "1.png", (40, 30), 200 * index)


def test_a_folder_of_images(tmp_path: Path) -> None:
    _folders(tmp_path)
    data = load_data(f"folder:{tmp_path}", input_size=(3, 16, 24))
    assert data.classes == ("a", "b")
    image, label = data.test[1]
    assert image.shape == (3, 16, 24)
    assert label == 1
    assert image[0].mean() == pytest.approx(200 / 255, abs=0.01)
    assert load_data(f"folder:{tmp_path}").shape == (3, 128, 128)


def _boxes(root: Path, *rows: str) -> None:
    (root / "boxes.csv").write_text("\n".join(["file,left,top,right,bottom", *rows]) + "\n")


def test_boxes_move_with_their_images(tmp_path: Path) -> None:
    """A bright rectangle is where its box says, after resizing and cropping."""
    from PIL import Image

    _folders(tmp_path, classes="a")
    picture = Image.new("L", (60, 30))
    picture.paste(255, (24, 6, 36, 18))
    picture.save(tmp_path / "val" / "a" / "1.png")
    _boxes(tmp_path, "a/1.png,24,6,36,18", "a/1.png,0,0,60,30")
    data = load_data(f"folder:{tmp_path}", input_size=(1, 60, 60))  # 60 x 120, the middle 60 x 60
    assert data.boxes is not None
    (first, second), image = data.boxes[0], data.test[0][0][0]
    assert first == (18, 12, 42, 36)
    assert second == (0, 0, 60, 60)
    rows, columns = (image > 0.5).nonzero(as_tuple=True)
    assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == first


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["a/2.png,0,0,5,5"], "line 2: there is no image 'a/2.png' in .* Did you mean"),
        (["a/1.png,0,0,five,5"], "line 2: left, top, right, bottom must be numbers"),
        (["a/1.png,5,5,5,9"], "is empty or leaves its image of 40 x 30"),
        (["a/1.png,0,0,41,9"], "is empty or leaves its image of 40 x 30"),
        (["a/1.png,0,0,1,30"], "nothing of the box is left"),
        (["a/1.png,0,0,40,30"], "has no box of b/1.png"),
    ],
)
def test_boxes_that_do_not_fit(tmp_path: Path, rows: list[str], message: str) -> None:
    _folders(tmp_path)
    _boxes(tmp_path, *rows)
    with pytest.raises(DataError, match=message):
        load_data(f"folder:{tmp_path}")


def test_boxes_without_a_column(tmp_path: Path) -> None:
    _folders(tmp_path)
    (tmp_path / "boxes.csv").write_text("file,left,top,right\n")
    with pytest.raises(DataError, match="bottom is missing"):
        load_data(f"folder:{tmp_path}")


def test_imagenette_files(tmp_path: Path) -> None:
    write_imagenette(tmp_path)
    data = load_data("imagenette", tmp_path)
    assert data.classes[0] == "tench"
    assert len(data.classes) == 10
    assert data.train[4][0].shape == (3, 128, 128)


# --- damage -------------------------------------------------------------------------------------------


def test_unknown_data() -> None:
    with pytest.raises(OptionError, match="Did you mean 'mnist'"):
        load_data("mnits")
    with pytest.raises(OptionError, match="2 channels"):
        load_data("digits", input_size=(2, 8, 8))
    assert "cifar10" in list_data()


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10", "imagenette"])
def test_missing_files_say_how_to_get_them(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idx, "DEBIAN", tmp_path / "nowhere")
    with pytest.raises(DataError, match="--download"):
        load_data(name, tmp_path)


def test_truncated_mnist(tmp_path: Path) -> None:
    write_mnist(tmp_path, cut=100)
    with pytest.raises(
        DataError, match=r"^mnist: .*train-images-idx3-ubyte is damaged: 15580 bytes for 20 x 28 x 28"
    ):
        load_data("mnist", tmp_path)


def test_truncated_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path, monkeypatch)
    file = tmp_path / "cifar-10-batches-py" / "test_batch"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DataError, match="--download"):
        load_data("cifar10", tmp_path)


def test_labels_of_other_classes(tmp_path: Path) -> None:
    write_mnist(tmp_path, labels=12)
    with pytest.raises(DataError, match="not those of 10 classes"):
        load_data("mnist", tmp_path)


def test_an_interrupted_download_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import MNIST

    def breaks_off(self: Any) -> None:
        (tmp_path / "MNIST" / "raw").mkdir(parents=True)
        (tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte.gz").write_bytes(b"half")
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz")

    monkeypatch.setattr(MNIST, "download", breaks_off)
    with pytest.raises(DataError, match="run the command again"):
        load_data("mnist", tmp_path, download=True)
    monkeypatch.setattr(MNIST, "download", lambda self: write_mnist(tmp_path))
    assert len(load_data("mnist", tmp_path, download=True).train) == 20


def test_a_damaged_picture_is_named(tmp_path: Path) -> None:
    _folders(tmp_path)
    file = tmp_path / "train" / "b" / "1.png"
    file.write_bytes(file.read_bytes()[:60])
    data = load_data(f"folder:{tmp_path}")
    with pytest.raises(DataError, match=r"b/1\.png cannot be read"):
        data.train[1]


@pytest.mark.parametrize(
    ("parts", "message"),
    [((), "needs the folders train and val"), (("train",), "train and val .or test., found train")],
)
def test_folders_without_parts(tmp_path: Path, parts: tuple[str, ...], message: str) -> None:
    _folders(tmp_path, parts)
    with pytest.raises(DataError, match=message):
        load_data(f"folder:{tmp_path}")


def test_folders_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a folder"):
        load_data(f"folder:{tmp_path / 'nowhere'}")
    _folders(tmp_path / "one", ("train",), "ab")
    _folders(tmp_path / "one", ("val",), "ac")
    with pytest.raises(DataError, match=r"differ in classes \(b, c\)"):
        load_data(f"folder:{tmp_path / 'one'}")
    _folders(tmp_path / "two")
    (tmp_path / "two" / "val" / "b" / "1.png").unlink()
    with pytest.raises(DataError, match="a folder of images for every class"):
        load_data(f"folder:{tmp_path / 'two'}")


# --- splitting ----------------------------------------------------------------------------------------


def test_split_parts_are_disjoint_and_seeded() -> None:
    images = load_data("digits").train
    train, validation = split(images, seed=3)
    assert len(validation) == round(0.1 * len(images))
    together = sorted([*train.indices, *validation.indices])  # type: ignore[attr-defined]
    assert together == list(range(len(images)))
    assert split(images, seed=3)[1].indices == validation.indices  # type: ignore[attr-defined]
    assert split(images, seed=4)[1].indices != validation.indices  # type: ignore[attr-defined]
    with pytest.raises(OptionError, match="leaves 0 of"):
        split(images, seed=3, share=1e-6)


def test_batches_are_what_images_are_one_by_one() -> None:
    """Of parts of parts, in bytes and in floats, augmented and not."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (9, 1, 4, 4), generator=generator, dtype=torch.uint8)
    for images in (pixels, pixels.float() / 255):
        whole = Part(Part(TensorImages(images, torch.arange(9)), [8, 1, 4, 2, 7]), [3, 0, 2, 4])
        for settings in (Settings(), Settings(hflip=0.5, hshift=0.3)):
            seen = Augmented(whole, settings, 3)
            found, labels = batch_of(seen, [2, 0, 3])
            assert torch.equal(found, torch.stack([seen[i][0] for i in (2, 0, 3)]))
            assert labels.tolist() == [seen[i][1] for i in (2, 0, 3)] == [4, 2, 7]
            assert found.dtype == torch.float32
    with pytest.raises(OptionError, match="at least one image"):
        batch_of(whole, [])
