"""An evaluation of tiny size, as it is typed: a small network, bottom-up and top-down, on small digits."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

NET = """
from torch import nn

def unit(i, o):
    return nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.ReLU())

def net(num_classes=10, in_channels=1):
    head = nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, num_classes)
    return nn.Sequential(unit(in_channels, 8), nn.MaxPool2d(2), unit(8, 8), *head)
"""
SMALL = ["--epochs", "2", "--repeats", "2", "--batch-size", "32", "--device", "cpu", "--input-size", "1,16,16",
         "--no-measure-memory"]  # fmt: skip
FEW = ["--attack", "fgsm", "contrast-reduction", "--attack-samples", "6", "--attack-repeats", "1",
       "--attack-budget", "quick", "--attack-batch-size", "4", "--attack-runs", "2"]  # fmt: skip
REST = ["--corruption-samples", "12", "--explain-samples", "12", "--frequency-samples", "12",
        "--frequency-step", "4"]  # fmt: skip
#: Columns that two runs of the same settings need not share.
TIMED = ("seconds", "seconds_per_epoch", "peak_memory_mib")


def words(place: Path, *more: str) -> list[str]:
    """Model, data and sizes of a run; the model's file is made in a folder."""
    file = place / "net.py"
    if not file.exists():
        file.write_text(NET)
    return ["--model", f"{file}:net", "--data", "digits", "--arrangement", "bu", "td", *SMALL, *more]


def rows(path: Path) -> list[dict[str, str]]:
    """A table."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def tables(folder: Path) -> dict[str, list[dict[str, str]]]:
    """All tables of a run without what a clock says."""
    found = [*folder.glob("*.csv"), *folder.glob("runs/*/log.csv")]
    return {
        path.relative_to(folder).as_posix(): [
            {key: value for key, value in row.items() if key not in TIMED} for row in rows(path)
        ]
        for path in sorted(found)
    }


def record(folder: Path) -> dict[str, Any]:
    """The content of run.json."""
    return dict(json.loads((folder / "run.json").read_text()))


def start(arguments: Sequence[str], **more: Any) -> "subprocess.Popen[str]":
    """The command in a process of its own."""
    command = [sys.executable, "-m", "bu2td.evaluate", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **more.pop("env", {})}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, **{**pipes, **more})
