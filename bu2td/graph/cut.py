"""Parts of a graph."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx


def ending_in(graph: fx.Graph, names: Sequence[str]) -> fx.Graph:
    """The part of a graph that computes some of its nodes, and returns them as a list.

    Args:
        graph: is not changed; its inputs are kept, all of them.
        names: of the nodes.
    """
    read = {node for node in graph.nodes if node.name in names or node.op == "placeholder"}
    for node in reversed(graph.nodes):
        if node in read:
            read.update(node.all_input_nodes)
    part, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in graph.nodes:
        if node in read:
            copies[node] = part.node_copy(node, copies.__getitem__)
    by_name = {node.name: copy for node, copy in copies.items()}
    part.output([by_name[name] for name in names])
    return part
