"""Convolutions over nearest-upsampled maps, computed at low resolution.

Derivation, along one axis. Let u be the nearest-upsampled x, u[z] = x[floor(z / s)] for 0 <= z < s h, and

    out[y] = sum_t W[t] u[y + d t - p],    t = 0 .. k-1, zero outside the map

a convolution with kernel k, dilation d and padding p. Every z is s i + r for one i and one r in 0 .. s-1, so
that x[i] enters out[y] through the taps with y + d t - p = s i + r. Write m = y - s i + P with
P = d (k - 1) - p; then d t = r + d (k - 1) - m, and

    out[y] = sum_i K[y - s i + P] x[i],    K[m] = sum_t A[m, t] W[t],
    A[m, t] = 1 if 0 <= m + d t - d (k - 1) < s, else 0.

That is a transposed convolution of x with stride s, padding P and the kernel K of d (k - 1) + s taps, which are
sums of the original ones. Nothing outside x enters either form, so that borders agree exactly. Both axes are
independent: K = A W A^T. Per output position it takes (d (k - 1) + s)^2 / s^2 multiplications instead of k^2,
which for s = 2 is 2.25 times fewer at k = 3 and 2.8 at k = 5, and the upsampled map is never built.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bu2td.nn import is_bare
from bu2td.optimization.kernels.ordinary import is_exporting

Pair = tuple[int, int]


def sums_of_axis(kernel: int, factor: int, dilation: int = 1) -> Tensor:
    """The matrix A of the derivation, (d (k - 1) + s, k)."""
    rows, taps = torch.arange(dilation * (kernel - 1) + factor)[:, None], torch.arange(kernel)[None, :]
    offset = rows + dilation * taps - dilation * (kernel - 1)
    return ((offset >= 0) & (offset < factor)).float()


def sums_matrix(kernel: Pair, factor: Pair, dilation: Pair = (1, 1)) -> Tensor:
    """The 0/1 matrix that sums the taps of a kernel: both axes of A of the derivation at once.

    Returns:
        (m_h * m_w, k_h * k_w) with m = d (k - 1) + s.
    """
    axes = [sums_of_axis(*numbers) for numbers in zip(kernel, factor, dilation, strict=True)]
    return torch.kron(*axes)


def summed_kernel(weight: Tensor, sums: Tensor, size: Pair, groups: int = 1) -> Tensor:
    """The kernel of the transposed convolution that reads the map at low resolution.

    Args:
        weight: (C_out, C_in / groups, k_h, k_w) of the convolution at high resolution.
        sums: `sums_matrix`.
        size: (m_h, m_w) of the result.
        groups: of the convolution.

    Returns:
        (C_in, C_out / groups, m_h, m_w), as `torch.nn.functional.conv_transpose2d` takes it.
    """
    out, narrow = weight.shape[0], weight.shape[1]
    taps = weight.reshape(groups, out // groups, narrow, -1).transpose(1, 2)
    kind = weight.device.type
    with contextlib.nullcontext() if kind == "meta" else torch.autocast(kind, enabled=False):
        kernel = taps.reshape(-1, taps.shape[-1]) @ sums.to(weight.dtype).t()
    return kernel.view(groups * narrow, out // groups, size[0], size[1])


def same_padding(conv: nn.Conv2d) -> Pair | None:
    """The padding of a convolution in numbers, where both sides of an axis have the same."""
    if conv.padding == "valid":
        return 0, 0
    if conv.padding == "same":
        spans = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        return None if any(span % 2 for span in spans) else (spans[0] // 2, spans[1] // 2)
    padding: Any = conv.padding
    return int(padding[0]), int(padding[1])


def can_read_low(conv: nn.Module) -> bool:
    """Whether a convolution has a form that reads a nearest-upsampled map at low resolution.

    It must be a plain `torch.nn.Conv2d` (see `bu2td.nn.is_bare`), of stride 1, and keep the size of its map by zero
    padding.
    """
    if (
        not is_bare(conv)
        or not isinstance(conv, nn.Conv2d)
        or conv.padding_mode != "zeros"
        or tuple(conv.stride) != (1, 1)
    ):
        return False
    padding = same_padding(conv)
    spans = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    return padding is not None and [2 * p for p in padding] == spans


def transposed_conv(
    x: Tensor, kernel: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, groups: int
) -> Tensor:
    """`torch.nn.functional.conv_transpose2d`; with groups the bias is added apart.

    On the CPU, oneDNN has no fast grouped form that takes a bias.
    """
    if groups == 1 or bias is None or x.device.type != "cpu":
        return F.conv_transpose2d(x, kernel, bias, stride=stride, padding=padding, groups=groups)
    y = F.conv_transpose2d(x, kernel, None, stride=stride, padding=padding, groups=groups)
    return y + bias[:, None, None]


def fits(x: Tensor, factor: Pair, size: Sequence[int]) -> bool:
    """Whether a size is exactly a factor times the map's."""
    return (size[0], size[1]) == (x.shape[-2] * factor[0], x.shape[-1] * factor[1])


