"""Part of arrange: what becomes of a block's reads of its entry, by its shortcuts and over its border."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bu2td.arrange.templates import Templates
from bu2td.ir import Analysis, Block, Projection, ShortcutKind


def shortcut_edits(
    templates: Templates, first: Block, entry_width: int, widths: Mapping[str, int]
) -> tuple[dict[str, str], list[Projection]]:
    """Projections to drop (in == out) and to build (an identity shortcut whose width changes)."""
    bypass: dict[str, str] = {}
    projections = []
    for shortcut in first.shortcuts:
        exit_width = widths[first.exit]
        width = exit_width if shortcut.width == first.width else round(shortcut.width * exit_width / first.width)
        read = entry_width
        if shortcut.kind == ShortcutKind.TIED:  # depthwise convolutions may have multiplied it
            read = round(entry_width * shortcut.width / first.entry_width)
        if read == width:
            if shortcut.kind in (ShortcutKind.PROJECTION, ShortcutKind.PADDED):
                bypass[shortcut.operand] = first.entry
        elif shortcut.kind in (ShortcutKind.IDENTITY, ShortcutKind.PADDED, ShortcutKind.TIED):
            source = templates.preactivated(first) if shortcut.from_entry else shortcut.operand
            unit = templates.projection(first, read, width)
            projections.append(Projection(shortcut.join, shortcut.operand, source, unit))
    return bypass, projections


def entry_in_place_of(nodes: Sequence[str], entry: str, analysis: Analysis) -> dict[str, str]:
    """Maps from before the entry that nodes read back to (see `back_reads`), each with the entry in its place."""
    inside, known = {*nodes}, {*nodes, entry}
    return {source: entry for source, reader in analysis.aside if reader in inside and source not in known}
