"""Convolutions, plain, with dynamic 'same' padding, and with standardised weights."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from bu2td.ops.converter import Change, Converter, Rebuilt, Site, System, Term
from bu2td.ops.fields import Field, grouped, windows
from bu2td.ops.registry import register_converter
from bu2td.ops.roles import Role
from bu2td.ops.surgery import resized


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[-1]))


def same_padding(kernel: tuple[int, int], dilation: tuple[int, int]) -> tuple[int, int]:
    """Padding that keeps the size at stride 1: d (k - 1) / 2 per axis, k odd."""
    return (dilation[0] * (kernel[0] - 1) // 2, dilation[1] * (kernel[1] - 1) // 2)


def sliding(field: Field, site: Site, kernel: tuple[int, int], stride: tuple[int, int]) -> Field | None:
    """Slide a layer's window over the last two dimensions of a field, with the layer's own padding.

    None where the layer makes more or fewer positions than its settings say.
    """
    layer = site.layer
    dilation = _pair(getattr(layer, "dilation", 1))
    padding: Any = getattr(layer, "padding", 0)
    mode = getattr(layer, "padding_mode", "zeros")
    for i, axis in enumerate((-2, -1)):
        n, size = site.input_dims()[axis].size, site.value[axis].size
        reach = dilation[i] * (kernel[i] - 1) + 1
        total = max(0, (size - 1) * stride[i] + reach - n)
        if padding == "same" or _pads_itself(layer):
            before, after = total // 2, total - total // 2
        else:
            before = after = 0 if padding == "valid" else _pair(padding)[i]
            expected = (n + 2 * before - reach) // stride[i] + 1
            if size != expected and not (getattr(layer, "ceil_mode", False) and size == expected + 1):
                return None
        field = windows(field, axis, size, kernel[i], stride[i], before, dilation[i], mode, after)
    return field


def _keeps_size(conv: Any) -> bool:
    """Whether a convolution rebuilt with stride 1 keeps the size; measured where its forward is its own."""
    if type(conv).forward is nn.Conv2d.forward:
        return True
    side = 64
    with torch.no_grad():
        try:
            return conv(torch.empty(1, conv.in_channels, side, side, device="meta")).shape[2:] == (side, side)
        except (RuntimeError, TypeError):
            return True


def _pads_itself(layer: Any) -> bool:
    """Whether a layer pads as it runs, as TensorFlow's SAME does: ceil(n / stride) positions, half in front."""
    dynamic = getattr(layer, "same_pad", False) or getattr(layer, "dynamic_padding", False)
    return bool(dynamic) or type(layer).__name__.endswith("Same")


