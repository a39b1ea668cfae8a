"""What a converter sees of the graph, what it may ask of the channel system, and what it answers with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Protocol

import torch
from torch import fx, nn

from bu2td.ir import Dim, Dims
from bu2td.ops.numbers import number_of


class NoRuleError(Exception):
    """Raised by a converter that has no rule for a site: there the operation is opaque."""


@dataclass(frozen=True)
class Term:
    """A summand of a size: ``scale * variable``, or the constant ``scale`` where variable is None."""

    variable: int | None
    scale: Fraction


#: The size of a channel dimension, as a concatenation of terms; None for other dimensions.
Expr = tuple[Term, ...]


class System(Protocol):
    """What a converter may ask of the channel system (see `bu2td.arrange`)."""

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

    def once(self, key: tuple[str, int], make: Callable[[], list[Expr]]) -> list[Expr]:
        """What was made for a key (a node and a dimension of its value): the same for everybody who asks."""

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

    @property
    def operation(self) -> str:
        """What the node runs, by the name under which a converter would be registered."""
        if self.module is not None:
            return type(self.module).__qualname__
        if self.node.op == "call_method":
            return f'"method:{self.node.target}"'
        return self.name

    @property
    def name(self) -> str:
        """The bare name of the function or method, ``cat`` say; the module path where a module is called."""
        target: Any = self.node.target
        return target if isinstance(target, str) else getattr(target, "__name__", str(target))

    @property
    def layer(self) -> Any:
        """The module, for sites that are known to call one."""
        return self.module

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument by position or keyword."""
        if position < len(self.node.args):
            return self.node.args[position]
        return self.node.kwargs.get(name, default)

    def literal(self, position: int, name: str, default: Any = None) -> Any:
        """An argument with the numbers in it that the graph computes, as they are for the model's own image."""
        return fx.map_arg(self.argument(position, name, default), self._number)

    def _number(self, node: fx.Node) -> Any:
        if node.name in self.numbers:
            return self.numbers[node.name]
        found = number_of(node, self.dims)
        return node if found is None else found

    def axis(self, position: int, name: str = "dim", default: int | None = None) -> int:
        """An argument that names a dimension of the input, counted from the front.

        Raises:
            NoRuleError: it is not written down as a number.
        """
        axis = self.literal(position, name, default)
        if not isinstance(axis, int):
            raise NoRuleError(f"{name}={axis!r} is not a number")
        return axis % len(self.input_dims())

    def tensor(self, position: int = 0) -> fx.Node:
        """The node that a tensor argument comes from; the first may be given as ``input`` or ``self``.

        Raises:
            NoRuleError: it is no value of the graph.
        """
        args: Sequence[Any] = self.node.args
        named = [self.node.kwargs.get(name) for name in ("input", "self")] if position == 0 else []
        found = args[position] if position < len(args) else next((n for n in named if n is not None), None)
        if not isinstance(found, fx.Node):
            raise NoRuleError(f"argument {position} is {found!r}, not a tensor of the graph")
        return found

    def source(self, position: int = 0) -> str:
        """Name of the node that a tensor argument comes from."""
        return self.tensor(position).name

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
    """The outcome of a rebuild; None means unchanged.

    A module that is not named is copied, with new parameters of the old shapes.
    """

    module: nn.Module | None = None
    args: tuple[Any, ...] | None = None
    kwargs: dict[str, Any] | None = None
    parameter: torch.Tensor | None = None
