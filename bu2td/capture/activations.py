"""The rewrite of activations that are written by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx, nn

from bu2td.capture.draft import Draft, function_name
from bu2td.nn import ScaledSiLU

#: The x that a value is an activation of, and the activation.
_Found = tuple[fx.Node, nn.Module]


def handwritten_activation(draft: Draft, node: fx.Node) -> bool:
    """Activations made of others are modules: ``x * sigmoid(x)`` is ``nn.SiLU()(x)``."""
    found = next((found for read in _READERS if (found := read(draft, node)) is not None), None)
    if found is None:
        return False
    source, module = found
    draft.call_instead(node, type(module).__name__.lower(), module, source)
    return True


def _hardsigmoid(draft: Draft, node: fx.Node) -> _Found | None:
    """relu6(x + 3) / 6."""
    x = _shifted(draft, _sixfold(node))
    return None if x is None else (x, nn.Hardsigmoid())


def _divided_hardswish(draft: Draft, node: fx.Node) -> _Found | None:
    """(x relu6(x + 3)) / 6."""
    gated = (x for x, gate in _operands(_sixfold(node), "mul") if _is(x, _shifted(draft, gate)))
    return next(((x, nn.Hardswish()) for x in gated), None)


def _gated(draft: Draft, node: fx.Node) -> _Found | None:
    """x times a gate that is computed from x."""
    for x, gate in _operands(node, "mul"):
        act = _by_gate(draft, x, gate) if isinstance(x, fx.Node) else None
        if act is not None:
            return x, act
    return None


def _by_gate(draft: Draft, x: fx.Node, gate: Any) -> nn.Module | None:
    """x sigmoid(x) is SiLU, x sigmoid(c x) scaled, x hardsigmoid(x) Hardswish, x tanh(softplus(x)) Mish."""
    if _is(x, _read_by(draft, gate, nn.Hardsigmoid)):
        return nn.Hardswish()
    if _is(x, _read_by(draft, _read_by(draft, gate, nn.Tanh), nn.Softplus)):
        return nn.Mish()
    inner = _read_by(draft, gate, nn.Sigmoid)
    if _is(x, inner):
        return nn.SiLU()
    scales = (scale for y, scale in _operands(inner, "mul") if y is x and isinstance(scale, int | float))
    return next(map(ScaledSiLU, scales), None)


_READERS: tuple[Callable[[Draft, fx.Node], _Found | None], ...] = (_hardsigmoid, _divided_hardswish, _gated)


def _is(x: Any, other: Any) -> bool:
    return isinstance(x, fx.Node) and x is other


def _read_by(draft: Draft, value: Any, kind: type[nn.Module]) -> Any:
    """What a module of this kind reads, if the value is its output."""
    return value.args[0] if isinstance(draft.module(value), kind) else None


def _shifted(draft: Draft, value: Any) -> Any:
    """The x of relu6(x + 3)."""
    terms = _operands(_read_by(draft, value, nn.ReLU6), "add")
    return next((x for x, three in terms if three == 3 and isinstance(x, fx.Node)), None)


def _sixfold(node: fx.Node) -> Any:
    """The v of v / 6 or v * (1 / 6)."""
    if function_name(node) in ("truediv", "div") and len(node.args) == 2 and node.args[1] == 6:
        return node.args[0]
    return next((v for v, sixth in _operands(node, "mul") if sixth == 1 / 6), None)


def _operands(value: Any, name: str) -> list[tuple[Any, Any]]:
    """Both orders of the operands of a sum or product; none if the value is not one."""
    is_call = isinstance(value, fx.Node) and value.op in ("call_function", "call_method")
    if is_call and function_name(value) in (name, f"{name}tiply") and len(value.args) == 2 and not value.kwargs:
        return [(value.args[0], value.args[1]), (value.args[1], value.args[0])]
    return []
