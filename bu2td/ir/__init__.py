"""The frozen data that passes between the stages.

capture -> Capture    probe -> Dims    analyse -> Analysis    arrange -> Plan    verify -> Report
"""

from bu2td.ir.bottom_up import Analysis, Block, BottomUpLevel, Capture, Head, Stem
from bu2td.ir.plan import Cost, Edits, LevelPlan, Piece, Plan, Projection, UnitSpec
from bu2td.ir.tables import format_table
from bu2td.ir.values import (
    Dim,
    DimKind,
    Dims,
    TensorDims,
    is_feature_map,
    is_spatial,
    is_tensor,
    map_dims,
    reduction_of,
    tensors,
)

__all__ = [
    "Analysis",
    "Block",
    "BottomUpLevel",
    "Capture",
    "Cost",
    "Dim",
    "DimKind",
    "Dims",
    "Edits",
    "Head",
    "LevelPlan",
    "Piece",
    "Plan",
    "Projection",
    "Stem",
    "TensorDims",
    "UnitSpec",
    "format_table",
    "is_feature_map",
    "is_spatial",
    "is_tensor",
    "map_dims",
    "reduction_of",
    "tensors",
]
