"""How a captured graph is read."""

from bu2td.graph.flatten import flatten, owner_of
from bu2td.graph.run import shapes_of
from bu2td.graph.source import is_torch_source, source_line
from bu2td.graph.view import GraphView

__all__ = [
    "GraphView",
    "flatten",
    "is_torch_source",
    "owner_of",
    "shapes_of",
    "source_line",
]
