"""Normalisation layers: they pass channels on and carry one parameter per channel."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from bu2td.ir import Dim, is_tensor
from bu2td.nn import ChannelLayerNorm
from bu2td.ops import (
    OPAQUE,
    Change,
    Norm,
    Rebuilt,
    Role,
    Site,
    System,
    converter_for_type,
    register_converter,
    resized,
)
from bu2td.ops.fields import grouped
from bu2td_converters.pointwise import over_dimension


@register_converter(
    nn.BatchNorm2d, nn.BatchNorm1d, nn.SyncBatchNorm, "timm.layers.split_batchnorm.SplitBatchNorm2d"
)
class BatchNormConverter(Norm):
    """Batch norm."""

    def empty_output(self, module: Any, *inputs: Tensor, proof: bool = False) -> Any:
        """Its input, once the width fits: on meta tensors a batch norm takes as long as ten convolutions."""
        x = inputs[0]
        if x.dim() < 2 or x.shape[1] != module.num_features:
            raise ValueError(f"a batch norm of {module.num_features} channels reads {tuple(x.shape)}")
        return x

    def trailing(self, module: Any) -> tuple[nn.Module, ...] | None:
        """Nothing, unless a subclass has a forward of its own."""
        return () if type(module).forward is nn.BatchNorm2d.forward else None


class _MapNorm(Norm):
    """A norm whose statistics over positions are a gate."""

    def interval(self, site: Site, fields: Mapping[str, Any]) -> Any:
        """Every element itself, scaled by statistics over the whole map; channels mix within their group."""
        field = fields[site.source()]
        count = getattr(site.layer, "num_groups", None) or getattr(site.layer, "groups", None) or 0
        channels = field.lo.shape[1]
        if count and channels > 1:
            field = grouped(field, count, channels // count)
        return replace(field, gated=True)


@register_converter(nn.InstanceNorm2d)
class InstanceNormConverter(_MapNorm):
    """Instance norm: statistics over the positions of one image, of which one is too few."""

    needs_map = True


@register_converter("torchvision.ops.misc.FrozenBatchNorm2d")
class FrozenBatchNormConverter(Norm):
    """torchvision's batch norm without statistics; its width is the length of its buffers."""

    def with_width(self, module: Any, width: int, before: int | None = None) -> nn.Module:
        """A frozen norm for another width."""
        return resized(module, dict.fromkeys(module._buffers, (width,)), {})


@register_converter(nn.GroupNorm, "timm.layers.norm.GroupNorm", "timm.layers.norm.GroupNorm1")
class GroupNormConverter(_MapNorm):
    """Group norm: the width must stay divisible by the number of groups."""

    width_attributes = ("num_channels",)

    def tie(self, site: Site, system: System) -> Any:
        """Channels pass; their number is divisible by the groups."""
        entry = system.of(site.tensor())
        groups = site.layer.num_groups
        if groups > 1:
            system.divisible(entry[1], groups, site.node.name, relaxable=True)
        return entry

    def with_width(self, module: Any, width: int, before: int | None = None) -> nn.Module:
        """A group norm for another width; the groups shrink where they do not divide it."""
        new: Any = super().with_width(module, width, before)
        new.num_groups = math.gcd(module.num_groups, width)
        return new


