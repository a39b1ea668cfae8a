"""Where an up-block upsamples.

Every path from entry to exit passes exactly one upsampling, placed as late as the function allows: right before
the first operation that looks around, else where the path joins one that is at high resolution already, else at
the exit. Nearest and bilinear upsampling commute with pointwise operations, so "late" is the same function, and
cheaper.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from bu2td.graph import GraphView
from bu2td.graph.edited import Edited
from bu2td.ir import Edits, is_feature_map, is_spatial
from bu2td.ops import Role


@dataclass(frozen=True)
class _Placement:
    """The nodes at high resolution, and the reads over the border: (what is upsampled, its reader)."""

    high: frozenset[str]
    reads: frozenset[tuple[str, str]]


def with_upsampling(edited: Edited) -> Edits:
    """Place the upsamplings of an up-block.

    Needs: the nodes of a block, edited but for upsamplings.
    Returns: its edits with them.
    Guarantees: one upsampling on every spatial path from entry to exit, each of a feature map.
    """
    view = edited.view
    spatial = [n for n in edited.nodes if n in edited.alive and is_spatial(view.dims[n])]
    moved: frozenset[str] = frozenset()
    while True:
        placement = _place(edited, spatial, moved)
        # Only an (N, C, H, W) map can be upsampled: what lies between it and its reader moves up.
        unfit = {
            what
            for what, reader in placement.reads
            if not is_feature_map(view.dims[what]) and edited.projection(what, reader) is None
        }
        if not unfit:
            break
        moved |= unfit
    last = edited.producer(edited.exit)
    at_exit = {(last, "")} if last not in placement.high else set()
    return replace(edited.edits, upsample=placement.reads | at_exit | _size_reads(edited, placement.high))


def _place(edited: Edited, spatial: list[str], moved: frozenset[str]) -> _Placement:
    """Low resolution up to the first node that needs the high one; ``moved`` nodes do besides."""
    high: set[str] = set()
    reads: set[tuple[str, str]] = set()
    for name in spatial:
        sources = {operand: edited.source(operand, name) for operand in edited.view.inputs(name)}
        if name in moved or _looks_around(edited, name) or not high.isdisjoint(sources.values()):
            high.add(name)
            reads |= {(edited.upsampled_as(o, name), name) for o, source in sources.items() if source not in high}
    return _Placement(frozenset(high), frozenset(reads))


def _looks_around(edited: Edited, name: str) -> bool:
    """Whether a node does not commute with upsampling."""
    view, edits = edited.view, edited.edits
    role = view.role(name)
    pointwise = role == Role.CONV and edits.kernels.get(name, view.kernel(name)) == (1, 1)
    moves = view.moves(name) and name not in edits.stride_one
    return name in edits.excursions or moves or not (role.local or pointwise)


def _size_reads(edited: Edited, high: frozenset[str]) -> set[tuple[str, str]]:
    """Maps of which a node reads the size, for tensors at high resolution."""
    view = edited.view
    sizes = [n for n in edited.nodes if n in edited.alive and view.dims[n] is None]
    return {
        (source, name)
        for name in sizes
        if not high.isdisjoint(_sized_by(view, name))
        for source in (edited.source(operand, name) for operand in view.inputs(name))
        if source not in high
    }


def _sized_by(view: GraphView, name: str) -> set[str]:
    """The tensors that are made with a size which a node reads."""
    found: set[str] = set()
    stack = [name]
    while stack:
        for user in view.nodes[stack.pop()].users:
            if view.dims.get(user.name) is None:
                stack.append(user.name)
            else:
                found.add(user.name)
    return found
