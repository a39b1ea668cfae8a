"""A captured graph as the passes look at it: roles, reductions, inputs, and shortcuts of its blocks."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from torch import fx, nn

from bu2td.graph.source import source_line
from bu2td.ir.bottom_up import Capture
from bu2td.ir.values import Dims, is_spatial, reduction_of
from bu2td.ops import Site
from bu2td.ops.registry import converter_for
from bu2td.ops.roles import Role


class GraphView:
    """Read-only access to a captured graph: roles, modules, regions. Shared by analysis and arrangement."""

    def __init__(self, capture: Capture, dims: Mapping[str, Dims]) -> None:
        self.graph_module = capture.graph_module
        self.source = capture.source
        self.dims = dims
        self.nodes = {node.name: node for node in capture.graph_module.graph.nodes}
        self.order = {name: i for i, name in enumerate(self.nodes)}
        self.modules = dict(capture.graph_module.named_modules())
        self._roles: dict[str, Role] = {}

    def site(self, name: str) -> Site:
        """The node as its converter sees it."""
        return Site(self.nodes[name], self.module(name), self.dims)

    def module(self, name: str) -> Any:
        """The module that a node calls, or None."""
        node = self.nodes[name]
        return self.modules.get(str(node.target)) if node.op == "call_module" else None

    def converter(self, name: str) -> Any:
        """The converter of a node."""
        return converter_for(self.nodes[name], self.module(name))

    def role(self, name: str) -> Role:
        """The role of a node, as its converter states it."""
        if name not in self._roles:
            self._roles[name] = self.converter(name).role_at(self.site(name))
        return self._roles[name]

    def kernel(self, name: str) -> tuple[int, int]:
        """Window of a node over the image plane."""
        return self.converter(name).kernel(self.site(name))

    def stride(self, name: str) -> tuple[int, int]:
        """Stride of a node over the image plane."""
        return self.converter(name).stride(self.site(name))

    def groups(self, name: str) -> int:
        """In how many groups a node reads its channels."""
        return self.converter(name).groups(self.site(name))

    def width(self, name: str) -> int:
        """Channels of a feature map, wherever its layout has them."""
        return next(d.size for d in self.dims[name] if d.kind == "channel")

    def reduction(self, name: str) -> Any:
        """Reduction of a feature map, None for anything else."""
        return reduction_of(self.dims[name])

    def inputs(self, name: str) -> list[str]:
        """The producers of spatial values that a node reads, without repetition; what only lends a size is none."""
        found = (n for n in self.reads(name) if is_spatial(self.dims.get(n.name)) and not self._is_broadcast(n))
        return [n.name for n in found]

    def reads(self, name: str) -> list[fx.Node]:
        """The nodes whose values a node reads, without those that only lend it their size or type."""
        return read_nodes(self.nodes[name], self.converter(name).lends(self.site(name)))

    def _is_broadcast(self, node: fx.Node) -> bool:
        """Whether a node spreads a pooled value over a map."""
        lends = self.converter(node.name).lends(self.site(node.name))
        return bool(lends) and not is_spatial(self.dims.get(self.site(node.name).source()))

    def path(self, name: str) -> str:
        """Module path of a node: the module that it calls, or the one whose forward holds it."""
        node = self.nodes[name]
        return str(node.target) if node.op == "call_module" else node.meta.get("path", "")

    def depthwise(self, name: str) -> bool:
        """Whether a node is a depthwise convolution."""
        return self.grouped(name) and self.groups(name) == self.site(name).input_dims()[1].size

    def grouped(self, name: str) -> bool:
        """Whether a node is a convolution over groups of channels, depthwise ones included."""
        return self.role(name) == Role.CONV and self.groups(name) > 1

    def is_container(self, path: str) -> bool:
        """Whether a module of the model only lists others (it has no forward of its own)."""
        return isinstance(self.source.get_submodule(path), nn.Sequential | nn.ModuleList)

    def operation(self, name: str) -> str:
        """What a node runs, by the name under which a converter would be registered."""
        return self.site(name).operation

    def where(self, name: str) -> str:
        """A node for messages: its path and source line."""
        return f"{self.path(name) or name} at {source_line(self.nodes[name])}"


def residual_join(view: GraphView, exit_: str, nodes: Iterable[str]) -> str | None:
    """The add that joins a block's main path with its shortcut: the last join before its exit."""
    inside = set(nodes)
    name = exit_
    while name in inside:
        inputs = view.inputs(name)
        if len(inputs) > 1:
            return name if view.role(name) == Role.ADD else None
        if not inputs or view.role(name).transforms:
            return None
        name = inputs[0]
    return None


def follows_entry(view: GraphView, name: str, entry: str, nodes: Iterable[str]) -> bool:
    """Whether the width of a value in a block is tied to the block's entry on every path between them.

    Depthwise convolutions and everything that has no weights over channels hand a width on; a dense
    convolution, a linear layer or a concatenation starts a new one.
    """
    inside = set(nodes)
    known: dict[str, bool] = {entry: True}

    def follows(at: str) -> bool:
        if at not in known:
            inputs = view.inputs(at) if at in inside else []
            dense = view.role(at).makes_width and not view.depthwise(at)
            known[at] = bool(inputs) and not dense and all(follows(source) for source in inputs)
        return known[at]

    return follows(name)


def shortcut_of(
    view: GraphView, join: str, entry: str, nodes: Iterable[str], prefix: Iterable[str] = ()
) -> tuple[str, list[str]] | None:
    """The operand of an add that is a shortcut from the entry, and the nodes on it from the entry on.

    A shortcut is a chain of operations that do not look around: at most one pointwise (or k = stride)
    convolution, its norm, a pool that reduces. The norm-act prefix of a block may lie on it. What its convolution
    makes is for the add alone.
    """
    inside, before = set(nodes), set(prefix)
    found: list[tuple[int, int, str, list[str]]] = []
    for position, operand in enumerate(view.inputs(join)):
        chain: list[str] = []
        name, convs = operand, 0
        while name != entry and name in inside:
            inputs = view.inputs(name)
            role = view.role(name)
            if role == Role.CONV:
                convs += 1
                pointwise = view.kernel(name) in ((1, 1), view.stride(name))
                if convs > 1 or not pointwise or len(inputs) != 1:
                    break
            elif len(inputs) != 1 or not role.on_shortcut:
                break
            chain.append(name)
            name = inputs[0]
        weights = next((i for i, n in enumerate(chain) if view.role(n) == Role.CONV), -1)
        shared = any(len(view.nodes[n].users) > 1 for n in chain[: weights + 1])
        if name == entry and not shared:
            length = len([n for n in chain if n not in before])
            found.append((length, position, operand, chain[::-1]))
    if not found:
        return None
    _, _, operand, chain = min(found)
    return operand, chain


def read_nodes(node: fx.Node, lends: Collection[int]) -> list[fx.Node]:
    """The nodes that a node reads, without those that stand only where an argument lends its size or type."""
    if not lends:
        return node.all_input_nodes
    args = [arg for i, arg in enumerate(node.args) if i not in lends]
    found: dict[fx.Node, None] = {}
    fx.map_arg((args, node.kwargs), lambda n: found.setdefault(n))
    return list(found)
