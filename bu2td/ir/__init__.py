"""The frozen data that passes between the stages.

capture -> Capture    probe -> Dims    analyse -> Analysis    arrange -> Plan    verify -> Report
"""

from bu2td.ir.bottom_up import (
    Analysis,
    Block,
    BlockKind,
    BottomUpLevel,
    Capture,
    Head,
    Preactivation,
    Shortcut,
    ShortcutKind,
    Stem,
)
from bu2td.ir.plan import Cost, Edits, LevelPlan, Piece, Plan, Projection, UnitSpec
from bu2td.ir.tables import format_table
from bu2td.ir.values import Dim, DimKind, Dims, is_feature_map, is_spatial, is_tensor, reduction_of

__all__ = [
    "Analysis",
    "Block",
    "BlockKind",
    "BottomUpLevel",
    "Capture",
    "Cost",
    "Dim",
    "DimKind",
    "Edits",
    "Head",
    "LevelPlan",
    "Piece",
    "Plan",
    "Preactivation",
    "Projection",
    "Shortcut",
    "ShortcutKind",
    "Stem",
    "UnitSpec",
    "Dims",
    "format_table",
    "is_feature_map",
    "is_spatial",
    "is_tensor",
    "reduction_of",
]
