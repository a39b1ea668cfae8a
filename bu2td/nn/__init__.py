"""The modules that converted networks run."""

from bu2td.nn.act import ScaledSiLU
from bu2td.nn.fused import FusedConv2d, FusedMerge, FusedNorm
from bu2td.nn.lowres import UpsampledConv2d, can_read_low
from bu2td.nn.merge import ConvUnit, Lateral, Merge, Transition
from bu2td.nn.norm import ChannelLayerNorm
from bu2td.nn.pool import GlobalAvgPool
from bu2td.nn.pyramid import MIN_SIGMA, REDUCERS, Pyramid, gaussian_resample
from bu2td.nn.split import SplitMerge
from bu2td.nn.upsample import UPSAMPLE_MODES, TransposedUpsample, Upsample
from bu2td.nn.winograd import WinogradConv2d

__all__ = [
    "MIN_SIGMA",
    "REDUCERS",
    "UPSAMPLE_MODES",
    "ChannelLayerNorm",
    "ConvUnit",
    "FusedConv2d",
    "FusedMerge",
    "FusedNorm",
    "GlobalAvgPool",
    "Lateral",
    "Merge",
    "Pyramid",
    "ScaledSiLU",
    "SplitMerge",
    "Transition",
    "TransposedUpsample",
    "Upsample",
    "UpsampledConv2d",
    "WinogradConv2d",
    "can_read_low",
    "gaussian_resample",
]
