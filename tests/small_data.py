"""Small files in the formats of the paper's data sets."""

import hashlib
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest


def write_idx(path: Path, array: np.ndarray, cut: int = 0) -> None:
    """One idx file; `cut` bytes are missing at its end."""
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    content = header + array.astype(np.uint8).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content[: len(content) - cut])


def write_mnist(root: Path, cls: str = "MNIST", labels: int = 10, cut: int = 0) -> dict[str, np.ndarray]:
    """MNIST or Fashion-MNIST in torchvision's layout: 20 and 10 images."""
    random = np.random.default_rng(0)
    made = {}
    for part, count in (("train", 20), ("t10k", 10)):
        made[part] = random.integers(0, 256, (count, 28, 28))
        write_idx(root / cls / "raw" / f"{part}-images-idx3-ubyte", made[part], cut)
        write_idx(root / cls / "raw" / f"{part}-labels-idx1-ubyte", np.arange(count) % labels)
    return made


def write_cifar(root: Path, monkeypatch: pytest.MonkeyPatch, count: int = 6) -> np.ndarray:
    """CIFAR-10 as it is unpacked, the same images twice; torchvision's sums are those of these files."""
    from torchvision.datasets import CIFAR10

    random = np.random.default_rng(0)
    folder = root / CIFAR10.base_folder
    folder.mkdir(parents=True)

    def store(name: str, content: dict[str, Any]) -> str:
        text = pickle.dumps(content)
        (folder / name).write_bytes(text)
        return hashlib.md5(text).hexdigest()

    first = random.integers(0, 256, (count, 3072)).astype(np.uint8)
    sums = [
        [name, store(name, {"data": first, "labels": [i % 10 for i in range(count)]})]
        for name in ("data_batch_1", "test_batch")
    ]
    names = ["plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    meta = {"filename": "batches.meta", "key": "label_names", "md5": store("batches.meta", {"label_names": names})}
    monkeypatch.setattr(CIFAR10, "train_list", sums[:1])
    monkeypatch.setattr(CIFAR10, "test_list", sums[1:])
    monkeypatch.setattr(CIFAR10, "meta", meta)
    return first


def write_picture(path: Path, size: tuple[int, int], value: int) -> None:
    """A picture of one colour."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 0, 255 - value)).save(path)


def write_imagenette(root: Path, count: int = 1) -> None:
    """Imagenette as it is unpacked: so many pictures of every class in either part."""
    from torchvision.datasets import Imagenette

    for part in ("train", "val"):
        for index, wnid in enumerate(Imagenette._WNID_TO_CLASS):
            for k in range(1, count + 1):
                write_picture(root / "imagenette2-160" / part / wnid / f"{k}.JPEG", (170, 160), 20 * index + k)
