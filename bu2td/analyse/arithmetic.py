"""Part of analyse: arithmetic that a network does at its end alone belongs to its head."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from bu2td.analyse.trunk import Region, RegionKind
from bu2td.graph import GraphView
from bu2td.ir import is_feature_map, is_spatial, is_tensor
from bu2td.ops import Role

#: Roles of operations that compute value by value, and of what they read beside the map.
_ARITHMETIC = {Role.PASS, Role.ADD, Role.MUL, Role.ATTRIBUTE}


def arithmetic_of_the_head(view: GraphView, regions: Sequence[Region]) -> int:
    """Where arithmetic begins that the network does at its end alone, in front of the global pool.

    ``x.clamp(min=eps).pow(p)`` belongs to a generalised mean as its root behind the pool does. What the network
    does behind other layers, too, is an activation written by hand and stays with its layer: nothing but the
    repetition tells one from the other.
    """
    start = len(regions)
    while start > 0 and _is_arithmetic(view, regions[start - 1], regions[-1].exit):
        start -= 1
    before = {_formula(view, r) for r in regions[:start]}
    while start < len(regions) and _formula(view, regions[start]) in before:
        start += 1
    return start


def _is_arithmetic(view: GraphView, region: Region, end: str) -> bool:
    """Whether a region computes value by value, without weights of its own width that only it reads."""
    for name in region.nodes:
        value = view.dims[name]
        if view.role(name) == Role.ATTRIBUTE and any(
            view.order[u.name] > view.order[end] for u in view.nodes[name].users
        ):
            continue
        per_map = is_feature_map(value) and view.width(name) == view.width(region.entry)
        single = not is_spatial(value) and (value is None or all(is_tensor(value) and d.size == 1 for d in value))
        if not (per_map or single):
            return False
    return region.kind == RegionKind.PASS and region.roles <= _ARITHMETIC


def _formula(view: GraphView, region: Region) -> tuple[str, ...]:
    """The operations of a region with their numbers."""
    return tuple(
        f"{view.operation(n)} {view.module(n)} {fx.map_arg(view.nodes[n].args, lambda _: None)} "
        f"{fx.map_arg(view.nodes[n].kwargs, lambda _: None)}"
        for n in region.nodes
    )
