"""Numbers that a graph computes from the sizes of its tensors, as they are for the model's own image."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Any

from torch import fx

from bu2td.ir import Dims, is_tensor

_ARITHMETIC = {
    *(operator.add, operator.sub, operator.mul, operator.floordiv, operator.truediv, operator.mod, operator.neg),
    *(operator.getitem, int, float, round, max, min, len, math.ceil, math.floor),
}


def number_of(node: fx.Node, dims: Mapping[str, Dims]) -> Any:
    """What a node computes, if it is made of sizes alone: a number or several; None for anything else."""
    source = node.args[0] if node.args else None
    value = dims.get(source.name) if isinstance(source, fx.Node) else None
    if is_tensor(value):
        sizes = tuple(d.size for d in value)
        if node.op == "call_method" and node.target == "size" and not node.kwargs:
            return sizes[node.args[1]] if len(node.args) > 1 and isinstance(node.args[1], int) else sizes
        if node.op == "call_method" and node.target == "dim":
            return len(sizes)
        return sizes if node.target is getattr and node.args[1] == "shape" else None
    if node.op != "call_function" or node.target not in _ARITHMETIC or dims.get(node.name) is not None:
        return None
    unknown: list[fx.Node] = []

    def read(operand: fx.Node) -> Any:
        found = number_of(operand, dims)
        if found is None:
            unknown.append(operand)
        return found

    args = fx.map_arg(node.args, read)
    return None if unknown else node.target(*args)  # type: ignore[operator]
