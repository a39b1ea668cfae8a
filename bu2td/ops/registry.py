"""The registry: which converter knows which operation."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from torch import fx, nn

from bu2td.errors import ConverterError
from bu2td.ops.converter import Converter, OpaqueConverter

ENTRY_POINT_GROUP = "bu2td.converters"


_registry: dict[str, Converter] = {}


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


def register_converter(*targets: Any) -> Callable[[T], T]:
    """Register a `Converter` class for operations.

    Args:
        targets: module classes, functions, qualified names ("timm.layers.std_conv.StdConv2d", so that
            the package need not be importable), bare class names that many projects copy ("class:DropPath")
            or tensor methods ("method:relu").

    Raises:
        ConverterError: one of the targets has a converter already.
    """

    def decorate(cls: T) -> T:
        if not (isinstance(cls, type) and issubclass(cls, Converter)):
            raise ConverterError(f"{cls!r} must be a subclass of bu2td.Converter")
        _load()
        instance = cls()
        for target in targets:
            key = _key(target)
            if key in _registry:
                raise ConverterError(
                    f"{key} already has the converter {type(_registry[key]).__qualname__}; "
                    f"remove it with bu2td.unregister_converter({key!r}) first"
                )
            _registry[key] = instance
        return cls

    return decorate


def unregister_converter(target: Any) -> None:
    """Remove the converter of an operation.

    Raises:
        ConverterError: it has none.
    """
    _load()
    if _registry.pop(_key(target), None) is None:
        raise ConverterError(f"{_key(target)} has no converter to remove")


def _load() -> None:
    """Load the converters of every installed package, at the first look-up."""
    global _loaded
    if _loaded:
        return
    _loaded = True
    for entry_point in sorted(
        importlib.metadata.entry_points(group=ENTRY_POINT_GROUP), key=lambda e: e.name != "bu2td"
    ):
        entry_point.load()


def registered() -> Iterator[tuple[str, Converter]]:
    """Iterate over (qualified name, converter), sorted by name."""
    _load()
    return iter(sorted(_registry.items()))


OPAQUE = OpaqueConverter()


def converter_for_type(cls: type) -> Converter | None:
    """The converter of a module class, of its nearest base class that has one, or of its bare name."""
    _load()
    for base in cls.__mro__:
        found = _registry.get(_key(base))
        if found is not None:
            return found
    return _registry.get(f"class:{cls.__name__}")


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
