"""Convolutions that are too small for a call of oneDNN, which takes some 30 us beside its work.

A 1x1 convolution of a channels-last map is one matrix product, (N H W, C_in) times (C_in, C_out), without a copy.
Others of one image PyTorch unfolds and multiplies by itself, as long as the image has at most 20,480 values; that
is faster as long as little is unfolded. The bounds were measured by hand on one core of an AMD EPYC (PyTorch
2.14), and lie below the sizes where both forms take the same time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Pair = tuple[int, int]

#: Multiply-accumulates of a product, of a convolution of one image, and the values that this unfolds.
PRODUCT, MACS, UNFOLDED = 5e6, 1.5e6, 2e4
#: Values of one image above which PyTorch does not unfold.
_IMAGE = 20480


@dataclass(frozen=True)
class Small:
    """A convolution that may be small, which depends on its map.

    Attributes:
        stride, padding: of the convolution.
        product: whether it is a matrix product; else PyTorch unfolds.
        inputs: C_in.
        macs, unfolded: multiply-accumulates and unfolded values of a position of the map that it reads.
    """

    stride: Pair
    padding: Pair
    product: bool
    inputs: int
    macs: float
    unfolded: float

    @staticmethod
    def of(weight: Tensor, stride: Pair, padding: Pair, dilation: Pair, groups: int) -> Small | None:
        """None for a convolution that oneDNN computes whatever its size."""
        outer, inner, *kernel = weight.shape
        if groups > 1 or max(kernel) > 3 or dilation != (1, 1):
            return None
        taps, steps = math.prod(kernel), math.prod(stride)
        product = taps == steps == 1 and padding == (0, 0)
        unfolded = inner * taps / steps
        return Small(stride, padding, product, inner, outer * unfolded, unfolded)

    def holds(self, x: Tensor) -> bool:
        """Whether this form is the faster one for a map."""
        count, _, height, width = x.shape
        positions = count * height * width
        if self.product:
            return positions * self.macs <= PRODUCT and x.is_contiguous(memory_format=torch.channels_last)
        few = positions * self.unfolded <= UNFOLDED and positions * self.macs <= MACS
        return few and count == 1 and positions * self.inputs <= _IMAGE

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The convolution: (N, C_in, H, W) -> (N, C_out, H', W')."""
        if self.product:
            return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)
        return F.conv2d(x, weight, bias, self.stride, self.padding)
