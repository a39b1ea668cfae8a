"""Convolutions, plain, with dynamic 'same' padding, and with standardised weights."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from bu2td.ir import is_tensor
from bu2td.ops import (
    Change,
    Converter,
    Convolution,
    ConvShape,
    NoRuleError,
    Rebuilt,
    Role,
    Site,
    System,
    Term,
    pair,
    register_converter,
    resized,
    same_padding,
    slide,
)
from bu2td.ops.fields import grouped


def pads_itself(layer: Any) -> bool:
    """Whether a layer pads as it runs, as TensorFlow's SAME does."""
    dynamic = getattr(layer, "same_pad", False) or getattr(layer, "dynamic_padding", False)
    return bool(dynamic) or type(layer).__name__.endswith("Same")


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


@register_converter(
    nn.Conv2d, "timm.layers.conv2d_same.Conv2dSame", "timm.layers.conv2d_same.Conv2dSameExport",
    "timm.layers.std_conv.StdConv2d", "timm.layers.std_conv.StdConv2dSame",
)  # fmt: skip
class ConvConverter(Convolution):
    """A 2-d convolution, and what timm makes of it."""

    def pads_itself(self, conv: Any) -> bool:
        """Whether a subclass does."""
        return pads_itself(conv)

    def with_shape(self, conv: Any, shape: ConvShape) -> nn.Module:
        """A convolution of the same class; a plain one where a subclass pads in a way of its own."""
        new: Any = super().with_shape(conv, shape)
        if shape.same and not self.pads_itself(conv) and not _keeps_size(new):
            padding, new.padding = new.padding, conv.padding  # a subclass whose forward pads
            if not _keeps_size(new):
                ends, bias = (shape.inputs, shape.outputs, shape.kernel), conv.bias is not None
                with torch.device("meta"):
                    return nn.Conv2d(*ends, 1, padding, conv.dilation, shape.groups, bias)
        elif not isinstance(new.padding, str):
            new._reversed_padding_repeated_twice = [p for p in reversed(pair(new.padding)) for _ in range(2)]
        return new


@register_converter(nn.Conv1d)
class ChannelConvConverter(Converter):
    """A 1-d convolution that slides over the channels (efficient channel attention): any width will do."""

    role = Role.GATE

    def tie(self, site: Site, system: System) -> Any:
        """(N, 1, C) -> (N, 1, C); anything else is opaque."""
        entry, before = system.of(site.tensor()), site.input_dims()
        if [d.kind for d in before] != ["batch", "channel", "channel"] or site.layer.in_channels != 1:
            raise NoRuleError("a 1-d convolution over anything else than channels has no rule")
        same = site.value[2].size == before[2].size
        out = entry[2] if same else system.constant(site.value[2].size)
        if not same:
            system.equal(entry[2], system.constant(before[2].size))
        return (entry[0], system.constant(site.value[1].size), out)

    def rebuild(self, site: Site, change: Change) -> Rebuilt:
        return Rebuilt(module=resized(site.layer, {}, {}))


@register_converter(F.conv2d)
class FunctionalConvConverter(Converter):
    """``F.conv2d(x, weight, bias, ..)``: a convolution whose weight the graph computes (masked, standardised).

    Its kernel stays as large as it is: what computes the weight may know of it.
    """

    role = Role.CONV

    def kernel(self, site: Site) -> tuple[int, int]:
        high, wide = (d.size for d in site.dims[_weight(site).name][2:])
        return high, wide

    def stride(self, site: Site) -> tuple[int, int]:
        return pair(site.argument(3, "stride", 1))

    def groups(self, site: Site) -> int:
        return int(site.literal(6, "groups", 1))

    def pads(self, site: Site) -> bool:
        return site.argument(4, "padding", 0) not in (0, (0, 0), [0, 0], "valid")

    def tie(self, site: Site, system: System) -> Any:
        """As of any convolution, and the weight has the widths of both ends."""
        entry, weight = system.of(site.tensor()), system.of(_weight(site))
        count, width = self.groups(site), site.input_dims()[1].size
        for side, dim in zip(weight[2:], site.dims[_weight(site).name][2:], strict=True):
            system.equal(side, system.constant(dim.size))
        if 1 < count == width:
            out = tuple(Term(t.variable, t.scale * (site.value[1].size // width)) for t in entry[1])
            system.equal(weight[0], out)
        else:
            system.equal(entry[1], tuple(Term(t.variable, t.scale * count) for t in weight[1]))
            out = weight[0]
            if count > 1:
                system.divisible(out, count, site.node.name)
        bias = site.argument(2, "bias")
        if isinstance(bias, fx.Node):
            system.equal(system.of(bias)[0], out)
        return (entry[0], out, *(None if d.kind != "channel" else system.constant(d.size) for d in site.value[2:]))

    def rebuild(self, site: Site, change: Change) -> Rebuilt:
        """Rewrite stride, padding and groups."""
        stride = (1, 1) if change.stride_one else self.stride(site)
        padding, dilation = site.argument(4, "padding", 0), pair(site.argument(5, "dilation", 1))
        kernel, count = self.kernel(site), self.groups(site)
        if change.keep_resolution and stride == (1, 1):
            padding = same_padding(kernel, dilation) if kernel[0] % 2 and kernel[1] % 2 else "same"
        groups = site.argument(6, "groups", 1)
        if isinstance(groups, int) and 1 < count == site.input_dims()[1].size:
            groups = change.sizes[site.source()][1]
        args = (site.tensor(), _weight(site), site.argument(2, "bias"), stride, padding, dilation, groups)
        return Rebuilt(args=args, kwargs={})

    def dense(self, site: Site, in_channels: int, out_channels: int, kernel: tuple[int, int]) -> nn.Module:
        """A plain convolution: how the weight is computed belongs to the site."""
        bias = site.argument(2, "bias") is not None
        with torch.device("meta"):
            return nn.Conv2d(in_channels, out_channels, kernel, 1, same_padding(kernel, (1, 1)), bias=bias)

    def interval(self, site: Site, fields: Mapping[str, Any]) -> Any:
        """The window over both axes; channels mix within their group."""
        count = self.groups(site)
        field = grouped(fields[site.source()], count, site.value[1].size // count)
        padding, dilation = site.literal(4, "padding", 0), pair(site.argument(5, "dilation", 1))
        return slide(field, site, self.kernel(site), self.stride(site), padding, dilation)


def _weight(site: Site) -> fx.Node:
    """What a functional layer reads as its weight."""
    weight = site.argument(1, "weight")
    if not isinstance(weight, fx.Node) or not is_tensor(site.dims[weight.name]):
        raise NoRuleError(f"the weight {weight!r} is no tensor of the graph")
    return weight
