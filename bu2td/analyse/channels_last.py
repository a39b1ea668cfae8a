"""Part of analyse: channels-last maps on the trunk are shown as (N, C, H, W) maps.

Some networks keep their features as (N, H, W, C) from block to block. Two permutes that cancel, put behind
every join and norm of such a trunk, change nothing that the network computes, and the value between them is an
(N, C, H, W) map, at which levels and blocks can be cut as in any other network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import fx

from bu2td.analyse.trunk import dominator_chain
from bu2td.graph.view import GraphView
from bu2td.ir.bottom_up import Capture
from bu2td.ir.values import Dims, is_tensor
from bu2td.ops.roles import Role

_CHANNELS_LAST = ["batch", "height", "width", "channel"]
#: Roles of operations behind which a block may end.
_ENDS = (Role.ADD, Role.NORM, Role.NORM_ACT)
_TO_MAP, _BACK = (0, 3, 1, 2), (0, 2, 3, 1)


def expose_maps(capture: Capture, dims: Mapping[str, Dims], logits: str) -> tuple[Capture, Mapping[str, Dims]]:
    """Show the channels-last joins and norms of the trunk as (N, C, H, W) maps.

    Needs: a `Capture`, its probe, the node of its logits.
    Returns: both, with two permutes behind every channels-last add or norm that all paths from image to
        logits pass.
    Guarantees: the graph computes what it computed; a graph without such values is returned as it is.
    """
    view = GraphView(capture, dims)
    chain = dominator_chain(view, logits)
    ends = [name for name in chain if view.role(name) in _ENDS and _channels_last(dims[name])]
    if not ends:
        return capture, dims
    graph = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    shown = dict(dims)
    for node in capture.graph_module.graph.nodes:
        env[node] = new = graph.node_copy(node, env.__getitem__)
        if node.name in ends:
            for order, suffix in ((_TO_MAP, "map"), (_BACK, "last")):
                before, name = env[node], f"{node.name}_{suffix}"
                env[node] = turned = graph.create_node("call_method", "permute", (before, *order), name=name)
                turned.meta = {key: new.meta[key] for key in ("path", "line") if key in new.meta}
                shown[turned.name] = tuple(shown[before.name][i] for i in order)
    return replace(capture, graph_module=fx.GraphModule(capture.graph_module, graph).eval()), shown


def _channels_last(value: Dims) -> bool:
    return is_tensor(value) and [d.kind for d in value] == _CHANNELS_LAST
