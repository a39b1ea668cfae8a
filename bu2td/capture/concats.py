"""The rewrite of concats that grow."""

from __future__ import annotations

from typing import Any

from torch import fx

from bu2td.capture.draft import Draft, function_name


def growing_concats(draft: Draft) -> bool:
    """``x = cat([x, f(x)])``, repeated, is the concat of all parts.

    Only where every part is computed from one of them: what parallel branches join stays a value.
    """
    changed = False
    growing: set[fx.Node] = set()
    for node in draft.graph.nodes:
        parts = _parts(node)
        if not any(map(_parts, [*parts, *node.users])):
            continue
        first = next((p for p in parts if _all_computed_from(p, parts, node)), None)
        if first is None or len(parts) < 2:
            continue
        growing.add(node)
        if first in growing and _dimension(first) == _dimension(node):
            flat = [inner for p in parts for inner in (_parts(p) if p is first else [p])]
            node.args, node.kwargs = (flat, _dimension(node)), {}
            changed = True
    return changed


def _parts(node: fx.Node) -> list[fx.Node]:
    """The parts of a concat; none for other operations."""
    parts = node.args[0] if node.args and function_name(node) in ("cat", "concat") else ()
    is_list = isinstance(parts, list | tuple) and all(isinstance(p, fx.Node) for p in parts)
    return list(parts) if is_list else []  # type: ignore[arg-type]


def _dimension(node: fx.Node) -> Any:
    return node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)


def _all_computed_from(source: fx.Node, parts: list[fx.Node], end: fx.Node) -> bool:
    """Whether all parts are a value or computed from it, in a graph that is in order."""
    reached, node = {source}, source.next
    while node is not end:
        if not reached.isdisjoint(node.all_input_nodes):
            reached.add(node)
        node = node.next
    return reached.issuperset(parts)