@register_converter(nn.Conv2d)
class ConvConverter(Converter):
    """A 2-d convolution and its subclasses. Parameters led by the output width follow it."""

    role = Role.CONV

    def kernel(self, site: Site) -> tuple[int, int]:
        """The window of the convolution."""
        return _pair(site.layer.kernel_size)

    def stride(self, site: Site) -> tuple[int, int]:
        """The stride of the convolution."""
        return _pair(site.layer.stride)

    def tie(self, site: Site, system: System) -> Any:
        """A dense convolution cuts widths apart, a depthwise one scales, a grouped one divides."""
        conv: Any = site.module
        entry = system.of(site.node.args[0])
        width = entry[1]
        if conv.groups > 1 and conv.groups == conv.in_channels:
            multiplier = conv.out_channels // conv.in_channels
            out = tuple(Term(t.variable, t.scale * multiplier) for t in width)
        else:
            out = system.fresh(conv.out_channels, site.node.name)
            if conv.groups > 1:
                system.divisible(width, conv.groups, site.node.name, relaxable=True)
                system.divisible(out, conv.groups, site.node.name, relaxable=True)
        return (
            entry[0],
            out,
            *(None if d.kind != "channel" else system.constant(d.size) for d in site.value[2:]),
        )

    def rebuild(self, site: Site, change: Change) -> Rebuilt:
        """Build the convolution for other widths, kernel or stride."""
        conv: Any = site.module
        in_channels = change.sizes[site.source()][1]
        out_channels = change.sizes[site.node.name][1]
        depthwise = conv.groups > 1 and conv.groups == conv.in_channels
        groups = in_channels if depthwise else _groups(conv.groups, in_channels, out_channels)
        kernel = change.kernel or _pair(conv.kernel_size)
        stride = (1, 1) if change.stride_one else _pair(conv.stride)
        return Rebuilt(
            module=self.with_shape(
                conv,
                in_channels,
                out_channels,
                groups,
                kernel,
                stride,
                same=change.keep_resolution and stride == (1, 1),
            )
        )

    def interval(self, site: Site, fields: Mapping[str, Any]) -> Any:
        """The window over both axes; channels mix within their group."""
        conv = site.layer
        field = grouped(fields[site.source()], conv.groups, conv.out_channels // conv.groups)
        return sliding(field, site, self.kernel(site), self.stride(site))

    def with_shape(
        self,
        conv: Any,
        in_channels: int,
        out_channels: int,
        groups: int,
        kernel: tuple[int, int],
        stride: tuple[int, int],
        same: bool = True,
    ) -> nn.Module:
        """A convolution of the same class and settings with another shape."""
        # Convolutions that pad as they run (TensorFlow's SAME) need no padding of their own.
        pads_itself = getattr(conv, "same_pad", False) or getattr(conv, "dynamic_padding", False)
        padding: Any = same_padding(kernel, _pair(conv.dilation)) if same and not pads_itself else conv.padding
        shapes = {
            name: (out_channels, *parameter.shape[1:])
            for name, parameter in conv._parameters.items()
            if parameter is not None and parameter.shape[:1] == (conv.out_channels,)
        }
        shapes["weight"] = (out_channels, in_channels // groups, *kernel)
        attributes = {
            "in_channels": in_channels,
            "out_channels": out_channels,
            "groups": groups,
            "kernel_size": kernel,
            "stride": stride,
            "padding": padding,
        }
        new: Any = resized(conv, shapes, attributes)
        if same and not pads_itself and not _keeps_size(new):
            new.padding = conv.padding  # a subclass whose forward pads
            if not _keeps_size(new):
                with torch.device("meta"):
                    return nn.Conv2d(
                        in_channels, out_channels, kernel, 1, padding, conv.dilation, groups, conv.bias is not None
                    )
            return new
        if not isinstance(padding, str):
            new._reversed_padding_repeated_twice = [p for p in reversed(padding) for _ in range(2)]
        return new

    def dense(self, site: Site, in_channels: int, out_channels: int, kernel: tuple[int, int]) -> nn.Module:
        """A dense convolution (groups 1, dilation 1, stride 1) of this site's class and bias."""
        new: Any = resized(site.layer, {}, {"dilation": (1, 1)})
        return self.with_shape(new, in_channels, out_channels, 1, kernel, (1, 1))


@register_converter(nn.Conv1d)
class ChannelConvConverter(Converter):
    """A 1-d convolution that slides over the channels (efficient channel attention): any width will do."""

    role = Role.GATE

    def tie(self, site: Site, system: System) -> Any:
        """(N, 1, C) -> (N, 1, C); anything else is opaque."""
        entry, before = system.of(site.node.args[0]), site.input_dims()
        if [d.kind for d in before] != ["batch", "channel", "channel"] or site.layer.in_channels != 1:
            raise ValueError("a 1-d convolution over anything else than channels has no rule")
        same = site.value[2].size == before[2].size
        out = entry[2] if same else system.constant(site.value[2].size)
        if not same:
            system.equal(entry[2], system.constant(before[2].size))
        return (entry[0], system.constant(site.value[1].size), out)

    def rebuild(self, site: Site, change: Change) -> Rebuilt:
        """Copy it."""
        return Rebuilt(module=resized(site.layer, {}, {}))


def _groups(groups: int, in_channels: int, out_channels: int) -> int:
    """The largest group count up to the given one that divides both widths."""
    return next(g for g in range(groups, 0, -1) if in_channels % g == 0 == out_channels % g)
