"""Networks as graphs of `torch.export`, for every image size."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

#: The axes of images by name; channels are never free.
AXES: Mapping[str, int] = {"N": 0, "H": 2, "W": 3}


def program_of(
    network: nn.Module, images: Tensor, free: Sequence[str] = (), normalisation: tuple[Tensor, Tensor] | None = None
) -> torch.export.ExportedProgram:
    """A network in eval mode as a graph.

    Args:
        network: maps images to logits; it is not copied.
        images: (N, C, H, W), two at least where "N" is free.
        free: names of `AXES` that the graph leaves open.
        normalisation: mean and standard deviation, each (1, C, 1, 1), that the graph begins with.

    Raises:
        Exception: whatever `torch.export.export` raises where it cannot follow the network, or where the network
            works at the size of ``images`` only.
    """
    dynamic = {AXES[name]: torch.export.Dim.DYNAMIC for name in free}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = _Program(network, normalisation).eval()
        return torch.export.export(program, (images,), dynamic_shapes=(dynamic,), strict=False)


class _Program(nn.Module):
    """A network with a normalisation in front, in forms that hold for every size."""

    def __init__(self, network: nn.Module, normalisation: tuple[Tensor, Tensor] | None) -> None:
        super().__init__()
        self.network = network
        mean, std = (None, None) if normalisation is None else normalisation
        self.mean: Tensor | None
        self.std: Tensor | None
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        if self.mean is not None and self.std is not None:
            images = (images - self.mean) / self.std
        with _FormsOfAnySize():
            return self.network(images)


class _FormsOfAnySize(TorchFunctionMode):
    """Functions whose graph would hold for one size only, in a form that holds for all."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        form = _FORMS.get(func)
        kwargs = kwargs or {}
        if form is not None and not all(type(size) is int for size in args[0].shape[-2:]):
            return form(func, *args, **kwargs)
        return func(*args, **kwargs)


def _pooled(reduce: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Any]:
    """Adaptive pooling along one axis after the other, by masks of the windows."""

    def form(func: Any, x: Tensor, output_size: Any, return_indices: bool = False) -> Any:
        sizes = [output_size] * 2 if isinstance(output_size, int) else list(output_size)
        if return_indices or sizes == [1, 1]:
            return func(x, output_size, return_indices) if return_indices else func(x, output_size)
        for axis, size in zip((-2, -1), sizes, strict=True):
            if size is not None:
                x = reduce(x.transpose(axis, -1), _windows(x.shape[axis], size, x.device)).transpose(axis, -1)
        return x

    return form


def _windows(size: Any, out: int, device: torch.device) -> Tensor:
    """Which of ``size`` positions the windows of an adaptive pooling hold: (out, size), boolean."""
    # Position j is in window i where floor(i size / out) <= j < ceil((i + 1) size / out).
    position = out * torch.arange(size, device=device)
    start = torch.full((1,), size, device=device) * torch.arange(out + 1, device=device)[:, None]
    return (position + out > start[:-1]) & (position < start[1:])


def _mean(x: Tensor, windows: Tensor) -> Tensor:
    weights = windows.to(x.dtype)
    return torch.matmul(x, (weights / weights.sum(1, keepdim=True)).t())


def _maximum(x: Tensor, windows: Tensor) -> Tensor:
    return x[..., None, :].masked_fill(~windows, -torch.inf).amax(-1)


_FORMS: Mapping[Any, Callable[..., Any]] = {
    F.adaptive_avg_pool2d: _pooled(_mean),
    F.adaptive_max_pool2d: _pooled(_maximum),
}
