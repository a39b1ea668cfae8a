"""What lies around a call of bu2td: torch's ambient settings, and the garbage collector while graphs are built."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

#: Devices whose autocast may be on around a call.
_AUTOCAST = ("cpu", "cuda", "xpu", "mps")

#: Held while a network is made: names that a model's code reads, the filters of warnings and the garbage collector
#: are the process's own, not a thread's. A fork waits for it, so that no child is born with them as they are then.
alone = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=alone.acquire, after_in_parent=alone.release, after_in_child=alone.release)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Keep what the caller's own code is under away from a call; also a decorator.

    A default device (``with torch.device("meta")``, `torch.set_default_device`), inference mode, `torch.no_grad`
    and autocast around a conversion are meant for the caller's own tensors. A network is made as it is without
    them: its device, dtype and gradients are those of the model that it is made of.
    """
    with alone, ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if torch.empty(0).device.type != "cpu":
            stack.enter_context(torch.device("cpu"))
        for kind in _AUTOCAST:
            if _autocasts(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def _autocasts(kind: str) -> bool:
    try:
        return torch.is_autocast_enabled(kind)
    except RuntimeError:  # a device that this torch was built without
        return False


@contextmanager
def full_precision() -> Iterator[None]:
    """Let convolutions and products of float32 on a GPU be as exact as float32 is; also a decorator.

    By default cuDNN rounds what convolutions read to TF32, by 1e-3: far more than two forms of one network differ.
    """
    cudnn: Any = torch.backends.cudnn
    try:
        before = cudnn.allow_tf32, torch.get_float32_matmul_precision()
    except RuntimeError:  # from torch 2.9 on, where the caller has used the names that are new there
        with _each_in_full_precision(cudnn.conv, cudnn.rnn, torch.backends.cuda.matmul):
            yield
        return
    cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        cudnn.allow_tf32 = before[0]
        torch.set_float32_matmul_precision(before[1])


@contextmanager
def _each_in_full_precision(*places: Any) -> Iterator[None]:
    before = [place.fp32_precision for place in places]
    for place in places:
        place.fp32_precision = "ieee"
    try:
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.fp32_precision = value


@contextmanager
def paused_collector() -> Iterator[None]:
    """Pause the cyclic garbage collector: graphs are full of cycles, and its passes over them are quadratic."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
