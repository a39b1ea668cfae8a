"""The modules that converted networks run."""

from bu2td.nn.act import ScaledSiLU
from bu2td.nn.assigned import assigned
from bu2td.nn.filter import FixedFilter
from bu2td.nn.made import made
from bu2td.nn.merge import ConvUnit, Joining, Lateral, Merge, Transition
from bu2td.nn.norm import ChannelLayerNorm
from bu2td.nn.part import PackedGraph, Part
from bu2td.nn.pyramid import MIN_SIGMA, REDUCERS, Pyramid, gaussian_resample
from bu2td.nn.upsample import UPSAMPLE_MODES, TransposedUpsample, Upsample

__all__ = [
    "MIN_SIGMA",
    "REDUCERS",
    "UPSAMPLE_MODES",
    "ChannelLayerNorm",
    "ConvUnit",
    "FixedFilter",
    "Joining",
    "Lateral",
    "Merge",
    "PackedGraph",
    "Part",
    "Pyramid",
    "ScaledSiLU",
    "Transition",
    "TransposedUpsample",
    "Upsample",
    "assigned",
    "gaussian_resample",
    "made",
]
