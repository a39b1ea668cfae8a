"""Linear layers, over the last dimension."""

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import fx, nn

from bu2td.ops import (
    Change,
    Converter,
    NoRuleError,
    Rebuilt,
    Role,
    Site,
    System,
    positions,
    register_converter,
    resized,
)
from bu2td.ops.fields import mix


@register_converter(nn.Linear, "timm.layers.linear.Linear")
class LinearConverter(Converter):
    """``y = x W^T + b`` over the last dimension: pointwise over an image plane."""

    role = Role.LINEAR

    def tie(self, site: Site, system: System) -> Any:
        """The last dimension is cut apart, the others pass."""
        entry = system.of(site.tensor())
        out = system.fresh(site.layer.out_features, site.node.name)
        if entry[-1] is None:
            return (*(None for _ in entry[:-1]), out)
        return (*entry[:-1], out)

    def interval(self, site: Site, fields: Mapping[str, Any]) -> Any:
        return mix(fields[site.source()], [-1], positions(site.input_dims()))

    def rebuild(self, site: Site, change: Change) -> Rebuilt:
        """Build the layer for other widths."""
        return Rebuilt(
            module=self.with_widths(site.module, change.sizes[site.source()][-1], change.sizes[site.node.name][-1])
        )

    def with_widths(self, linear: Any, in_features: int, out_features: int) -> nn.Module:
        """A layer of the same class and bias for other widths."""
        return resized(
            linear,
            {"weight": (out_features, in_features), "bias": (out_features,)},
            {"in_features": in_features, "out_features": out_features},
        )


@register_converter(F.linear)
class FunctionalLinearConverter(Converter):
    """``F.linear(x, weight, bias)``: a linear layer whose weight the graph computes."""

    role = Role.LINEAR

    def tie(self, site: Site, system: System) -> Any:
        """The weight has the widths of both ends."""
        weight, bias = site.argument(1, "weight"), site.argument(2, "bias")
        if not isinstance(weight, fx.Node) or len(site.dims[weight.name]) != 2:
            raise NoRuleError(f"the weight {weight!r} is no matrix of the graph")
        entry, (out, inputs) = system.of(site.tensor()), system.of(weight)
        if entry[-1] is not None:
            system.equal(entry[-1], inputs)
        if isinstance(bias, fx.Node):
            system.equal(system.of(bias)[0], out)
        return (*entry[:-1], out)

    def rebuild(self, site: Site, change: Change) -> Rebuilt:
        """Everything is read from the weight."""
        return Rebuilt()

    def interval(self, site: Site, fields: Mapping[str, Any]) -> Any:
        return mix(fields[site.source()], [-1], positions(site.input_dims()))
