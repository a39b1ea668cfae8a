"""Part of analyse: the trunk of a probed graph, and the regions between its tensors.

The trunk is the chain of immediate dominators of the output that are clean (N, C, H, W) maps; what lies
between two neighbouring trunk tensors is a region; what follows the last is the tail.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import networkx as nx

from bu2td.errors import ModelOutputError, NoReductionError, TopologyError
from bu2td.probe import is_feature_map, is_spatial
from bu2td.view import GraphView


@dataclass
class Region:
    """The nodes between two neighbouring trunk tensors."""

    entry: str
    exit: str
    nodes: list[str]
    kind: str = "pass"
    conv: str | None = None
    roles: set[str] = field(default_factory=set)


def find_regions(view: GraphView, logits: str) -> tuple[list[Region], list[str]]:
    """Cut a graph into the regions of its trunk.

    Needs: a probed graph and the node of its logits.
    Returns: the regions, classified, in order; and the tail behind the last trunk tensor.
    Guarantees: every node but image and output is in exactly one region or in the tail.

    Raises:
        ModelOutputError: the logits do not depend on the image.
        NoReductionError: nothing reduces resolution before the head.
        TopologyError: the tail goes on computing over positions.
    """
    trunk = _trunk(view, logits)
    regions, tail = _regions(view, trunk)
    _check_tail(view, tail)
    for region in regions:
        _classify(view, region)
    return regions, tail


def _trunk(view: GraphView, logits: str) -> list[str]:
    """The trunk tensors in order, from the image to the last before the head."""
    image = next(n.name for n in view.nodes.values() if n.op == "placeholder")
    graph = nx.DiGraph()
    reachable = {image}
    for name, node in view.nodes.items():
        for source in node.all_input_nodes:
            if source.name in reachable and view.dims.get(source.name) is not None:
                graph.add_edge(source.name, name)
                reachable.add(name)
    if logits not in reachable:
        raise ModelOutputError("the logits do not depend on the image")
    dominators = nx.immediate_dominators(graph, image)
    chain = [logits]
    while chain[-1] != image:
        chain.append(dominators[chain[-1]])
    chain.reverse()
    trunk = []
    for name in chain:
        value = view.dims[name]
        if not is_spatial(value) or (name != image and covers_map(view, name)):
            break
        if is_feature_map(value):
            trunk.append(name)
    reductions = [view.reduction(name) for name in trunk]
    if not trunk or max(reductions) == 1:
        raise NoReductionError(
            "nothing in this network reduces resolution before its head: the features keep the size "
            "of the image, and there is nothing to turn upside down"
        )
    return trunk


def covers_map(view: GraphView, name: str) -> bool:
    """Whether a node belongs to a head by its window: it covers the whole map without padding."""
    if view.role(name) == "head":
        return True
    if view.role(name) != "conv" or view.kernel(name) == (1, 1):
        return False
    source = view.inputs(name)[0]
    size = tuple(d.size for d in view.dims[source][2:])
    conv = view.module(name)
    return view.kernel(name) == size and conv.padding in ((0, 0), 0, "valid")


def _regions(view: GraphView, trunk: list[str]) -> tuple[list[Region], list[str]]:
    """Deal all nodes out to the regions between trunk tensors; what follows the last is the tail."""
    index = {name: i for i, name in enumerate(trunk)}
    place: dict[str, int] = {}
    for name, node in view.nodes.items():
        before = [index.get(n.name, place.get(n.name, -1)) for n in node.all_input_nodes if n.op != "get_attr"]
        place[name] = max(before, default=-1)
    for name in reversed(view.nodes):
        node = view.nodes[name]
        if node.op == "get_attr" or (place[name] < 0 and node.op not in ("placeholder", "output")):
            place[name] = min((place[user.name] for user in node.users), default=-1)
    regions = [Region(a, b, []) for a, b in itertools.pairwise(trunk)]
    tail: list[str] = []
    for name, node in view.nodes.items():
        if node.op in ("placeholder", "output"):
            continue
        at = place[name]
        (regions[at].nodes if 0 <= at < len(regions) else tail).append(name)
    return [r for r in regions if r.nodes], tail


def _classify(view: GraphView, region: Region) -> None:
    """Name what a region is, by the roles of its operations."""
    operations = [n for n in region.nodes if view.nodes[n].op != "get_attr" and view.dims[n]]
    region.roles = {view.role(n) for n in operations}
    convs = [n for n in operations if view.role(n) in ("conv", "linear") and is_spatial(view.dims[n])]
    several_paths = any(len(view.inputs(n)) > 1 for n in operations)
    if several_paths or len(convs) > 1 or "opaque" in region.roles:
        region.kind = "multi"
    elif convs:
        region.kind, region.conv = "conv", convs[0]
    elif {"norm", "norm_act"} & region.roles:
        region.kind = "norm"
    elif "gate" in region.roles:
        region.kind = "gate"
    elif "pool" in region.roles:
        region.kind = "pool"
    elif "act" in region.roles:
        region.kind = "act"
    elif "dropout" in region.roles:
        region.kind = "dropout"
    elif view.reduction(region.entry) != view.reduction(region.exit):
        region.kind = "multi"


def _check_tail(view: GraphView, tail: list[str]) -> None:
    """A head may not go on computing over positions in a form that is no (N, C, H, W) map."""
    for name in tail:
        value = view.dims[name]
        if view.role(name) in ("conv", "linear", "opaque") and is_spatial(value) and not is_feature_map(value):
            raise TopologyError(
                f"behind {view.where(tail[0])} the network works on tensors that are no (N, C, H, W) feature maps "
                f"(first weights: {view.where(name)}); only convolutional trunks can be turned upside down"
            )
