"""Part of arrange: what a plan's user should know."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from bu2td.graph import GraphView
from bu2td.ir import Analysis, Piece
from bu2td.ops import Role
from bu2td.options import Options


def notes_of(analysis: Analysis, options: Options, view: GraphView, pieces: Iterable[Piece]) -> Iterator[str]:
    """What is not as one may expect in a plan of these pieces."""
    if options.stem == "coarse" and not analysis.stem.strides:
        yield "stem='coarse' changes nothing: the network has no stem that strides"
    if shared := _shared(analysis, view):
        yield (
            f"weights that the bottom-up network uses in several places are separate in each: {', '.join(shared)}"
        )
    opaque = {view.where(name): view.operation(name) for piece in pieces for name in piece.opaque}
    if opaque:
        listed = "; ".join(f"{what} at {where}" for where, what in opaque.items())
        yield f"operations without a converter, whose channels stay as they are: {listed}"


def _shared(analysis: Analysis, view: GraphView) -> list[str]:
    """Modules with parameters that are called more than once, and parameters that several levels read."""
    used = Counter(str(n.target) for n in view.nodes.values() if n.op == "call_module")
    parts = [{n for block in level.blocks for n in block.nodes} for level in analysis.levels]
    for part in [*parts, {*analysis.head.nodes}]:
        used.update({str(view.nodes[n].target) for n in part if view.role(n) == Role.ATTRIBUTE})
    owned = [f"{name}." for name, _ in view.graph_module.named_parameters()]
    return [n for n, count in used.items() if count > 1 and any(o.startswith(f"{n}.") for o in owned)]
