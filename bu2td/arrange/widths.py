"""Part of arrange: the width of every channel dimension of a piece, and what is given up where none fit.

Every converter states its ties to a `bu2td.arrange.system.ChannelSystem`; the widths at the borders are pinned to
those that are asked for, all others are wanted in proportion to the bottom-up ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any

from bu2td.arrange.solver import solve
from bu2td.arrange.system import ChannelSystem
from bu2td.errors import ConverterError
from bu2td.graph import GraphView
from bu2td.graph.edited import Edited
from bu2td.ir import Edits, Relaxation, TensorDims, map_dims
from bu2td.ir.frozen import EMPTY, FrozenMap
from bu2td.ops import Expr, NoRuleError, Role, blaming, pinned


@dataclass(frozen=True)
class Attempt:
    """What may be given up, and how it is called."""

    relaxation: Relaxation | None
    regroup: bool = False
    entry_free: bool = False
    exit_free: bool = False


#: In the order in which they are made.
ATTEMPTS = (
    Attempt(None),
    Attempt(Relaxation.REGROUP, regroup=True),
    Attempt(Relaxation.ENTRY_ADAPTER, regroup=True, entry_free=True),
    Attempt(Relaxation.EXIT_ADAPTER, regroup=True, exit_free=True),
    Attempt(Relaxation.ADAPTERS, regroup=True, entry_free=True, exit_free=True),
)


@dataclass(frozen=True)
class Request:
    """What a piece is asked for.

    Attributes:
        name: of the piece.
        nodes: in graph order; ``entry`` is the tensor that they read, ``exit`` the one they produce.
        entry_width, exit_width: widths to meet.
        edits: of the nodes.
        pins: further trunk tensors inside the piece and their widths.
        factors: node -> factor by which its widths are wanted to scale.
    """

    name: str
    nodes: tuple[str, ...]
    entry: str
    exit: str
    entry_width: int
    exit_width: int
    edits: Edits
    pins: FrozenMap[str, int] = EMPTY
    factors: FrozenMap[str, Fraction] = EMPTY


@dataclass(frozen=True)
class Solution:
    """Widths that fit.

    Attributes:
        sizes: of every value in the piece, as in `bu2td.ir.plan.Piece`.
        entry_width, exit_width: at its borders; adapters are needed where they are not the requested ones.
        relaxation: what was given up.
        opaque: nodes without a converter.
    """

    sizes: FrozenMap[str, Any]
    entry_width: int
    exit_width: int
    relaxation: Relaxation | None = None
    opaque: tuple[str, ...] = ()


def solve_widths(view: GraphView, request: Request) -> Solution:
    """Find the width of every channel dimension in a piece.

    Needs: a `Request` whose nodes read nothing from outside but its entry.
    Returns: a `Solution`; where the widths at the borders differ from the requested ones, adapters are
        needed, and the relaxation says so. A frozen one holds for the piece with all widths as in the bottom-up
        network, its shortcuts included, and must be asked for again as such.
    Guarantees: the sizes satisfy every tie, sum and divisibility that the converters state.
    """
    system = ChannelSystem()
    exprs, opaque = _expressions(view, request, system)
    values, relaxation = _nearest(system, request, exprs)

    def measure(expr: Expr) -> int:
        return int(system.row(expr).amount(values))

    def sizes(dims: TensorDims, parts: tuple[Expr | None, ...]) -> tuple[int | None, ...]:
        return tuple(None if expr is None else measure(expr) for expr in parts)

    return Solution(
        sizes=FrozenMap({name: map_dims(sizes, view.dims[name], found) for name, found in exprs.items()}),
        entry_width=measure(exprs[request.entry][1]),
        exit_width=measure(exprs[request.exit][1]),
        relaxation=relaxation,
        opaque=tuple(opaque),
    )


def _nearest(
    system: ChannelSystem, request: Request, exprs: Mapping[str, Any]
) -> tuple[Mapping[int, int], Relaxation | None]:
    """The values of the first attempt that succeeds, and what it gave up."""
    entry = (exprs[request.entry][1], request.entry_width)
    exit_ = (exprs[request.exit][1], request.exit_width)
    inner = [(exprs[n][1], width) for n, width in request.pins.items() if n in exprs]
    for attempt in ATTEMPTS:
        border = [*([] if attempt.entry_free else [entry]), *([] if attempt.exit_free else [exit_])]
        values = solve(system.problem([*border, *inner], attempt.regroup))
        if values is not None:
            return values, attempt.relaxation
    return system.bottom_up(), Relaxation.FROZEN


def _expressions(view: GraphView, request: Request, system: ChannelSystem) -> tuple[dict[str, Any], list[str]]:
    """Ask every converter for its ties, in graph order; returns expressions and opaque nodes."""
    edits = request.edits
    edited = Edited(view, request.nodes, request.exit, edits)
    exprs: dict[str, Any] = {request.entry: _fresh(system, view.dims[request.entry], None)}
    shortcuts = {
        (p.join, p.operand): _fresh(system, view.dims[p.operand], p.unit.out_channels) for p in edits.projections
    }
    opaque: list[str] = []

    def lookup(reader: str, node: Any) -> Any:
        return shortcuts.get((reader, node.name)) or exprs.get(edited.producer(node.name))

    for name in (n for n in request.nodes if n in edited.alive):
        system.visit(partial(lookup, name), request.factors.get(name, Fraction(1)))
        exprs[name], known = _tie(view, name, system)
        if not known:
            opaque.append(name)
    stand_ins = {name: edited.producer(name) for name in edits.bypass}
    return exprs | {name: exprs[own] for name, own in stand_ins.items() if own in exprs}, opaque


def _fresh(system: ChannelSystem, dims: TensorDims, width: int | None) -> tuple[Expr | None, ...]:
    """New variables for a tensor's channels, wanted at its own width or another."""
    return tuple(system.fresh(d.size, "border", width) if d.kind == "channel" else None for d in dims)


def _tie(view: GraphView, name: str, system: ChannelSystem) -> tuple[Any, bool]:
    """The expressions of a node's value, and whether a converter stated them.

    Where arguments are computed by the graph, a converter may not understand them: such a node is opaque, as is
    one for which its converter says that it has no rule. Any other failure is the converter's.
    """
    converter, site, value = view.converter(name), view.site(name), view.dims[name]
    if value is None:
        return None, True
    mark = system.mark()
    computed = any(view.dims[n.name] is None for n in site.node.all_input_nodes)
    try:
        with blaming(converter, "tie the channels of", view.where(name)):
            exprs = map_dims(_checked, value, converter.tie(site, system))
        return exprs, view.role(name) is not Role.OPAQUE
    except (NoRuleError, ConverterError) as error:
        if isinstance(error, ConverterError) and not computed:
            raise
        system.reset(mark)
        return pinned(site, system), False


def _checked(dims: TensorDims, exprs: tuple[Expr | None, ...]) -> tuple[Expr | None, ...]:
    """Expressions, which must have the structure of the tensor."""
    for expr, dim in zip(exprs, dims, strict=True):
        if (expr is None) != (dim.kind != "channel"):
            raise ValueError(f"it says {expr} of a dimension that counts {dim.kind}, of size {dim.size}")
    return tuple(exprs)
