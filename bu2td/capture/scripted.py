"""Scripted submodules are read back: TorchScript keeps the weights, the settings, and the code of a forward."""

from __future__ import annotations
import __future__

import importlib
import inspect
import operator
import re
import typing
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bu2td.errors import CaptureError

_MANGLED = re.compile(r"^___torch_mangle_\d+$")


def unscript(model: nn.Module) -> None:
    """Put ordinary modules in the place of scripted ones inside a copied model, with empty weights on meta.

    Raises:
        CaptureError: a scripted module cannot be read back.
    """
    for parent in list(model.modules()):
        if isinstance(parent, torch.jit.ScriptModule):
            continue
        for name, child in list(parent.named_children()):
            if isinstance(child, torch.jit.ScriptModule):
                setattr(parent, name, _read_back(child))


def _read_back(scripted: torch.jit.ScriptModule) -> nn.Module:
    """An ordinary module that computes what a scripted one computes."""
    module = _of_torch(scripted) or _of_code(scripted)
    for name, parameter in scripted.named_parameters(recurse=False):
        empty = torch.empty_like(parameter, device="meta")
        module.register_parameter(name, nn.Parameter(empty, parameter.requires_grad))
    for name, buffer in scripted.named_buffers(recurse=False):
        module.register_buffer(name, torch.empty_like(buffer, device="meta"))
    for name, child in scripted.named_children():
        module.add_module(name, _read_back(child))  # type: ignore[arg-type]
    return module.train(scripted.training)


def _of_torch(scripted: Any) -> nn.Module | None:
    """A module of torch.nn with the settings of a scripted one; None for any other class."""
    cls = _named(scripted._c._type().qualified_name())
    if not (isinstance(cls, type) and issubclass(cls, nn.Module) and cls.__module__.startswith("torch.nn.")):
        return None
    if issubclass(cls, nn.Sequential | nn.ModuleList):
        return cls()
    settings = {}
    for name, parameter in inspect.signature(cls).parameters.items():
        value = getattr(scripted, name, parameter.default)
        if value is not inspect.Parameter.empty and name not in ("device", "dtype", "args", "kwargs"):
            settings[name] = value is not None if name == "bias" else value
    with torch.device("meta"):
        return cls(**settings)


def _of_code(scripted: Any) -> nn.Module:
    """A module whose forward is the code that TorchScript shows."""
    functions: dict[str, Any] = {}
    try:
        code = compile(scripted.code, "<scripted>", "exec", __future__.annotations.compiler_flag, dont_inherit=True)
        exec(code, dict(_NAMES), functions)
    except Exception as error:
        raise CaptureError(
            f"the scripted module {scripted.original_name} cannot be read back ({error}); pass the model with the "
            f"eager module that it was made from"
        ) from error
    module = type(scripted.original_name, (nn.Module,), {"forward": functions["forward"]})()
    constants = scripted._concrete_type.get_constants()
    attributes = scripted._concrete_type.get_attributes()
    for name in [*constants, *attributes]:
        value = getattr(scripted, name, None)
        if not isinstance(value, Tensor | nn.Module):
            setattr(module, name, value)
    return module


def _named(path: str) -> Any:
    """What a qualified name of TorchScript means in Python; None if that cannot be found."""
    names = [name for name in path.split(".") if name != "__torch__" and not _MANGLED.match(name)]
    for split in range(len(names) - 1, 0, -1):
        try:
            found: Any = importlib.import_module(".".join(names[:split]))
            for name in names[split:]:
                found = getattr(found, name)
        except (ImportError, AttributeError):
            continue
        return found
    return None


class _Path:
    """A qualified name in the code of TorchScript, which is called in the end."""

    def __init__(self, path: str = "") -> None:
        self._path = path

    def __getattr__(self, name: str) -> _Path:
        return _Path(f"{self._path}.{name}".strip("."))

    def __call__(self, *args: Any) -> Any:
        return _named(self._path)(*args)


class _Torch:
    """``torch`` as the code of TorchScript means it: its functions, methods of tensors, and Python's operators."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name in _OPERATORS:
            return _OPERATORS[name]
        return getattr(torch, name, None) or _method(name)


def _method(name: str) -> Callable[..., Any]:
    return lambda value, *args, **kwargs: getattr(value, name)(*args, **kwargs)


def _binary(name: str, function: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    """An operator; with a third argument, the scale of a tensor, torch's function."""
    return lambda a, b, *rest: function(a, b) if not rest else getattr(torch, name)(a, b, alpha=rest[0])


_OPERATORS: dict[str, Callable[..., Any]] = {
    **{name: getattr(operator, name) for name in ("eq", "ne", "lt", "le", "gt", "ge", "mod", "floordiv", "neg")},
    **{name: _binary(name, getattr(operator, name)) for name in ("add", "sub", "mul")},
    "div": operator.truediv,
    "__is__": operator.is_,
    "__isnot__": operator.is_not,
    "__not__": operator.not_,
    "__getitem__": operator.getitem,
    "__contains__": operator.contains,
    "len": len,
    "append": list.append,
    "format": str.format,
    "size": _method("size"),
    "dim": _method("dim"),
}

#: What the code of TorchScript may name.
_NAMES: dict[str, Any] = {
    **{name: getattr(typing, name) for name in ("List", "Dict", "Optional", "Tuple", "Union", "Any")},
    "Tensor": Tensor,
    "torch": _Torch(),
    "__torch__": _Path(),
    "annotate": lambda kind, value: value,
    "unchecked_cast": lambda kind, value: value,
    "uninitialized": lambda kind: None,
}
