"""Graph modules that are copied and pickled as they are: by their graphs, nothing is traced again."""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from bu2td.errors import CopyError
from bu2td.nn.containers import contain

#: What `torch.fx` makes of the graph, and makes again.
_OF_GRAPH = ("_graph", "_code", "_lineno_map", "_prologue_start")
#: What a shallow copy may change without changing the other.
_REGISTERED = (
    *("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"),
    *("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"),
    *("_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs"),
    *("_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"),
)


@dataclass(frozen=True)
class _Ref:
    """A node in the arguments of another, by its place in the graph."""

    index: int


@dataclass(frozen=True)
class _Operator:
    """One of ``torch.ops``, which torch does not pickle, by its name: "aten::relu.default" or "aten::relu"."""

    name: str


@dataclass(frozen=True)
class PackedGraph:
    """A graph as plain data, that can be pickled.

    Attributes:
        nodes: of every node its op, name, target, arguments and keyword arguments.
    """

    nodes: tuple[tuple[str, str, Any, Any, Any], ...]

    @staticmethod
    def of(graph: fx.Graph) -> PackedGraph:
        """Pack a graph.

        Raises:
            CopyError: a node calls a function that cannot be imported by its name.
        """
        index: dict[fx.Node, Any] = {node: _Ref(i) for i, node in enumerate(graph.nodes)}
        nodes = []
        for node in graph.nodes:
            args, kwargs = fx.map_arg((node.args, node.kwargs), index.__getitem__)
            nodes.append((node.op, node.name, _packed(node), tuple(args), dict(kwargs)))
        return PackedGraph(tuple(nodes))

    def graph(self) -> fx.Graph:
        """The graph again, of nodes of the same names."""
        graph = fx.Graph()
        nodes: list[fx.Node] = []
        for op, name, target, args, kwargs in self.nodes:

            def read(value: Any) -> Any:
                return nodes[value.index] if isinstance(value, _Ref) else value

            args, kwargs = fx.node.map_aggregate((args, kwargs), read)
            target = _operator(target.name) if isinstance(target, _Operator) else target
            nodes.append(graph.create_node(op, target, args, kwargs, name))
        return graph


def _packed(node: fx.Node) -> Any:
    """What a node calls, as it is pickled."""
    target: Any = node.target
    if isinstance(target, torch._ops.OpOverload):
        return _Operator(target.name() if "." in target.name() else f"{target.name()}.default")
    if isinstance(target, torch._ops.OpOverloadPacket):
        return _Operator(target._qualified_op_name)
    name = getattr(target, "__qualname__", "")
    if "<" in name:  # a lambda, or what a function defines
        raise CopyError(
            f"node {node.name!r} calls {name} of {target.__module__}, which cannot be imported by its name, so "
            f"that the network is not pickled; define it at the top of its module, or use bu2td.save(td, file)"
        )
    return target


def _operator(name: str) -> Any:
    space, _, rest = name.partition("::")
    packet, _, overload = rest.partition(".")
    found = getattr(getattr(torch.ops, space), packet)
    return getattr(found, overload) if overload else found


class Part(fx.GraphModule):
    """A graph module that is copied and pickled with all that it holds, and a graph of the same nodes.

    A graph module is of a class of its own, which no pickle can name, and torch traces its code again. This one is
    an object of the class that its class was made of, a graph, and attributes. Its layers lie in containers.
    """

    def __init__(self, root: Any, graph: fx.Graph, class_name: str = "Part") -> None:
        super().__init__(root, graph, class_name)
        contain(self)

    def __copy__(self) -> Any:
        own = {name: copy.copy(value) if name in _REGISTERED else value for name, value in self._held().items()}
        return self._like(own)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        new = _empty(*self._kind())
        memo[id(self)] = new
        vars(new).update(copy.deepcopy(self._held(), memo))
        new.graph = copy.deepcopy(self.graph)
        return new

    def __reduce__(self) -> Any:
        for path, module in self.named_modules():
            _check_class(path, type(module))
        return _empty, self._kind(), (self._held(), PackedGraph.of(self.graph))

    def __setstate__(self, state: tuple[Mapping[str, Any], PackedGraph]) -> None:
        held, packed = state
        vars(self).update(held)
        self.graph = packed.graph()

    def _like(self, held: Mapping[str, Any]) -> Any:
        new = _empty(*self._kind())
        vars(new).update(held)
        new.graph = copy.deepcopy(self.graph)
        return new

    def _held(self) -> dict[str, Any]:
        """All attributes but what torch makes of the graph."""
        return {name: value for name, value in vars(self).items() if name not in _OF_GRAPH}

    def _kind(self) -> tuple[type[Part], str]:
        """The class that the network's own class was made of, and what that is called."""
        written = next(c for c in type(self).__mro__ if c.__qualname__.rpartition(".")[2] != "GraphModuleImpl")
        return written, type(self).__name__


def _check_class(path: str, kind: type[nn.Module]) -> None:
    """Refuse a class that a pickle cannot name.

    Raises:
        CopyError: nothing is found under the class's name.
    """
    if issubclass(kind, Part):
        return
    found: Any = sys.modules.get(kind.__module__)
    for name in kind.__qualname__.split("."):
        found = getattr(found, name, None)
    if found is not kind:
        raise CopyError(
            f"module {path!r} is of class {kind.__qualname__} of {kind.__module__}, which cannot be imported by "
            f"its name, so that the network is not pickled; define the class at the top of its module, or keep "
            f"td.state_dict()"
        )


def _empty(kind: type[Part], name: str) -> Any:
    """A part without anything."""
    new = kind.__new__(kind)
    type(new).__name__ = name
    return new
