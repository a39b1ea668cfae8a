"""Operations that act on every value alone: activations, dropout, arithmetic with scalars."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from bu2td_converters.join import broadcast
from torch import nn

from bu2td.ops.converter import Change, Converter, Rebuilt, Site, System, pointwise, positions
from bu2td.ops.fields import Field, mix
from bu2td.ops.registry import register_converter
from bu2td.ops.roles import Role
from bu2td.ops.surgery import resized

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
    "timm.layers.create_act.GammaAct", "bu2td.nn.act.ScaledSiLU",
)  # fmt: skip


def over_dimension(field: Field, site: Site, axis: int) -> Field:
    """The field behind statistics over one dimension: it mixes, and statistics over positions are a gate."""
    dims = site.input_dims()
    if axis % len(dims) in positions(dims):
        return replace(field, gated=True)
    return mix(field, [axis], ())


class _PassThrough(Converter):
    def tie(self, site: Site, system: System) -> Any:
        """Channels pass unchanged."""
        return system.of(site.node.args[0])


@register_converter(*_ACTIVATIONS)
class ActConverter(_PassThrough):
    """Activations without parameters."""

    role = Role.ACT

    def rebuild(self, site: Site, change: Change) -> Rebuilt:
        """Copy the activation, in place only where nobody else reads its input."""
        act: Any = site.module
        attributes = {"inplace": change.inplace and act.inplace} if hasattr(act, "inplace") else {}
        return Rebuilt(module=resized(act, {}, attributes))


@register_converter(nn.PReLU, "timm.layers.activations.PReLU")
class PReLUConverter(_PassThrough):
    """PReLU with one slope, or one per channel."""

    role = Role.ACT

    def rebuild(self, site: Site, change: Change) -> Rebuilt:
        """Build it for another width."""
        return Rebuilt(module=self.with_width(site.module, change.sizes[site.node.name][1]))

    def with_width(self, act: Any, width: int) -> nn.Module:
        """A PReLU for another width."""
        count = 1 if act.num_parameters == 1 else width
        return resized(act, {"weight": (count,)}, {"num_parameters": count})


@register_converter(
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout,
    "timm.layers.drop.DropPath", "timm.layers.drop.DropBlock2d",
    "torchvision.ops.stochastic_depth.StochasticDepth", "torchvision.ops.drop_block.DropBlock2d",
    "class:DropPath", "class:DropBlock2d", "class:StochasticDepth",
)  # fmt: skip
class DropoutConverter(_PassThrough):
    """Everything that drops at random in train mode and passes in eval mode."""

    role = Role.DROPOUT

    def rebuild(self, site: Site, change: Change) -> Rebuilt:
        """Copy it, in place only where nobody else reads its input."""
        drop: Any = site.module
        attributes = {"inplace": change.inplace and drop.inplace} if hasattr(drop, "inplace") else {}
        return Rebuilt(module=resized(drop, {}, attributes))


@register_converter(
    nn.Softmax, nn.Softmax2d, nn.Identity,
    torch.softmax, torch.nn.functional.softmax, torch.sqrt, torch.rsqrt, torch.exp, torch.square,
    torch.clamp, torch.abs, torch.neg, torch.pow, torch.log, torch.log1p, torch.reciprocal, torch.sin, torch.cos,
    torch.erf, torch.sign, torch.nn.functional.normalize,
    "_operator.neg", "_operator.pow", "builtins.float",
    "method:softmax", "method:clamp", "method:sqrt", "method:pow", "method:abs", "method:square",
    "method:float", "method:to", "method:type_as", "method:neg", "method:exp", "method:detach",
    "method:clone", "method:rsqrt", "method:log", "method:log1p", "method:reciprocal", "method:sin", "method:cos",
    "method:sign", nn.LocalResponseNorm,
)  # fmt: skip
class PassConverter(_PassThrough):
    """Pointwise functions and casts that leave channels where they are; or those that share out one dimension."""

    role = Role.PASS

    def tie(self, site: Site, system: System) -> Any:
        """Channels pass; an exponent may have a value per channel."""
        name = getattr(site.node.target, "__name__", site.node.target)
        return broadcast(site, system) if name == "pow" else super().tie(site, system)

    def interval(self, site: Site, fields: Mapping[str, Any]) -> Any:
        """Pointwise, but for softmax and normalisations, along whose dimension elements mix."""
        name = getattr(site.node.target, "__name__", site.node.target)
        if site.module is not None:
            over = {nn.Softmax2d: -3, nn.LocalResponseNorm: 1}
            axis = next((a for cls, a in over.items() if isinstance(site.module, cls)), None)
            axis = getattr(site.module, "dim", None) if axis is None else axis
        elif name in ("softmax", "normalize"):
            axis = site.literal(2, "dim", 1) if name == "normalize" else site.literal(1, "dim")
        else:
            lends = name in ("to", "type_as")  # what comes second only lends its type
            return pointwise(site, {site.source(): fields[site.source()]} if lends else fields)
        field = fields[site.source()]
        if isinstance(site.module, nn.Identity):
            return field
        return over_dimension(field, site, axis) if isinstance(axis, int) else None


@register_converter(torch._assert, "_operator.eq", "_operator.ne", "_operator.lt",
                    "_operator.gt", "_operator.le", "_operator.ge", "_operator.mod")  # fmt: skip
class CheckConverter(Converter):
    """Checks on sizes, which say nothing about channels."""

    role = Role.PASS

    def tie(self, site: Site, system: System) -> Any:
        """Nothing to tie."""
        return None
