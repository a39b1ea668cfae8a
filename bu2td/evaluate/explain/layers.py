"""Where Grad-CAM looks, found on the graph of a bottom-up or top-down network by what its operations are.

* **last-convolution**, the paper's (Lelekas et al., 2020, section 4): the feature map that the last convolution
  leads to. The authors take activations, after each level and at last, of networks made of conv-norm-act units; so
  it is the map behind norm and activation, and not the sums that the convolution hands to its norm.
* **last-level**: the output of the last level, before a classifier's own convolution. Where the head is linear
  behind a global pool, the two are one map, or the same map before and behind a trailing norm and activation.

The rule for the first, the same for all networks. Convolutions are those whose output still has several positions
(the 1x1 convolutions of gates and behind a global pool have one), linear layers that work at every position of a
map, and layers with weights that are known to no converter and return a map. *Last* are those behind which none is
left. From each of them follow what works on every position alone and keeps the resolution: norms, activations,
sums, products, concats. Of the maps that are reached from all of them and that every way from them to the logits
passes, the last one is taken: the sum of a residual block, the concat of parallel convolutions, the trailing
norm-act of a pre-activation network. Pools and attention mix positions and end the way; behind them is another map.
Last convolutions that meet only after their maps are gone (pooled one by one) have no such map; then the last one
that they all come from is taken.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from torch import fx

from bu2td.erf.subject import Subject
from bu2td.errors import OptionError
from bu2td.graph import GraphView
from bu2td.ir import Capture, is_tensor, reduction_of
from bu2td.ops import Role


def find_layer(looked_at: Subject, layer: str) -> str:
    """The node of "last-convolution" or "last-level", as this module's docstring defines them.

    Raises:
        OptionError: the network has none.
    """
    if layer == "last-convolution":
        return last_convolution(looked_at)
    if not looked_at.levels:
        raise OptionError(f"the {looked_at.title} has no level to explain; name layers with levels=[...]")
    place = {node.name: i for i, node in enumerate(looked_at.graph_module.graph.nodes)}
    return max(looked_at.levels.values(), key=place.__getitem__)


def last_convolution(looked_at: Subject) -> str:
    """The node that holds the activations of the last convolution.

    Raises:
        OptionError: there is no convolution, or the last ones share no map.
    """
    graph = looked_at.graph_module
    view = GraphView(Capture(graph, graph, looked_at.image_shape, {}, ""), looked_at.dims)
    output = next(node for node in view.nodes.values() if node.op == "output")
    leading = _before(output)
    left = [node for node in graph.graph.nodes if node in leading and _is_convolution(view, node)]
    while left:
        last = _last(left)
        shared = set.intersection(*(_kept(view, node) for node in last))
        maps = [node for node in view.nodes.values() if node in shared and _is_map(view, node)]
        for node in reversed(maps):
            if not any(_reaches(start, output, node) for start in last):
                return node.name
        left = [node for node in left if node not in last]
    raise OptionError(
        f"the {looked_at.title} has no last convolution: none returns a map that all ways to the logits pass; name "
        f"the layers to explain with levels=[...]"
    )


def _is_convolution(view: GraphView, node: fx.Node) -> bool:
    role, module = view.role(node.name), view.module(node.name)
    weighs = role.dense or (role is Role.OPAQUE and module is not None and any(True for _ in module.parameters()))
    return weighs and _reduction(view, node) is not None and max(view.side(node.name).values()) > 1


def _is_map(view: GraphView, node: fx.Node) -> bool:
    """Whether a value is one tensor of batch, channels, rows and columns, in whatever layout."""
    value = view.dims.get(node.name)
    return is_tensor(value) and sorted(d.kind for d in value) == ["batch", "channel", "height", "width"]


def _reduction(view: GraphView, node: fx.Node) -> object:
    value = view.dims.get(node.name)
    return None if value is None else reduction_of(value)


def _before(output: fx.Node) -> set[fx.Node]:
    """What a node is computed from."""
    found, waiting = set(), [output]
    while waiting:
        for node in waiting.pop().all_input_nodes:
            if node not in found:
                found.add(node)
                waiting.append(node)
    return found


def _last(convolutions: Collection[fx.Node]) -> list[fx.Node]:
    """Those of the convolutions that no other one of them reads, over whatever lies between."""
    read = {node for one in convolutions for node in _before(one)}
    return [node for node in convolutions if node not in read]


def _kept(view: GraphView, start: fx.Node) -> set[fx.Node]:
    """A convolution's output, and what is made of it at every position alone."""
    found, waiting = {start}, [start]
    while waiting:
        for node in waiting.pop().users:
            role = view.role(node.name)
            local = (role.local or role is Role.CONCAT) and not role.dense
            if node not in found and local and _reduction(view, node) == _reduction(view, start):
                found.add(node)
                waiting.append(node)
    return found


def _reaches(start: fx.Node, end: fx.Node, without: fx.Node) -> bool:
    """Whether a way leads from one node to another around a third."""
    waiting: list[fx.Node] = [] if start is without else [start]
    seen: set[fx.Node] = set(waiting)
    while waiting:
        users: Iterable[fx.Node] = waiting.pop().users
        for node in users:
            if node is end:
                return True
            if node is not without and node not in seen:
                seen.add(node)
                waiting.append(node)
    return False
