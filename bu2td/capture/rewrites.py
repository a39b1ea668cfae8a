"""Rewrites of what can be written in several ways and means one thing."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from bu2td.capture.draft import Draft, function_name
from bu2td.errors import ModelOutputError

_IN_PLACE_METHODS = ("add_", "sub_", "mul_", "div_", "relu_", "sigmoid_", "clamp_", "tanh_")


def in_place_method(draft: Draft, node: fx.Node) -> bool:
    """A tensor that a method changes in place is read in its latest version: ``x.add_(1)`` is ``x = x.add(1)``."""
    if node.op != "call_method" or node.target not in _IN_PLACE_METHODS:
        return False
    node.target = str(node.target).removesuffix("_")
    source: Any = node.args[0]
    source.replace_all_uses_with(node, lambda user: user > node)
    return True


def identity(draft: Draft, node: fx.Node) -> bool:
    """What hands a value on as it is is gone: ``nn.Identity``, ``contiguous()``, a concat of one, ``0 + x``."""
    value = _handed_on(draft, node)
    if not isinstance(value, fx.Node):
        return False
    node.replace_all_uses_with(value)
    draft.graph.erase_node(node)
    return True


def _handed_on(draft: Draft, node: fx.Node) -> Any:
    """The value that a node hands on as it is; None if it computes something."""
    name, args = function_name(node), node.args
    if name == "contiguous" or isinstance(draft.module(node), nn.Identity):
        return node.all_input_nodes[0]
    if name in ("cat", "concat") and isinstance(args[0], list | tuple) and len(args[0]) == 1:
        return args[0][0]
    if name == "add" and args[:1] == (0,):
        return args[1]  # sum() starts with 0
    return None


def view(draft: Draft, node: fx.Node) -> bool:
    """``view`` to a shape is ``reshape``: the same, and it also works on channels_last tensors."""
    to_type = any(isinstance(a, torch.dtype) for a in node.args)
    if (node.op, node.target) != ("call_method", "view") or to_type:
        return False
    node.target = "reshape"
    return True


def single_output(draft: Draft, node: fx.Node) -> bool:
    """The graph returns the logits: auxiliary outputs are dropped.

    Auxiliary outputs are those of a named tuple whose first field is the logits, or of train mode alone.

    Raises:
        ModelOutputError: the model returns anything else than one tensor, auxiliary outputs aside.
    """
    output = fx.map_arg(node.args[0], _fields) if node.op == "output" else node
    if isinstance(output, fx.Node):
        return False
    if isinstance(output, tuple | list) and output and isinstance(output[0], fx.Node):
        names = getattr(output, "_fields", None)
        auxiliary = names[0] in ("logits", "out", "output") if names else draft.training or len(output) == 1
        if auxiliary:
            node.args = (output[0],)
            return True
    found = f"a dict with keys {sorted(output)}" if isinstance(output, dict) else f"a {type(output).__name__}"
    found += f" of {len(output)} values" if isinstance(output, tuple | list) else ""
    raise ModelOutputError(
        f"the model returns {found}; a network that returns one tensor of logits (N, classes) is "
        f"needed (wrap it in a module that selects them)"
    )


def _fields(node: fx.Node) -> Any:
    """The named tuple that a node makes, of nodes; other nodes themselves."""
    target: Any = node.target
    return target(*node.args, **node.kwargs) if hasattr(target, "_fields") else node
