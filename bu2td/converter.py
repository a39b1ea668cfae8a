"""The converter interface and its registry.

A converter is the one place that knows an operation. Analysis, the channel system, arrangement and
rewriting ask the same converter, so they can never disagree about an operation, and a new operation is
one class in one file. The package `bu2td_converters` holds bu2td's own; it reaches the registry through
the entry point group ``bu2td.converters``, exactly as anybody else's package does.
"""

from __future__ import annotations

import copy
import importlib.metadata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, fx, nn

from bu2td.errors import ConverterError
from bu2td.fields import Field, hull, nothing
from bu2td.plan import Dim, Value

ENTRY_POINT_GROUP = "bu2td.converters"


@dataclass(frozen=True)
class Term:
    """A summand of a size: ``scale * variable``, or the constant ``scale`` where variable is None."""

    variable: int | None
    scale: Fraction


#: The size of a channel dimension, as a concatenation of terms; None for other dimensions.
Expr = tuple[Term, ...]


class System(Protocol):
    """What a converter may ask of the channel system (see `bu2td.channels`)."""

    def of(self, node: Any) -> Any:
        """Expressions of a node's value: per dimension, or a tuple of those for several tensors."""

    def fresh(self, size: int, name: str) -> Expr:
        """A new variable with its bottom-up size."""

    def constant(self, size: int) -> Expr:
        """A size that never changes."""

    def size(self, expr: Expr) -> int:
        """The bottom-up size of an expression."""

    def equal(self, a: Expr, b: Expr) -> Expr:
        """Tie two sizes; returns the more detailed of the two expressions."""

    def collapse(self, expr: Expr) -> Term:
        """The whole expression as one term (a new variable for the sum where there are several)."""

    def divisible(self, expr: Expr, divisor: int, what: str, relaxable: bool = False) -> None:
        """Ask for divisibility; a relaxable one may be given up by the relaxation "regroup"."""


@dataclass(frozen=True)
class Site:
    """A node of the captured graph as a converter sees it.

    Attributes:
        dims: dimensions of all values by node name.
        numbers: values of the nodes that compute sizes, where they are known.
        virtual: the image is a canvas larger than any receptive field, not one of the model's own size.
    """

    node: fx.Node
    module: nn.Module | None
    dims: Mapping[str, Value]
    numbers: Mapping[str, Any] = field(default_factory=dict)
    virtual: bool = False

    @property
    def value(self) -> Value:
        """Dimensions of the node's value at the probe."""
        return self.dims[self.node.name]

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument by position or keyword."""
        if position < len(self.node.args):
            return self.node.args[position]
        return self.node.kwargs.get(name, default)

    def literal(self, position: int, name: str, default: Any = None) -> Any:
        """An argument with the numbers in it that the graph computes."""
        return fx.map_arg(self.argument(position, name, default), lambda n: self.numbers.get(n.name, n))

    @property
    def layer(self) -> Any:
        """The module, for sites that are known to call one."""
        return self.module

    def source(self, position: int = 0) -> str:
        """Name of the node that a tensor argument comes from."""
        source: Any = self.node.args[position]
        return source.name

    def input_dims(self, position: int = 0) -> tuple[Dim, ...]:
        """Dimensions of a tensor argument."""
        return self.dims[self.source(position)]


@dataclass(frozen=True)
class Change:
    """What a site is to become.

    Attributes:
        sizes: new sizes by node name (None entries: not a channel dimension).
        stride_one: rebuild with stride 1, keeping the resolution.
        keep_resolution: give stride-1 windows 'same' padding (false inside excursions).
        kernel: force this kernel.
        inplace: whether an activation may still work in place.
        map_size: (H, W) of the map that the operation reads there, for images of the model's own size; None in
            the head.
    """

    sizes: Mapping[str, Any]
    stride_one: bool = False
    keep_resolution: bool = True
    kernel: tuple[int, int] | None = None
    inplace: bool = False
    map_size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Rebuilt:
    """The outcome of a rebuild; None means unchanged."""

    module: nn.Module | None = None
    args: tuple[Any, ...] | None = None
    kwargs: dict[str, Any] | None = None
    parameter: torch.Tensor | None = None


class Converter:
    """Knowledge of one operation. Subclass it, override what differs, register it.

    Class attributes describe the role that the operation plays in a topology:

        role: "conv", "attention", "norm", "act", "norm_act", "pool", "dropout", "add", "concat", "pass",
            "linear", "gate", "head" or "opaque". "pass" is anything without parameters that neither mixes
            space nor changes what the tensor means (views, casts); "attention" looks around and may stride;
            "head" reads a whole map of one size; "opaque" stops every rewrite.
        leaf: keep modules of this type whole when capturing.
        needs_map: it takes statistics over positions, and cannot follow the global pool.
    """

    role: str = "opaque"
    leaf: bool = True
    needs_map: bool = False

    def role_at(self, site: Site) -> str:
        """The role of one site, where it depends on its arguments."""
        return self.role

    def kernel(self, site: Site) -> tuple[int, int]:
        """Window (k_h, k_w) over the image plane; (1, 1) for pointwise operations."""
        return (1, 1)

    def stride(self, site: Site) -> tuple[int, int]:
        """Stride over the image plane."""
        return (1, 1)

    def grid(self, module: nn.Module) -> int | None:
        """What the sides of the module's map must be multiples of; None if it works on one map size only."""
        return 1

    def meta(self, module: nn.Module, *inputs: Tensor) -> Tensor | None:
        """An empty meta tensor of the output's shape at any map size, where the module runs at one only.

        The probe asks for it at sizes other than the model's own; None: the module itself runs there.
        """
        return None

    def acts(self, site: Site) -> bool:
        """Whether a "norm_act" site really has an activation."""
        return False

    def tie(self, site: Site, system: System) -> Any:
        """State how channel dimensions of inputs and output depend on one another.

        Returns:
            The expressions of the site's value, in the structure of ``site.value``.
        """
        raise NotImplementedError

    def rebuild(self, site: Site, change: Change) -> Rebuilt:
        """Return the operation for other channel counts, another stride and kernel."""
        return Rebuilt()

    def interval(self, site: Site, fields: Mapping[str, Any]) -> Any:
        """How receptive fields pass through the operation (see `bu2td.fields`).

        Args:
            site: the node; the sizes of ``site.dims`` are those of the image whose fields are asked for.
            fields: by node name, the fields of all inputs: a `Field` for a tensor, a tuple of those for several.

        Returns:
            The field of the value, in the structure of ``site.value``; None if the operation has no rule. By
            default, operations that are pointwise by their role pass the hull of what they read.
        """
        return pointwise(site, fields) if self.role in _POINTWISE else None


