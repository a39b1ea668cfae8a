"""A model's constructor is called on a device; on the meta device it allocates nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from bu2td.errors import UnknownModelError

__all__ = ["build"]


def build(constructor: Callable[[], nn.Module], device: torch.device | None) -> nn.Module:
    """The model that a constructor makes; None leaves it where that puts it."""
    if device is None:
        return constructor()
    if device.type == "meta":
        try:
            with _ParametersOnMeta():
                return constructor().to(device)
        except UnknownModelError:
            pass  # a constructor that calculates with its parameters: build them, then drop them
    return constructor().to(device)


class _ParametersOnMeta(TorchFunctionMode):
    """Allocate parameters on the meta device, but compute with real numbers.

    Under ``torch.device("meta")`` constructors that calculate with tensors fail (torchvision's
    regnets call ``arange(...).tolist()``); so only the factories of parameters are redirected.
    """

    _FACTORIES = frozenset((torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn))

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in self._FACTORIES and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)
