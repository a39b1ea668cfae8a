"""Part of rewrite: which activations may work in place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx

from bu2td import nn as td_nn
from bu2td.ops.registry import converter_for_type
from bu2td.ops.roles import Role

#: Functions whose result is a view.
_VIEWS = ("getitem", "chunk", "split", "flatten", "reshape", "squeeze", "unsqueeze", "transpose", "permute")


def settle_inplace(graph: fx.Graph, modules: Mapping[str, Any]) -> None:
    """Let an activation work in place only on a value that it alone reads."""
    for node in graph.nodes:
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        if module is not None and getattr(module, "inplace", False):
            source = node.args[0]
            module.inplace = _owns_memory(source, modules) and len(source.users) == 1


def _owns_memory(node: fx.Node, modules: Mapping[str, Any]) -> bool:
    """Whether a value shares no memory with what its node read."""
    if node.op == "call_function":
        return getattr(node.target, "__name__", "") not in _VIEWS
    if node.op != "call_module":
        return False
    owner = modules[str(node.target)]
    converter = converter_for_type(type(owner))
    aliases = converter is None or converter.role in (Role.DROPOUT, Role.PASS)
    return not (aliases or isinstance(owner, td_nn.Upsample))
