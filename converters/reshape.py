"""Operations that rearrange: views, permutes, flattening, shapes; and parameters read directly."""

from collections.abc import Mapping
from fractions import Fraction
from math import prod
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from bu2td.ir import Dim
from bu2td.nn import assigned, made
from bu2td.ops import (
    Change,
    Converter,
    Expr,
    NoRuleError,
    Rebuilt,
    Role,
    Site,
    System,
    Term,
    constants,
    register_converter,
)
from bu2td.ops.fields import Field, compressed, groups, lift, transpose, viewed


@register_converter("get_attr")
class AttributeConverter(Converter):
    """A parameter or buffer that the forward reads itself (layer scale, gains, norm weights)."""

    role = Role.ATTRIBUTE

    def tie(self, site: Site, system: System) -> Any:
        """Every dimension larger than 1 is a variable of its own, until its reader ties it."""
        return tuple(
            system.constant(1) if d.size == 1 else system.fresh(d.size, site.node.name) for d in site.value
        )

    def rebuild(self, site: Site, change: Change) -> Rebuilt:
        """An uninitialised tensor of the new shape."""
        return Rebuilt(parameter=torch.empty(change.sizes[site.node.name], device="meta"))


@register_converter("builtins.getattr")
class FieldConverter(Converter):
    """An attribute: a size or type, or the field of a named tuple, ``x.max(1).values``."""

    role = Role.PASS

    def tie(self, site: Site, system: System) -> Any:
        """A field is the tensor at its place in the tuple."""
        return None if site.value is None else system.of(site.tensor())[_place(site)]

    def interval(self, site: Site, fields: Mapping[str, Any]) -> Any:
        return None if site.value is None else fields[site.source()][_place(site)]


def _place(site: Site) -> int:
    """Where the results of torch's reductions have a field."""
    names = ("values", "indices")
    if site.node.args[1] not in names:
        raise NoRuleError(f"the attribute {site.node.args[1]} of several tensors has no rule")
    return names.index(str(site.node.args[1]))


@register_converter(made, "method:new_zeros", "method:new_ones", "method:new_full", "method:new_empty")
class MadeConverter(Converter):
    """A tensor that the forward makes: zeros, positions, random numbers. It keeps its size."""

    role = Role.PASS

    def lends(self, site: Site) -> tuple[int, ...]:
        """The tensor whose device it gets."""
        return (0,)

    def tie(self, site: Site, system: System) -> Any:
        return constants(site.value, system)


@register_converter(
    torch.zeros_like, torch.ones_like, torch.full_like, torch.empty_like, torch.rand_like, torch.randn_like
)
class LikeConverter(Converter):
    """A tensor of the size of another."""

    role = Role.PASS

    def lends(self, site: Site) -> tuple[int, ...]:
        """The tensor whose size it gets."""
        return (0,)

    def tie(self, site: Site, system: System) -> Any:
        return system.of(site.tensor())


@register_converter(assigned)
class AssignedConverter(Converter):
    """Other values in a part of a map: rows and columns, mostly."""

    role = Role.PASS

    def tie(self, site: Site, system: System) -> Any:
        """Channels pass, unless the part has some of them."""
        index = site.argument(1, "index")
        where = index if isinstance(index, tuple) else (index,)
        kinds = [d.kind for d in site.value[: len(where)]]
        if ... in where or any(k == "channel" and w != slice(None) for k, w in zip(kinds, where, strict=True)):
            raise NoRuleError("an assignment to some of the channels has no rule")
        return system.of(site.tensor())


@register_converter("method:size", "method:dim", "builtins.len", "method:numel", "method:item", "builtins.int")
class ShapeConverter(Converter):
    """Sizes read at run time: they follow by themselves."""

    role = Role.PASS

    def tie(self, site: Site, system: System) -> Any:
        return None


@register_converter("method:permute", torch.permute, "torchvision.ops.misc.Permute")
class PermuteConverter(Converter):
    """A permutation of the dimensions."""

    role = Role.PASS
    aliases = True

    def tie(self, site: Site, system: System) -> Any:
        """Permute the expressions likewise."""
        entry = system.of(site.tensor())
        return tuple(entry[i] for i in _order(site))

    def interval(self, site: Site, fields: Mapping[str, Any]) -> Any:
        return transpose(fields[site.source()], _order(site))


