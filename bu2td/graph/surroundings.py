"""What lies around a call of bu2td: torch's ambient settings, and the garbage collector while graphs are built."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

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
def paused_collector() -> Iterator[None]:
    """Pause the cyclic garbage collector: graphs are full of cycles, and its passes over them are quadratic."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
