"""Part of rewrite: the modules that are new in a top-down network, after the kinds of bottom-up nodes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bu2td import nn as td_nn
from bu2td.graph.view import GraphView
from bu2td.ir.plan import UnitSpec
from bu2td.ops.converter import Change
from bu2td.options import Options


class UnitBuilder:
    """Builds conv units and upsamplings, on the meta device."""

    def __init__(self, view: GraphView, options: Options) -> None:
        self.view = view
        self.options = options

    def unit(self, spec: UnitSpec, kind: type[Any] = td_nn.ConvUnit, **settings: Any) -> nn.Module:
        """A conv unit of a class of `bu2td.nn`."""
        conv = self.dense(spec)
        norm_width = spec.in_channels if spec.preactivation else spec.out_channels
        norm = act = None
        if spec.norm is not None:
            converter, site = self.view.converter(spec.norm), self.view.site(spec.norm)
            norm = converter.unit(site, norm_width)
        if spec.act is not None:
            act = self._act(spec.act, norm_width)
        return kind(conv, norm, act, preactivation=spec.preactivation, **settings)

    def dense(self, spec: UnitSpec) -> nn.Module:
        """The convolution of a unit alone."""
        converter, site = self.view.converter(spec.conv), self.view.site(spec.conv)
        return converter.dense(site, spec.in_channels, spec.out_channels, spec.kernel)

    def _act(self, name: str, width: int) -> nn.Module:
        sizes = {name: (None, width, None, None)}
        site = self.view.site(name)
        return self.view.converter(name).rebuild(site, Change(sizes, inplace=True)).module

    def dropout(self, name: str) -> nn.Module:
        """A dropout of the bottom-up network, once more."""
        return self.view.converter(name).rebuild(self.view.site(name), Change({})).module

    def upsample(self, width: int, factor: int) -> nn.Module:
        """An upsampling of the kind that the options ask for."""
        if self.options.upsample == "transpose":
            with torch.device("meta"):
                return td_nn.TransposedUpsample(width, factor)
        return td_nn.Upsample(self.options.upsample)
