"""Weights that depend only on what a parameter is and on its shape.

Two networks that are the same function, however their modules are named, nested or ordered,
are equal after `fill`; so an emitted network can be compared with a hand-written one.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

Draw = Callable[[tuple[int, ...], torch.Generator], Tensor]

# Standard deviation of conv and linear weights times the root of their fan-in. 3x3 convs that keep
# the width get less: they stand in residual blocks, and there blocks of one shape, which all have
# the same weights after `fill`, would otherwise amplify each other.
GAIN = 1.15
GAIN_SQUARE = 0.8


def _weight(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    fan_in = max(1, torch.Size(shape[1:]).numel())
    square = shape[0] == shape[1] and shape[2:] == (3, 3)
    gain = GAIN_SQUARE if square else GAIN
    return torch.randn(shape, generator=generator) * (gain / fan_in**0.5)


def _around_zero(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.empty(shape).uniform_(-0.1, 0.1, generator=generator)


def _around_one(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.empty(shape).uniform_(0.5, 1.5, generator=generator)


DRAWS: dict[str, Draw] = {
    "conv.weight": _weight,
    "conv.bias": _around_zero,
    "linear.weight": _weight,
    "linear.bias": _around_zero,
    "norm.weight": _around_one,
    "norm.bias": _around_zero,
    "norm.running_mean": _around_zero,
    "norm.running_var": _around_one,
}


def _family(module: nn.Module) -> str:
    if isinstance(module, _ConvNd):
        return "conv"
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, (_NormBase, nn.LayerNorm, nn.GroupNorm)):
        return "norm"
    return "other"


@torch.no_grad()
def fill(model: nn.Module) -> None:
    """Set every parameter and every norm statistic of `model` from its kind and shape alone.

    Parameters of no known kind (scales, gains, embeddings) are drawn around one, by their own
    name; buffers of no known kind (constants, counters) keep their value.
    """
    drawn: dict[str, Tensor] = {}
    for module in model.modules():
        family = _family(module)
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for name, tensor in own:
            kind = f"{family}.{name}"
            if kind not in DRAWS and not isinstance(tensor, nn.Parameter):
                continue
            shape = tuple(tensor.shape)
            key = f"{kind} {shape}"
            if key not in drawn:
                generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
                drawn[key] = DRAWS.get(kind, _around_one)(shape, generator)
            tensor.copy_(drawn[key])


def picture(batch: int, channels: int, height: int, width: int) -> Tensor:
    """Return deterministic images with contrast at every scale from 1 to 16 pixels.

    White noise would be a poor test image: it is flat once blurred, so that a network sees
    nothing at its coarse levels and a wrong pyramid goes unnoticed.
    """
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(batch, channels, height, width)
    for scale in (1, 2, 4, 8, 16):
        cells = (-(-height // scale), -(-width // scale))
        blocks = torch.randn(batch, channels, *cells, generator=generator)
        total += F.interpolate(blocks, scale_factor=scale)[..., :height, :width]
    return total
