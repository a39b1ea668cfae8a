"""The rewrite of assignments to parts of tensors."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

from bu2td.capture.draft import Draft
from bu2td.nn import assigned

_ALL = slice(None)


def assigned_part(draft: Draft, node: fx.Node) -> bool:
    """A map with other channels is a concat, ``x[:, :d] = y``; with other values where a mask is true, a choice."""
    if node.target is not assigned:
        return False
    x, index, value = node.args
    new = _chosen(draft, node, x, index, value) or _joined(draft, node, x, draft.number(index), value)
    if new is None:
        return False
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    draft.graph.erase_node(node)
    return True


def _chosen(draft: Draft, node: fx.Node, x: Any, index: Any, value: Any) -> fx.Node | None:
    """``x[mask] = number``"""
    mask, tensor = draft.value(index) if isinstance(index, fx.Node) else None, draft.value(x)
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != tensor.shape:
        return None
    if not isinstance(value, int | float):
        return None
    with draft.graph.inserting_before(node):
        return draft.graph.call_method("masked_fill", (x, index, value))


def _joined(draft: Draft, node: fx.Node, x: Any, index: Any, value: Any) -> fx.Node | None:
    """``x[:, a:b] = y``, and ``x[:, i] = y``, where y has as many channels."""
    tensor, given = draft.value(x), draft.value(value) if isinstance(value, fx.Node) else None
    at = _channels(index)
    if at is None or not isinstance(given, Tensor) or not isinstance(tensor, Tensor):
        return None
    one = isinstance(at, int)
    start, stop, step = (slice(at, at + 1) if one else at).indices(tensor.shape[1])
    shape = list(tensor[:, start:stop].shape)
    if step != 1 or list(given.shape) != ([shape[0], *shape[2:]] if one else shape):
        return None
    with draft.graph.inserting_before(node):
        middle = draft.graph.call_method("unsqueeze", (value, 1)) if one else value
        before = [_slice(draft, x, slice(None, start))] if start > 0 else []
        after = [_slice(draft, x, slice(stop, None))] if stop < tensor.shape[1] else []
        for each in [*before, *after, *([middle] if one else [])]:
            each.meta = dict(node.meta)
        return draft.graph.call_function(torch.cat, ([*before, middle, *after], 1))


def _channels(index: Any) -> Any:
    """The channels that an index names in numbers, as a slice or one alone; None if it does anything else."""
    where = index if isinstance(index, tuple) else (index,)
    if len(where) < 2 or where[0] != _ALL or any(each not in (_ALL, ...) for each in where[2:]):
        return None
    at = where[1]
    if isinstance(at, int):
        return at if at >= 0 else None
    bounds = (at.start, at.stop, at.step) if isinstance(at, slice) else (at,)
    return at if all(isinstance(n, int | None) for n in bounds) and isinstance(at, slice) else None


def _slice(draft: Draft, x: fx.Node, channels: slice) -> fx.Node:
    return draft.graph.call_function(operator.getitem, (x, (_ALL, channels)))
