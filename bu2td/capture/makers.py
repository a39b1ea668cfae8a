"""Rewrites of tensors that a forward makes."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, fx

from bu2td.capture.draft import Draft, function_name
from bu2td.capture.namespaces import DRAWS, MAKERS
from bu2td.nn import made

#: Functions that make tensors on a device of their own choice.
_MAKERS = {function.__name__ for function in (*MAKERS, *DRAWS)}
_ZEROS = ("zeros", "new_zeros", "zeros_like")
#: What hands zeros on as zeros.
_KEEPS_ZEROS = ("to", "type", "type_as", "cuda", "cpu", "contiguous", "detach", "clone", "expand")


#: Functions and methods that draw numbers.
_DRAWS = ("rand", "randn", "randint", "randperm", "bernoulli", "normal", "uniform", "rand_like", "randn_like",
          "randint_like", "multinomial", "exponential", "random")  # fmt: skip


def is_drawn(node: fx.Node) -> bool:
    """Whether a node draws random numbers by a function."""
    name = node.args[1] if node.target is made else function_name(node)
    return name in _DRAWS


def padded_by_zeros(draft: Draft, node: fx.Node) -> bool:
    """A map to whose channels zeros are joined is padded: ``cat([x, torch.zeros(..)], 1)``."""
    if function_name(node) not in ("cat", "concat") or not node.args or not isinstance(node.args[0], list | tuple):
        return False
    axis = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    parts: list[Any] = list(node.args[0])
    zeros = [_zeros(draft, part) for part in parts]
    maps = [part for part, count in zip(parts, zeros, strict=True) if not count]
    value = draft.value(maps[0]) if len(maps) == 1 else None
    if axis not in (1, -3) or len(maps) == len(parts) or not isinstance(value, Tensor) or value.dim() != 4:
        return False
    at = parts.index(maps[0])
    before, after = sum(zeros[:at]), sum(zeros[at + 1 :])
    draft.compute_instead(node, F.pad, maps[0], [0, 0, 0, 0, before, after])
    return True


def _zeros(draft: Draft, node: Any) -> int:
    """How many channels of zeros a node makes; 0 for anything else."""
    while function_name(node) in _KEEPS_ZEROS:
        node = node.args[0]
    product = function_name(node) == "mul" and any(isinstance(a, int | float) and a == 0 for a in node.args)
    value = draft.value(node) if product or function_name(node) in _ZEROS else None
    return int(value.shape[1]) if isinstance(value, Tensor) and value.dim() == 4 else 0


def made_where_maps_are(draft: Draft, node: fx.Node) -> bool:
    """A tensor that the forward makes is made on the device of what it is used with."""
    if node.op != "call_function" or function_name(node) not in _MAKERS or node.target is made:
        return False
    like = _beside(draft, node)
    kwargs = {k: v for k, v in node.kwargs.items() if k != "device"}
    draft.compute_instead(node, made, like, function_name(node), *node.args, **kwargs)
    return True


def _beside(draft: Draft, node: fx.Node) -> fx.Node:
    """A tensor in front of a node: one whose size it reads, or that is read with it; else the image."""
    stack = list(node.all_input_nodes)
    while stack:
        at = stack.pop()
        if isinstance(draft.value(at), Tensor):
            return at
        stack += at.all_input_nodes
    at, users = node, [node]
    while users:
        at = users[0]
        beside = [
            n for n in at.all_input_nodes if n is not node and n < node and isinstance(draft.value(n), Tensor)
        ]
        if beside:
            return beside[0]
        users = list(at.users)
    return next(n for n in draft.graph.nodes if n.op == "placeholder")
