"""How a captured graph is read."""

from bu2td.graph.flatten import flatten, owner_of
from bu2td.graph.run import shapes_of
from bu2td.graph.source import is_torch_source, source_line
from bu2td.graph.view import GraphView, follows_entry, residual_join, shortcut_of

__all__ = [
    "GraphView",
    "flatten",
    "follows_entry",
    "is_torch_source",
    "owner_of",
    "residual_join",
    "shapes_of",
    "shortcut_of",
    "source_line",
]
