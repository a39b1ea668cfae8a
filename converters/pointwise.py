"""Operations that act on every value alone: activations, dropout, arithmetic with scalars."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from bu2td.nn import ScaledSiLU
from bu2td.ops import (
    Activation,
    Converter,
    Dropout,
    Role,
    Site,
    System,
    broadcast,
    pointwise,
    positions,
    register_converter,
    resized,
)
from bu2td.ops.fields import Field, mix

_ACTIVATIONS = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.LogSigmoid,
    nn.Softsign, nn.Hardshrink, nn.Softshrink, nn.Tanhshrink, nn.Threshold,
    "timm.layers.activations.Swish", "timm.layers.activations.Mish",
    "timm.layers.activations.Sigmoid", "timm.layers.activations.Tanh",
    "timm.layers.activations.HardSwish", "timm.layers.activations.HardSigmoid",
    "timm.layers.activations.HardMish", "timm.layers.activations.GELU",
    "timm.layers.activations.GELUTanh", "timm.layers.activations.QuickGELU",
    "timm.layers.activations_me.SwishMe", "timm.layers.activations_me.HardSwishMe",
    "timm.layers.activations_me.HardSigmoidMe", "timm.layers.activations_me.HardMishMe",
    "timm.layers.gather_excite.GammaAct", "timm.models.nfnet.GammaAct",
    "timm.layers.create_act.GammaAct", ScaledSiLU,
)  # fmt: skip


def over_dimension(field: Field, site: Site, axis: int) -> Field:
    """The field behind statistics over one dimension: it mixes, and statistics over positions are a gate."""
    dims = site.input_dims()
    if axis % len(dims) in positions(dims):
        return replace(field, gated=True)
    return mix(field, [axis], ())


@register_converter(*_ACTIVATIONS)
class ActConverter(Activation):
    """Activations without parameters."""


@register_converter(nn.PReLU, "timm.layers.activations.PReLU")
class PReLUConverter(Activation):
    """PReLU with one slope, or one per channel."""

    def with_width(self, module: Any, width: int, before: int | None = None) -> nn.Module:
        """A slope per channel, where there is more than one."""
        count = 1 if module.num_parameters == 1 else width
        return resized(module, {"weight": (count,)}, {"num_parameters": count})


@register_converter(torch.prelu, "method:prelu")
class FunctionalPReLUConverter(Activation):
    """``F.prelu(x, weight)``: one slope, or one per channel."""

    def tie(self, site: Site, system: System) -> Any:
        """Slopes are as many as channels, or one."""
        entry, slopes = system.of(site.tensor()), site.argument(1, "weight")
        if isinstance(slopes, fx.Node) and site.dims[slopes.name][0].size > 1:
            system.equal(system.of(slopes)[0], entry[1])
        return entry

    def unit(self, site: Site, width: int) -> nn.Module:
        slopes = site.argument(1, "weight")
        many = isinstance(slopes, fx.Node) and site.dims[slopes.name][0].size > 1
        with torch.device("meta"):
            return nn.PReLU(width if many else 1)


@register_converter(
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout, "timm.layers.drop.DropBlock2d",
    "torchvision.ops.drop_block.DropBlock2d", "torchvision.ops.drop_block.DropBlock3d", "class:DropBlock2d",
)  # fmt: skip
class DropoutConverter(Dropout):
    """Dropout of values, channels and blocks."""


@register_converter(
    "timm.layers.drop.DropPath", "class:DropPath",
    "torchvision.ops.stochastic_depth.StochasticDepth", "class:StochasticDepth",
)  # fmt: skip
class DropPathConverter(Dropout):
    """Dropout of whole paths: timm and its copies call the rate ``drop_prob``, torchvision ``p``."""

    def path_rate(self, module: nn.Module) -> str | None:
        """The attribute with the rate."""
        return next((name for name in ("drop_prob", "p") if isinstance(getattr(module, name, None), float)), None)


@register_converter(
    nn.Softmax, nn.Softmax2d, nn.Identity, nn.LogSoftmax, torch.log_softmax, torch.nn.functional.log_softmax,
    "method:log_softmax",
    torch.softmax, torch.nn.functional.softmax, torch.sqrt, torch.rsqrt, torch.exp, torch.square,
    torch.clamp, torch.abs, torch.neg, torch.pow, torch.log, torch.log1p, torch.reciprocal, torch.sin, torch.cos,
    torch.erf, torch.sign, torch.nn.functional.normalize,
    "_operator.neg", "_operator.pow", "builtins.float",
    "method:softmax", "method:clamp", "method:sqrt", "method:pow", "method:abs", "method:square",
    "method:float", "method:to", "method:type_as", "method:neg", "method:exp", "method:detach",
    "method:clone", "method:rsqrt", "method:log", "method:log1p", "method:reciprocal", "method:sin", "method:cos",
    "method:sign", nn.LocalResponseNorm,
)  # fmt: skip
class PassConverter(Converter):
    """Pointwise functions and casts that leave channels where they are; or those that share out one dimension."""

    role = Role.PASS

    def tie(self, site: Site, system: System) -> Any:
        """Channels pass; an exponent may have a value per channel."""
        return broadcast(site, system) if site.name == "pow" else system.of(site.tensor())

    def lends(self, site: Site) -> tuple[int, ...]:
        """The tensor whose type is taken."""
        return (1,) if site.name in ("to", "type_as") else ()

    def interval(self, site: Site, fields: Mapping[str, Any]) -> Any:
        """Pointwise, but for softmax and normalisations, along whose dimension elements mix."""
        name = site.name
        if site.module is not None:
            over = {nn.Softmax2d: -3, nn.LocalResponseNorm: 1}
            axis = next((a for cls, a in over.items() if isinstance(site.module, cls)), None)
            axis = getattr(site.module, "dim", None) if axis is None else axis
        elif name in ("softmax", "log_softmax", "normalize"):
            axis = site.literal(2, "dim", 1) if name == "normalize" else site.literal(1, "dim")
        else:
            return pointwise(site, {site.source(): fields[site.source()]} if self.lends(site) else fields)
        field = fields[site.source()]
        if isinstance(site.module, nn.Identity):
            return field
        return over_dimension(field, site, axis) if isinstance(axis, int) else None


@register_converter(
    torch._assert, "_operator.eq", "_operator.ne", "_operator.lt", "_operator.gt", "_operator.le", "_operator.ge",
    "_operator.mod", "_operator.and_", "_operator.or_", "_operator.invert",
    torch.eq, torch.ne, torch.lt, torch.gt, torch.le, torch.ge,
    torch.logical_and, torch.logical_or, torch.logical_not,
    "method:eq", "method:ne", "method:lt", "method:gt", "method:le", "method:ge", "method:logical_not",
    torch.masked_fill, "method:masked_fill",
)  # fmt: skip
class CheckConverter(Converter):
    """Comparisons: of sizes, which say nothing of channels, or of maps, value by value; and what a mask fills."""

    role = Role.PASS

    def tie(self, site: Site, system: System) -> Any:
        """Channels of maps pass."""
        return None if site.value is None else broadcast(site, system)