#: Roles of operations whose elements each depend on the elements at the same place.
_POINTWISE = ("act", "norm", "norm_act", "dropout", "add", "mul", "pass")


def pointwise(site: Site, fields: Mapping[str, Any]) -> Field | None:
    """The field of an elementwise operation: the hull of all operands, broadcast; None if it is none."""
    if not site.value or not isinstance(site.value[0], Dim):
        return None
    operands = [n for n in site.node.all_input_nodes if isinstance(fields.get(n.name), Field)]
    rank = len(site.value)
    for node in operands:
        dims = site.dims[node.name]
        aligned = zip(reversed(dims), reversed(site.value), strict=False)
        if len(dims) > rank or any(d.size not in (1, v.size) for d, v in aligned):
            return None
    return hull((fields[n.name] for n in operands), rank) if operands else None


def positions(dims: Sequence[Dim]) -> tuple[int, ...]:
    """The dimensions of a tensor that count positions of the image."""
    return tuple(i for i, d in enumerate(dims) if d.kind not in ("batch", "channel"))


def to_size(field: Field, site: Site, along: Callable[[Field, int, int], Field | None]) -> Field | None:
    """Bring the last two dimensions of a field to the sizes of the site's value, each by ``along``.

    A fixed number of positions sees the whole of an image that may have any size: that is a gate, but where the
    image has the model's own size and more than one position is left.

    Args:
        along: the field, a dimension and its new size -> the new field; None where it has no rule.
    """
    for axis in (-2, -1):
        before, after = site.input_dims()[axis], site.value[axis]
        if before.kind != "channel" and after.kind == "channel" and (site.virtual or after.size == 1):
            if field.lo.shape[axis] > 1:
                return nothing(len(site.value), gated=True)
            field = Field(field.lo, field.hi, True)
        else:
            found = along(field, axis, after.size)
            if found is None:
                return None
            field = found
    return field


class OpaqueConverter(Converter):
    """Stands in for operations without a converter: their channels are pinned."""

    def tie(self, site: Site, system: System) -> Any:
        """Pin every channel dimension that goes in to its bottom-up size, and every one that comes out."""
        for source in site.node.all_input_nodes:
            _pin(system, system.of(source), site.dims[source.name])
        return constants(site.value, system)


def _pin(system: System, exprs: Any, value: Value) -> None:
    if not value or exprs is None:
        return
    if isinstance(value[0], Dim):
        for expr, dim in zip(exprs, value, strict=True):
            if expr is not None:
                system.equal(expr, system.constant(dim.size))
    else:
        for part, inner in zip(exprs, value, strict=True):
            _pin(system, part, inner)


def constants(value: Value, system: System) -> Any:
    """Constant expressions for a whole value."""
    if value is None:
        return None
    if value and not isinstance(value[0], Dim):
        return tuple(constants(inner, system) for inner in value)
    return tuple(system.constant(d.size) if d.kind == "channel" else None for d in value)


def drop_hooks(module: nn.Module) -> None:
    """Forget the hooks of a copied module: they belong to the original."""
    for name, value in module.__dict__.items():
        if "_hooks" in name and isinstance(value, dict):
            module.__dict__[name] = type(value)()


def resized(
    module: nn.Module,
    shapes: Mapping[str, Sequence[int]],
    attributes: Mapping[str, Any],
    device: str | torch.device = "meta",
) -> nn.Module:
    """Return a copy of a module with other parameter and buffer shapes, without running its constructor.

    The copy keeps the class, so that subclasses with further settings survive. Parameters and buffers
    that ``shapes`` does not name keep their shape; all are new and uninitialised.
    """
    new = copy.copy(module)
    for name, value in new.__dict__.items():
        if isinstance(value, dict | list | set):
            new.__dict__[name] = copy.copy(value)
    drop_hooks(new)
    new._parameters = {
        name: None
        if old is None
        else nn.Parameter(
            torch.empty(tuple(shapes.get(name, old.shape)), dtype=old.dtype, device=device),
            requires_grad=old.requires_grad,
        )
        for name, old in module._parameters.items()
    }
    new._buffers = {
        name: None
        if old is None
        else torch.empty(tuple(shapes.get(name, old.shape)), dtype=old.dtype, device=device)
        for name, old in module._buffers.items()
    }
    new._modules = {k: copy.deepcopy(v) for k, v in module._modules.items()}
    for name, value in attributes.items():
        setattr(new, name, value)
    return new


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
