"""A converted network as one flat graph."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from bu2td.nn import ConvUnit
from bu2td.ops import meta_copy


class _Flattener(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        return not isinstance(module, fx.GraphModule | ConvUnit)


def flatten(network: fx.GraphModule, copied: bool = True) -> fx.GraphModule:
    """One graph on the meta device of a whole network; see `owner_of` for what belongs to which level.

    Without ``copied`` it shares its modules with the network, which is on meta and is put into eval mode.
    """
    twin: Any = meta_copy(network) if copied else network
    if getattr(twin, "grad_checkpointing", False):
        twin.set_grad_checkpointing(False)
    twin.eval()
    graph = _Flattener().trace(twin)
    return fx.GraphModule(twin, graph)


def owner_of(node: fx.Node) -> str:
    """The submodule of the network that a node of its flat graph belongs to; "" for the network itself."""
    if node.op == "call_module":
        return str(node.target).partition(".")[0]
    stack = [str(entry[0]) for entry in (node.meta.get("nn_module_stack") or {}).values()]
    return next((path.partition(".")[0] for path in stack if path), "")


def last_nodes(flat: fx.GraphModule) -> dict[str, str]:
    """The last node of every submodule of a network in its flat graph."""
    return {owner_of(node): node.name for node in flat.graph.nodes}
