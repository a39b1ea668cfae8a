"""When a module of an optimised network computes in its ordinary form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from bu2td.nn import is_transformed


def is_exporting(*values: Any) -> bool:
    """Whether a graph for another program is made of values.

    Such a graph has no operators of ours, and holds for every image size: no form may be chosen by the size that
    the graph is made with. That is so under `torch.export`, `torch.jit.trace` and symbolic tracing by torch.fx.
    """
    if torch.jit.is_tracing() or any(isinstance(value, fx.Proxy) for value in values):
        return True
    if not torch.compiler.is_compiling():
        return False
    ask = getattr(torch.compiler, "is_exporting", None)  # older versions cannot tell compiling from exporting
    return True if ask is None else bool(ask())


def autocasts(x: Tensor) -> bool:
    """Whether autocast is on where a tensor is."""
    return x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)


def takes_ordinary(x: Tensor) -> bool:
    """Whether what a tensor goes through must be made of PyTorch's own operators."""
    return is_exporting(x) or is_transformed() or autocasts(x)
