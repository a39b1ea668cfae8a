"""The registry: which converter knows which operation.

The package `bu2td_converters` holds bu2td's own converters; it reaches the registry through the entry point group
``bu2td.converters``, exactly as anybody else's package does.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, TypeVar

from torch import fx, nn

from bu2td.errors import ConverterError, nearest
from bu2td.ops.converter import Converter
from bu2td.ops.roles import Role

ENTRY_POINT_GROUP = "bu2td.converters"

#: What stands in for operations without a converter: their channels are pinned.
OPAQUE = Converter()

_registry: dict[str, Converter] = {}
_families: list[tuple[Callable[[type], bool], Converter]] = []
_following: list[Callable[[type], AbstractContextManager[Any]]] = []
_found: dict[type, Converter] = {}  # what was looked up before
_loaded = False

T = TypeVar("T", bound=type[Converter])


def _key(target: Any) -> str:
    if isinstance(target, str):
        return target
    if isinstance(target, type):
        return f"{target.__module__}.{target.__qualname__}"
    if callable(target):
        module = getattr(target, "__module__", None) or "builtins"
        return f"{module}.{getattr(target, '__name__', repr(target))}"
    raise ConverterError(
        f"{target!r} cannot have a converter: register a module class, a function, "
        f"'method:NAME' for a tensor method, or a qualified name as a string"
    )


def _instance(cls: Any) -> Converter:
    if not (isinstance(cls, type) and issubclass(cls, Converter)):
        raise ConverterError(f"{cls!r} must be a subclass of bu2td.Converter")
    if not isinstance(cls.role, Role):
        hint = nearest(str(cls.role), [role.value for role in Role], count=1)
        raise ConverterError(
            f"{cls.__qualname__}.role is {cls.role!r}; it must be one of bu2td.Role, Role.ACT for instance.{hint}"
        )
    return cls()


def register_converter(*targets: Any) -> Callable[[T], T]:
    """Register a `Converter` class for operations.

    Args:
        targets: module classes, functions, qualified names ("timm.layers.std_conv.StdConv2d", so that
            the package need not be importable), bare class names that many projects copy ("class:DropPath")
            or tensor methods ("method:relu").

    Raises:
        ConverterError: one of the targets has a converter already, or the class is no converter with a role.
    """

    def decorate(cls: T) -> T:
        instance = _instance(cls)
        _load()
        for target in targets:
            key = _key(target)
            if key in _registry:
                raise ConverterError(
                    f"{key} already has the converter {type(_registry[key]).__qualname__}; "
                    f"remove it with bu2td.unregister_converter({key!r}) first"
                )
            _registry[key] = instance
        _found.clear()
        return cls

    return decorate


def register_family(belongs: Callable[[type], bool]) -> Callable[[T], T]:
    """Register a `Converter` class for all module classes that a test accepts and nothing else is registered for.

    Args:
        belongs: the test; it is asked for every class anew, so that it may depend on what is imported.
    """

    def decorate(cls: T) -> T:
        instance = _instance(cls)
        _load()
        _families.append((belongs, instance))
        return cls

    return decorate


def register_following(prepare: Callable[[type], AbstractContextManager[Any]]) -> None:
    """Let a library work on the proxies with which a forward is followed.

    Args:
        prepare: given the class of the proxies, a context manager that holds while a model is traced.
    """
    _load()
    _following.append(prepare)


@contextmanager
def following(proxy: type) -> Iterator[None]:
    """Let all libraries that converters know work on proxies of a class."""
    _load()
    with ExitStack() as stack:
        for prepare in _following:
            stack.enter_context(prepare(proxy))
        yield


def unregister_converter(target: Any) -> None:
    """Remove the converter of an operation.

    Raises:
        ConverterError: it has none.
    """
    _load()
    if _registry.pop(_key(target), None) is None:
        raise ConverterError(f"{_key(target)} has no converter to remove")
    _found.clear()


def _load() -> None:
    """Load the converters of every installed package, at the first look-up."""
    global _loaded
    if _loaded:
        return
    _loaded = True
    found = sorted(importlib.metadata.entry_points(group=ENTRY_POINT_GROUP), key=lambda e: e.name != "bu2td")
    if not any(entry_point.name == "bu2td" for entry_point in found):  # a checkout on the path, not installed
        importlib.import_module("bu2td_converters")
    for entry_point in found:
        entry_point.load()


def registered() -> Iterator[tuple[str, Converter]]:
    """Iterate over (qualified name, converter), sorted by name."""
    _load()
    return iter(sorted(_registry.items()))


def converter_for_type(cls: type) -> Converter | None:
    """The converter of a module class, of its nearest base class that has one, its bare name or its family.

    A class with a forward of its own is not what its base class is, and what is known of that says nothing of it.
    """
    if cls not in _found:
        _load()
        found = _look_up(cls)
        if found is None:
            return None
        _found[cls] = found
    return _found[cls]


def _look_up(cls: type) -> Converter | None:
    bases = (base for base in cls.__mro__ if _computes_as(cls, base))
    names = (*(f"{base.__module__}.{base.__qualname__}" for base in bases), f"class:{cls.__name__}")
    found = next((_registry[name] for name in names if name in _registry), None)
    return found or next((converter for belongs, converter in _families if belongs(cls)), None)


def _computes_as(cls: type, base: type) -> bool:
    """Whether a class inherits how a base class computes."""
    return all(getattr(cls, name, None) is getattr(base, name, None) for name in ("forward", "_conv_forward"))


def converter_for(node: fx.Node, module: nn.Module | None) -> Converter:
    """The converter of a graph node; `OPAQUE` where there is none."""
    _load()
    if node.op == "call_module":
        return (converter_for_type(type(module)) if module is not None else None) or OPAQUE
    if node.op == "call_method":
        return _registry.get(f"method:{node.target}", OPAQUE)
    if node.op == "get_attr":
        return _registry.get("get_attr", OPAQUE)
    if node.op == "call_function":
        return _registry.get(_key(node.target), OPAQUE)
    return OPAQUE