def _order(site: Site) -> tuple[int, ...]:
    """The permutation, as written."""
    order: Any = site.layer.dims if site.module is not None else site.node.args[1:] or site.node.kwargs.get("dims")
    if order and len(order) == 1 and not isinstance(order[0], int):
        order = order[0]
    if not order or not all(isinstance(i, int) for i in order):
        raise NoRuleError(f"the order {order!r} is not written in numbers")
    return tuple(order)


def _exchanged(site: Site) -> tuple[int, int]:
    """The two dimensions that change places."""
    swaps = site.name == "swapaxes"
    return site.axis(1, "axis0" if swaps else "dim0"), site.axis(2, "axis1" if swaps else "dim1")


@register_converter("method:transpose", torch.transpose, "torch.swapaxes", "method:swapaxes")
class TransposeConverter(Converter):
    """Two dimensions exchanged."""

    role = Role.PASS
    aliases = True

    def tie(self, site: Site, system: System) -> Any:
        """Exchange the expressions likewise."""
        entry = list(system.of(site.tensor()))
        a, b = _exchanged(site)
        entry[a], entry[b] = entry[b], entry[a]
        return tuple(entry)

    def interval(self, site: Site, fields: Mapping[str, Any]) -> Any:
        """Two dimensions change places."""
        order = list(range(len(site.value)))
        a, b = _exchanged(site)
        order[a], order[b] = order[b], order[a]
        return transpose(fields[site.source()], order)


@register_converter(
    nn.Flatten, nn.Unflatten, torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze,
    "method:flatten", "method:view", "method:reshape", "method:squeeze", "method:unsqueeze",
    "method:unflatten", "method:reshape_as", "method:view_as",
)  # fmt: skip
class ViewConverter(Converter):
    """Views: dimensions are grouped, split and merged by their sizes.

    Input and output are walked in step and cut into the smallest groups of equal product. Inside a group
    a merged dimension is the product of constants and one width, a split width leaves the written-out
    factors constant and scales the remaining one.
    """

    role = Role.PASS
    aliases = True

    def lends(self, site: Site) -> tuple[int, ...]:
        """The tensor whose shape is taken."""
        return (1,) if site.name in ("view_as", "reshape_as") else ()

    def tie(self, site: Site, system: System) -> Any:
        if site.value is None:
            return None
        sizes = [d.size for d in site.input_dims()], [d.size for d in site.value]
        found: dict[int, Expr] = {}
        for ins, outs in groups(*sizes):
            if _flattens(site, ins, outs):
                found |= self._dealt_out(site, system, ins, outs)
            else:
                self._pin(site, system, ins)
        return tuple(
            found.get(i, system.constant(d.size)) if d.kind == "channel" else None for i, d in enumerate(site.value)
        )

    def _dealt_out(self, site: Site, system: System, ins: list[int], outs: list[int]) -> dict[int, Expr]:
        """The product of the input dimensions of a group, dealt out to its output dimensions."""
        entry, sizes = system.of(site.tensor()), [site.input_dims()[i].size for i in ins]
        exprs = [entry[i] if entry[i] is not None else system.constant(n) for i, n in zip(ins, sizes, strict=True)]
        whole = _product(exprs, sizes, system)
        return dict(zip(outs, _factors(whole, outs, site, _literals(site), system), strict=True))

    def _pin(self, site: Site, system: System, ins: list[int]) -> None:
        """Keep the channels of a group that mixes them with positions."""
        entry, before = system.of(site.tensor()), site.input_dims()
        for i in ins:
            if entry[i] is not None:
                system.equal(entry[i], system.constant(before[i].size))

    def interval(self, site: Site, fields: Mapping[str, Any]) -> Any:
        """Dimensions are grouped, split and merged."""
        before, after = ([d.size for d in dims] for dims in (site.input_dims(), site.value))
        field = viewed(fields[site.source()], before, after)
        field = compressed(field, [i for i, d in enumerate(site.value) if d.kind == "channel"])
        # Rows and columns that come out of tokens are written out, though a field changes along one of them only.
        rows_and_columns = [i for i, d in enumerate(site.value) if d.kind in ("height", "width")]
        shorter = compressed(field, rows_and_columns)
        return shorter if any(shorter.lo.shape[i] > 1 for i in rows_and_columns) else field

    def rebuild(self, site: Site, change: Change) -> Rebuilt:
        """Rewrite the literals that name channel dimensions."""
        if site.module is not None or not _shape_arguments(site):
            return Rebuilt()
        sizes = change.sizes[site.node.name]
        shape = _shape_arguments(site)
        # Channel dimensions are written out, also where they were read from another tensor's shape.
        new = [
            sizes[i] if not (isinstance(a, int) and a <= 1) and sizes[i] is not None else a
            for i, a in enumerate(shape)
        ]
        return (
            Rebuilt(args=(site.tensor(), *new), kwargs={})
            if (site.node.op == "call_method")
            else Rebuilt(args=(site.tensor(), tuple(new)), kwargs={})
        )