@register_converter(
    nn.LayerNorm, nn.RMSNorm, "timm.layers.norm.RmsNorm", "timm.layers.norm.RmsNormFp32",
    "timm.layers.norm.SimpleNorm", "timm.layers.norm.SimpleNormFp32",
    "timm.layers.norm.LayerNorm", "timm.layers.norm.LayerNormFp32",
    "timm.layers.norm_act.LayerNormAct", "timm.layers.norm_act.LayerNormActFp32",
    "timm.layers.norm_act.RmsNormAct", "timm.layers.norm_act.RmsNormActFp32",
)  # fmt: skip
class LayerNormConverter(Norm):
    """Layer norm over the last dimension."""

    dimension = -1

    def interval(self, site: Site, fields: Mapping[str, Any]) -> Any:
        """The normalised dimensions mix."""
        field = fields[site.source()]
        if self.dimension == 1:
            return over_dimension(field, site, 1)
        for axis in range(-len(site.layer.normalized_shape), 0):
            field = over_dimension(field, site, axis)
        return field

    def rebuild(self, site: Site, change: Change) -> Rebuilt:
        """Build the norm for another width; subclasses may work on (N, C, H, W) maps."""
        shape = tuple(site.layer.normalized_shape)
        if len(shape) == 3 and len(site.value) == 4:  # over whole maps
            return Rebuilt(
                module=_shaped(site.layer, (change.sizes[site.node.name][1], *(change.map_size or shape[1:])))
            )
        axis = -1 if self._last(site) else 1
        return Rebuilt(module=self.with_width(site.module, change.sizes[site.node.name][axis]))

    def size_multiple(self, module: Any) -> int | None:
        """One map size alone where positions are normalised, with a weight for each."""
        return None if len(module.normalized_shape) > 1 else 1

    def _last(self, site: Site) -> bool:
        """Whether the last dimension is the one that is normalised."""
        last: Dim = site.value[-1]
        return self.dimension == -1 and (last.kind, last.size) == ("channel", site.layer.normalized_shape[-1])

    def unit(self, site: Site, width: int) -> nn.Module:
        """The same over the channels of (N, C, H, W) maps, where the site has them last.

        A norm over whole maps has one weight per channel there, and serves any size.
        """
        if len(site.layer.normalized_shape) > 1:
            with torch.device("meta"):
                return nn.GroupNorm(1, width, site.layer.eps, site.layer.elementwise_affine)
        if not self._last(site):
            return self.with_width(site.module, width)
        norm: Any = site.module
        with torch.device("meta"):
            return ChannelLayerNorm(width, norm.eps, norm.elementwise_affine)

    def with_width(self, module: Any, width: int, before: int | None = None) -> nn.Module:
        """A layer norm for another width."""
        return _shaped(module, (width,))


def _shaped(norm: Any, shape: tuple[int, ...]) -> nn.Module:
    """A layer norm of the same class for another shape."""
    shapes = {name: shape for name, value in norm._parameters.items() if value is not None}
    return resized(norm, shapes, {"normalized_shape": shape})


@register_converter(
    ChannelLayerNorm,
    "timm.layers.norm.LayerNorm2d", "timm.layers.norm.LayerNorm2dFp32", "timm.layers.norm.LayerNormExp2d",
    "timm.layers.norm.RmsNorm2d", "timm.layers.norm.RmsNorm2dFp32",
    "timm.layers.norm.SimpleNorm2d", "timm.layers.norm.SimpleNorm2dFp32",
    "torchvision.models.convnext.LayerNorm2d",
)  # fmt: skip
class LayerNorm2dConverter(LayerNormConverter):
    """Layer norm over the channels of (N, C, H, W) maps."""

    dimension = 1

    def unit(self, site: Site, width: int) -> nn.Module:
        """The same class for another width."""
        return self.with_width(site.module, width)


@register_converter(F.layer_norm)
class FunctionalLayerNormConverter(Norm):
    """``F.layer_norm(x, (C,), weight, bias)``: the shape is a literal that goes stale."""

    def interval(self, site: Site, fields: Mapping[str, Any]) -> Any:
        """The normalised dimensions mix."""
        field = fields[site.source()]
        for axis in range(-len(site.argument(1, "normalized_shape")), 0):
            field = over_dimension(field, site, axis)
        return field

    def tie(self, site: Site, system: System) -> Any:
        """Channels pass; weight and bias are as long as the last dimension."""
        entry = system.of(site.tensor())
        for position, name in ((2, "weight"), (3, "bias")):
            parameter = site.argument(position, name)
            if parameter is not None and entry[-1] is not None:
                system.equal(system.of(parameter)[-1], entry[-1])
        return entry

    def unit(self, site: Site, width: int) -> nn.Module:
        """A module over the channels of (N, C, H, W) maps."""
        eps = site.argument(4, "eps", 1e-5)
        with torch.device("meta"):
            return ChannelLayerNorm(width, eps, site.argument(2, "weight") is not None)

    def rebuild(self, site: Site, change: Change) -> Rebuilt:
        shape = list(site.argument(1, "normalized_shape"))
        shape[-1] = change.sizes[site.node.name][-1]
        kwargs = {k: v for k, v in site.node.kwargs.items() if k != "normalized_shape"}
        return Rebuilt(args=(site.node.args[0], tuple(shape), *site.node.args[2:]), kwargs=kwargs)


