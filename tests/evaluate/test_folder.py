"""A folder of colour images with boxes, from training to localisation with boxes."""

import csv
from pathlib import Path

import numpy as np
import pytest

for package in ("foolbox", "lightning_fabric", "yaml", "matplotlib", "torchvision"):
    pytest.importorskip(package)

from bu2td.evaluate.command import main

NET = """
from torch import nn

def net(num_classes, in_chans=3):
    unit = lambda i: (nn.Conv2d(i, 8, 3, padding=1), nn.ReLU())
    layers = [*unit(in_chans), nn.MaxPool2d(2), *unit(8)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))
"""


def _write(root: Path) -> None:
    """Squares of two colours on noise, somewhere in the image."""
    from PIL import Image

    random = np.random.default_rng(0)
    lines = ["file,left,top,right,bottom"]
    for part, count in (("train", 32), ("val", 8)):
        for index in range(count):
            name = ("red", "blue")[index % 2]
            values = random.integers(0, 40, (24, 24, 3)).astype(np.uint8)
            left, top = random.integers(0, 12, 2)
            values[top : top + 10, left : left + 10, 0 if name == "red" else 2] = 255
            file = root / part / name / f"{index}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(file)
            if part == "val":
                lines.append(f"{name}/{index}.png,{left},{top},{left + 10},{top + 10}")
    (root / "boxes.csv").write_text("\n".join(lines) + "\n")


def test_from_a_folder_to_boxes(tmp_path: Path) -> None:
    _write(tmp_path / "data")
    (tmp_path / "net.py").write_text(NET)
    words = ["--model", f"{tmp_path / 'net.py'}:net", "--data", f"folder:{tmp_path / 'data'}", "--device", "cpu"]
    words += ["--input-size", "3,24,24", "--normalise", "mean-std", "--arrangement", "bu", "td", "--repeats", "1"]
    words += ["--epochs", "15", "--batch-size", "8", "--lr", "0.1", "--workers", "1", "--no-measure-memory"]
    words += ["-o", str(tmp_path / "out")]
    assert main(["train", *words]) == 0
    assert main(["explain", "-o", str(tmp_path / "out")]) == 0
    with (tmp_path / "out" / "boxes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(r["arrangement"], r["normalisation"]) for r in rows} == {
        (a, n) for a in ("bu", "td") for n in ("plain", "centred")
    }
    # the colour is all there is to see, so that the better heat map finds most of the squares
    assert max(float(r["max_box_acc_v2"]) for r in rows) > 0.5
    assert main(["report", "-o", str(tmp_path / "out")]) == 0
    assert "MaxBoxAccV2" in (tmp_path / "out" / "report.md").read_text()
