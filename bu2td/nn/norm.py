"""Layer norm over channels, for networks whose own layer norms see channels last."""

import torch.nn.functional as F
from torch import Tensor, nn


class ChannelLayerNorm(nn.LayerNorm):
    """Layer norm over the channels of (N, C, H, W) maps, at every position alone.

    Args:
        width: number of channels C.
        eps: added to the variance.
        affine: learn a weight and a bias per channel.
    """

    def __init__(self, width: int, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__(width, eps=eps, elementwise_affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        """Return x normalised, (N, C, H, W)."""
        x = x.permute(0, 2, 3, 1)
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)
