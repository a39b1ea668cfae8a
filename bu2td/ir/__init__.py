"""The frozen data that passes between the stages.

capture -> Capture    probe -> Dims    analyse -> Analysis    arrange -> Plan    rewrite -> Stages
verify -> Report    optimize -> Optimization
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
from bu2td.ir.frozen import FrozenMap, Word
from bu2td.ir.optimization import Optimization, Rewrite
from bu2td.ir.plan import Cost, Edits, LevelPlan, LevelShape, Piece, Plan, Projection, Relaxation, UnitSpec
from bu2td.ir.stages import Stage, Stages
from bu2td.ir.tables import format_table
from bu2td.ir.values import (
    Dim,
    DimKind,
    Dims,
    TensorDims,
    flat,
    is_feature_map,
    is_spatial,
    is_tensor,
    map_dims,
    reduction_of,
    tensors,
)
