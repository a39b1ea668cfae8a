"""3x3 convolutions of wide maps by Winograd's minimal filtering, F(2x2, 3x3).

Source: Lavin and Gray (2016), "Fast algorithms for convolutional neural networks", section 4. Along one axis two
outputs of a 3-tap filter g over four inputs d are

    y = A^T ((G g) * (B^T d)),    A^T = 1 1  1  0    B^T = 1  0 -1  0    G = 1    0   0
                                        0 1 -1 -1          0  1  1  0        1/2  1/2 1/2
                                                           0 -1  1  0        1/2 -1/2 1/2
                                                           0  1  0 -1        0    0   1

which is 4 multiplications instead of 6; in two dimensions 16 instead of 36, 2.25 times fewer. The product over
channels becomes 16 matrix products, one per position of the 4x4 tile. B^T and A^T only add and subtract, so that
rounding stays that of the direct form (measured: 1e-6 relative).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, library, nn
from torch.nn.grad import conv2d_input, conv2d_weight

from bu2td.nn import reduced
from bu2td.optimization.kernels.ordinary import takes_ordinary

# --- kernels ------------------------------------------------------------------------------------------


def transformed_kernel(weight: Tensor) -> Tensor:
    """G g G^T of every kernel.

    Args:
        weight: (C_out, C_in, 3, 3).

    Returns:
        (16, C_out, C_in).
    """
    taps = weight.permute(2, 3, 0, 1)  # (3, 3, C_out, C_in)
    half, middle = (taps[0] + taps[2]) / 2, taps[1] / 2
    out = torch.empty((4, 4, *weight.shape[:2]), dtype=weight.dtype, device=weight.device)
    for i, row in enumerate((taps[0], half + middle, half - middle, taps[2])):
        sides, centre = (row[0] + row[2]) / 2, row[1] / 2
        out[i, 0], out[i, 3] = row[0], row[2]
        torch.add(sides, centre, out=out[i, 1])
        torch.sub(sides, centre, out=out[i, 2])
    return out.flatten(0, 1)


def _kernel_gradient(gradient: Tensor) -> Tensor:
    """The adjoint of `transformed_kernel`: (16, C_out, C_in) -> (C_out, C_in, 3, 3), channels last."""
    d = gradient.unflatten(0, (4, 4))
    half, middle = (d[1] + d[2]) / 2, (d[1] - d[2]) / 2
    _, out, inner = gradient.shape
    dw = gradient.new_empty((out, 3, 3, inner))
    for i, row in enumerate((d[0] + half, middle, half + d[3])):
        sides = (row[1] + row[2]) / 2
        torch.add(row[0], sides, out=dw[:, i, 0])
        torch.sub(row[1], row[2], out=dw[:, i, 1])
        dw[:, i, 1] /= 2
        torch.add(row[3], sides, out=dw[:, i, 2])
    return dw.permute(0, 3, 1, 2)


def plain_kernel(transformed: Tensor) -> Tensor:
    """The 3x3 kernel of a transformed one: (16, C_out, C_in) -> (C_out, C_in, 3, 3)."""
    u = transformed.unflatten(0, (4, 4))
    rows = torch.stack((u[0], u[1] - u[2], u[3]))  # G has the left inverse 1 0 0 0, 0 1 -1 0, 0 0 0 1
    taps = torch.stack((rows[:, 0], rows[:, 1] - rows[:, 2], rows[:, 3]), dim=1)
    return taps.permute(2, 3, 0, 1).contiguous()


# --- tiles --------------------------------------------------------------------------------------------


def _input_tiles(x: Tensor, rows: int, columns: int) -> Tensor:
    """B^T d B of every tile: (N, C, H, W) -> (16, N * rows * columns, C)."""
    height, width = x.shape[-2:]
    x = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 2 * columns + 1 - width, 1, 2 * rows + 1 - height))
    tiles = x.new_empty((16, x.shape[0], rows, columns, x.shape[-1]))
    a, b, c, d = (x[:, i : i + 2 * rows - 1 : 2] for i in range(4))
    for i, line in enumerate((a - c, b + c, c - b, b - d)):
        e, f, g, h = (line[:, :, j : j + 2 * columns - 1 : 2] for j in range(4))
        torch.sub(e, g, out=tiles[4 * i])
        torch.add(f, g, out=tiles[4 * i + 1])
        torch.sub(g, f, out=tiles[4 * i + 2])
        torch.sub(f, h, out=tiles[4 * i + 3])
    return tiles.flatten(1, 3)


def _input_gradient(tiles: Tensor, shape: torch.Size) -> Tensor:
    """The adjoint of `_input_tiles`: (16, N * rows * columns, C) -> (N, C, H, W)."""
    batch, channels, height, width = shape
    rows, columns = reduced(height, 2), reduced(width, 2)
    t = tiles.view(4, 4, batch, rows, columns, channels)
    lines = t.new_zeros((4, batch, rows, 2 * columns + 2, channels))
    _overlap(lines, 3, (t[:, 0], t[:, 1], t[:, 2], t[:, 3]))
    image = t.new_zeros((batch, 2 * rows + 2, 2 * columns + 2, channels))
    _overlap(image, 1, (lines[0], lines[1], lines[2], lines[3]))
    return image[:, 1 : 1 + height, 1 : 1 + width].permute(0, 3, 1, 2)


def _overlap(out: Tensor, dim: int, parts: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    """Add B of every tile where the tile lies: tiles are four long and start at every second place."""
    p, q, r, s = parts
    count = (out.shape[dim] - 2) // 2

    def places(start: int) -> Tensor:
        return out.narrow(dim, start, 2 * count).unflatten(dim, (count, 2)).select(dim + 1, 0)

    places(0).add_(p)
    places(1).add_(q).sub_(r).add_(s)
    places(2).sub_(p).add_(q).add_(r)
    out.narrow(dim, 3, 2 * count - 1)[(slice(None),) * dim + (slice(None, None, 2),)].sub_(s)


def _output_map(products: Tensor, batch: int, rows: int, columns: int) -> Tensor:
    """A^T m A of every tile: (16, N * rows * columns, C) -> (N, 2 rows, 2 columns, C)."""
    m = products.view(4, 4, batch, rows, columns, -1)
    out = m.new_empty((batch, rows, 2, columns, 2, m.shape[-1]))
    for i, line in enumerate((m[0] + m[1] + m[2], m[1] - m[2] - m[3])):
        torch.add(line[0] + line[1], line[2], out=out[:, :, i, :, 0])
        torch.sub(line[1] - line[2], line[3], out=out[:, :, i, :, 1])
    return out.view(batch, 2 * rows, 2 * columns, -1)


def _output_gradient(dy: Tensor, rows: int, columns: int) -> Tensor:
    """The adjoint of `_output_map`: (N, C, H, W) -> (16, N * rows * columns, C)."""
    height, width = dy.shape[-2:]
    y = dy.permute(0, 2, 3, 1)
    if height % 2 or width % 2:
        y = F.pad(y, (0, 0, 0, width % 2, 0, height % 2))
    out = y.new_empty((4, 4, y.shape[0], rows, columns, y.shape[-1]))
    first, second = y[:, 0::2], y[:, 1::2]
    for i, line in enumerate((first, first + second, first - second, second)):
        left, right = line[:, :, 0::2], line[:, :, 1::2]
        sign = -1 if i == 3 else 1
        torch.mul(left, sign, out=out[i, 0])
        torch.add(left, right, out=out[i, 1])
        torch.sub(left, right, out=out[i, 2])
        torch.mul(right, -sign, out=out[i, 3])
        if i == 3:
            out[i, 1:3].neg_()
    return out.flatten(2, 4).flatten(0, 1)


# --- operators ----------------------------------------------------------------------------------------
# They are opaque to torch.compile, which would else spread the tiles' sums over loops of its own.

_CHUNK = 2**24  # values of tiles that are held at once


def _chunks(x: Tensor, out: int) -> tuple[int, int, int]:
    """Rows and columns of tiles, and how many images are worked on at once."""
    rows, columns = reduced(x.shape[-2], 2), reduced(x.shape[-1], 2)
    return rows, columns, max(1, _CHUNK // (16 * rows * columns * (x.shape[1] + out)))


def _empty(x: Tensor, out: int) -> Tensor:
    shape = (x.shape[0], out, x.shape[-2], x.shape[-1])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


@library.custom_op("bu2td::winograd", mutates_args=())
def winograd_conv(x: Tensor, transformed: Tensor) -> Tensor:
    """A 3x3 convolution of stride 1 and padding 1, without autograd.

    Args:
        x: (N, C_in, H, W).
        transformed: `transformed_kernel`, (16, C_out, C_in).

    Returns:
        (N, C_out, H, W), channels last.
    """
    height, width = x.shape[-2:]
    rows, columns, step = _chunks(x, transformed.shape[1])
    y = _empty(x, transformed.shape[1])
    for start in range(0, x.shape[0], step):
        part = x[start : start + step]
        products = torch.bmm(_input_tiles(part, rows, columns), transformed.transpose(1, 2))
        found = _output_map(products, part.shape[0], rows, columns)
        y[start : start + step].permute(0, 2, 3, 1).copy_(found[:, :height, :width])
    return y


@winograd_conv.register_fake
def _(x: Tensor, transformed: Tensor) -> Tensor:
    return _empty(x, transformed.shape[1])


@library.custom_op("bu2td::winograd_backward", mutates_args=())
def _winograd_backward(dy: Tensor, x: Tensor, weight: Tensor, needs_x: bool) -> tuple[Tensor, Tensor]:
    rows, columns, step = _chunks(x, weight.shape[0])
    transformed = transformed_kernel(weight)
    gradient = torch.zeros_like(transformed)
    dx = _empty(x, x.shape[1] if needs_x else 0)
    for start in range(0, x.shape[0], step):
        products = _output_gradient(dy[start : start + step], rows, columns)
        part = x[start : start + step]
        gradient.baddbmm_(products.transpose(1, 2), _input_tiles(part, rows, columns))
        if needs_x:
            dx[start : start + step] = _input_gradient(torch.bmm(products, transformed), part.shape)
    return dx, _kernel_gradient(gradient)


@_winograd_backward.register_fake
def _(dy: Tensor, x: Tensor, weight: Tensor, needs_x: bool) -> tuple[Tensor, Tensor]:
    dw = torch.empty_like(weight, memory_format=torch.channels_last)
    return _empty(x, x.shape[1] if needs_x else 0), dw


def _keep_all(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, bool], output: Any) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.needs_x = inputs[3]


def _second_gradients(ctx: Any, ddx: Tensor, ddw: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None]:
    """Gradients of the gradients, which are linear in dy, x and the weight each; by ordinary convolutions."""
    dy, x, weight = ctx.saved_tensors
    of_dy = F.conv2d(x, ddw, padding=1)
    of_x = conv2d_input(x.shape, ddw, dy, padding=1)
    if not ctx.needs_x:
        return of_dy, of_x, None, None
    of_weight = conv2d_weight(ddx, weight.shape, dy, padding=1)
    return of_dy + F.conv2d(ddx, weight, padding=1), of_x, of_weight, None


_winograd_backward.register_autograd(_second_gradients, setup_context=_keep_all)


@library.custom_op("bu2td::winograd_trained", mutates_args=())
def trained_winograd_conv(x: Tensor, weight: Tensor) -> Tensor:
    """A 3x3 convolution of stride 1 and padding 1 that trains.

    All three passes of a training step are of minimal filtering: the gradients are the adjoints of the forward
    form, with the tiles of x made again in place of being kept.

    Args:
        x: (N, C_in, H, W).
        weight: (C_out, C_in, 3, 3).

    Returns:
        (N, C_out, H, W), channels last.
    """
    return winograd_conv(x, transformed_kernel(weight))


@trained_winograd_conv.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return _empty(x, weight.shape[0])


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor]:
    x, weight = ctx.saved_tensors
    needs_x = ctx.needs_input_grad[0]
    dx, dw = _winograd_backward(dy, x, weight, needs_x)
    return (dx if needs_x else None), dw


trained_winograd_conv.register_autograd(_gradients, setup_context=_keep)


class WinogradConv2d(nn.Conv2d):
    """A 3x3 convolution by minimal filtering, with the parameters of the ordinary one; it trains.

    Args:
        conv: the convolution, whose parameters are taken over: 3x3, of stride, padding, dilation and groups 1.

    Shapes: (N, C_in, H, W) -> (N, C_out, H, W).
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        bias = conv.bias is not None
        super().__init__(conv.in_channels, conv.out_channels, 3, padding=1, bias=bias, device="meta")
        self.weight, self.bias = conv.weight, conv.bias
        self.train(conv.training)

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of x; under autocast, transforms and export the ordinary one."""
        if takes_ordinary(x):
            return super().forward(x)
        y = trained_winograd_conv(x, self.weight)
        return y if self.bias is None else y + self.bias[:, None, None]
