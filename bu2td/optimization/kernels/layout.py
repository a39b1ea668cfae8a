"""Memory formats of maps and of weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bu2td.nn import is_transformed
from bu2td.optimization.kernels.ordinary import is_exporting


class Layout(nn.Module):
    """The same map, channels-last or contiguous in memory.

    Args:
        last: whether channels are last.

    Shapes: (N, C, H, W) -> (N, C, H, W).
    """

    def __init__(self, last: bool) -> None:
        super().__init__()
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        """Return the map in the format, or as it is where a graph or a transform is made of it."""
        if is_exporting(x) or is_transformed():
            return x
        return x.contiguous(memory_format=torch.channels_last if self.last else torch.contiguous_format)

    def extra_repr(self) -> str:
        """Show the configuration when printed."""
        return "channels-last" if self.last else "contiguous"


def lay_out_weights(module: nn.Module) -> None:
    """Lay weights over two dimensions out channels-last; `nn.Module.to` would try those over three, too.

    By `Tensor.to`, since `Tensor.contiguous` leaves weights of 1x1 as they are, whose strides are those of either
    format; by the strides a convolution chooses the format of its result.
    """
    for tensor in [*module.parameters(), *module.buffers()]:
        if tensor.dim() == 4:
            tensor.data = tensor.data.to(memory_format=torch.channels_last)
