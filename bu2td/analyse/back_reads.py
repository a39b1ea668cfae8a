"""Part of analyse: reads that do not count when the trunk is cut, because they reach back over it.

Two kinds of networks have a trunk of levels although single tensors do not separate them:

- *Chains of order two.* A cell reads the two cells before it (NASNet, PNASNet): behind every cell two tensors
  are live, its output v_i and the one before, v_(i-1). The reads of v_(i-1) behind v_i are set aside.
- *Heads that read several levels.* An operation that reads maps of several reductions into a value that does not
  follow the image (it resizes them itself) reads the last of them; the others are set aside.

Where a level begins, its blocks find only the level's entry: a read that was set aside and whose source lies in
another level gets the entry in its place (`bu2td.arrange.edits`). Inside a level it is read as it always was.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from bu2td.graph import GraphView
from bu2td.ir import is_feature_map, is_spatial


def set_aside_reads(view: GraphView, trunk: Sequence[str]) -> dict[tuple[str, str], str]:
    """Find the reads that reach back over the trunk.

    Needs: a probed graph and its trunk tensors (single tensors that all paths pass).
    Returns: (source, reader) -> the trunk tensor that the reader follows; empty for most networks.
    Guarantees: without these reads, every tensor named as a value is on the trunk.
    """
    aside: dict[tuple[str, str], str] = {}
    for name in (n for n in view.nodes if not is_spatial(view.dims.get(n))):
        maps = [source for source in view.inputs(name) if view.reduction(source)]
        if len({view.reduction(source) for source in maps}) > 1:
            aside |= {(source, name): maps[-1] for source in maps[:-1]}
    for a, b in pairwise(trunk):
        if view.reduction(b) > view.reduction(a):
            inside = [n for n in view.nodes if view.order[a] < view.order[n] < view.order[b]]
            aside |= _order_two(view, a, inside) if goes_on_between(view, a, b, inside) else {}
    return aside


def goes_on_between(view: GraphView, entry: str, exit_: str, nodes: Iterable[str]) -> bool:
    """Whether a stretch of the graph holds levels of its own.

    It does where paths meet at a resolution strictly between those of its ends: there the network goes on
    working, and the stretch is more than one step down. Paths that only pass such a resolution make no level.
    """
    fine, coarse = view.reduction(entry), view.reduction(exit_)
    between = (n for n in nodes if fine < (view.reduction(n) or fine) < coarse)
    return any(len(view.inputs(name)) > 1 for name in between)


def _order_two(view: GraphView, start: str, inside: Sequence[str]) -> dict[tuple[str, str], str]:
    """The reads that reach back one cell in the longest chain of order two from a start through what follows.

    v is a link of u where layers compute v from u and, from then on, u and v alone are read. The chain is the
    longest path of links from the start; where fewer than two cells are found there is none.
    """
    live = {start}
    length, before = {start: 0}, {start: start}
    for name in inside:
        if not is_feature_map(view.dims[name]):
            live |= {name} if is_spatial(view.dims[name]) else set()
            continue
        live = {n for n in {*live, name} if _last_reader(view, n) > view.order[name]}
        others = live - {name}
        other = next(iter(others)) if name in live and len(others) == 1 else ""
        if other in length and _depends(view, name, other):
            length[name], before[name] = length[other] + 1, other
    last = max(length, key=length.__getitem__)
    chain = [last]
    while chain[-1] != start:
        chain.append(before[chain[-1]])
    if len(chain) < 3:
        return {}
    chain.reverse()
    return {
        (u, reader.name): v
        for u, v in pairwise(chain)
        for reader in view.nodes[u].users
        if view.order[reader.name] > view.order[v]
    }


def _depends(view: GraphView, name: str, source: str) -> bool:
    """Whether a value is computed from another, and by layers: a map that was only pooled is no cell."""
    seen, stack, found = {name}, [name], False
    while stack:
        for before in view.inputs(stack.pop()):
            found = found or before == source
            if before not in seen and view.order[before] > view.order[source]:
                seen.add(before)
                stack.append(before)
    return found and any(view.role(n).layer for n in seen)


def _last_reader(view: GraphView, name: str) -> int:
    return max((view.order[user.name] for user in view.nodes[name].users), default=-1)
