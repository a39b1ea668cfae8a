"""Part of rewrite: which activations may work in place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx

from bu2td.ops import Role, converter_for


def settle_inplace(graph: fx.Graph, modules: Mapping[str, Any]) -> None:
    """Let an activation work in place only on a value that it alone reads."""
    for node in graph.nodes:
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        if module is not None and getattr(module, "inplace", False):
            source = node.args[0]
            module.inplace = _owns_memory(source, modules) and len(source.users) == 1


def _owns_memory(node: fx.Node, modules: Mapping[str, Any]) -> bool:
    """Whether a value shares no memory with what its node read."""
    if node.op not in ("call_module", "call_function"):
        return False
    converter = converter_for(node, modules.get(str(node.target)))
    return not converter.aliases and converter.role not in (Role.DROPOUT, Role.PASS, Role.OPAQUE)
