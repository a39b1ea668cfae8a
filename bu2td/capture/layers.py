"""The rewrite of layers that are written as functions of their weights."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from bu2td.capture.draft import Draft, function_name, nodes_in
from bu2td.capture.values import Unknown
from bu2td.nn import FixedFilter
from bu2td.ops import pair


def functional_layer(draft: Draft, node: fx.Node) -> bool:
    """A function of parameters is a layer, ``F.conv2d(x, self.w)``; of a fixed filter a blur."""
    build = _LAYERS.get(function_name(node))
    if build is None or node.op != "call_function" or len(node.args) < 1 or not isinstance(node.args[0], fx.Node):
        return False
    try:
        given = _arguments(node)
    except TypeError:
        return False
    found = build(draft, given)
    if found is None:
        return False
    module, name, tensors = found
    draft.call_instead(node, name, module, node.args[0], tensors)
    draft.graph.erase_node(node)
    return True


#: A layer, its name, and its parameters and buffers with their values.
_Found = tuple[nn.Module, str, dict[str, Tensor | None]]


def _conv2d(draft: Draft, given: dict[str, Any]) -> _Found | None:
    weights = _weights(draft, given, "weight", "bias")
    settings = [draft.number(given[name]) for name in ("stride", "padding", "dilation", "groups")]
    if nodes_in(settings):
        return None  # they follow the image
    stride, padding, dilation, groups = settings
    if weights is None:
        return _fixed_filter(draft, given, stride, padding, dilation, groups)
    weight = draft.parts[weights["weight"]]
    ends = (weight.shape[1] * groups, weight.shape[0], tuple(weight.shape[2:]))
    with torch.device("meta"):
        conv = nn.Conv2d(*ends, stride, padding, dilation, groups, "bias" in weights)
    return _filled(draft, conv, weights)


def _fixed_filter(
    draft: Draft, given: dict[str, Any], stride: Any, padding: Any, dilation: Any, groups: int
) -> _Found | None:
    """A filter without parameters that is the same for every channel."""
    weight, bias = given["weight"], given.get("bias")
    if bias is not None or isinstance(padding, str) or not isinstance(weight, fx.Node) or _learns(draft, weight):
        return None
    value = draft.value(weight)
    if isinstance(value, Unknown) or value.dim() != 4 or value.shape[:2] != (groups, 1) or pair(dilation) != (1, 1):
        return None
    if not value.is_meta and not bool((value == value[:1]).all()):
        return None
    module = FixedFilter(value[:1].to("meta"), pair(stride), pair(padding))
    return module, "blur", {"filt": None if value.is_meta else value[:1].detach()}


def _learns(draft: Draft, node: fx.Node) -> bool:
    """Whether a tensor is computed from a parameter or from the image."""
    stack = [node]
    while stack:
        at = stack.pop()
        if at.op in ("placeholder", "call_module") or isinstance(draft.weight(at)[1], nn.Parameter):
            return True
        stack += [n for n in at.all_input_nodes if isinstance(draft.value(n), Tensor | Unknown)]
    return False


def _linear(draft: Draft, given: dict[str, Any]) -> _Found | None:
    weights = _weights(draft, given, "weight", "bias")
    if weights is None:
        return None
    outputs, inputs = draft.parts[weights["weight"]].shape
    with torch.device("meta"):
        return _filled(draft, nn.Linear(inputs, outputs, "bias" in weights), weights)


def _batch_norm(draft: Draft, given: dict[str, Any]) -> _Found | None:
    weights = _weights(draft, given, "running_mean", "running_var", "weight", "bias")
    momentum, eps = given.get("momentum", 0.1), given.get("eps", 1e-5)
    if weights is None or not isinstance(momentum, int | float):
        return None
    affine = "weight" in weights
    if affine != ("bias" in weights):
        return None
    source = draft.value(given["input"])
    kinds = {2: nn.BatchNorm1d, 4: nn.BatchNorm2d}
    kind = kinds.get(source.dim()) if isinstance(source, Tensor) else None
    if kind is None:
        return None
    with torch.device("meta"):
        return _filled(draft, kind(len(draft.parts[weights["running_mean"]]), eps, momentum, affine), weights)


_LAYERS: dict[str, Callable[[Draft, dict[str, Any]], _Found | None]] = {
    "conv2d": _conv2d,
    "linear": _linear,
    "batch_norm": _batch_norm,
}
_SIGNATURES = {
    "conv2d": ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    "linear": ("input", "weight", "bias"),
    "batch_norm": tuple(inspect.signature(F.batch_norm).parameters),
}
_DEFAULTS: dict[str, Any] = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}


def _arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of a call by name.

    Raises:
        TypeError: there are more than the function has.
    """
    names = _SIGNATURES[function_name(node)]
    if len(node.args) > len(names):
        raise TypeError
    return {**_DEFAULTS, **dict(zip(names, node.args, strict=False)), **node.kwargs}


def _weights(draft: Draft, given: dict[str, Any], *names: str) -> dict[str, str] | None:
    """The paths of the weights among the arguments; None if one is no parameter or buffer, or the first is none."""
    paths: dict[str, str] = {}
    for name in names:
        if given.get(name) is None:
            continue
        path, part = draft.weight(given[name])
        statistics = name.startswith("running")
        if part is None or not (statistics or isinstance(part, nn.Parameter)):
            return None
        paths[name] = path
    return paths if names[0] in paths else None


def _filled(draft: Draft, module: nn.Module, weights: dict[str, str]) -> _Found:
    """A layer whose weights are these of the graph, named after the first of them."""
    for name, path in weights.items():
        part = draft.parts[path]
        setattr(module, name, part.detach() if name.startswith("running") else part)
    return module, type(module).__name__.lower(), {name: draft.original(path) for name, path in weights.items()}
