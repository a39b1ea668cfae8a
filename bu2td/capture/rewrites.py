"""Rewrites of what can be written in several ways and means one thing."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from bu2td.capture.draft import Draft, function_name, nodes_in, settings
from bu2td.capture.outputs import likely_logits, outputs

#: Functions that count channels and positions in numbers.
_COUNTING = ("split", "chunk", "narrow", "pad", "conv2d", "pixel_shuffle", "channel_shuffle")
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
    if name in ("contiguous", "cuda", "cpu") or isinstance(draft.module(node), nn.Identity):
        return node.all_input_nodes[0]
    if name == "to" and all(map(_is_place, (*node.args[1:], *node.kwargs.values()))):
        return node.args[0]
    if name in ("cat", "concat") and isinstance(args[0], list | tuple) and len(args[0]) == 1:
        return args[0][0]
    if name in ("view", "reshape") and _viewed_as_itself(draft, node):
        return args[0]
    if name == "add" and args[:1] == (0,):
        return args[1]  # sum() starts with 0
    return None


def _viewed_as_itself(draft: Draft, node: fx.Node) -> bool:
    """Whether a map is viewed in the size in numbers that it has: ``x.view(-1, 1, 28, 28)``."""
    shape = settings(node)[0]
    sizes = shape[0] if len(shape) == 1 and isinstance(shape[0], list | tuple) else shape
    own = draft.value(node.args[0])
    written = len(sizes) == 4 and all(isinstance(n, int) and n > 0 for n in sizes[1:])
    return written and isinstance(own, Tensor) and tuple(own.shape[1:]) == tuple(sizes[1:])


def _is_place(value: Any) -> bool:
    """Whether a value says where a tensor lies, or is the device or type of another: all of a network have one."""
    read = isinstance(value, fx.Node) and value.target is getattr and value.args[1] in ("device", "dtype")
    return read or isinstance(value, torch.device | str | bool)


def spread_shape(draft: Draft, node: fx.Node) -> bool:
    """A shape that is put together is written number by number: ``x.view(x.size()[:-1] + (heads, -1))``."""
    shape = settings(node)[0] if function_name(node) in ("view", "reshape") else ()
    whole = shape[0] if len(shape) == 1 else None
    if not isinstance(whole, fx.Node) or whole.target is not operator.add:
        return False
    numbers: list[Any] = []
    for part in whole.args:
        value = draft.value(part) if isinstance(part, fx.Node) else part
        if not isinstance(value, tuple):
            return False
        numbers += _numbers(draft, node, part, len(value)) if isinstance(part, fx.Node) else list(value)
    node.args = (node.args[0], *numbers) if node.op == "call_method" else (node.args[0], tuple(numbers))
    return True


def _numbers(draft: Draft, node: fx.Node, shape: fx.Node, count: int) -> list[fx.Node]:
    """The numbers of a shape, in front of a node."""
    with draft.graph.inserting_before(node):
        found = [draft.graph.call_function(operator.getitem, (shape, i)) for i in range(count)]
    for each in found:
        each.meta = dict(node.meta)
    return found


def flattened(draft: Draft, node: fx.Node) -> bool:
    """A map that is viewed as all of its values, counted in whatever way, is flattened: ``x.view(-1, n)``."""
    if function_name(node) not in ("view", "reshape") or not nodes_in(settings(node)[0][-1:]):
        return False
    source: Any = node.args[0]
    before, after = draft.traced.values.of(source), draft.traced.values.of(node)
    for old, new in zip(before, after, strict=True):
        if not (isinstance(old, Tensor) and old.dim() == 4 and _size(new) == (old.shape[0], old[0].numel())):
            return False
    draft.compute_instead(node, torch.flatten, source, 1)
    return True


def _size(value: Any) -> tuple[int, ...]:
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def own_batch(draft: Draft, node: fx.Node) -> bool:
    """The number of images is read from the tensor that it is used on: ``y.view(x.size(0), -1)``."""
    source: Any = node.args[0] if node.args else None
    if node.op not in ("call_method", "call_function") or not isinstance(source, fx.Node):
        return False
    changed = False
    for number in nodes_in(settings(node)):
        counted = _counted(number)
        if counted is None or counted is source or not _as_many(draft, source, counted):
            continue
        with draft.graph.inserting_before(node):
            own = draft.graph.call_method("size", (source, 0))
        own.meta = dict(node.meta)
        node.replace_input_with(number, own)
        changed = True
    return changed


def _counted(number: fx.Node) -> fx.Node | None:
    """The tensor whose images a number counts, ``x.size(0)`` or ``x.shape[0]``."""
    source: Any = number.args[0] if number.args else None
    if (number.op, number.target, number.args[1:]) == ("call_method", "size", (0,)):
        return source
    if number.op == "call_function" and number.target is operator.getitem and number.args[1] == 0:
        read = (source.target, source.args[1:]) if isinstance(source, fx.Node) else None
        found: Any = source.args[0] if read in ((getattr, ("shape",)), ("size", ())) else None
        return found
    return None


def _as_many(draft: Draft, source: fx.Node, counted: fx.Node) -> bool:
    """Whether two tensors hold as many images."""
    pairs = zip(draft.traced.values.of(source), draft.traced.values.of(counted), strict=True)
    return all(_size(a)[:1] == _size(b)[:1] != () for a, b in pairs)


def view(draft: Draft, node: fx.Node) -> bool:
    """``view`` to a shape is ``reshape``: the same, and it also works on channels_last tensors."""
    to_type = any(isinstance(a, torch.dtype) for a in node.args)
    if (node.op, node.target) != ("call_method", "view") or to_type:
        return False
    node.target = "reshape"
    return True


def single_output(draft: Draft, choice: int = 0) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The graph returns the logits (N, K): other outputs are dropped.

    Args:
        draft: the graph.
        choice: which of the outputs that may be the logits is taken, the likeliest first.

    Returns:
        A note on the choice, if there was one, and the labels of the others that may be the logits.

    Raises:
        ModelOutputError: nothing that the model returns may be logits.
    """
    node = next(n for n in reversed(draft.graph.nodes) if n.op == "output")
    returned: Any = node.args[0]
    if isinstance(returned, fx.Node) and not hasattr(returned.target, "_fields"):
        value = draft.value(returned) if _may_be_a_map(draft, returned) else None
        if value is None:
            return (), ()
        if isinstance(value, Tensor) and (value.dim() != 4 or set(value.shape[2:]) != {1}):
            return (), ()  # the analysis says what is wrong with one tensor
    found = outputs(returned, draft.traced.values)
    likely = likely_logits(found)
    logits = likely[choice]
    last = logits.node
    if logits.shape is not None and len(logits.shape) == 4:
        with draft.graph.inserting_before(node):
            last = draft.graph.call_function(torch.flatten, (last, 1))
        last.meta = dict(logits.node.meta)
    node.args = (last,)
    dropped = [output.label for output in found if output is not logits]
    note = f"of what the model returns, {logits.label or 'all'} is taken for the logits"
    chosen = (f"{note}; {', '.join(dropped[:6])} {'are' if len(dropped) > 1 else 'is'} dropped",) if dropped else ()
    return chosen, tuple(output.label for output in likely if output is not logits)


def _may_be_a_map(draft: Draft, node: fx.Node) -> bool:
    """Whether it must be computed what a node makes: a linear layer or a flattening make no map."""
    return not isinstance(draft.module(node), nn.Linear | nn.Flatten) and function_name(node) != "flatten"


def written_out(draft: Draft, node: fx.Node) -> bool:
    """Bounds and counts that are the same at all sizes are written as numbers: ``x[:, : x.shape[1] // 2]``."""
    if function_name(node) not in _COUNTING and node.target not in (operator.getitem, math.ceil):
        return False
    positional, by_keyword = draft.number(node.args[1:]), draft.number(dict(node.kwargs))
    if (positional, by_keyword) == (node.args[1:], dict(node.kwargs)):
        return False
    node.args, node.kwargs = (*node.args[:1], *positional), by_keyword
    return True
