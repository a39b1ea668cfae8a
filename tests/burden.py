"""What converting costs a process besides time: memory, open files, and the state that all of its code shares."""

from __future__ import annotations

import gc
import os
import random
import sys
import threading
import warnings
from typing import Any

import numpy as np
import torch
from nets import head, unit
from torch import nn

import bu2td

ARRANGEMENTS = ("td", "uni", "rev")


def model(seed: int) -> nn.Sequential:
    """A small network of its own for every seed."""
    rng = random.Random(seed)
    widths = [rng.randrange(6, 9) for _ in range(3)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        more = (unit(widths[1], widths[1]) for _ in range(seed % 3))
        layers = [unit(3, widths[0]), unit(widths[0], widths[1], stride=2), *more]
        return nn.Sequential(*layers, unit(widths[1], widths[2], stride=2), head(widths[2], 5))


def convert(seed: int) -> bu2td.TopDownNetwork:
    """The top-down network of `model`."""
    images = torch.zeros(1, 3, 16, 16)
    return bu2td.convert(model(seed), ARRANGEMENTS[seed % 3], example_inputs=images, seed=seed, inherit="none")


def resident() -> int:
    """Bytes that this process has in memory, once what is not used is given back."""
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def open_files() -> int:
    """How many files this process holds open."""
    return len(os.listdir("/proc/self/fd"))


def shared_state() -> dict[str, Any]:
    """What all code of a process shares, and a library must leave as it is."""
    return {
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "gradients": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "threads": (torch.get_num_threads(), threading.active_count()),
        "deterministic": (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
        "cudnn": (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark),
        "precision": torch.get_float32_matmul_precision(),
        "filters of warnings": list(warnings.filters),
        "showwarning": warnings.showwarning,
        "generator of torch": torch.get_rng_state().tolist(),
        "generator of Python": random.getstate(),
        "generator of numpy": str(np.random.get_state()),
        "folder": os.getcwd(),
        "path": list(sys.path),
        "environment": dict(os.environ),
        "collector": (gc.isenabled(), gc.get_threshold()),
        "recursion": sys.getrecursionlimit(),
        "torch's functions": {name: id(value) for name, value in vars(torch).items() if callable(value)},
        "calls of modules": (nn.Module.__call__, nn.Module.__getattr__, nn.Module.forward),
        "hooks": (sys.excepthook, sys.displayhook, sys.settrace, threading.excepthook),
    }  # fmt: skip


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """The names of what has changed."""
    return [name for name, value in before.items() if after[name] != value]
