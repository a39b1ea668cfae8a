"""What is checked before the first training, and what a run is said to cost."""

import importlib
import os
from pathlib import Path

import numpy as np
import pytest
from tiny_run import words

for package in ("foolbox", "lightning_fabric", "yaml", "torchvision"):
    pytest.importorskip(package)

from bu2td.errors import Bu2tdError, DataError, FileError, MissingPackageError
from bu2td.evaluate import Data, read_settings
from bu2td.evaluate.before import PACKAGES, check_before, check_pictures, check_writable
from bu2td.evaluate.command import main
from bu2td.evaluate.data.sets import load_data


@pytest.fixture(scope="module")
def digits() -> Data:
    return load_data("digits", input_size=(1, 16, 16))


@pytest.mark.parametrize(("stage", "module"), [(s, m) for s, found in PACKAGES.items() for m, _ in found])
def test_missing_packages(digits: Data, monkeypatch: pytest.MonkeyPatch, stage: str, module: str) -> None:
    original = importlib.import_module

    def without(name: str, package: str | None = None) -> object:
        if name == module:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return original(name, package)

    monkeypatch.setattr(importlib, "import_module", without)
    settings = read_settings(flags={"arrangements": ["bu"]})
    with pytest.raises(MissingPackageError, match=rf"{stage} needs it: .*pip install"):
        check_before(settings, digits, [stage], None)


def test_all_networks_can_be_built(digits: Data) -> None:
    settings = read_settings(flags={"arrangements": ["bu", "td"], "convert": {"reductions": [64, 2, 1]}})
    with pytest.raises(Bu2tdError, match="64"):
        check_before(settings, digits, ["train"], None)
    check_before(settings, digits, ["explain"], None)


def test_nothing_is_begun(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["train", *words(tmp_path), "-o", str(tmp_path / "out")]
    assert main([*line, "--convert", "reductions=64,2,1"]) == 2
    assert "64" in capsys.readouterr().err
    assert main([*line, "--convert", "reductions=[64,2,1]", "--dry-run"]) == 2
    assert not (tmp_path / "out").exists()


def _folder(root: Path) -> None:
    from PIL import Image

    for part, count in (("train", 6), ("val", 4)):
        for index in range(count):
            file = root / part / "ab"[index % 2] / f"{index}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((20, 20, 3), 20 * index, np.uint8)).save(file)


@pytest.mark.parametrize("content", [b"", b"no picture", None])
def test_every_picture_is_opened(tmp_path: Path, content: bytes | None) -> None:
    _folder(tmp_path)
    check_pictures(load_data(f"folder:{tmp_path}").train, "train")
    bad = [tmp_path / "train" / "b" / "5.png", tmp_path / "train" / "a" / "4.png"]
    for path in bad:
        path.write_bytes(path.read_bytes()[:10] if content is None else content)
    with pytest.raises(DataError, match="2 files cannot be read as images") as caught:
        check_pictures(load_data(f"folder:{tmp_path}").train, "train")
    assert all(str(path) in str(caught.value) for path in bad)


def test_folders_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_writable(tmp_path / "new" / "newer")
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match=r"file is a file; name another folder with -o"):
        check_writable(tmp_path / "file" / "out")
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(FileError, match="no permission for"):
        check_writable(tmp_path / "out")


def test_weights_that_are_not_there_leave_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "out"
    assert main(["train", "--checkpoint", f"bu={tmp_path / 'none.pt'}", "-o", str(folder), "--epochs", "1"]) == 2
    assert "bu, repeat 0: there is no file" in capsys.readouterr().err
    assert not folder.exists()