@register_converter(F.batch_norm, F.instance_norm, F.group_norm)
class FunctionalNormConverter(_MapNorm):
    """``F.group_norm(x, groups, weight, bias)`` and its like: what they read per channel is as wide as the map."""

    def tie(self, site: Site, system: System) -> Any:
        """Channels pass, in groups if there are any."""
        entry = system.of(site.tensor())
        for value in (*site.node.args[1:], *site.node.kwargs.values()):
            if isinstance(value, fx.Node) and value is not site.tensor() and is_tensor(site.dims[value.name]):
                system.equal(system.of(value)[0], entry[1])
        groups = site.argument(1, "num_groups") if site.name == "group_norm" else 1
        if isinstance(groups, int) and groups > 1:
            system.divisible(entry[1], groups, site.node.name)
        return entry

    def unit(self, site: Site, width: int) -> nn.Module:
        """A module of the same kind."""
        with torch.device("meta"):
            if site.name == "group_norm":
                return nn.GroupNorm(math.gcd(site.argument(1, "num_groups"), width), width)
            return nn.BatchNorm2d(width) if site.name == "batch_norm" else nn.InstanceNorm2d(width)


class _WithAct(Norm):
    """timm's norms with their activation inside."""

    role = Role.NORM_ACT

    def has_activation(self, site: Site) -> bool:
        """Whether there is an activation inside (timm also uses the classes without one)."""
        return not isinstance(site.layer.act, nn.Identity)

    def with_width(self, module: Any, width: int, before: int | None = None) -> nn.Module:
        """The norm follows, and so do slopes of the activation."""
        if next(module.act.parameters(), None) is None:
            return super().with_width(module, width, before)
        new: Any = super().with_width(resized(module, {}, {"act": nn.Identity()}), width, before)
        new.act = (converter_for_type(type(module.act)) or OPAQUE).with_width(module.act, width, before)
        return new

    def trailing(self, module: Any) -> tuple[nn.Module, ...] | None:
        return (module.drop, module.act)


@register_converter("timm.layers.norm_act.BatchNormAct2d", "timm.layers.norm_act.SyncBatchNormAct")
class BatchNormActConverter(_WithAct, BatchNormConverter):
    """Batch norm and activation."""


@register_converter("timm.layers.norm_act.FrozenBatchNormAct2d")
class FrozenBatchNormActConverter(_WithAct, FrozenBatchNormConverter):
    """Batch norm without statistics and activation."""


@register_converter("timm.layers.norm_act.GroupNormAct", "timm.layers.norm_act.GroupNorm1Act")
class GroupNormActConverter(_WithAct, GroupNormConverter):
    """Group norm and activation."""

    width_attributes = ("num_channels",)


@register_converter(
    "timm.layers.norm_act.LayerNormAct2d", "timm.layers.norm_act.LayerNormAct2dFp32",
    "timm.layers.norm_act.RmsNormAct2d", "timm.layers.norm_act.RmsNormAct2dFp32",
)  # fmt: skip
class LayerNormAct2dConverter(_WithAct, LayerNorm2dConverter):
    """Layer norm over the channels of (N, C, H, W) maps, and activation."""

    dimension = 1


_EVO = "timm.layers.evo_norm.EvoNorm2d"
_FRN = "timm.layers.filter_response_norm.FilterResponseNorm"


@register_converter(*(_EVO + v for v in ("B0", "B1", "B2", "S0", "S0a", "S1", "S1a", "S2", "S2a")),
                    _FRN + "Tlu2d", _FRN + "Act2d")  # fmt: skip
class EvoNormConverter(_MapNorm):
    """Norms that are non-linear by themselves: EvoNorm (Liu et al., 2020), filter response norm."""

    role = Role.NORM_ACT

    def has_activation(self, site: Site) -> bool:
        """They are activations too, unless they were told not to be."""
        return bool(site.layer.apply_act)

    def tie(self, site: Site, system: System) -> Any:
        """Channels pass; where statistics are taken over groups, their number divides the width."""
        entry = system.of(site.tensor())
        groups = getattr(site.layer, "groups", 1)
        if groups > 1:
            system.divisible(entry[1], groups, site.node.name, relaxable=True)
        return entry

    def with_width(self, module: Any, width: int, before: int | None = None) -> nn.Module:
        """A norm for another width; the groups shrink where they do not divide it."""
        values = {**module._parameters, **module._buffers}
        shapes = {name: (width,) for name, value in values.items() if value is not None and value.dim() == 1}
        groups = {"groups": math.gcd(module.groups, width)} if hasattr(module, "groups") else {}
        return resized(module, shapes, groups)
