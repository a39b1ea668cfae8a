"""Layers of timm that need a rule of their own. Keyed by qualified name: timm need not be installed."""

import sys
from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import nn

from bu2td.ops import (
    Change,
    Converter,
    ConvShape,
    Rebuilt,
    Role,
    Site,
    System,
    pair,
    register_converter,
    register_family,
    resized,
    same_padding,
)
from bu2td.ops.fields import hull, mix, nothing, resampled, windows
from bu2td_converters.conv import ConvConverter


class TimmLayer(Converter):
    """How timm's layers initialise themselves: ``init_weights``, ``init_non_persistent_buffers``."""

    def reset(self, module: Any) -> None:
        """By ``reset_parameters``; where there is none, parameters by ``init_weights``."""
        if hasattr(module, "reset_parameters"):
            super().reset(module)
        elif any(p is not None for p in module._parameters.values()):
            getattr(module, "init_weights", lambda: None)()

    def resets_children(self, module: nn.Module) -> bool:
        return not hasattr(module, "reset_parameters") or super().resets_children(module)

    def fill_buffers(self, module: Any) -> None:
        """By ``init_non_persistent_buffers``."""
        getattr(module, "init_non_persistent_buffers", lambda: None)()


def _is_kept_whole(cls: type) -> bool:
    """Whether timm itself keeps a class whole when it traces its models."""
    registry = getattr(sys.modules.get("timm.layers"), "get_notrace_modules", None)
    return registry is not None and issubclass(cls, tuple(registry()))


@register_family(_is_kept_whole)
class WholeConverter(TimmLayer):
    """What timm keeps whole and has no rule of its own here: opaque."""


@register_family(lambda cls: cls.__module__.startswith("timm.") and hasattr(cls, "init_non_persistent_buffers"))
class BufferedConverter(TimmLayer):
    """Modules that are traced, and have buffers that no state_dict holds."""

    leaf = False


@register_converter("timm.models.nfnet.NormFreeBlock")
class NormFreeBlockConverter(Converter):
    """A residual block that timm keeps whole although it traces well."""

    leaf = False


@register_converter("timm.layers.std_conv.ScaledStdConv2d", "timm.layers.std_conv.ScaledStdConv2dSame")
class ScaledStdConvConverter(ConvConverter):
    """Scaled weight standardisation: the scale is gamma / sqrt(fan in)."""

    def with_shape(self, conv: Any, shape: ConvShape) -> nn.Module:
        """Follow the fan-in with the scale."""
        new: Any = super().with_shape(conv, shape)
        new.scale = conv.scale * (conv.weight[0].numel() / new.weight[0].numel()) ** 0.5
        return new


@register_converter("timm.layers.cond_conv2d.CondConv2d")
class CondConvConverter(ConvConverter):
    """Conditionally parameterised convolution: per image a mixture of experts' kernels, kept flat.

    (x (N, C, H, W), mixture (N, experts)) -> (N, C', H', W').
    """

    def tie(self, site: Site, system: System) -> Any:
        """As of any convolution; the mixture names every expert."""
        mixture = system.of(site.node.args[1])[-1]
        system.equal(mixture, system.constant(site.layer.num_experts))
        return super().tie(site, system)

    def interval(self, site: Site, fields: Mapping[str, Any]) -> Any:
        """As of any convolution; the mixture is a gate."""
        found = super().interval(site, fields)
        gated = fields[site.source(1)].gated
        return found and replace(found, gated=found.gated or gated)

    def with_shape(self, conv: Any, shape: ConvShape) -> nn.Module:
        """Follow with the flat weights of every expert."""
        keep = conv.dynamic_padding or not shape.same
        attributes = {
            "in_channels": shape.inputs,
            "out_channels": shape.outputs,
            "groups": shape.groups,
            "kernel_size": shape.kernel,
            "stride": shape.stride,
            "padding": conv.padding if keep else same_padding(shape.kernel, conv.dilation),
            "weight_shape": shape.weight,
            "bias_shape": (shape.outputs,),
        }
        shapes = {"weight": (conv.num_experts, prod(shape.weight)), "bias": (conv.num_experts, shape.outputs)}
        return resized(conv, shapes, attributes)

    def dense(self, site: Site, in_channels: int, out_channels: int, kernel: tuple[int, int]) -> nn.Module:
        """A new unit has no mixture to read: a plain convolution."""
        conv: Any = site.module
        with torch.device("meta"):
            return nn.Conv2d(
                in_channels, out_channels, kernel, 1, same_padding(kernel, (1, 1)), bias=conv.bias is not None
            )


