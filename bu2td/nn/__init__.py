"""The modules that converted networks run."""

from bu2td.nn.act import ScaledSiLU
from bu2td.nn.assigned import assigned
from bu2td.nn.bare import is_bare, is_hooked
from bu2td.nn.containers import Named, Numbered, contain
from bu2td.nn.filter import FixedFilter
from bu2td.nn.made import made
from bu2td.nn.merge import ConvUnit, Joining, Lateral, Merge, Transition
from bu2td.nn.norm import ChannelLayerNorm
from bu2td.nn.part import PackedGraph, Part
from bu2td.nn.pyramid import MIN_SIGMA, REDUCERS, Pyramid, Reducer, gaussian_resample
from bu2td.nn.sizes import reduced
from bu2td.nn.transforms import is_transformed
from bu2td.nn.upsample import UPSAMPLE_MODES, TransposedUpsample, Upsample, UpsampleMode

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
    "Named",
    "Numbered",
    "PackedGraph",
    "Part",
    "Pyramid",
    "Reducer",
    "ScaledSiLU",
    "Transition",
    "TransposedUpsample",
    "Upsample",
    "UpsampleMode",
    "assigned",
    "contain",
    "gaussian_resample",
    "is_bare",
    "is_hooked",
    "is_transformed",
    "made",
    "reduced",
]
