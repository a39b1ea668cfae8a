"""Convolutions, plain, with dynamic 'same' padding, and with standardised weights."""

from typing import Any

import torch
from torch import nn

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
    pair,
    register_converter,
    resized,
)


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


@register_converter(nn.Conv2d)
class ConvConverter(Convolution):
    """A 2-d convolution and its subclasses."""

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
