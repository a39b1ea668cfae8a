"""Peak memory of a training step, taken in a process of its own: what else an evaluation holds is not counted."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from bu2td.evaluate.data.sets import Data, TensorImages
from bu2td.evaluate.settings import Settings, read_settings

_MIB = 2**20
_STEPS = 3
_SECONDS = 300
_CHILD = "from bu2td.evaluate.train.memory import main; main()"
#: What torchrun tells its processes; the child is none of them.
_LAUNCHERS = ("RANK", "LOCAL_", "WORLD_", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_")


def step_memory(settings: Settings, arrangement: str, data: Data, processes: int = 1) -> float:
    """How far the memory of a fresh process rises in a few training steps, in MiB.

    Counted are activations, gradients and momentum of one process' share of a batch; not weights, not images. For
    the CPU; on CUDA `cuda_peak` watches the training itself.

    Args:
        settings: of this network.
        arrangement: "bu", "td", "uni" or "rev".
        data: their shape and classes are what matters.
        processes: that share a batch.

    Returns:
        NaN where the kernel does not tell (it does on Linux), or where the steps cannot be run.
    """
    if not os.path.exists("/proc/self/clear_refs"):
        return math.nan
    batch = max(settings.batch_size // processes, 1)
    order = {
        "settings": settings.to_dict() | {"device": "cpu", "top_down": {}, "batch_size": batch},
        "arrangement": arrangement,
        "classes": len(data.classes),
        "shape": list(data.shape),
    }
    environment = {k: v for k, v in os.environ.items() if not k.startswith(_LAUNCHERS)}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    try:
        done = subprocess.run(
            [sys.executable, "-c", _CHILD],
            input=json.dumps(order),
            capture_output=True,
            text=True,
            env=environment,
            timeout=_SECONDS,
            check=True,
        )
        return round(float(done.stdout.split()[-1]), 1)
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return math.nan


@contextmanager
def cuda_peak(device: torch.device) -> Iterator[list[float]]:
    """Measure how far what PyTorch allocates on a GPU rises above where it was, in MiB; nothing elsewhere."""
    measured: list[float] = []
    if device.type != "cuda":
        yield measured
        return
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    yield measured
    measured.append((torch.cuda.max_memory_allocated(device) - before) / _MIB)


# --- the child ----------------------------------------------------------------------------------------


def main() -> None:
    """Read an order from standard input, run the steps, write how many MiB memory rose."""
    from bu2td.evaluate.train.engine import start
    from bu2td.evaluate.train.model import build_classifier
    from bu2td.evaluate.train.trainee import Trainee

    order: dict[str, Any] = json.load(sys.stdin)
    settings, shape = read_settings(flags=order["settings"]), tuple(order["shape"])
    images, labels = torch.rand(settings.batch_size, *shape), torch.arange(settings.batch_size) % order["classes"]
    none = TensorImages(images[:0], labels[:0])
    data = Data("random images", none, none, tuple(map(str, range(order["classes"]))), shape)
    engine = start(settings)
    classifier = build_classifier(settings, data, order["arrangement"], 0, (None, None))
    trainee = Trainee(classifier, settings, engine, shape)
    trainee.module.train()
    _warm_up()
    before = _reset_peak()
    for _ in range(_STEPS):
        trainee.step(images, labels)
    print((_resident("VmHWM") - before) / 1024)


def _warm_up() -> None:
    """Let PyTorch load what it loads at a first step, and give back what building the network has left."""
    small = nn.Conv2d(1, 1, 3)
    small(torch.rand(1, 1, 8, 8)).sum().backward()
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _reset_peak() -> float:
    """Forget the peak of this process; returns what is resident now, in KiB."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return _resident("VmRSS")


def _resident(key: str) -> float:
    with open("/proc/self/status") as file:
        lines = dict(line.split(":", 1) for line in file)
    return float(lines[key].split()[0])
