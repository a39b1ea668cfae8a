"""What all hand-written references share: pyramid, upsampling, conv units and merges."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Size = tuple[int, int]


def size_of(x: Tensor) -> Size:
    """Return height and width of `x`."""
    return x.shape[-2], x.shape[-1]


def resample_matrix(inputs: int, outputs: int) -> Tensor:
    """Return the Gaussian that takes one axis from `inputs` pixels to `outputs` pixels.

    Rules, "Pyramid": f = inputs / outputs; output i looks at position f * (i + 1/2), pixel j has
    its centre at j + 1/2; standard deviation f / 2, nothing at or beyond a distance of 1.5 * f,
    weights of sum 1 over the taps inside the image.
    """
    f = inputs / outputs
    centre = f * (torch.arange(outputs, dtype=torch.float64) + 0.5)
    pixel = torch.arange(inputs, dtype=torch.float64) + 0.5
    distance = (centre[:, None] - pixel[None, :]).abs() / f
    weight = torch.exp(-0.5 * (distance / 0.5) ** 2)
    weight = weight.masked_fill(distance >= 1.5 - 1e-9, 0.0)
    return weight / weight.sum(dim=1, keepdim=True)


def resample(image: Tensor, size: Size) -> Tensor:
    """Return `image` resampled to `size`, one axis after the other."""
    rows, columns = (resample_matrix(*sizes).to(image) for sizes in zip(size_of(image), size, strict=True))
    return rows @ image @ columns.t()


class Pyramid(nn.Module):
    """The image at every reduction, each level from the full-resolution image.

    Rules, "Pyramid": out = ceil(in / f) where f does not divide; level 1 is the image itself.
    `prepare` makes the matrices once, as one does who is in a hurry. `cascaded` is a deliberate
    fault: each level is computed from the next finer one.
    """

    def __init__(self, reductions: tuple[int, ...], *, cascaded: bool = False) -> None:
        super().__init__()
        self.reductions = reductions
        self.cascaded = cascaded
        self.prepared = False

    def prepare(self, size: Size, dtype: torch.dtype = torch.float32) -> None:
        """Keep the matrices for images of one size; from now on others fail."""
        for reduction in self.reductions:
            for axis, side in enumerate(size):
                matrix = resample_matrix(side, math.ceil(side / reduction)).to(dtype)
                self.register_buffer(f"matrix{reduction}_{axis}", matrix, persistent=False)
        self.prepared = True

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the levels in the order of `reductions`, coarse to fine."""
        height, width = size_of(image)
        levels: list[Tensor] = []
        source = image
        for reduction in reversed(self.reductions):
            size = (math.ceil(height / reduction), math.ceil(width / reduction))
            if reduction == 1:
                level = image
            elif self.prepared and not self.cascaded:
                rows, columns = (getattr(self, f"matrix{reduction}_{axis}") for axis in (0, 1))
                level = rows @ image @ columns.t()
            else:
                level = resample(source, size)
            if self.cascaded:
                source = level
            levels.append(level)
        return levels[::-1]


def upsample(x: Tensor, size: Size, mode: str = "nearest") -> Tensor:
    """Return `x` at the size of the level that it enters."""
    return F.interpolate(x, size=size, mode=mode)


def conv(inputs: int, outputs: int, kernel: int, bias: bool, groups: int = 1) -> nn.Conv2d:
    """Return a conv of stride 1 with 'same' padding (rules, "Kernels"; all kernels are odd)."""
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=bias, groups=groups)


@dataclass(frozen=True)
class Kind:
    """What laterals, transitions and merges take over from the bottom-up network."""

    bias: bool
    eps: float = 1e-5
    momentum: float = 0.1
    act: type[nn.ReLU | nn.ReLU6] = nn.ReLU
    pre_activation: bool = False

    def norm(self, width: int) -> nn.BatchNorm2d:
        """Return the norm for `width` channels."""
        return nn.BatchNorm2d(width, eps=self.eps, momentum=self.momentum)


class Unit(nn.Module):
    """A conv with its norm and act: conv-norm-act, in pre-activation nets norm-act-conv.

    `swapped` is a deliberate fault: act before norm.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, kind: Kind, *, swapped: bool = False) -> None:
        super().__init__()
        self.conv = conv(inputs, outputs, kernel, kind.bias)
        self.norm = kind.norm(inputs if kind.pre_activation else outputs)
        self.act = kind.act(inplace=True)
        self.pre_activation = kind.pre_activation
        self.swapped = swapped

    def norm_act(self, x: Tensor) -> Tensor:
        """Apply norm and act, in this order unless swapped."""
        return self.norm(self.act(x)) if self.swapped else self.act(self.norm(x))

    def forward(self, x: Tensor) -> Tensor:
        if self.pre_activation:
            return self.conv(self.norm_act(x))
        return self.norm_act(self.conv(x))


def lateral(channels: int, width: int, kernel: int, kind: Kind, *, without_relu: bool = False) -> nn.Module:
    """Return the lift of a pyramid image to its level's width.

    Rules, "Lateral": conv-norm-act, in pre-activation nets a bare conv at every level.
    `without_relu` is a deliberate fault: conv-norm.
    """
    if kind.pre_activation:
        return conv(channels, width, kernel, kind.bias)
    unit = Unit(channels, width, kernel, kind)
    if without_relu:
        unit.act = nn.Identity()
    return unit


class Merge(nn.Module):
    """Rules, "Merge": s = up + lateral, cat [s, lateral], 3x3 conv 2C -> C."""

    def __init__(self, channels: int, width: int, kernel: int, kind: Kind, mutant: str | None = None) -> None:
        super().__init__()
        self.lateral = lateral(channels, width, kernel, kind, without_relu=mutant == "lateral_without_relu")
        self.unit = Unit(2 * width, width, 3, kind, swapped=mutant == "bn_relu_swapped")
        self.lateral_first = mutant == "concat_order"
        self.without_sum = mutant == "no_sum"

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        """Merge `x`, already at the size of `image`, with the lateral of `image`."""
        side = self.lateral(image)
        total = x if self.without_sum else x + side
        pair = [side, total] if self.lateral_first else [total, side]
        return self.unit(torch.cat(pair, dim=1))


class Entry(nn.Module):
    """How features enter a chain level, or a level without a body.

    Rules, "Every finer level": transition (only if the width changes) at low resolution,
    upsample, merge.
    """

    def __init__(
        self, inputs: int, width: int, channels: int, kernel: int, kind: Kind, mutant: str | None = None
    ) -> None:
        super().__init__()
        self.transition = nn.Identity() if inputs == width else Unit(inputs, width, 1, kind)
        self.merge = Merge(channels, width, kernel, kind, mutant)
        self.mode = "bilinear" if mutant == "bilinear" else "nearest"

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        """Bring `x` to the size of `image` and merge the two."""
        return self.merge(upsample(self.transition(x), size_of(image), self.mode), image)
