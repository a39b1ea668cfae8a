"""What lies around a call of bu2td: torch's ambient settings, and the garbage collector while graphs are built."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

#: Devices whose autocast may be on around a call.
_AUTOCAST = ("cpu", "cuda", "xpu", "mps")


@contextmanager
def undisturbed() -> Iterator[None]:
    """Keep what the caller's own code is under away from a call; also a decorator.

    A default device (``with torch.device("meta")``, `torch.set_default_device`), inference mode, `torch.no_grad`
    and autocast around a conversion are meant for the caller's own tensors. A network is made as it is without
    them: its device, dtype and gradients are those of the model that it is made of.
    """
    with ExitStack() as stack:
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
