"""What a module was set to: its attributes that bear the name of an argument of its class."""

from __future__ import annotations

import functools
import inspect
from typing import Any

from torch import nn

#: Arguments without a say in what a module computes.
_ASIDE = frozenset(("inplace", "device", "dtype", "training"))


def settings(module: nn.Module) -> dict[str, Any]:
    """The settings of a module by the names of its constructor's arguments, as far as they are plain values.

    Floats are rounded to six digits: rates that a schedule computes are the same then, however it does so.
    """
    kind: Any = type(module)
    own = {name: vars(module)[name] for name in _arguments(kind) if name in vars(module)}
    return {name: _rounded(value) for name, value in own.items() if _is_plain(value)}


@functools.cache
def _arguments(kind: Any) -> tuple[str, ...]:
    """The arguments of a class and of those that it derives from, as it may hand on what it does not name."""
    above = [c for c in kind.__mro__ if issubclass(c, nn.Module) and c is not nn.Module and "__init__" in vars(c)]
    names = [name for c in above for name in inspect.signature(vars(c)["__init__"]).parameters]
    return tuple(sorted(set(names) - _ASIDE - {"self"}))


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_plain(part) for part in value)
    return value is None or type(value) in (bool, int, float, str)


def _rounded(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return tuple(_rounded(part) for part in value)
    return float(f"{value:.6g}") if isinstance(value, float) else value
