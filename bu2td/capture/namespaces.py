"""The names that a model's own code reads while it is followed.

Some of what a forward calls does not ask its arguments: ``torch.zeros(x.size(0), 4)`` wants numbers, ``int(h / 2)``
makes one, ``isinstance(x, Tensor)`` looks at the class. While a model is traced, the modules in which its classes
are written find in their place functions that record a call of a proxy, and do what they always do otherwise.
"""

from __future__ import annotations

import builtins
import functools
import math
import os
import sys
import threading
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import ExitStack, contextmanager
from types import BuiltinMethodType, MethodType, ModuleType, UnionType
from typing import Any

import numpy
import torch
import torch.utils.checkpoint as checkpoints
from torch import Tensor, fx, nn

from bu2td.ops import following

#: Functions that take sizes and make tensors.
MAKERS = (
    *(torch.zeros, torch.ones, torch.full, torch.empty, torch.arange, torch.linspace, torch.eye),
    *(torch.tensor, torch.as_tensor, torch.tril_indices, torch.triu_indices),
)
#: Functions that draw numbers: a call is part of the graph, or it would be drawn once and for all.
DRAWS = (torch.rand, torch.randn, torch.randint, torch.randperm)
#: numpy's functions of sizes, by name.
_OF_SIZES = ("ceil", "floor", "prod", "sqrt", "log2", "round", "abs")
#: Where user code finds torch's functions as attributes.
_TORCH_FACES = ("torch", "torch.autograd", "torch.utils.checkpoint", "torch.autograd.variable")

#: What a substitute may stand for: functions, bound methods, scripted functions.
_KINDS = {
    *(type(torch.zeros), type(math.ceil), type(checkpoints.checkpoint), BuiltinMethodType, MethodType),
    *(torch.jit.ScriptFunction, type(torch.autograd.Variable), type(numpy.ceil), type(numpy.prod)),
}
_ABSENT = object()


@contextmanager
def own_names(model: nn.Module, tracer: Any) -> Iterator[None]:
    """Let a model's own code meet proxies, in this thread; others find what they always do.

    Args:
        model: whose classes' modules, and the neighbours of these, are looked at.
        tracer: with ``measuring``, ``create_proxy``, ``number`` and ``kind``.
    """
    with ExitStack() as stack:
        stack.enter_context(following(fx.Proxy))
        instead = _Substitutes(tracer)
        for name in _TORCH_FACES:
            _replace(stack, vars(sys.modules[name]), instead.known)
        _set(stack, _Slots(torch.autograd.Function), "apply", classmethod(instead.applied))
        for functions in (numpy, math):
            _replace(stack, vars(functions), instead.known)
        for module in model.modules():
            _replace(stack, vars(module), instead.known)
        for names in _namespaces(model):
            _replace(stack, names, instead.known)
            for name, value in instead.builtins.items():
                if name not in names:
                    _set(stack, names, name, value)
        yield


def _replace(stack: ExitStack, names: MutableMapping[str, Any], known: Callable[[Any], Any]) -> None:
    # Most values are looked at in vain, in hundreds of modules: what is none of the kinds is passed over first.
    for name, value in [(n, v) for n, v in names.items() if type(v) in _KINDS]:
        other = None if name.startswith("__") else known(value)
        if other is not None:
            _set(stack, names, name, other)


def _set(stack: ExitStack, names: MutableMapping[str, Any], name: str, value: Any) -> None:
    before = names.get(name, _ABSENT)
    names[name] = value
    stack.callback(_restore, names, name, before)


def _restore(names: MutableMapping[str, Any], name: str, before: Any) -> None:
    if before is _ABSENT:
        names.pop(name, None)
    else:
        names[name] = before


class _Slots(dict[str, Any]):
    """The attributes of a class as a mapping that can be written."""

    def __init__(self, cls: type) -> None:
        super().__init__(vars(cls))
        self._cls = cls

    def __setitem__(self, name: str, value: Any) -> None:
        setattr(self._cls, name, value)


def _namespaces(model: nn.Module) -> list[dict[str, Any]]:
    """The modules in which the classes of a model are written, and those of the same package or folder."""
    homes = {cls.__module__ for module in model.modules() for cls in type(module).__mro__}
    own = [home for home in homes if home.partition(".")[0] not in ("torch", "builtins", "abc", "typing", "bu2td")]
    packages = {home.partition(".")[0] for home in own if "." in home}
    modules = [sys.modules[home] for home in own if home in sys.modules]
    folders = {os.path.dirname(file) for m in modules if "." not in m.__name__ and (file := _file(m))}
    near = [
        module
        for name, module in list(sys.modules.items())
        if isinstance(module, ModuleType)
        and (
            name in own
            or name.partition(".")[0] in packages
            or (folders and os.path.dirname(_file(module)) in folders)  # of thousands of files, where one has to
        )
    ]
    return [vars(module) for module in near if not module.__name__.startswith(("bu2td", "torch."))]


def _file(module: ModuleType) -> str:
    return getattr(module, "__file__", None) or ""


