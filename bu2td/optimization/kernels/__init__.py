"""Modules that compute what others compute, faster."""

from bu2td.optimization.kernels.fused import FusedConv2d, FusedMerge, FusedNorm
from bu2td.optimization.kernels.layout import Layout, lay_out_weights
from bu2td.optimization.kernels.lowres import UpsampledConv2d, can_read_low
from bu2td.optimization.kernels.pool import GlobalAvgPool
from bu2td.optimization.kernels.split import SplitMerge
from bu2td.optimization.kernels.winograd import WinogradConv2d

__all__ = [
    "FusedConv2d",
    "FusedMerge",
    "FusedNorm",
    "GlobalAvgPool",
    "Layout",
    "SplitMerge",
    "UpsampledConv2d",
    "WinogradConv2d",
    "can_read_low",
    "lay_out_weights",
]
