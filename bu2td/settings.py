"""What a module was set to: its attributes that bear the name of an argument of its class."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

#: Settings that only training reads, and that people change while they train: rates of dropout, momenta of norms.
OF_TRAINING = ("momentum", "p", "drop_prob")
#: Arguments without a say in what a module computes.
_ASIDE = frozenset(("inplace", "device", "dtype", "training"))


def settings(module: nn.Module) -> dict[str, Any]:
    """The settings of a module by the names of its constructor's arguments, as far as they are plain values.

    Floats are rounded to six digits: rates that a schedule computes are the same then, however it does so.
    """
    kind: Any = type(module)
    own = {name: vars(module)[name] for name in _arguments(kind) if name in vars(module)}
    return {name: _rounded(value) for name, value in own.items() if _is_plain(value)}


def training_settings(network: nn.Module) -> dict[str, dict[str, float | None]]:
    """The settings of a network's modules that only training reads, by path."""
    found = {path: settings(module) for path, module in network.named_modules()}
    chosen = {
        path: {n: v for n, v in own.items() if n in OF_TRAINING and _is_rate(v)} for path, own in found.items()
    }
    return {path: own for path, own in chosen.items() if own}


def set_training(network: nn.Module, wanted: Mapping[str, Mapping[str, float | None]]) -> None:
    """Set what `training_settings` names.

    Raises:
        ValueError: there is no such module or setting, or a value is no rate.
    """
    known = training_settings(network)
    modules = dict(network.named_modules())
    for path, own in wanted.items():
        for name, value in own.items():
            if name not in known.get(path, {}) or not _is_rate(value):
                raise ValueError(f"{path}.{name}={value!r} is no setting of training")
            setattr(modules[path], name, value)


def _is_rate(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and 0 <= value <= 1)


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