@register_converter("timm.models.vgg.ConvMlp")
class ConvMlpConverter(ConvConverter):
    """VGG's fully connected layers as convolutions: a window over the whole map, then 1x1."""

    role = Role.HEAD

    def kernel(self, site: Site) -> tuple[int, int]:
        """The window of the first convolution."""
        return tuple(site.layer.fc1.kernel_size)

    def stride(self, site: Site) -> tuple[int, int]:
        return (1, 1)

    def interval(self, site: Site, fields: Mapping[str, Any]) -> Any:
        """The window of the first convolution; every channel mixes."""
        field = mix(fields[site.source()], [1], ())
        for axis, kernel in zip((-2, -1), self.kernel(site), strict=True):
            field = windows(field, axis, site.value[axis].size, kernel)
        return field

    def tie(self, site: Site, system: System) -> Any:
        """The input width is free, the output width is the head's own."""
        entry = system.of(site.tensor())
        out = system.fresh(site.layer.fc2.out_channels, site.node.name)
        return (entry[0], out, *entry[2:])

    def rebuild(self, site: Site, change: Change) -> Rebuilt:
        """Build both convolutions; the hidden width stays."""
        mlp: Any = site.module
        width = change.sizes[site.source()][1]
        out = change.sizes[site.node.name][1]
        hidden = mlp.fc1.out_channels
        new: Any = resized(mlp, {}, {})
        for name, old, ins, outs in (("fc1", mlp.fc1, width, hidden), ("fc2", mlp.fc2, hidden, out)):
            kernel = tuple(old.kernel_size)
            new._modules[name] = super().with_shape(old, ConvShape(ins, outs, kernel=kernel, same=False))
        return Rebuilt(module=new)


@register_converter("timm.models.mobilenetv5.MobileNetV5MultiScaleFusionAdapter")
class FusionConverter(Converter):
    """A head's adapter that joins maps of several reductions: a list of (N, C_i, H_i, W_i) -> (N, C, h, w).

    The first convolution behind their concatenation reads sum C_i channels.
    """

    role = Role.GATE

    def tie(self, site: Site, system: System) -> Any:
        """Every input has its own width, the output keeps its own."""
        entry = system.of(site.node.args[0][0])  # type: ignore[index]
        return (entry[0], *(None if d.kind != "channel" else system.constant(d.size) for d in site.value[1:]))

    def interval(self, site: Site, fields: Mapping[str, Any]) -> Any:
        """Maps are resized to the first, mixed, and pooled to a fixed size, which sees all of a larger image."""
        sources: Any = site.node.args[0]
        if site.virtual:
            return nothing(len(site.value), gated=True)
        parts = []
        for source in sources:
            field: Any = mix(fields[source.name], [1], ())
            for axis in (-2, -1):
                size = site.dims[sources[0].name][axis].size
                field = field and resampled(field, axis, size, site.layer.interpolation_mode)
            if field is None:
                return None
            parts.append(field)
        field = hull(parts, len(site.value))
        for axis in (-2, -1):
            before, size = site.dims[sources[0].name][axis].size, site.value[axis].size
            step = before // size
            whole = before % size == 0
            field = windows(field, axis, size, step, step) if whole else resampled(field, axis, size, "bilinear")
        return field

    def rebuild(self, site: Site, change: Change) -> Rebuilt:
        """Follow the summed width with the expanding convolution."""
        sources: Any = site.node.args[0]
        width = sum(change.sizes[source.name][1] for source in sources)
        new: Any = resized(site.layer, {}, {"in_channels": width})
        expand = new.ffn.pw_exp.conv
        new.ffn.pw_exp.conv = resized(
            expand, {"weight": (expand.out_channels, width, 1, 1)}, {"in_channels": width}
        )
        return Rebuilt(module=new)


@register_converter("timm.models.csatv2.LearnableDct2d")
class DctStemConverter(TimmLayer):
    """A cosine transform of 8x8 patches of the image with chosen frequencies: it stands in for the image at
    1/8, as the pyramid does in a top-down network, and is dropped.
    """

    role = Role.POOL

    def kernel(self, site: Site) -> tuple[int, int]:
        return pair(site.layer.k)

    def stride(self, site: Site) -> tuple[int, int]:
        return pair(site.layer.k)

    def tie(self, site: Site, system: System) -> Any:
        """It reads an image and makes its own width."""
        entry = system.of(site.tensor())
        return (entry[0], system.constant(site.value[1].size), *entry[2:])

    def interval(self, site: Site, fields: Mapping[str, Any]) -> Any:
        field = mix(fields[site.source()], [1], ())
        for axis, patch in zip((-2, -1), self.kernel(site), strict=True):
            field = windows(field, axis, site.value[axis].size, patch, patch)
        return field
