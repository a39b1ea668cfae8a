"""Part of arrange: the edits that turn bottom-up blocks into top-down ones, widths apart.

Rules (design, section 3). On every path that ends at the blocks' own resolution strides go: a convolution
is rebuilt with stride 1, a pool that only reduces is dropped, and so are rows and columns that are added or taken
away but for moves (`bu2td.arrange.moves`). In an up-block the way from entry to exit gains
upsamplings (`bu2td.arrange.upsampling`). What lies at a coarser resolution than the blocks themselves is an
excursion and stays as it is.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from enum import Enum, auto

from bu2td.arrange.moves import kept_moves
from bu2td.arrange.shortcuts import entry_in_place_of, shortcut_edits
from bu2td.arrange.templates import Templates, odd_kernel
from bu2td.arrange.upsampling import with_upsampling
from bu2td.errors import UnsupportedOperationError
from bu2td.graph import GraphView
from bu2td.graph.edited import Edited
from bu2td.ir import Block, Edits, FrozenMap, is_spatial
from bu2td.ops import Role


class _Fate(Enum):
    """What becomes of a node once its block works at one resolution."""

    KEPT = auto()
    REBUILT = auto()
    DROPPED = auto()
    EXCURSION = auto()
    UNSUPPORTED = auto()


def restructure(
    view: GraphView,
    templates: Templates,
    blocks: Sequence[Block],
    *,
    entry_width: int,
    widths: Mapping[str, int],
    first: Block | None,
    upsampling: bool,
    kernels: Mapping[str, tuple[int, int]],
) -> Edits:
    """Decide the edits of a run of blocks.

    Needs: consecutive blocks; ``first`` is the level's first block if it is among them.
    Returns: `Edits`.
    Guarantees: with ``upsampling``, one upsampling on every spatial path from entry to exit; without, none.
        No operation on a path to the exit reduces resolution.

    Raises:
        UnsupportedOperationError: operations that cannot be rebuilt reduce resolution; all are listed.
    """
    nodes = tuple(dict.fromkeys(n for b in blocks for n in b.nodes))
    moves = kept_moves(view, nodes, blocks[-1].exit)
    maps = {n: b for b in blocks for n in b.nodes if is_spatial(view.dims[n]) and view.inputs(n)}
    fates = {n: _fate(view, b, n, moves) for n, b in maps.items()}
    if unsupported := _of(fates, _Fate.UNSUPPORTED):
        raise _unsupported(view, unsupported)
    rebuilt = _of(fates, _Fate.REBUILT)
    convs = [n for n in rebuilt if view.role(n) == Role.CONV]
    sides = {n: kernels.get(n) or odd_kernel(view.kernel(n), view.stride(n)) for n in convs}
    foreign = entry_in_place_of(nodes, blocks[0].entry, templates.analysis)
    stand_ins = {n: other for n, other in templates.analysis.stand_ins.items() if n in nodes}
    dropped = {n: view.inputs(n)[0] for n in _of(fates, _Fate.DROPPED)}
    shortcuts, projections = shortcut_edits(templates, first, entry_width, widths) if first else ({}, [])
    edits = Edits(
        bypass=FrozenMap({**foreign, **dropped, **shortcuts, **stand_ins}),
        stride_one=frozenset(n for n in rebuilt if view.stride(n) != (1, 1) or view.moves(n)),
        kernels=FrozenMap({n: side for n, side in sides.items() if side != view.kernel(n)}),
        projections=tuple(projections),
        excursions=frozenset(_of(fates, _Fate.EXCURSION)),
    )
    return with_upsampling(Edited(view, nodes, blocks[-1].exit, edits)) if upsampling else edits


def _fate(view: GraphView, block: Block, name: str, moves: Collection[str]) -> _Fate:
    role, source = view.role(name), view.inputs(name)[0]
    before, after = view.reduction(source), view.reduction(name)
    if any(r is not None and r > block.reduction for r in (before, after)):
        return _Fate.EXCURSION
    if role in (Role.CONV, Role.ATTENTION):
        return _Fate.REBUILT
    if name in moves:
        return _Fate.KEPT
    if view.moves(name) or (role == Role.POOL and before != after):
        selects = view.width(name) < view.width(source)  # some channels, in the same breath
        return _Fate.REBUILT if selects else _Fate.DROPPED
    # Behind a view the reduction may be None: positions became tokens.
    reduces = before not in (None, after) and (after or role == Role.OPAQUE)
    return _Fate.UNSUPPORTED if reduces and role not in (Role.RESAMPLE, Role.GATE) else _Fate.KEPT


def _of(fates: Mapping[str, _Fate], fate: _Fate) -> list[str]:
    return [name for name, found in fates.items() if found is fate]


def _unsupported(view: GraphView, nodes: list[str]) -> UnsupportedOperationError:
    places: dict[str, list[str]] = {}
    for name in nodes:
        places.setdefault(view.operation(name), []).append(view.where(name))
    lines = [
        f"  {key} in {', '.join(dict.fromkeys(where))}: register a rule with\n"
        f"    @bu2td.register_converter({key})\n"
        f"    class ...(bu2td.Converter): ..."
        for key, where in places.items()
    ]
    return UnsupportedOperationError(
        "these operations reduce resolution, and no converter says how they work without a stride:\n"
        + "\n".join(lines)
    )
