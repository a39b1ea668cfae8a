"""The rewrite of concats that grow."""

from __future__ import annotations

from typing import Any

from torch import fx

from bu2td.capture.draft import Draft, function_name


def growing_concat(draft: Draft, node: fx.Node) -> bool:
    """``x = cat([x, f(x)])``, repeated, is the concat of all parts.

    Only where every part is computed from one of them: what parallel branches join stays a value.
    """
    first = _origin(node)
    if first is None or _origin(first) is None or _dimension(first) != _dimension(node):
        return False
    flat = [inner for p in _parts(node) for inner in (_parts(p) if p is first else [p])]
    node.args, node.kwargs = (flat, _dimension(node)), {}
    return True


def _origin(node: fx.Node) -> fx.Node | None:
    """The part that all parts of a concat are computed from, if it joins or is joined by another concat."""
    parts = _parts(node)
    if len(parts) < 2 or not any(map(_parts, [*parts, *node.users])):
        return None
    return next((p for p in parts if _all_computed_from(p, parts, node)), None)


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
