"""Layers of timm that need a rule of their own. Keyed by qualified name: timm need not be installed."""

from typing import Any

from bu2td_converters.conv import ConvConverter
from torch import nn

from bu2td.converter import Change, Rebuilt, Site, System, register_converter, resized


@register_converter("timm.layers.std_conv.ScaledStdConv2d", "timm.layers.std_conv.ScaledStdConv2dSame")
class ScaledStdConvConverter(ConvConverter):
    """Scaled weight standardisation: the scale is gamma / sqrt(fan in)."""

    def with_shape(self, conv: Any, *shape: Any, **kwargs: Any) -> nn.Module:
        """Follow the fan-in with the scale."""
        new: Any = super().with_shape(conv, *shape, **kwargs)
        new.scale = conv.scale * (conv.weight[0].numel() / new.weight[0].numel()) ** 0.5
        return new


@register_converter("timm.models.vgg.ConvMlp")
class ConvMlpConverter(ConvConverter):
    """VGG's fully connected layers as convolutions: a window over the whole map, then 1x1."""

    role = "head"

    def kernel(self, site: Site) -> tuple[int, int]:
        """The window of the first convolution."""
        return tuple(site.layer.fc1.kernel_size)

    def stride(self, site: Site) -> tuple[int, int]:
        """Stride 1, valid padding."""
        return (1, 1)

    def tie(self, site: Site, system: System) -> Any:
        """The input width is free, the output width is the head's own."""
        entry = system.of(site.node.args[0])
        out = system.fresh(site.layer.fc2.out_channels, site.node.name)
        return (entry[0], out, *entry[2:])

    def rebuild(self, site: Site, change: Change) -> Rebuilt:
        """Build both convolutions; the hidden width stays."""
        mlp: Any = site.module
        width = change.sizes[site.source()][1]
        out = change.sizes[site.node.name][1]
        hidden = mlp.fc1.out_channels
        new: Any = resized(mlp, {}, {})
        for name, old, ins, outs in (
            ("fc1", mlp.fc1, width, hidden),
            ("fc2", mlp.fc2, hidden, out),
        ):
            kernel = tuple(old.kernel_size)
            new._modules[name] = super().with_shape(old, ins, outs, 1, kernel, (1, 1), same=False)
        return Rebuilt(module=new)
