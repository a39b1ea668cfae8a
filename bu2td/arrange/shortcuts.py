"""Part of arrange: what becomes of a block's reads of its entry, by its shortcuts and over its border."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bu2td.arrange.templates import Templates
from bu2td.graph.view import GraphView, follows_entry, shortcut_of
from bu2td.ir.bottom_up import Analysis, Block
from bu2td.ir.plan import Projection
from bu2td.ir.values import is_feature_map
from bu2td.ops.roles import Role


def shortcut_edits(
    view: GraphView, templates: Templates, first: Block, entry_width: int, widths: Mapping[str, int]
) -> tuple[dict[str, str], list[Projection]]:
    """Projections to drop (in == out) and to build (an identity shortcut whose width changes)."""
    bypass: dict[str, str] = {}
    projections = []
    for join in first.nodes:
        if view.role(join) != Role.ADD or len(view.inputs(join)) < 2:
            continue
        scale = widths[first.exit] / first.width
        width = widths[first.exit] if view.width(join) == first.width else round(view.width(join) * scale)
        found = shortcut_of(view, join, first.entry, first.nodes)
        if found is None:
            # A shortcut inside the block, from a value that is as wide as the entry.
            tied = [o for o in view.inputs(join) if follows_entry(view, o, first.entry, first.nodes)]
            if len(tied) == 1 and entry_width != width and is_feature_map(view.dims[tied[0]]):
                projections.append(
                    Projection(join, tied[0], tied[0], templates.projection(first, entry_width, width))
                )
            continue
        operand, chain = found
        projected = any(view.role(n) == Role.CONV for n in chain)
        if not projected and any(view.role(n) in (Role.NORM, Role.NORM_ACT, Role.ACT) for n in chain):
            continue  # an add inside the main path, which reads a changed entry
        if entry_width == width and (projected or any(pads_channels(view, n) for n in chain)):
            bypass[operand] = first.entry
        elif not projected and entry_width != width:
            unit = templates.projection(first, entry_width, width)
            projections.append(Projection(join, operand, templates.preactivated(first), unit))
    return bypass, projections


def pads_channels(view: GraphView, name: str) -> bool:
    """Whether a node adds channels of zeros (a shortcut of option A)."""
    return view.role(name) == Role.PAD and view.width(name) != view.width(view.inputs(name)[0])


def entry_in_place_of(nodes: Sequence[str], entry: str, analysis: Analysis) -> dict[str, str]:
    """Maps from before the entry that nodes read back to (see `back_reads`), each with the entry in its place."""
    inside, known = {*nodes}, {*nodes, entry}
    return {source: entry for source, reader in analysis.aside if reader in inside and source not in known}
