"""A converted network as one flat graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import fx, nn

from bu2td.nn import ConvUnit
from bu2td.ops import meta_copy


class _UnitTracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        return not isinstance(module, ConvUnit)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Trace a call; what another thread calls meanwhile is no part of the unit."""
        if self.submodule_paths is None or m not in self.submodule_paths:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)


def flatten(network: fx.GraphModule, copied: bool = True) -> fx.GraphModule:
    """One graph on the meta device of a whole network; see `owner_of` for what belongs to which level.

    The graphs of its levels are copied into it node by node: what they compute in numbers need not be traced again.
    Without ``copied`` it shares its modules with the network, which is on meta and is put into eval mode.
    """
    twin: Any = meta_copy(network) if copied else network
    if getattr(twin, "grad_checkpointing", False):
        twin.set_grad_checkpointing(False)
    twin.eval()
    graph = fx.Graph()
    inputs = {n: graph.placeholder(n.name) for n in twin.graph.nodes if n.op == "placeholder"}
    graph.output(_copy_nodes(graph, twin, twin.graph, "", inputs))
    return fx.GraphModule(twin, graph)


def _copy_nodes(
    graph: fx.Graph, module: nn.Module, inner: fx.Graph, path: str, values: Mapping[fx.Node, Any]
) -> Any:
    """Copy the nodes of a module's graph; returns what its output is."""
    env = dict(values)
    for node in inner.nodes:
        if node.op == "placeholder":
            continue
        args, kwargs = fx.map_arg((node.args, node.kwargs), env.__getitem__)
        if node.op == "output":
            return args[0]
        if node.op == "call_module":
            env[node] = _copy_call(
                graph, module.get_submodule(str(node.target)), f"{path}{node.target}", args, kwargs
            )
        else:
            target = f"{path}{node.target}" if node.op == "get_attr" else node.target
            env[node] = graph.create_node(node.op, target, args, kwargs)
            env[node].meta["path"] = path.rstrip(".")
    return None


def _copy_call(graph: fx.Graph, called: nn.Module, path: str, args: Any, kwargs: Any) -> Any:
    """A call of a module, or what its own graph computes."""
    if not isinstance(called, fx.GraphModule | ConvUnit):
        return graph.call_module(path, args, kwargs)
    inner = called.graph if isinstance(called, fx.GraphModule) else _UnitTracer().trace(called)
    assert isinstance(inner, fx.Graph)
    inputs = [node for node in inner.nodes if node.op == "placeholder"]
    return _copy_nodes(graph, called, inner, f"{path}.", dict(zip(inputs, args, strict=True)))


def owner_of(node: fx.Node) -> str:
    """The submodule of the network that a node of its flat graph belongs to; "" for the network itself."""
    path = str(node.target) if node.op == "call_module" else node.meta.get("path", "")
    return path.partition(".")[0]


def last_nodes(flat: fx.GraphModule) -> dict[str, str]:
    """The last node of every submodule of a network in its flat graph."""
    return {owner_of(node): node.name for node in flat.graph.nodes}