def _flattens(site: Site, ins: list[int], outs: list[int]) -> bool:
    """Whether a group makes channels alone; a head that flattens a map reads it pooled to the size that it had."""
    made = all(site.value[o].kind == "channel" for o in outs)
    return made and all(site.input_dims()[i].kind in ("channel", "height", "width") for i in ins)


def _shape_arguments(site: Site) -> list[Any]:
    """The new shape as written in a view or reshape; empty for other operations."""
    name = site.name
    if name not in ("view", "reshape"):
        return []
    shape: Any = site.node.args[1:] or (site.node.kwargs.get("shape"),)
    if len(shape) == 1 and isinstance(shape[0], list | tuple):
        shape = shape[0]
    return list(shape)


def _literals(site: Site) -> dict[int, int]:
    return {i: a for i, a in enumerate(_shape_arguments(site)) if isinstance(a, int) and a >= 1}


def _product(exprs: list[Expr], sizes: list[int], system: System) -> Expr:
    """The product of sizes of which at most one varies."""
    varying = [e for e, s in zip(exprs, sizes, strict=True) if e and any(t.variable is not None for t in e)]
    if not varying:
        return system.constant(prod(sizes))
    for expr in varying[1:]:
        system.equal(expr, system.constant(system.size(expr)))
    factor = prod(sizes) // system.size(varying[0])
    return tuple(Term(t.variable, t.scale * factor) for t in varying[0])


def _factors(whole: Expr, outs: list[int], site: Site, literals: dict[int, int], system: System) -> list[Expr]:
    """Deal a size out to several dimensions: written-out ones are constant, the largest other scales."""
    dims: list[Dim] = [site.value[o] for o in outs]
    large = [k for k, d in enumerate(dims) if d.size > 1]
    if not large:
        system.equal(whole, system.constant(1))
        return [system.constant(1) for _ in outs]
    free = [k for k in large if outs[k] not in literals] or [max(large, key=lambda k: dims[k].size)]
    keep = max(free, key=lambda k: dims[k].size)
    divisor = prod(d.size for k, d in enumerate(dims) if k != keep)
    result = [system.constant(d.size) for d in dims]
    if divisor == 1:
        result[keep] = whole
    else:
        system.divisible(whole, divisor, site.node.name)
        term = system.collapse(whole)
        result[keep] = (Term(term.variable, term.scale * Fraction(1, divisor)),)
    return result


@register_converter("method:expand", "method:expand_as", "method:repeat")
class ExpandConverter(Converter):
    """Broadcasting written out."""

    role = Role.PASS
    aliases = True

    def lends(self, site: Site) -> tuple[int, ...]:
        """The tensor whose shape is taken."""
        return (1,) if site.name == "expand_as" else ()

    def tie(self, site: Site, system: System) -> Any:
        """Expanded dimensions follow their partner, or stay at their written size."""
        other = site.node.args[1] if len(site.node.args) > 1 else None
        if site.node.target == "expand_as" and isinstance(other, fx.Node):
            follows = list(system.of(other))
            own, before = system.of(site.tensor()), site.input_dims()
            for offset in range(1, len(own) + 1):
                mine, theirs = own[-offset], follows[-offset]
                if mine is not None and theirs is not None and before[-offset].size > 1:
                    follows[-offset] = system.equal(theirs, mine)
            return tuple(follows)
        entry, before = system.of(site.tensor()), site.input_dims()
        shift = len(site.value) - len(entry)
        result: list[Expr | None] = list(constants(site.value, system))
        for i, (expr, b) in enumerate(zip(entry, before, strict=True)):
            if expr is not None and b.size == site.value[i + shift].size:
                result[i + shift] = expr
        return tuple(result)

    def interval(self, site: Site, fields: Mapping[str, Any]) -> Any:
        """Expanded dimensions hold the same values; repeated ones start again."""
        field = lift(fields[site.source()], len(site.value))
        sizes = [d.size for d in site.value]
        repeats = [s // n if n > 1 else 1 for s, n in zip(sizes, field.lo.shape, strict=True)]
        if all(r == 1 for r in repeats):
            return field
        return Field(np.tile(field.lo, repeats), np.tile(field.hi, repeats), field.gated)
