"""Part of rewrite: the modules that are new in a top-down network, after the kinds of bottom-up nodes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bu2td import nn as td_nn
from bu2td.graph import GraphView
from bu2td.ir import UnitSpec
from bu2td.ops import blaming
from bu2td.options import Options


class UnitBuilder:
    """Builds conv units and upsamplings, on the meta device."""

    def __init__(self, view: GraphView, options: Options) -> None:
        self.view = view
        self.options = options

    def unit(self, spec: UnitSpec, kind: type[Any] = td_nn.ConvUnit, **settings: Any) -> nn.Module:
        """A conv unit of a class of `bu2td.nn`."""
        conv = self.dense(spec)
        width = spec.in_channels if spec.preactivation else spec.out_channels
        norm, act = (None if name is None else self.like(name, width) for name in (spec.norm, spec.act))
        return kind(conv, norm, act, preactivation=spec.preactivation, **settings)

    def dense(self, spec: UnitSpec) -> nn.Module:
        """The convolution of a unit alone."""
        converter, site = self.view.converter(spec.conv), self.view.site(spec.conv)
        with blaming(converter, "build a convolution like", self.view.where(spec.conv)):
            return converter.dense(site, spec.in_channels, spec.out_channels, spec.kernel).to("meta")

    def like(self, name: str, width: int) -> nn.Module:
        """A norm, activation or dropout of the kind of a node, for maps of a width."""
        converter = self.view.converter(name)
        with blaming(converter, "build a unit like", self.view.where(name)):
            return converter.unit(self.view.site(name), width).to("meta")

    def upsample(self, width: int, factor: int) -> nn.Module:
        """An upsampling of the kind that the options ask for."""
        if self.options.upsample == "transpose":
            with torch.device("meta"):
                return td_nn.TransposedUpsample(width, factor)
        return td_nn.Upsample(self.options.upsample)
