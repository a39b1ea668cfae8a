"""The converter interface and its registry.

A converter is the one place that knows an operation. Analysis, the channel system, arrangement and
rewriting ask the same converter, so they can never disagree about an operation, and a new operation is
one class in one file. The package `bu2td_converters` holds bu2td's own; it reaches the registry through
the entry point group ``bu2td.converters``, exactly as anybody else's package does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn

from bu2td.ir.values import Dim, Dims
from bu2td.ops.fields import Field, hull, nothing
from bu2td.ops.roles import Role


@dataclass(frozen=True)
class Term:
    """A summand of a size: ``scale * variable``, or the constant ``scale`` where variable is None."""

    variable: int | None
    scale: Fraction


#: The size of a channel dimension, as a concatenation of terms; None for other dimensions.
Expr = tuple[Term, ...]


class System(Protocol):
    """What a converter may ask of the channel system (see `bu2td.arrange.widths`)."""

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
    dims: Mapping[str, Dims]
    numbers: Mapping[str, Any] = field(default_factory=dict)
    virtual: bool = False

    @property
    def value(self) -> Dims:
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

        role: of all sites (see `Role`); `role_at` may differ from site to site.
        leaf: keep modules of this type whole when capturing.
        needs_map: it takes statistics over positions, and cannot follow the global pool.
    """

    role: Role = Role.OPAQUE
    leaf: bool = True
    needs_map: bool = False

    def role_at(self, site: Site) -> Role:
        """The role of one site, where it depends on its arguments."""
        return self.role

    def kernel(self, site: Site) -> tuple[int, int]:
        """Window (k_h, k_w) over the image plane; (1, 1) for pointwise operations."""
        return (1, 1)

    def stride(self, site: Site) -> tuple[int, int]:
        """Stride over the image plane."""
        return (1, 1)

    def size_multiple(self, module: nn.Module) -> int | None:
        """What the sides of the module's map must be multiples of; None if it works on one map size only."""
        return 1

    def empty_output(self, module: nn.Module, *inputs: Tensor) -> Tensor | None:
        """An empty meta tensor of the output's shape at any map size, where the module runs at one only.

        The probe asks for it at sizes other than the model's own; None: the module itself runs there.
        """
        return None

    def has_activation(self, site: Site) -> bool:
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
        """How receptive fields pass through the operation (see `bu2td.ops.fields`).

        Args:
            site: the node; the sizes of ``site.dims`` are those of the image whose fields are asked for.
            fields: by node name, the fields of all inputs: a `Field` for a tensor, a tuple of those for several.

        Returns:
            The field of the value, in the structure of ``site.value``; None if the operation has no rule. By
            default, operations that are pointwise by their role pass the hull of what they read.
        """
        return pointwise(site, fields) if self.role.pointwise else None


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


def _pin(system: System, exprs: Any, value: Dims) -> None:
    if not value or exprs is None:
        return
    if isinstance(value[0], Dim):
        for expr, dim in zip(exprs, value, strict=True):
            if expr is not None:
                system.equal(expr, system.constant(dim.size))
    else:
        for part, inner in zip(exprs, value, strict=True):
            _pin(system, part, inner)


def constants(value: Dims, system: System) -> Any:
    """Constant expressions for a whole value."""
    if value is None:
        return None
    if value and not isinstance(value[0], Dim):
        return tuple(constants(inner, system) for inner in value)
    return tuple(system.constant(d.size) if d.kind == "channel" else None for d in value)