def upsampled_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    sums: Tensor,
    kernel: Pair,
    factor: Pair,
    size: Sequence[int],
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> Tensor:
    """Nearest upsampling to a size and a size-keeping convolution, computed at low resolution.

    A 1x1 convolution commutes with any nearest upsampling. Other kernels need a size that is exactly the
    factor times the map's; at any other size the map is upsampled, and in an exported graph at all of them.

    Args:
        x: (N, C_in, h, w).
        weight, bias: of the convolution.
        sums: `sums_matrix` for the factor.
        kernel: (k_h, k_w).
        factor: (s_h, s_w).
        size: (H, W) of the result.
        dilation, groups: of the convolution.

    Returns:
        (N, C_out, H, W).
    """
    if tuple(kernel) == (1, 1):
        return F.interpolate(F.conv2d(x, weight, bias, groups=groups), size=size, mode="nearest")
    spans = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    if is_exporting(x) or not fits(x, factor, size):
        x = F.interpolate(x, size=size, mode="nearest")
        return F.conv2d(x, weight, bias, padding=[s // 2 for s in spans], dilation=dilation, groups=groups)
    taps = summed_kernel(weight, sums, (spans[0] + factor[0], spans[1] + factor[1]), groups)
    return transposed_conv(x, taps, bias, factor, (spans[0] // 2, spans[1] // 2), groups)


def _settings(conv: nn.Conv2d) -> dict[str, Any]:
    """What a size-keeping convolution is built with."""
    settings = {name: getattr(conv, name) for name in ("in_channels", "out_channels", "kernel_size", "dilation")}
    return {**settings, "groups": conv.groups, "bias": conv.bias is not None, "padding": same_padding(conv)}


class UpsampledConv2d(nn.Conv2d):
    """A convolution over a nearest-upsampled map that never builds that map.

    Its parameters are those of the ordinary convolution (same names, same shapes), and it trains through
    autograd. It equals ``conv(interpolate(x, size=like.shape[-2:], mode="nearest"))`` up to rounding.

    Args:
        conv: the convolution at high resolution, whose parameters are taken over; see `can_read_low`.
        factor: how many times larger the upsampled map is; maps of other sizes are upsampled as usual.

    Shapes: (N, C_in, h, w), (N, _, H, W) -> (N, C_out, H, W).
    """

    sums: Tensor

    def __init__(self, conv: nn.Conv2d, factor: int | Pair) -> None:
        if not can_read_low(conv):
            raise ValueError(f"no form of {conv} reads an upsampled map at low resolution")
        super().__init__(**_settings(conv), device="meta")
        self.weight, self.bias = conv.weight, conv.bias
        self.factor: Pair = (factor, factor) if isinstance(factor, int) else factor
        sums = sums_matrix(self.kernel_size, self.factor, self.dilation)  # type: ignore[arg-type]
        self.register_buffer("sums", sums.to(conv.weight.device), persistent=False)
        self.train(conv.training)

    def plain(self) -> nn.Conv2d:
        """The ordinary convolution, with the same parameters."""
        conv = nn.Conv2d(**_settings(self), device="meta")
        conv.weight, conv.bias = self.weight, self.bias
        return conv.train(self.training)

    def forward(self, x: Tensor, like: Tensor) -> Tensor:  # type: ignore[override]
        """Return the convolution of x at the height and width of ``like``."""
        kernel: Any = self.kernel_size
        dilation: Any = self.dilation
        size, factor = like.shape[-2:], self.factor
        return upsampled_conv(x, self.weight, self.bias, self.sums, kernel, factor, size, dilation, self.groups)

    def extra_repr(self) -> str:
        """Show the configuration when printed."""
        return f"{super().extra_repr()}, factor={self.factor}"
