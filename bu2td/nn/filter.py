"""A fixed filter, the same for every channel."""

import torch.nn.functional as F
from torch import Tensor, nn


class FixedFilter(nn.Module):
    """Filter every channel with the same fixed weights: a blur in front of subsampling, say.

    Args:
        weights: (1, 1, k_h, k_w); a buffer.
        stride, padding: over height and width.

    Shapes: (N, C, H, W) -> (N, C, h, w), for any C.
    """

    def __init__(self, weights: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> None:
        super().__init__()
        self.stride = stride
        self.padding = padding
        self.register_buffer("filt", weights)
        self.filt: Tensor

    @property
    def kernel_size(self) -> tuple[int, int]:
        """(k_h, k_w)."""
        return (self.filt.shape[2], self.filt.shape[3])

    def forward(self, x: Tensor) -> Tensor:
        """Return x filtered."""
        channels = x.shape[1]
        weights = self.filt.expand(channels, -1, -1, -1)
        return F.conv2d(x, weights.to(x.dtype), None, self.stride, self.padding, groups=channels)

    def extra_repr(self) -> str:
        """Show the configuration when printed."""
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"
