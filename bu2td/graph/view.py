"""A captured graph as the passes look at it: roles, reductions, inputs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import fx, nn

from bu2td.graph.source import source_line
from bu2td.ir import Capture, Dims, flat, is_spatial, is_tensor, reduction_of
from bu2td.ops import Converter, Role, Site, converter_for


class GraphView:
    """Read-only access to a captured graph: roles, modules, regions. Shared by analysis and arrangement."""

    def __init__(self, capture: Capture, dims: Mapping[str, Dims]) -> None:
        self.capture = capture
        self.graph_module = capture.graph_module
        self.source = capture.source
        self.dims = dims
        self.nodes = {node.name: node for node in capture.graph_module.graph.nodes}
        self.order = {name: i for i, name in enumerate(self.nodes)}
        self.modules = dict(capture.graph_module.named_modules())
        self._sites: dict[str, Site] = {}
        self._converters: dict[str, Converter] = {}
        self._roles: dict[str, Role] = {}
        self._inputs: dict[str, tuple[str, ...]] = {}

    def site(self, name: str) -> Site:
        """The node as its converter sees it."""
        if name not in self._sites:
            self._sites[name] = Site(self.nodes[name], self.module(name), self.dims)
        return self._sites[name]

    def module(self, name: str) -> Any:
        """The module that a node calls, or None."""
        node = self.nodes[name]
        return self.modules.get(str(node.target)) if node.op == "call_module" else None

    def converter(self, name: str) -> Converter:
        """The converter of a node."""
        if name not in self._converters:
            self._converters[name] = converter_for(self.nodes[name], self.module(name))
        return self._converters[name]

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
        """Channels of a feature map, wherever its layout has them; 1 if it has none."""
        return next((d.size for d in self.dims[name] if d.kind == "channel"), 1)

    def reduction(self, name: str) -> Any:
        """Reduction of a feature map, None for anything else."""
        return reduction_of(self.dims[name])

    def inputs(self, name: str) -> tuple[str, ...]:
        """The producers of spatial values that a node reads, without repetition; what only lends a size is none."""
        if name not in self._inputs:
            maps = (n for n in self.reads(name) if is_spatial(self.dims.get(n.name)) and not self._is_broadcast(n))
            self._inputs[name] = tuple(n.name for n in maps)
        return self._inputs[name]

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

    def has(self, path: str) -> bool:
        """Whether the network has a module, parameter or buffer at a path."""
        at: Any = self.graph_module
        for step in path.split("."):
            at = getattr(at, step, None)
        return at is not None

    def depthwise(self, name: str) -> bool:
        """Whether a node is a depthwise convolution."""
        return self.grouped(name) and self.groups(name) == self.site(name).input_dims()[1].size

    def grouped(self, name: str) -> bool:
        """Whether a node is a convolution over groups of channels, depthwise ones included."""
        return self.role(name) == Role.CONV and self.groups(name) > 1

    def pads_channels(self, name: str) -> bool:
        """Whether a node adds channels of zeros."""
        return self.role(name) == Role.PAD and self.width(name) != self.width(self.inputs(name)[0])

    def moves(self, name: str) -> bool:
        """Whether a node adds rows and columns to a map, takes some away, or moves them."""
        if self.role(name) not in (Role.PAD, Role.SPLIT) or len(self.inputs(name)) != 1:
            return False
        source = self.inputs(name)[0]
        if not is_tensor(self.dims[name]) or not is_tensor(self.dims[source]):
            return False
        pads = self.role(name) is Role.PAD and not self.pads_channels(name)
        return pads or (self.at_one_scale(name, source) and self.side(name) != self.side(source))

    def at_one_scale(self, a: str, b: str) -> bool:
        """Whether heights and widths of two maps have equal strides."""
        one, other = ({d.kind: d.stride for d in flat(self.dims[n]) if d.stride is not None} for n in (a, b))
        return all(other.get(kind, stride) == stride for kind, stride in one.items())

    def side(self, name: str) -> dict[str, int]:
        """Height and width of a map, those of them that it has."""
        return {d.kind: d.size for d in flat(self.dims[name]) if d.kind in ("height", "width")}

    def is_container(self, path: str) -> bool:
        """Whether a module of the model only lists others (it has no forward of its own)."""
        return isinstance(self.source.get_submodule(path), nn.Sequential | nn.ModuleList)

    def operation(self, name: str) -> str:
        """What a node runs, by the name under which a converter would be registered."""
        return self.site(name).operation

    def where(self, name: str) -> str:
        """A node for messages: its path and source line."""
        return f"{self.path(name) or name} at {source_line(self.nodes[name])}"


def read_nodes(node: fx.Node, lends: Collection[int]) -> list[fx.Node]:
    """The nodes that a node reads, without those that stand only where an argument lends its size or type."""
    if not lends:
        return node.all_input_nodes
    args = [arg for i, arg in enumerate(node.args) if i not in lends]
    found: dict[fx.Node, None] = {}
    fx.map_arg((args, node.kwargs), lambda n: found.setdefault(n))
    return list(found)
