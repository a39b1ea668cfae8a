"""Part of analyse: channels-last maps on the trunk are shown as (N, C, H, W) maps.

Some networks keep their features as (N, H, W, C) from block to block. Two permutes that cancel, put behind
every join and norm of such a trunk, change nothing that the network computes, and the value between them is an
(N, C, H, W) map, at which levels and blocks can be cut as in any other network.
"""

from __future__ import annotations

from dataclasses import replace

from torch import fx

from bu2td.analyse.trunk import dominator_chain
from bu2td.graph import GraphView
from bu2td.ir import Dims, is_tensor
from bu2td.ops import Role

_CHANNELS_LAST = ["batch", "height", "width", "channel"]
#: Roles of operations behind which a block may end.
_ENDS = (Role.ADD, Role.NORM, Role.NORM_ACT)
_TO_MAP, _BACK = (0, 3, 1, 2), (0, 2, 3, 1)


def expose_maps(view: GraphView, logits: str) -> GraphView:
    """Show the channels-last joins and norms of the trunk as (N, C, H, W) maps.

    Needs: a probed graph, and the node of its logits.
    Returns: the graph with two permutes behind every channels-last add or norm that all paths from image to
        logits pass, and its dimensions.
    Guarantees: the graph computes what it computed; a graph without such values is returned as it is.
    """
    chain = dominator_chain(view, logits)
    ends = [name for name in chain if view.role(name) in _ENDS and _channels_last(view.dims[name])]
    if not ends:
        return view
    graph = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    shown = dict(view.dims)
    for node in view.graph_module.graph.nodes:
        env[node] = new = graph.node_copy(node, env.__getitem__)
        if node.name in ends:
            for order, suffix in ((_TO_MAP, "map"), (_BACK, "last")):
                before, name = env[node], f"{node.name}_{suffix}"
                env[node] = permuted = graph.create_node("call_method", "permute", (before, *order), name=name)
                permuted.meta = {key: new.meta[key] for key in ("path", "line") if key in new.meta}
                shown[permuted.name] = tuple(shown[before.name][i] for i in order)
    turned = fx.GraphModule(view.graph_module, graph).eval()
    return GraphView(replace(view.capture, graph_module=turned), shown)


def _channels_last(value: Dims) -> bool:
    return is_tensor(value) and [d.kind for d in value] == _CHANNELS_LAST