class _Substitutes:
    """What stands where a function is looked up.

    Attributes:
        builtins: by name.
    """

    def __init__(self, tracer: Any) -> None:
        self.tracer, self._thread = tracer, threading.get_ident()
        self._apply: Any = vars(torch.autograd.Function)["apply"]
        self.builtins = {
            "isinstance": self._isinstance,
            "len": self._len,
            "max": self._recorded(builtins.max),
            "min": self._recorded(builtins.min),
            "int": _number_class(int, tracer),
            "float": _number_class(float, tracer),
        }
        self._real = {self.builtins[name]: getattr(builtins, name) for name in ("int", "float")}
        of_sizes = [getattr(numpy, name) for name in _OF_SIZES]
        of_numbers = [f for name, f in vars(math).items() if callable(f) and not name.startswith("_")]
        recorded = (*MAKERS, *of_sizes, *of_numbers)
        self._instead: dict[int, Any] = {id(f): self._recorded(f) for f in recorded}
        self._instead |= {id(f): self._recorded(f, always=True) for f in DRAWS}
        self._instead |= {
            id(torch.autograd.Variable): self._variable,
            id(torch.is_tensor): lambda value: self._isinstance(value, Tensor),
            id(checkpoints.checkpoint): _called,
            id(checkpoints.checkpoint_sequential): _called_in_turn,
        }

    def known(self, value: Any) -> Any:
        """What is read in place of a value; None for the value itself."""
        if isinstance(value, torch.jit.ScriptFunction):
            return getattr(value, "_torchdynamo_inline", None)
        owner = getattr(value, "__self__", None) if isinstance(value, BuiltinMethodType | MethodType) else None
        if isinstance(owner, type) and issubclass(owner, torch.autograd.Function) and value.__name__ == "apply":
            return functools.partial(self.applied, owner)
        return self._instead.get(id(value))

    def _recorded(self, function: Callable[..., Any], always: bool = False) -> Callable[..., Any]:
        """The function; a call of proxies, or every call, is recorded."""

        @functools.wraps(function, updated=())
        def recorded(*args: Any, **kwargs: Any) -> Any:
            if not self.tracer.measuring and (holds_proxy((args, kwargs)) or (always and self._is_here())):
                return self.tracer.create_proxy("call_function", function, args, kwargs)
            return function(*args, **kwargs)

        return recorded

    def _is_here(self) -> bool:
        return threading.get_ident() == self._thread

    def _isinstance(self, value: Any, kinds: Any) -> bool:
        kinds = self._classes(kinds)
        if isinstance(value, fx.Proxy) and not isinstance(value, kinds):
            kind = self.tracer.kind(value)
            return kind is not None and issubclass(kind, kinds)
        return isinstance(value, kinds)

    def _classes(self, kinds: Any) -> Any:
        """The classes that were meant, where the stand-in of one is named."""
        if isinstance(kinds, tuple | UnionType):
            each = kinds if isinstance(kinds, tuple) else kinds.__args__
            return tuple(self._classes(kind) for kind in each)
        if kinds == self._variable:
            return Tensor
        return self._real.get(kinds, kinds) if isinstance(kinds, type) else kinds

    def _len(self, value: Any) -> Any:
        return self.tracer.number(value, len) if isinstance(value, fx.Proxy) else len(value)

    def applied(self, function: type[torch.autograd.Function], *args: Any, **kwargs: Any) -> Any:
        """``Function.apply``: a function with a gradient of its own is one operation, unless it runs modules."""
        if not self.tracer.measuring and holds_proxy((args, kwargs)):
            if any(isinstance(value, nn.Module) for value in args):
                return function.forward(_NoContext(), *args, **kwargs)
            return self.tracer.create_proxy("call_function", _as_function(function), args, kwargs)
        return self._apply.__get__(None, function)(*args, **kwargs)

    def _variable(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        """A variable is a tensor."""
        return value if isinstance(value, fx.Proxy) else torch.autograd.Variable(value, *args, **kwargs)


class _NoContext:
    """Stands for the context of a function whose gradient torch finds by itself."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None


@functools.cache
def _as_function(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """A plain function that applies one with a gradient of its own."""

    def apply(*args: Any) -> Any:
        return function.apply(*args)

    apply.__name__, apply.__module__ = function.__name__, function.__module__
    return apply


def _number_class(kind: type, tracer: Any) -> type:
    """int or float, which of a proxy makes a number, or a proxy where the number follows the image."""

    def make(cls: type, value: Any = 0, *args: Any) -> Any:
        return tracer.number(value, kind) if isinstance(value, fx.Proxy) else kind(value, *args)

    return type(kind.__name__, (kind,), {"__new__": make})


def _called(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function without a checkpoint."""
    settings = ("use_reentrant", "context_fn", "determinism_check", "debug", "early_stop", "preserve_rng_state")
    return function(*args, **{k: v for k, v in kwargs.items() if k not in settings})


def _called_in_turn(functions: Any, segments: int, value: Any, **_: Any) -> Any:
    """Call functions one after the other without checkpoints."""
    for function in functions.children() if isinstance(functions, nn.Sequential) else functions:
        value = function(value)
    return value


def holds_proxy(value: Any) -> bool:
    """Whether there is a proxy in nested arguments."""
    if isinstance(value, dict):
        return any(map(holds_proxy, value.values()))
    if isinstance(value, list | tuple):
        return any(map(holds_proxy, value))
    return isinstance(value, fx.Proxy)
