"""Deformable convolutions."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from bu2td.ops import Change, Rebuilt, Site, System, register_converter
from bu2td_converters.conv import ConvConverter


@register_converter("torchvision.ops.deform_conv.DeformConv2d")
class DeformConvConverter(ConvConverter):
    """A convolution whose taps are moved by offsets, a map of two numbers per tap; masks scale the taps."""

    def tie(self, site: Site, system: System) -> Any:
        """As of a plain convolution; offsets and masks are as many as the window has taps."""
        for i in range(1, len(site.node.args)):
            if site.argument(i, "") is not None:
                width = system.of(site.tensor(i))[1]
                system.equal(width, system.constant(site.input_dims(i)[1].size))
        return super().tie(site, system)

    def rebuild(self, site: Site, change: Change) -> Rebuilt:
        """The window stays, as the offsets belong to its taps."""
        return super().rebuild(site, change) if change.kernel is None else Rebuilt()

    def dense(self, site: Site, in_channels: int, out_channels: int, kernel: tuple[int, int]) -> nn.Module:
        """A plain convolution: nothing has offsets for another."""
        padding, bias = (kernel[0] // 2, kernel[1] // 2), site.layer.bias is not None
        with torch.device("meta"):
            return nn.Conv2d(in_channels, out_channels, kernel, 1, padding, bias=bias)

    def interval(self, site: Site, fields: Mapping[str, Any]) -> Any:
        """Offsets may reach anywhere."""
        return None
