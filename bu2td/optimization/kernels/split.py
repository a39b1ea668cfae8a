"""A merge without sum and concatenation.

A post-activation merge reads ``cat([x + l, l])``. Its convolution W = [W1 W2] is linear, so that

    W * cat([x + l, l]) = W1 * (x + l) + W2 * l = W1 * x + (W1 + W2) * l

(for ``join="concat"`` the second kernel is W2). Neither the sum nor the concatenation is built, and where x is a
nearest-upsampled map the first term is computed at low resolution (`bu2td.optimization.kernels.lowres`).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bu2td.nn import Joining, Merge, is_bare, is_transformed
from bu2td.optimization.kernels.lowres import Pair, sums_matrix, upsampled_conv
from bu2td.optimization.kernels.ordinary import takes_ordinary
from bu2td.optimization.kernels.winograd import trained_winograd_conv


class SplitMerge(nn.Module, Joining):
    """A `bu2td.nn.Merge` in two terms, with the same parameters under the same names.

    Args:
        merge: a conv-norm-act merge that joins by "add_concat" or "concat"; its modules are taken over.
        factor: how many times smaller x is; 1 where x has the lateral's resolution.

    Attributes:
        winograd: read the lateral by minimal filtering (`bu2td.optimization.kernels.winograd`).

    Shapes: (N, C, h, w), (N, C, H, W) -> (N, C, H, W).
    """

    concatenates = False
    conv: nn.Conv2d
    sums: Tensor

    def __init__(self, merge: Merge, factor: int = 1) -> None:
        super().__init__()
        for name, part in merge.named_children():
            self.add_module(name, part)
        self.join = merge.join
        self.factor: Pair = (factor, factor)
        kernel: Any = self.conv.kernel_size
        sums = sums_matrix(kernel, self.factor)
        self.register_buffer("sums", sums.to(self.conv.weight.device), persistent=False)
        self.winograd = False
        self.train(merge.training)

    def plain(self) -> Merge:
        """The ordinary merge, with the same modules."""
        return Merge(self.conv, **self.beside(), join=self.join).train(self.training)

    def beside(self) -> dict[str, nn.Module]:
        """Norm and activation by name, in the order in which they run behind the convolution."""
        return {name: part for name, part in self.named_children() if name != "conv"}

    def in_order(self) -> list[tuple[str, nn.Module]]:
        """All parts with their names, in the order in which they run."""
        return [("conv", self.conv), *self.beside().items()]

    def kernels(self) -> tuple[Tensor, Tensor]:
        """The kernels that read x and the lateral, each (C, C, k, k)."""
        of_x, of_lateral = self.conv.weight.chunk(2, dim=1)
        return of_x, of_x + of_lateral if self.join == "add_concat" else of_lateral

    def forward(self, x: Tensor, lateral: Tensor) -> Tensor:
        """Return the merged features."""
        return self.rest(self.first(x, lateral))

    def first(self, x: Tensor, lateral: Tensor) -> Tensor:
        """The convolutions; the merge as it was, where its convolution has become another layer, or is hooked."""
        if not is_bare(self.conv):
            if self.factor != (1, 1):
                x = F.interpolate(x, size=lateral.shape[-2:], mode="nearest")
            joined = x + lateral if self.join == "add_concat" else x
            return self.conv(torch.cat([joined, lateral], dim=1))
        of_x, of_lateral = self.kernels()
        padding: Any = self.conv.padding
        kernel: Any = self.conv.kernel_size
        merged = upsampled_conv(x, of_x, self.conv.bias, self.sums, kernel, self.factor, lateral.shape[-2:])
        if self.winograd and not takes_ordinary(lateral):
            return merged.add_(trained_winograd_conv(lateral, of_lateral))
        second = F.conv2d(lateral, of_lateral, padding=padding)
        return merged + second if is_transformed() else merged.add_(second)

    def rest(self, merged: Tensor) -> Tensor:
        """Norm and activation."""
        for part in self.after():
            merged = part(merged)
        return merged

    def after(self) -> list[nn.Module]:
        """Norm and activation as modules."""
        return list(self.beside().values())

    def extra_repr(self) -> str:
        """Show the configuration when printed."""
        return f"join={self.join!r}, factor={self.factor}"
