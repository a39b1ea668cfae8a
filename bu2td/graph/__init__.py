"""How a captured graph is read."""

from bu2td.graph.cut import ending_in
from bu2td.graph.flatten import flatten, last_nodes, owner_of
from bu2td.graph.run import shapes_of
from bu2td.graph.source import is_torch_source, source_line
from bu2td.graph.surroundings import alone, full_precision, paused_collector, undisturbed
from bu2td.graph.view import GraphView
