"""Global average pooling whose gradient is channels-last.

The gradient of a mean is one number per channel at every position. PyTorch writes it out channels-first whatever
the map was, and every backward pass behind it then reads two layouts at once. In a top-down network the pool reads
the finest map, so that this costs a good part of a training step; ``bu2td.optimize(td, "training",
rules={"pool": "never"})`` is the network without it, to time against.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bu2td.nn import is_transformed
from bu2td.optimization.kernels.ordinary import is_exporting


class _Mean(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.mean((2, 3))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.size = inputs[0].shape[-2:]

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        height, width = ctx.size
        share = gradients[0] / (height * width)
        return share[:, None, None, :].expand(-1, height, width, -1).contiguous().permute(0, 3, 1, 2)


class GlobalAvgPool(nn.Module):
    """The mean over all positions.

    Args:
        keepdim: return (N, C, 1, 1).

    Shapes: (N, C, H, W) -> (N, C) or (N, C, 1, 1).
    """

    def __init__(self, keepdim: bool = False) -> None:
        super().__init__()
        self.keepdim = keepdim

    def forward(self, x: Tensor) -> Tensor:
        """Return the means."""
        if torch.compiler.is_compiling() or is_exporting(x) or is_transformed() or not x.requires_grad:
            return x.mean((2, 3), keepdim=self.keepdim)  # a compiler chooses layouts itself
        mean: Tensor = _Mean.apply(x)
        return mean[:, :, None, None] if self.keepdim else mean

    def extra_repr(self) -> str:
        """Show the configuration when printed."""
        return f"keepdim={self.keepdim}"
