"""The frozen data that passes between the stages.

capture -> Capture    probe -> Dims    analyse -> Analysis    arrange -> Plan    rewrite -> Stages
verify -> Report    optimize -> Optimization
"""

from bu2td.ir.bottom_up import Analysis, Block, BottomUpLevel, Capture, Head, Stem
from bu2td.ir.optimization import Optimization, Rewrite
from bu2td.ir.plan import Cost, Edits, LevelPlan, Piece, Plan, Projection, UnitSpec
from bu2td.ir.stages import Stage, Stages
from bu2td.ir.tables import format_table
from bu2td.ir.values import Dim, DimKind, Dims, is_feature_map, is_spatial, is_tensor, reduction_of

__all__ = [
    "Analysis",
    "Block",
    "BottomUpLevel",
    "Capture",
    "Cost",
    "Dim",
    "DimKind",
    "Edits",
    "Head",
    "LevelPlan",
    "Optimization",
    "Piece",
    "Plan",
    "Projection",
    "Rewrite",
    "Stage",
    "Stages",
    "Stem",
    "UnitSpec",
    "Dims",
    "format_table",
    "is_feature_map",
    "is_spatial",
    "is_tensor",
    "reduction_of",
]
