"""Convolutions of networks that are optimised for inference: norm folded in, sum and activation fused.

On the CPU a fused convolution is one call of oneDNN with weights that are laid out for it once; under autograd
(gradients of the input), autocast, tracing, torch.compile and on other devices it is the same function in plain
PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bu2td.nn import is_transformed
from bu2td.optimization.kernels.lowres import Pair, fits, sums_of_axis, transposed_conv
from bu2td.optimization.kernels.ordinary import is_exporting
from bu2td.optimization.kernels.small import Small
from bu2td.optimization.kernels.winograd import plain_kernel, transformed_kernel, winograd_conv

#: Activations that fuse: their name in oneDNN -> the function, of a value and the activation's numbers.
ACTIVATIONS: Mapping[str, Callable[..., Tensor]] = {
    "none": lambda x: x,
    "relu": F.relu,
    "hardtanh": F.hardtanh,
    "leaky_relu": F.leaky_relu,
    "swish": F.silu,
    "hardswish": F.hardswish,
    "sigmoid": torch.sigmoid,
}
_IN_PLACE: Mapping[str, Callable[..., Tensor]] = {
    "none": lambda x: x,
    "relu": torch.relu_,
    "hardtanh": F.hardtanh_,
    "leaky_relu": F.leaky_relu_,
    "swish": lambda x: F.silu(x, inplace=True),
    "hardswish": lambda x: F.hardswish(x, inplace=True),
    "sigmoid": torch.sigmoid_,
}

_PLAIN = (Tensor, nn.Parameter)

#: How a fused convolution computes: as it is; a transposed convolution that reads a map at low resolution
#: (`bu2td.optimization.kernels.lowres`); minimal filtering (`bu2td.optimization.kernels.winograd`).
FORMS = ("direct", "low", "winograd")


def activation_of(module: nn.Module) -> tuple[str, tuple[float, ...]] | None:
    """An activation module as a name in `ACTIVATIONS` and its numbers; None where it does not fuse."""
    kind = type(module)
    layer: Any = module
    if kind is nn.Hardtanh:
        return "hardtanh", (float(layer.min_val), float(layer.max_val))
    if kind is nn.LeakyReLU:
        return "leaky_relu", (float(layer.negative_slope),)
    names: dict[Any, tuple[str, tuple[float, ...]]] = {
        nn.Identity: ("none", ()),
        nn.ReLU: ("relu", ()),
        nn.ReLU6: ("hardtanh", (0.0, 6.0)),
        nn.SiLU: ("swish", ()),
        nn.Hardswish: ("hardswish", ()),
        nn.Sigmoid: ("sigmoid", ()),
    }
    return names.get(kind)


def _fuses(*tensors: Tensor | None) -> bool:
    """Whether float32 tensors on the CPU are computed with, outside autograd, transforms, export and autocast."""
    compiling = torch.compiler.is_compiling()
    if is_exporting(*tensors) if compiling else torch.jit.is_tracing():
        return False
    if is_transformed() or torch.is_autocast_enabled("cpu"):
        return False
    grad = torch.is_grad_enabled()
    for tensor in tensors:
        if tensor is None:
            continue
        if not compiling and type(tensor) not in _PLAIN:  # a proxy of symbolic tracing, too
            return False
        if tensor.dtype != torch.float32 or not tensor.is_cpu or (grad and tensor.requires_grad):
            return False
    return True


def has_onednn() -> bool:
    """Whether this build of PyTorch has the fused calls of oneDNN."""
    names = ("_convolution_pointwise", "_convolution_pointwise_", "_convolution_transpose_pointwise")
    return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in names)


_ONEDNN = has_onednn()


class FusedConv2d(nn.Module):
    """act(conv(x) + bias + other), for inference.

    Args:
        weight: (C_out, C_in / groups, k_h, k_w), with a norm folded in where there was one.
        bias: (C_out,) or None.
        padding, stride, dilation, groups: of the convolution.
        act: a name of `ACTIVATIONS`.
        numbers: of the activation.
        form: one of `FORMS`.
        factor: of the upsampling in front of it, for the form "low"; ``weight`` is then `summed_kernel`'s.
        reuse: whether the result may take the memory of ``other``.

    Shapes: (N, C_in, h, w), other (N, C_out, H, W) -> (N, C_out, H, W).
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    back_rows: Tensor
    back_columns: Tensor

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        *,
        padding: Pair = (0, 0),
        stride: Pair = (1, 1),
        dilation: Pair = (1, 1),
        groups: int = 1,
        act: str = "none",
        numbers: tuple[float, ...] = (),
        form: str = "direct",
        factor: Pair = (1, 1),
        reuse: bool = False,
    ) -> None:
        super().__init__()
        if form == "winograd":
            weight = transformed_kernel(weight)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.padding, self.stride, self.dilation, self.groups = padding, stride, dilation, groups
        self.act, self.numbers = act, numbers
        self.form, self.factor, self.reuse = form, factor, reuse
        self._small = Small.of(weight, stride, padding, dilation, groups) if form == "direct" else None
        if form == "low":
            for name, back in zip(("back_rows", "back_columns"), self._inverses(), strict=True):
                self.register_buffer(name, back.to(self.weight), persistent=False)
        self._packed: tuple[Any, Tensor] | None = None
        self.eval()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packed": None}  # laid out again where it is needed

    # -- the function ------------------------------------------------------------------------------

    def forward(self, x: Tensor, other: Tensor | None = None, like: Tensor | None = None) -> Tensor:
        """Return the fused result; ``like`` lends its size to the form "low"."""
        if self.form == "low":
            assert like is not None
            if is_exporting(x) or not fits(x, self.factor, like.shape[-2:]):
                return self._upsampled(x, other, like.shape[-2:])
        weight = self.weight
        # A compiler fuses sums and activations itself.
        if (self.form == "winograd" or not torch.compiler.is_compiling()) and _fuses(x, other, weight):
            if self.form == "winograd":
                return self._winograd(x, other)
            if self._small is not None and self._small.holds(x):
                return self._in_place(self._small(x, weight, self.bias), other)
            if _ONEDNN:
                return self._onednn(x, weight, other)
        return self._finish(self._convolve(x), other)

    def _finish(self, y: Tensor, other: Tensor | None) -> Tensor:
        if other is not None:
            y = y + other
        return ACTIVATIONS[self.act](y, *self.numbers)

    def _convolve(self, x: Tensor) -> Tensor:
        if self.form == "low":
            return transposed_conv(x, self.weight, self.bias, self.factor, self.padding, self.groups)
        weight = plain_kernel(self.weight) if self.form == "winograd" else self.weight
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)

    def _upsampled(self, x: Tensor, other: Tensor | None, size: Sequence[int]) -> Tensor:
        """The form "low" at a size that its factor does not give: the map is upsampled."""
        x = F.interpolate(x, size=size, mode="nearest")
        y = F.conv2d(x, self._high(), self.bias, 1, self.padding, self.dilation, self.groups)
        return self._finish(y, other)

    def _high(self) -> Tensor:
        """The kernel at high resolution that the form "low" was made of (its taps are sums of that one's)."""
        inner, narrow = self.weight.shape[:2]
        rows, columns = self.back_rows, self.back_columns
        taps = self.weight.reshape(self.groups, inner // self.groups, narrow, rows.shape[1], columns.shape[1])
        high = (rows @ taps @ columns.t()).transpose(1, 2)
        return high.reshape(self.groups * narrow, inner // self.groups, rows.shape[0], columns.shape[0])

    def _inverses(self) -> list[Tensor]:
        """What undoes the sums of the form "low" along each axis: (k, d (k - 1) + s)."""
        axes = zip(self.padding, self.factor, self.dilation, strict=True)
        return [torch.linalg.pinv(sums_of_axis(2 * p // d + 1, s, d).double()) for p, s, d in axes]

    # -- on the CPU --------------------------------------------------------------------------------

    def _in_place(self, y: Tensor, other: Tensor | None) -> Tensor:
        """Add and activate in the memory of a result."""
        if other is not None:
            y += other
        return _IN_PLACE[self.act](y, *self.numbers)

    def _winograd(self, x: Tensor, other: Tensor | None) -> Tensor:
        y = winograd_conv(x, self.weight)
        if self.bias is not None:
            y += self.bias[:, None, None]
        return self._in_place(y, other)

    def _weight_for(self, weight: Tensor, x: Tensor) -> Tensor:
        """The weight in oneDNN's own layout, made once for every value that the weight has."""
        key = (weight.data_ptr(), 0 if weight.is_inference() else weight._version)
        if self._packed is None or self._packed[0] != key:
            numbers: Any = (self.stride, self.dilation, self.groups, list(x.shape))
            if self.form == "low":
                numbers = ((0, 0), self.factor, (1, 1), self.groups, list(x.shape))
                packed = torch.ops.mkldnn._reorder_convolution_transpose_weight(weight, self.padding, *numbers)
            else:
                packed = torch.ops.mkldnn._reorder_convolution_weight(weight, self.padding, *numbers)
            self._packed = (key, packed)
        return self._packed[1]

    def _grouped(self, x: Tensor, other: Tensor | None) -> Tensor:
        """The form "low" of a grouped convolution, for which oneDNN's fused call is slow."""
        y = transposed_conv(x, self.weight, self.bias, self.factor, self.padding, self.groups)
        return self._in_place(y, other)

    def _onednn(self, x: Tensor, weight: Tensor, other: Tensor | None) -> Tensor:
        if self.form == "low" and self.groups > 1:
            return self._grouped(x, other)
        call, bias = torch.ops.mkldnn, self.bias
        weight, last = self._weight_for(weight, x), (self.act, list(self.numbers), "")
        if self.form == "low":
            sizes: Any = (self.padding, (0, 0), self.factor, (1, 1), self.groups)
            if other is None:
                return call._convolution_transpose_pointwise(x, weight, bias, *sizes, *last)
            y = call._convolution_transpose_pointwise(x, weight, bias, *sizes, "none", [], "")
            return self._in_place(y, other)
        sizes = (self.padding, self.stride, self.dilation, self.groups)
        if other is None:
            return call._convolution_pointwise(x, weight, bias, *sizes, *last)
        if not self.reuse or not other.is_contiguous(memory_format=torch.channels_last):
            y = call._convolution_pointwise(x, weight, bias, *sizes, "none", [], "")
            return self._in_place(y, other)  # faster than a sum into a third map
        unary = "relu" if self.act == "relu" else None
        y = call._convolution_pointwise_(other, x, weight, bias, *sizes, "add", 1.0, unary, [], "")
        return y if unary else _IN_PLACE[self.act](y, *self.numbers)

    def extra_repr(self) -> str:
        """Show the configuration when printed."""
        shape = "x".join(map(str, self.weight.shape))
        act = "" if self.act == "none" else f", {self.act}"
        return f"{shape}, {self.form}{f' x{self.factor[0]}' if self.form == 'low' else ''}{act}"


class FusedNorm(nn.Module):
    """act(scale x + shift) per channel: a batch norm in eval mode that no convolution takes in.

    One pass over the map and one in its place, where a norm and an activation take three.

    Args:
        scale, shift: (C,).
        act: a name of `ACTIVATIONS`.
        numbers: of the activation.

    Shapes: (N, C, H, W) -> (N, C, H, W).
    """

    def __init__(self, scale: Tensor, shift: Tensor, act: str = "none", numbers: tuple[float, ...] = ()) -> None:
        super().__init__()
        self.scale = nn.Parameter(scale[:, None, None], requires_grad=False)
        self.shift = nn.Parameter(shift[:, None, None], requires_grad=False)
        self.act, self.numbers = act, numbers
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised map."""
        y = torch.addcmul(self.shift, x, self.scale)
        ordinary = is_exporting(x) or is_transformed()
        in_place = not ordinary and not (torch.is_grad_enabled() and y.requires_grad)
        return (_IN_PLACE if in_place else ACTIVATIONS)[self.act](y, *self.numbers)

    def extra_repr(self) -> str:
        """Show the configuration when printed."""
        return f"{self.scale.numel()}, {self.act}"


class FusedMerge(nn.Module):
    """A merge in two terms for inference, see `bu2td.optimization.kernels.split`.

    Post-activation it is act(W1 x + (W1 + W2) l). Pre-activation a norm and activation f stand in front of the
    convolution, one channel at a time, so that W f(cat([x + l, l])) = W1 f1(x + l) + W2 f2(l).

    Args:
        of_x: the convolution that reads x, with the bias.
        of_lateral: the convolution that reads the lateral, adds the other's result and activates.
        norms: f1 and f2 of a pre-activation merge.
        add: whether f1 reads x + l; else x.

    Shapes: (N, C, h, w), (N, C, H, W) -> (N, C, H, W).
    """

    def __init__(
        self,
        of_x: FusedConv2d,
        of_lateral: FusedConv2d,
        norms: tuple[FusedNorm, FusedNorm] | None = None,
        add: bool = False,
    ) -> None:
        super().__init__()
        self.of_x, self.of_lateral = of_x, of_lateral
        self.norm_x: FusedNorm | None = norms[0] if norms else None
        self.norm_lateral: FusedNorm | None = norms[1] if norms else None
        self.add = add

    def forward(self, x: Tensor, lateral: Tensor) -> Tensor:
        """Return the merged features."""
        if self.norm_x is None or self.norm_lateral is None:
            return self.of_lateral(lateral, self.of_x(x, like=lateral))
        first = self.of_x(self.norm_x(x + lateral if self.add else x))
        return self.of_lateral(self.norm_lateral(lateral), first)
