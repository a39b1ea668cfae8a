"""Rates of devices: how long an image takes, measured on the paper's networks by `bench/rates.py`.

They are in rates.csv beside this file, a row per device, network and work; who has another device adds its rows.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

FILE = Path(__file__).with_name("rates.csv")
WORKS = ("inference", "training")


@dataclass(frozen=True)
class Rate:
    """How long an image takes.

    Attributes:
        device: in words, as `bu2td.evaluate.train.engine.device_name` has them.
        network: MODEL word.
        arrangement: "bu", "td".
        work: one of `WORKS`; training is a step in the form in which the suite trains.
        batch: images at once.
        macs: multiply-accumulates of an image, forwards.
        seconds: of an image.
        torch: PyTorch's version.
    """

    device: str
    network: str
    arrangement: str
    work: str
    batch: int
    macs: int
    seconds: float
    torch: str


@cache
def measured_rates() -> dict[str, tuple[Rate, ...]]:
    """What was measured, by device."""
    found: dict[str, tuple[Rate, ...]] = {}
    with FILE.open(newline="") as file:
        for row in csv.DictReader(file):
            rate = Rate(
                row["device"], row["network"], row["arrangement"], row["work"], int(row["batch"]),
                int(row["macs"]), float(row["seconds"]), row["torch"],
            )  # fmt: skip
            found[rate.device] = (*found.get(rate.device, ()), rate)
    return found


def predict(rates: Sequence[Rate], work: str, macs: int) -> float:
    """Seconds of an image through a network of so many multiply-accumulates.

    Those of the measured network that is nearest in size (by the ratio), times what is left of that ratio. A device
    that small networks cannot fill is faster than that on larger ones.

    Args:
        rates: of one device.
        work: one of `WORKS`.
        macs: of an image, forwards.
    """
    near = min((r for r in rates if r.work == work), key=lambda r: abs(math.log(r.macs / macs)))
    return near.seconds * macs / near.macs


def multiply_accumulates(model: nn.Module, image: Tensor) -> int:
    """Of one image (1, C, H, W), forwards, by PyTorch's own formulas."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(image)
    return counter.get_total_flops() // 2
