"""What a positive copy of a network runs: box filters and sums, in the shapes of what they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from bu2td.nn import Pyramid, gaussian_resample


def passed(x: Tensor) -> Tensor:
    """The identity."""
    return x


def detached(x: Tensor) -> Tensor:
    """The same values, cut off from the image."""
    return x.detach()


def summed(operands: list[Tensor], sizes: list[int] | None) -> Tensor:
    """The sum of maps; with the sizes of the value that it stands for, if they are not one channel."""
    total = operands[0]
    for operand in operands[1:]:
        total = total + operand
    return total if sizes is None else total.expand(sizes)


def mixed(x: Tensor) -> Tensor:
    """A linear layer of constant weights over the last dimension, which becomes one channel."""
    return x.mean(-1, keepdim=True)


def _same_pad(x: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """TensorFlow's SAME: ceil(size / stride) outputs, the odd pixel behind."""
    pad: list[int] = []
    for size, k, s, d in zip(x.shape[-2:], kernel, stride, dilation, strict=True):
        total = max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
        pad = [total // 2, total - total // 2, *pad]
    return F.pad(x, pad)


def _pads_itself(module: Any) -> bool:
    """Whether a module of timm pads as TensorFlow does, while it runs."""
    flags = getattr(module, "same_pad", False) or getattr(module, "dynamic_padding", False)
    return bool(flags) or type(module).__name__ in ("Conv2dSame", "AvgPool2dSame", "MaxPool2dSame")


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[-1]))


def _box(
    x: Tensor,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int] = (1, 1),
) -> Tensor:
    """Sum over windows, channel by channel, times 1 / sqrt(window): no path through hundreds of them vanishes."""
    if kernel == stride == (1, 1) and padding == (0, 0):
        return x
    if dilation != (1, 1) or any(2 * p > k for p, k in zip(padding, kernel, strict=True)):
        x, padding = F.pad(x, (padding[1], padding[1], padding[0], padding[0])), (0, 0)
    scale = max(round((kernel[0] * kernel[1]) ** 0.5), 1)
    if dilation == (1, 1):  # without the copies of every window that a convolution in float64 makes
        return F.avg_pool2d(x, kernel, stride, padding, divisor_override=scale)
    channels = x.shape[1]
    return F.conv2d(x, x.new_full((channels, 1, *kernel), 1 / scale), None, stride, 0, dilation, channels)


class BoxConv(nn.Module):
    """A convolution of constant weights: channels of a group are averaged and filtered by a box.

    Shapes: (N, C, H, W) -> (N, 1, H', W') for one group, else (N, C', H', W'); (N, 1, H, W) -> (N, 1, H', W').
    """

    def __init__(self, conv: Any) -> None:
        super().__init__()
        self.groups, self.out_channels = conv.groups, conv.out_channels
        self.kernel, self.stride = _pair(conv.kernel_size), _pair(conv.stride)
        self.dilation = _pair(conv.dilation)
        self.same = _pads_itself(conv) or conv.padding == "same"
        self.padding = (0, 0) if isinstance(conv.padding, str) or self.same else _pair(conv.padding)

    def forward(self, x: Tensor) -> Tensor:
        groups = 1 if x.shape[1] == 1 else self.groups
        x = x.unflatten(1, (groups, -1)).mean(2)
        if self.same:
            x = _same_pad(x, self.kernel, self.stride, self.dilation)
        x = _box(x, self.kernel, self.stride, self.padding, self.dilation)
        return x if groups == 1 else x.repeat_interleave(self.out_channels // groups, 1)


class BoxTransposed(nn.Module):
    """A transposed convolution of constant weights and kernel = stride, cropped as `TransposedUpsample` is.

    Shapes: (N, C, h, w), (N, _, H, W) -> (N, 1, H, W).
    """

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor, like: Tensor) -> Tensor:
        x = x.mean(1, keepdim=True).repeat_interleave(self.factor, 2).repeat_interleave(self.factor, 3)
        return x[..., : like.shape[-2], : like.shape[-1]]


class BlurredPyramid(Pyramid):
    """The pyramid of reducer ``max_blur`` with averages for its maxima, over the same windows."""

    def reduce(self, images: Tensor, factor: int) -> Tensor:
        """Average at full resolution, then blur and reduce."""
        before, after = (factor - 1) // 2, factor // 2
        averaged = F.avg_pool2d(F.pad(images, (before, after, before, after)), factor, 1)
        return gaussian_resample(averaged, factor, self.sigma)


class BoxHalo(nn.Module):
    """Sum over a block and the halo around it, for every position of the block, as timm's ``HaloAttn`` reads them.

    Shapes: (N, C, H, W) -> (N, 1, H / s, W / s), where the layer strides by s.
    """

    def __init__(self, attention: Any) -> None:
        super().__init__()
        sides = attention.win_size, attention.block_size, attention.halo_size
        self.window, self.block, self.halo = (_pair(side) for side in sides)
        self.per_block = attention.block_size_ds
        self.pooled = 1 if isinstance(attention.pool, nn.Identity) else 2

    def forward(self, x: Tensor) -> Tensor:
        x = _box(x.mean(1, keepdim=True), self.window, self.block, self.halo)
        x = x.repeat_interleave(self.per_block, 2).repeat_interleave(self.per_block, 3)
        return F.avg_pool2d(x, self.pooled)


class BoxPool(nn.Module):
    """Sum over the windows of a pooling, dilated or not, with its padding and ceil mode.

    Shapes: (N, C, H, W) -> (N, C, H', W').
    """

    def __init__(self, pool: Any) -> None:
        super().__init__()
        self.mode = getattr(pool, "pad_mode", "constant")
        blur = hasattr(pool, "filt_size")
        self.kernel = _pair(pool.filt_size if blur else pool.kernel_size)
        self.stride = _pair(self.kernel if pool.stride is None else pool.stride)
        self.dilation = _pair(getattr(pool, "dilation", 1))
        self.padding = (pool.padding[2], pool.padding[0]) if blur else _pair(getattr(pool, "padding", 0))
        self.same, self.ceil = _pads_itself(pool), bool(getattr(pool, "ceil_mode", False))

    def forward(self, x: Tensor) -> Tensor:
        if self.same:
            x = _same_pad(x, self.kernel, self.stride, self.dilation)
        else:
            pad: list[int] = []
            for size, k, s, d, p in zip(
                x.shape[-2:], self.kernel, self.stride, self.dilation, self.padding, strict=True
            ):
                pad = [p, p + self._more(size + 2 * p - d * (k - 1) - 1, s, size + p), *pad]
            x = F.pad(x, pad, mode=self.mode)
        return _box(x, self.kernel, self.stride, (0, 0), self.dilation)

    def _more(self, span: int, stride: int, end: int) -> int:
        """Padding that the last, incomplete window needs in ceil mode; one that starts behind the map is none."""
        if not self.ceil:
            return 0
        count = -(-span // stride) + 1
        if (count - 1) * stride >= end:
            count -= 1
        return max((count - 1) * stride - span, 0)
