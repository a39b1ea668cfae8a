"""Part of analyse: the adds of a block, and which of their operands are shortcuts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from bu2td.graph import GraphView
from bu2td.ir import Shortcut, ShortcutKind, is_feature_map
from bu2td.ops import Role


def tied_to_entry(view: GraphView, entry: str, nodes: Iterable[str]) -> frozenset[str]:
    """The values of a block (nodes in graph order) whose width is tied to its entry's on every path between them.

    Depthwise convolutions and everything that has no weights over channels hand a width on; a dense
    convolution, a linear layer or a concatenation starts a new one.
    """
    tied = {entry}
    for name in nodes:
        inputs = view.inputs(name)
        makes_width = view.role(name).makes_width and not view.depthwise(name)
        if inputs and not makes_width and tied.issuperset(inputs) and not view.pads_channels(name):
            tied.add(name)
    return frozenset(tied)


def find_shortcuts(view: GraphView, entry: str, nodes: Sequence[str], tied: frozenset[str]) -> Iterator[Shortcut]:
    """The shortcuts of a block, one at most for each of its adds, in graph order.

    Where no operand comes from the entry, one that is tied to its width counts if it is the only one.
    """
    for join in nodes:
        operands = view.inputs(join)
        if view.role(join) != Role.ADD or len(operands) < 2:
            continue
        found = _from_entry(view, join, entry, nodes)
        if found:
            yield found
            continue
        bound = [operand for operand in operands if operand in tied]
        if len(bound) == 1 and is_feature_map(view.dims[bound[0]]):
            yield Shortcut(join, bound[0], ShortcutKind.TIED, view.width(join))


def _from_entry(view: GraphView, join: str, entry: str, nodes: Sequence[str]) -> Shortcut | None:
    """The operand of an add that is a shortcut from the entry: of several the shortest, of those the first."""
    chains = [(operand, _chain(view, operand, entry, nodes)) for operand in view.inputs(join)]
    found = [(operand, chain) for operand, chain in chains if chain is not None]
    if not found:
        return None
    operand, chain = min(found, key=lambda pair: len(pair[1]))
    conv = next((n for n in chain if view.role(n) == Role.CONV), None)
    behind = chain[chain.index(conv) + 1 :] if conv else []
    norm = next((n for n in behind if view.role(n).normalises), None)
    return Shortcut(join, operand, _kind(view, chain), view.width(join), conv, norm)


def _chain(view: GraphView, operand: str, entry: str, nodes: Sequence[str]) -> list[str] | None:
    """The operations on a shortcut from the entry to an operand, in order; None if it is none.

    They do not look around: at most one pointwise (or k = stride) convolution, its norm, a pool that reduces. The
    norm-act prefix of a block may lie on it. What its convolution makes is for the add alone.
    """
    inside = set(nodes)
    chain: list[str] = []
    name = operand
    shared, projected = len(view.nodes[operand].users) > 1, False
    while name != entry:
        inputs, role = view.inputs(name), view.role(name)
        if name not in inside or len(inputs) != 1:
            return None
        if role == Role.CONV:
            pointwise = view.kernel(name) in ((1, 1), view.stride(name))
            if projected or shared or not pointwise:
                return None
            projected = True
        elif not role.on_shortcut and role != Role.ADD:  # a sum of one map and a value per channel
            return None
        chain.append(name)
        name = inputs[0]
        shared = shared or len(view.nodes[name].users) > 1
    return chain[::-1]


def _kind(view: GraphView, chain: Sequence[str]) -> ShortcutKind:
    roles = {view.role(n) for n in chain}
    if Role.CONV in roles:
        return ShortcutKind.PROJECTION
    if roles & {Role.NORM, Role.NORM_ACT, Role.ACT}:
        return ShortcutKind.CHANGED
    return ShortcutKind.PADDED if any(map(view.pads_channels, chain)) else ShortcutKind.IDENTITY
