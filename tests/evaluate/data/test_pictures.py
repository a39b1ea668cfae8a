"""Pictures of every kind are read as they are seen, and what cannot be read is named."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

Image = pytest.importorskip("PIL.Image")

from bu2td.errors import DataError
from bu2td.evaluate.data.boxes import read_boxes
from bu2td.evaluate.data.pictures import FileImages, read_picture, seen_size

GREY, COLOUR = (1, 4, 6), (3, 4, 6)
PIXELS = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)


def _read(path: Path, shape: tuple[int, int, int]) -> np.ndarray:
    found = read_picture(path, shape)
    assert found.dtype == torch.float32
    assert tuple(found.shape) == shape
    return found.numpy()


def test_colours_are_kept(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    assert np.allclose(_read(tmp_path / "a.png", COLOUR), PIXELS.transpose(2, 0, 1) / 255, atol=1e-6)
    grey = PIXELS @ np.array([0.299, 0.587, 0.114])  # ITU-R 601
    assert np.allclose(_read(tmp_path / "a.png", GREY)[0], grey / 255, atol=1 / 255)


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_grey_of_16_bits_is_scaled_not_cut(tmp_path: Path, mode: str) -> None:
    values = np.array([[0, 1, 255, 256, 40_000, 65_535]] * 4)
    kinds = {"I;16": "<u2", "I;16B": ">u2", "I": "i4"}
    picture = Image.frombytes(mode, (6, 4), values.astype(kinds[mode]).tobytes())
    path = tmp_path / ("a.tif" if mode != "I;16" else "a.png")
    picture.save(path)
    with Image.open(path) as opened:
        assert opened.mode.startswith("I")
    for shape in (GREY, COLOUR):
        assert np.allclose(_read(path, shape), np.broadcast_to(values / 65_535, shape), atol=1e-7)


def test_floating_point_and_wide_numbers(tmp_path: Path) -> None:
    values = np.linspace(0, 1, 24, dtype=np.float32).reshape(4, 6)
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert np.allclose(_read(tmp_path / "a.tif", GREY)[0], values)
    Image.fromarray(values * 300).save(tmp_path / "b.tif")
    with pytest.raises(DataError, match=r"b\.tif holds values from 0 to 300, expected 0 to 1"):
        read_picture(tmp_path / "b.tif", GREY)
    Image.fromarray((values * 70_000).astype(np.int32)).save(tmp_path / "c.tif")
    with pytest.raises(DataError, match=r"c\.tif holds values from 0 to 70000, expected 0 to 65535"):
        read_picture(tmp_path / "c.tif", GREY)


def _turned(orientation: int) -> np.ndarray:
    """How the stored pixels are seen, by the table of the EXIF standard: which edge row 0 and column 0 are."""
    return {
        1: PIXELS,
        2: PIXELS[:, ::-1],
        3: PIXELS[::-1, ::-1],
        4: PIXELS[::-1],
        5: PIXELS.transpose(1, 0, 2),
        6: np.rot90(PIXELS, -1),
        7: PIXELS[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(PIXELS, 1),
    }[orientation]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_exif_says(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(PIXELS).save(tmp_path / "a.png", exif=exif)
    seen = _turned(orientation)
    assert seen_size(tmp_path / "a.png") == seen.shape[:2]
    found = _read(tmp_path / "a.png", (3, *seen.shape[:2]))
    assert np.allclose(found, seen.transpose(2, 0, 1) / 255, atol=1e-6)


def test_boxes_are_those_of_the_picture_as_seen(tmp_path: Path) -> None:
    """A table with a spreadsheet's mark in front, and a bright corner of a picture that lies on its side."""
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = np.zeros((30, 60), np.uint8)
    stored[20:30, 0:12] = 255
    (tmp_path / "a").mkdir()
    Image.fromarray(stored).save(tmp_path / "a" / "1.png", exif=exif)
    seen = np.rot90(stored, -1)  # 60 high, 30 wide
    rows, columns = seen.nonzero()
    box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    table = tmp_path / "boxes.csv"
    lines = "file,left,top,right,bottom\na/1.png," + ",".join(map(str, box)) + "\n"
    table.write_bytes(b"\xef\xbb\xbf" + lines.encode())
    ((found,),) = read_boxes(table, tmp_path, [str(tmp_path / "a" / "1.png")], (60, 30))
    assert found == box
    read = read_picture(tmp_path / "a" / "1.png", (1, 60, 30))[0].numpy() > 0.5
    assert (read == (seen > 0)).all()


