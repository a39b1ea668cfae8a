"""Part of analyse: the trunk of a probed graph, and the regions between its tensors.

The trunk is the chain of immediate dominators of the output that are clean (N, C, H, W) maps; what lies
between two neighbouring trunk tensors is a region; what follows the last is the tail.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from types import MappingProxyType

import networkx as nx

from bu2td.analyse.back_reads import set_aside_reads
from bu2td.analyse.long_paths import LongPaths, find_long_paths
from bu2td.errors import ModelOutputError, NoReductionError, TopologyError
from bu2td.graph import GraphView
from bu2td.ir import is_feature_map, is_spatial, is_tensor
from bu2td.ops import Role
from bu2td.probe import covers_all

_NAMED = 4  # paths that a message names
#: Kernel and stride of a 1x1 convolution.
_POINTWISE = ((1, 1), (1, 1))


class RegionKind(Enum):
    """What a region is, by the roles of its operations.

    Members:
        CONV: one convolution or linear layer over the map.
        BRANCHING: several paths or layers, attention, an unknown operation.
        POOL: reduces by moving or selecting values alone, or pools without reducing.
        NORM, GATE, ACT, DROPOUT: has such an operation, and none of those above.
        IMAGE: brings the image in again, which the laterals of a top-down network do.
        PASS: arithmetic and views.
    """

    CONV = "conv"
    BRANCHING = "branching"
    POOL = "pool"
    NORM = "norm"
    GATE = "gate"
    ACT = "act"
    DROPOUT = "dropout"
    IMAGE = "image"
    PASS = "pass"


#: What a region without layers is, by the first of these that it has a role of.
_BY_ROLE = {
    RegionKind.NORM: {Role.NORM, Role.NORM_ACT},
    RegionKind.GATE: {Role.GATE},
    RegionKind.POOL: {Role.POOL},
    RegionKind.ACT: {Role.ACT},
    RegionKind.DROPOUT: {Role.DROPOUT},
}


@dataclass(frozen=True)
class Region:
    """The nodes between two neighbouring trunk tensors; ``conv`` is the layer of a region with one alone."""

    entry: str
    exit: str
    nodes: tuple[str, ...]
    kind: RegionKind
    roles: frozenset[Role]
    conv: str | None = None


@dataclass(frozen=True)
class Regions:
    """The regions in order, what follows the last of them, and the paths that were set aside to cut them."""

    regions: tuple[Region, ...]
    tail: tuple[str, ...]
    paths: LongPaths


def find_regions(view: GraphView, logits: str) -> Regions:
    """Cut a graph into the regions of its trunk.

    Needs: a probed graph and the node of its logits.
    Returns: `Regions`: classified, in order, with the tail behind the last trunk tensor.
    Guarantees: every node but image, output and what brings the image in again is in exactly one region or in the
        tail; parameters that are read
        in several places are in each.

    Raises:
        ModelOutputError: the logits do not depend on the image.
        NoReductionError: nothing reduces resolution before the head.
        TopologyError: the tail goes on convolving, or computing over positions.
    """
    trunk = _trunk(view, logits, {})
    aside = set_aside_reads(view, trunk)
    if aside:
        trunk = _trunk(view, logits, aside)
    paths = find_long_paths(view, trunk, aside, partial(_trunk, view, logits))
    trunk = _trunk(view, logits, paths.aside)
    runs, tail = _deal_out(view, trunk, paths)
    _check_tail(view, tail)
    spans = zip(itertools.pairwise(trunk), runs, strict=True)
    regions = [_region(view, a, b, run, paths) for (a, b), run in spans if run]
    return Regions(tuple(regions), tuple(tail), paths)


def dominator_chain(
    view: GraphView, logits: str, aside: Mapping[tuple[str, str], str] = MappingProxyType({})
) -> list[str]:
    """The nodes that every path from image to logits passes, in order, both included.

    Where a read (source, reader) was set aside, the path leads through the tensor that it follows.

    Raises:
        ModelOutputError: the logits do not depend on the image.
    """
    image = next(n.name for n in view.nodes.values() if n.op == "placeholder")
    graph = nx.DiGraph()
    reachable = {image}
    for name, node in view.nodes.items():
        for source in node.all_input_nodes:
            if source.name in reachable and view.dims.get(source.name) is not None:
                graph.add_edge(aside.get((source.name, name), source.name), name)
                reachable.add(name)
    if logits not in reachable:
        raise ModelOutputError("the logits do not depend on the image")
    dominators = nx.immediate_dominators(graph, image)
    chain = [logits]
    while chain[-1] != image:
        chain.append(dominators[chain[-1]])
    return chain[::-1]


def _trunk(view: GraphView, logits: str, aside: Mapping[tuple[str, str], str]) -> list[str]:
    """The trunk tensors in order, from the image to the last before the head."""
    chain = dominator_chain(view, logits, aside)
    trunk: list[str] = []
    images = view.dims[chain[0]][0].size
    for name in chain:
        value = view.dims[name]
        if not is_spatial(value) or (name != chain[0] and covers_map(view, name)):
            break
        if is_feature_map(value) and value[0].size == images:  # groups of channels may be laid out as images
            trunk.append(name)
    reductions = [view.reduction(name) for name in trunk]
    if not trunk or max(reductions) == 1:
        _check_streams(view, trunk, chain)
        raise NoReductionError(_why_no_reduction(view, chain))
    return trunk


def _check_streams(view: GraphView, trunk: Sequence[str], chain: Sequence[str]) -> None:
    """Refuse a network that reduces resolution in several paths, which meet where no positions are left.

    Raises:
        TopologyError: it does.
    """
    last = trunk[-1] if trunk else chain[0]
    meet = chain[chain.index(last) + 1] if last != chain[-1] else last
    between = [n for n in view.nodes if view.order[last] < view.order[n] < view.order[meet]]
    if any((view.reduction(n) or 1) > 1 and view.role(n).layer for n in between if is_tensor(view.dims[n])):
        readers = [view.where(u.name) for u in view.nodes[last].users if view.dims.get(u.name) is not None]
        raise TopologyError(
            f"behind {view.where(last)} this network goes on in {len(readers)} paths, which begin at "
            f"{', '.join(readers[:_NAMED])}{', ..' if len(readers) > _NAMED else ''} and meet only at "
            f"{view.where(meet)}, where no positions are left: an ensemble, a siamese or a multi-scale network has "
            f"no one trunk to cut into levels; convert one of its paths"
        )


def _why_no_reduction(view: GraphView, chain: list[str]) -> str:
    """What to say of a network whose trunk keeps the resolution of the image."""
    for name in chain:
        value = view.dims[name]
        if not is_tensor(value) or len(value) != 4:
            continue
        strides = {d.kind: d.stride for d in value if d.kind in ("height", "width")}
        if len(set(strides.values())) > 1:
            return (
                f"height and width are reduced by different factors, {strides['height']} and {strides['width']} at "
                f"{view.where(name)}; levels need maps that are reduced alike in both"
            )
        fixed = [d.size for d in value[2:] if d.kind == "channel"]
        if len(fixed) == 2 and min(fixed) > 1:
            return (
                f"from {view.where(name)} on the maps have a fixed size, {fixed[0]}x{fixed[1]}, whatever the size "
                f"of the image, and before it nothing reduces resolution; levels need maps that follow the image"
            )
    return (
        "nothing in this network reduces resolution before its head: the features keep the size "
        "of the image, and there is nothing to turn upside down"
    )


def covers_map(view: GraphView, name: str) -> bool:
    """Whether a node belongs to a head by its window: it covers the whole map without padding."""
    if view.role(name) == Role.HEAD:
        return True
    if not view.role(name).windowed or view.kernel(name) == (1, 1) or not view.inputs(name):
        return False
    source = view.dims[view.inputs(name)[0]]
    if not is_feature_map(source) or not covers_all(
        view.role(name), view.kernel(name), [d.size for d in source[2:]]
    ):
        return False
    if view.role(name) == Role.POOL:
        return not is_spatial(view.dims[name])  # the probe found it to be the global pool
    return not view.converter(name).pads(view.site(name))


def _deal_out(view: GraphView, trunk: Sequence[str], paths: LongPaths) -> tuple[list[list[str]], list[str]]:
    """Deal all nodes out to the stretches between trunk tensors; what follows the last is the tail."""
    places = _places(view, trunk, paths.aside)
    runs: list[list[str]] = [[] for _ in trunk[1:]]
    tail: list[str] = []
    for name, node in view.nodes.items():
        if node.op not in ("placeholder", "output") and name not in paths.left_out:
            for at in sorted(places[name]):
                (runs[at] if 0 <= at < len(runs) else tail).append(name)
    return runs, tail


def _places(
    view: GraphView, trunk: Sequence[str], aside: Mapping[tuple[str, str], str]
) -> Mapping[str, Collection[int]]:
    """Behind which trunk tensor a node stands, by its index.

    What is computed from parameters alone goes to every place that reads it.
    """
    index = {name: i for i, name in enumerate(trunk)}
    places: dict[str, set[int]] = {}
    for name, node in view.nodes.items():
        read = [aside.get((n.name, name), n.name) for n in node.all_input_nodes if n.op != "get_attr"]
        places[name] = {max((index[n] if n in index else max(places[n], default=-1) for n in read), default=-1)}
    for name in reversed(view.nodes):
        node = view.nodes[name]
        if node.op == "get_attr" or (places[name] == {-1} and node.op not in ("placeholder", "output")):
            places[name] = {at for user in node.users for at in places[user.name]}
    return places


def _region(view: GraphView, entry: str, exit_: str, nodes: Sequence[str], paths: LongPaths) -> Region:
    operations = [n for n in nodes if view.nodes[n].op != "get_attr" and view.dims[n]]
    roles = frozenset(view.role(n) for n in operations)
    layers = [n for n in operations if view.role(n).dense and is_spatial(view.dims[n])]
    branches = any(len(view.inputs(n)) > 1 for n in operations) or len(layers) > 1
    reduces = view.reduction(entry) != view.reduction(exit_)
    again = exit_ in paths.again and len(operations) == 1
    weightless = all(view.nodes[n].op != "get_attr" for n in nodes)
    kind = RegionKind.IMAGE if again else _kind(roles, reduces, branches, bool(layers), weightless)
    conv = layers[0] if kind == RegionKind.CONV else None
    return Region(entry, exit_, tuple(nodes), kind, roles, conv)


def _kind(roles: frozenset[Role], reduces: bool, branches: bool, has_layer: bool, weightless: bool) -> RegionKind:
    mixes = weightless and Role.POOL in roles  # a sum of poolings is one
    if reduces and all(role.rearranges or (mixes and role in (Role.ADD, Role.MUL)) for role in roles):
        return RegionKind.POOL
    if branches or roles & {Role.OPAQUE, Role.ATTENTION}:
        return RegionKind.BRANCHING
    if has_layer:
        return RegionKind.CONV
    otherwise = RegionKind.BRANCHING if reduces else RegionKind.PASS
    return next((kind for kind, marks in _BY_ROLE.items() if marks & roles), otherwise)


def _check_tail(view: GraphView, tail: Sequence[str]) -> None:
    """A head may not go on convolving, nor compute over positions in a form that is no (N, C, H, W) map."""
    for name in tail:
        value = view.dims[name]
        if (
            view.role(name) == Role.CONV
            and is_spatial(value)
            and (view.kernel(name), view.stride(name)) != _POINTWISE
        ):
            raise TopologyError(
                f"the head of this network reads features from several depths: where they part it goes on "
                f"convolving, at {view.where(name)}, so there is no trunk that ends in the head"
            )
        if (
            view.role(name) in (Role.CONV, Role.LINEAR, Role.OPAQUE)
            and is_spatial(value)
            and not is_feature_map(value)
        ):
            raise TopologyError(
                f"behind {view.where(tail[0])} the network works on tensors that are no (N, C, H, W) feature maps "
                f"(first weights: {view.where(name)}); only convolutional trunks can be turned upside down"
            )
