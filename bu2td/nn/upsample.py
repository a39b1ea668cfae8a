"""Upsampling to the size of the level that is entered."""

from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

#: How features gain resolution.
UpsampleMode = Literal["nearest", "bilinear", "transpose"]
UPSAMPLE_MODES: tuple[UpsampleMode, ...] = get_args(UpsampleMode)


class Upsample(nn.Module):
    """Upsample features to the height and width of another tensor.

    Taking the size from the lateral makes every image size work: a level is ceil(image / reduction)
    large, and what enters it is brought to exactly that size.

    Args:
        mode: "nearest" or "bilinear" (half-pixel centres).

    Shapes: (N, C, h, w), (N, _, H, W) -> (N, C, H, W).
    """

    def __init__(self, mode: str = "nearest") -> None:
        super().__init__()
        self.mode = mode

    def forward(self, x: Tensor, like: Tensor) -> Tensor:
        """Return x at the height and width of ``like``."""
        return F.interpolate(x, size=like.shape[-2:], mode=self.mode)

    def extra_repr(self) -> str:
        """Show the configuration when printed."""
        return f"mode={self.mode!r}"


class TransposedUpsample(nn.ConvTranspose2d):
    """Learned upsampling: a transposed convolution with kernel = stride = factor.

    Its output is cropped to the size of ``like``; a level that the factor does not divide is one pixel
    row smaller than factor times the coarser one.

    Shapes: (N, C, h, w), (N, _, H, W) -> (N, C, H, W) with H <= factor * h.
    """

    def __init__(self, channels: int, factor: int) -> None:
        super().__init__(channels, channels, factor, stride=factor)

    def forward(self, x: Tensor, like: Tensor) -> Tensor:  # type: ignore[override]
        """Return x upsampled and cropped to the height and width of ``like``."""
        height, width = like.shape[-2:]
        return super().forward(x)[..., :height, :width]
