"""Part of analyse: regions -> conv units, branching regions and pools.

Regions are read like a sentence: a conv takes the norm and activation behind it; a norm or activation that
follows anything else waits for the next conv or branching region (pre-activation), and what still waits at
the end belongs to the head. So does arithmetic that the network does at its end alone.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from torch import fx

from bu2td.analyse.trunk import Region
from bu2td.graph.view import GraphView, residual_join
from bu2td.ir.values import is_feature_map, is_spatial, is_tensor
from bu2td.ops.roles import Role


@dataclass
class Segment:
    """A conv unit, branching region or pool in the making."""

    kind: str
    nodes: list[str]
    entry: str
    exit: str
    conv: str | None = None
    prefix: list[str] = field(default_factory=list)
    roles: set[Role] = field(default_factory=set)
    closed: bool = False
    dropouts: list[str] = field(default_factory=list)

    def append(self, region: Region) -> None:
        """Take a region that follows into the unit."""
        self.nodes += region.nodes
        self.exit = region.exit
        self.roles |= region.roles


def read_units(view: GraphView, regions: list[Region]) -> tuple[list[Segment], list[Region]]:
    """Read regions into conv units, branching regions and pools.

    Needs: the regions of `bu2td.analyse.trunk.find_regions`, in order.
    Returns: the units in order, and the regions that wait for the head.
    Guarantees: every region is in one unit or waits.
    """
    units: list[Segment] = []
    waiting: list[Region] = []
    act_first = any(_starts_with_act(view, r) for r in regions if r.kind == "multi")

    def attach(region: Region) -> None:
        if units and not waiting:
            units[-1].append(region)
        else:
            waiting.append(region)

    end = _arithmetic_from(view, regions)
    for region in regions[:end]:
        last = units[-1] if units else None
        if region.kind in ("conv", "multi"):
            unit = Segment(region.kind, [], region.entry, region.exit, conv=region.conv)
            unit.entry = waiting[0].entry if waiting else region.entry
            for before in waiting:
                unit.nodes += before.nodes
                if before.kind in ("norm", "act"):
                    unit.prefix += before.nodes
            unit.nodes += region.nodes
            unit.roles = set(region.roles)
            waiting = []
            units.append(unit)
        elif region.kind == "pool":
            reduces = view.reduction(region.entry) != view.reduction(region.exit)
            if reduces:
                if waiting and last:
                    for before in waiting:
                        last.append(before)
                    waiting = []
                units.append(Segment("pool", list(region.nodes), region.entry, region.exit, closed=True))
            else:
                attach(region)
        elif region.kind == "norm":
            open_conv = last and last.kind == "conv" and not any(role.normalises for role in last.roles)
            if open_conv and not waiting and Role.ACT not in last.roles:  # type: ignore[union-attr]
                last.append(region)  # type: ignore[union-attr]
            else:
                waiting.append(region)
        elif region.kind == "dropout":
            if last and last.kind == "pool" and not waiting:
                last.append(region)
                last.dropouts += region.nodes
            else:
                waiting.append(region)
        elif region.kind == "act" and last and (last.closed or (act_first and last.kind == "multi")):
            waiting.append(region)
        else:
            attach(region)
    return _steal_preactivation(view, units), [*waiting, *regions[end:]]


#: Roles of operations that compute value by value, and of what they read beside the map.
_ARITHMETIC = {Role.PASS, Role.ADD, Role.MUL, Role.ATTRIBUTE}


def _arithmetic_from(view: GraphView, regions: list[Region]) -> int:
    """Where arithmetic begins that the network does at its end alone, in front of the global pool.

    ``x.clamp(min=eps).pow(p)`` belongs to a generalised mean as its root behind the pool does. What the network
    does behind other units, too, is an activation written by hand and stays with its unit.
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
    return region.kind == "pass" and region.roles <= _ARITHMETIC


def _formula(view: GraphView, region: Region) -> tuple[str, ...]:
    """The operations of a region with their numbers."""
    return tuple(
        f"{view.operation(n)} {view.module(n)} {fx.map_arg(view.nodes[n].args, lambda _: None)} "
        f"{fx.map_arg(view.nodes[n].kwargs, lambda _: None)}"
        for n in region.nodes
    )


def _starts_with_act(view: GraphView, region: Region) -> bool:
    """Whether a residual region activates its entry on the main path and adds it raw (norm-free nets).

    In such a net the activation between two blocks belongs to the second.
    """
    join = residual_join(view, region.exit, region.nodes)
    if join is None or region.entry not in view.inputs(join):
        return False
    readers = [u.name for u in view.nodes[region.entry].users if u.name in region.nodes]
    return any(view.role(r) == Role.ACT for r in readers if r != join)


def _steal_preactivation(view: GraphView, units: list[Segment]) -> list[Segment]:
    """Give the norm-act behind a conv to the pre-activation block that follows without a border.

    In ``conv, norm, act, (conv, norm, act, conv) + projection`` the first norm-act belongs to the block:
    its main path ends on a bare convolution, so the block's own order is norm-act-conv.
    """
    for before, unit in itertools.pairwise(units):
        if unit.kind != "multi" or unit.prefix or before.kind != "conv" or before.exit != unit.entry:
            continue
        if not any(role.normalises for role in before.roles) or before.conv is None:
            continue
        if not _ends_on_bare_conv(view, unit):
            continue
        at = before.nodes.index(before.conv) + 1
        stolen = before.nodes[at:]
        before.nodes, before.exit = before.nodes[:at], before.conv
        before.roles = {Role.CONV}
        unit.prefix = [n for n in stolen if view.role(n) in (Role.NORM, Role.ACT, Role.NORM_ACT)]
        unit.nodes, unit.entry = stolen + unit.nodes, before.exit
    return units


def _ends_on_bare_conv(view: GraphView, unit: Segment) -> bool:
    join = residual_join(view, unit.exit, unit.nodes)
    if join != unit.exit or not any(role.normalises for role in unit.roles):
        return False
    operands = view.inputs(join)
    bare = [view.role(o) in (Role.CONV, Role.DROPOUT) for o in operands]
    direct = [o for o in operands if view.role(o) == Role.CONV and view.kernel(o) == (1, 1)]
    return all(bare) and bool(direct)