def test_palettes_and_transparency_lie_on_black(tmp_path: Path) -> None:
    picture = Image.fromarray(PIXELS)
    palette = picture.quantize(16)
    palette.save(tmp_path / "p.png")
    expected = np.asarray(palette.convert("RGB")).transpose(2, 0, 1) / 255
    assert np.allclose(_read(tmp_path / "p.png", COLOUR), expected, atol=1e-6)
    alpha = np.linspace(0, 255, 24).astype(np.uint8).reshape(4, 6)
    Image.fromarray(np.dstack([PIXELS, alpha])).save(tmp_path / "a.png")
    expected = (PIXELS / 255 * alpha[:, :, None] / 255).transpose(2, 0, 1)
    assert np.allclose(_read(tmp_path / "a.png", COLOUR), expected, atol=1 / 255)
    clear = Image.new("P", (6, 4), 1)
    clear.putpalette([9, 9, 9, 250, 250, 250])
    clear.save(tmp_path / "t.png", transparency=1)  # the bright colour is not there
    assert _read(tmp_path / "t.png", COLOUR).max() == 0
    Image.fromarray(np.dstack([PIXELS[:, :, 0], alpha])).save(tmp_path / "la.png")
    assert np.allclose(_read(tmp_path / "la.png", GREY)[0], PIXELS[:, :, 0] / 255 * alpha / 255, atol=1 / 255)


def test_other_modes(tmp_path: Path) -> None:
    bits = np.arange(24).reshape(4, 6) % 3 == 0
    Image.fromarray(bits).save(tmp_path / "b.png")
    assert (_read(tmp_path / "b.png", COLOUR) == bits).all()
    flat = Image.new("RGB", (6, 4), (200, 100, 50))
    flat.convert("CMYK").save(tmp_path / "c.jpg", quality=100)
    flat.convert("YCbCr").save(tmp_path / "y.jpg", quality=100)
    for name in ("c.jpg", "y.jpg"):
        found = _read(tmp_path / name, COLOUR).mean((1, 2)) * 255
        assert found == pytest.approx([200, 100, 50], abs=3)


def test_resizing_is_that_of_torchvision(tmp_path: Path) -> None:
    functional = pytest.importorskip("torchvision.transforms.v2.functional")
    pixels = np.random.default_rng(1).integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    expected = functional.center_crop(functional.resize(image, [20, 30], antialias=True), [20, 20])
    assert torch.allclose(read_picture(tmp_path / "a.png", (3, 20, 20)), expected, atol=1e-6)


def _save_cut(path: Path, share: float) -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["png", "jpg", "bmp", "gif"])
def test_truncated_files_are_named(tmp_path: Path, kind: str, share: float) -> None:
    path = tmp_path / f"a.{kind}"
    _save_cut(path, share)
    images: Any = FileImages([(str(path), 0)], (3, 8, 8))
    with pytest.raises(DataError, match=rf"a\.{kind} cannot be read as an image .*repair or remove it"):
        images[0]


def test_bombs_and_missing_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"none\.png cannot be read"):
        read_picture(tmp_path / "none.png", GREY)
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5)
    with pytest.raises(DataError, match=r"a\.png cannot be read .*exceeds limit"):
        read_picture(tmp_path / "a.png", GREY)
