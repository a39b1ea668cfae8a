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
        like = _shape_of(site)
        if like is not None and site.dims[like.name] == site.value:
            return system.of(like)
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
    """The product of sizes of which at most one varies; a product of nothing stays."""
    if 0 in sizes:
        for expr, size in zip(exprs, sizes, strict=True):
            system.equal(expr, system.constant(size))
        return system.constant(0)
    # A shortcut that is dropped leaves the block's entry in its place, whose own size was another.
    varying = [(e, s) for e, s in zip(exprs, sizes, strict=True) if any(t.variable is not None for t in e)]
    if not varying:
        return system.constant(prod(sizes))
    for expr, size in varying[1:]:
        system.equal(expr, system.constant(size))
    whole, own = varying[0]
    return tuple(Term(t.variable, t.scale * (prod(sizes) // own)) for t in whole)


def _factors(whole: Expr, outs: list[int], site: Site, literals: dict[int, int], system: System) -> list[Expr]:
    """Deal a size out to several dimensions: written-out ones are constant, the largest other scales."""
    dims: list[Dim] = [site.value[o] for o in outs]
    large = [k for k, d in enumerate(dims) if d.size > 1]
    if any(d.size == 0 for d in dims):
        return [system.constant(d.size) for d in dims]
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


@register_converter(
    "method:expand", "method:expand_as", "method:broadcast_to", torch.broadcast_to, "method:repeat", "method:tile",
    torch.tile,
)  # fmt: skip
class ExpandConverter(Converter):
    """Broadcasting written out, and repetition."""

    role = Role.PASS
    aliases = True

    def lends(self, site: Site) -> tuple[int, ...]:
        """The tensor whose shape is taken."""
        return (1,) if site.name == "expand_as" else ()

    def tie(self, site: Site, system: System) -> Any:
        """One channel becomes as many as its reader wants, or as the tensor has whose shape is taken."""
        like = _shape_of(site)
        if like is None and len(_written_sizes(site)) != len(site.value):
            raise NoRuleError("the new shape is not written down")
        partners = system.of(like) if like is not None else (None,) * len(site.value)
        own, new = system.of(site.tensor()), len(site.value) - len(site.input_dims())
        return tuple(
            self._along(site, system, i, own[i - new] if i >= new else None, partners[i])
            if dim.kind == "channel"
            else None
            for i, dim in enumerate(site.value)
        )

    def _along(self, site: Site, system: System, at: int, own: Expr | None, partner: Expr | None) -> Expr:
        """The size of a channel dimension of the value."""
        size, before = site.value[at].size, _size_before(site, at)
        if own is not None and before > 1:
            repeated = own * (size // before)  # one behind the other
            return repeated if partner is None else system.equal(repeated, partner)
        if own is not None and size > 1:
            system.equal(own, system.constant(1))
        if partner is not None:
            return partner
        return system.constant(1) if size == 1 else system.fresh(size, site.node.name)

    def rebuild(self, site: Site, change: Change) -> Rebuilt:
        """Rewrite how many channels one becomes."""
        if _shape_of(site) is not None:
            return Rebuilt()
        new = _written_sizes(site)
        for i, size in enumerate(change.sizes[site.node.name]):
            if size is not None and site.value[i].size > 1 and _size_before(site, i) == 1:
                new[i] = size
        args = (site.tensor(), *new) if site.node.op == "call_method" else (site.tensor(), new)
        return Rebuilt(args=args, kwargs={})

    def interval(self, site: Site, fields: Mapping[str, Any]) -> Any:
        """Expanded dimensions hold the same values; repeated ones start again."""
        field = lift(fields[site.source()], len(site.value))
        sizes = [d.size for d in site.value]
        repeats = [s // n if n > 1 else 1 for s, n in zip(sizes, field.lo.shape, strict=True)]
        if all(r == 1 for r in repeats):
            return field
        return Field(np.tile(field.lo, repeats), np.tile(field.hi, repeats), field.gated)


@register_converter("method:repeat_interleave", torch.repeat_interleave)
class InterleaveConverter(Converter):
    """Every element several times, one beside the other."""

    role = Role.PASS

    def tie(self, site: Site, system: System) -> Any:
        """A dimension grows by a factor."""
        count, axis = site.literal(1, "repeats"), site.axis(2)
        if not isinstance(count, int):
            raise NoRuleError(f"repeats={count!r} is not a number")
        entry = list(system.of(site.tensor()))
        if entry[axis] is not None:
            entry[axis] = tuple(Term(t.variable, t.scale * count) for t in entry[axis])
        return tuple(entry)


def _size_before(site: Site, at: int) -> int:
    """The size of a dimension of an expanded tensor before; 1 where it is new."""
    new = len(site.value) - len(site.input_dims())
    return site.input_dims()[at - new].size if at >= new else 1


def _written_sizes(site: Site) -> list[Any]:
    """The sizes to which a tensor is expanded, or how often it is repeated, as written."""
    names = ("size", "sizes", "shape", "repeats", "dims")
    given: Any = site.node.args[1:] or [site.node.kwargs[n] for n in names if n in site.node.kwargs]
    if len(given) == 1 and isinstance(given[0], list | tuple):
        given = given[0]
    return list(given)


def _shape_of(site: Site) -> fx.Node | None:
    """The tensor whose whole shape is taken: ``x.expand_as(y)``, ``x.expand(y.size())``, ``x.expand(y.shape)``."""
    takes = site.name in ("expand_as", "view_as", "reshape_as")
    written = [site.argument(1, "other")] if takes else _written_sizes(site)
    found = written[0] if len(written) == 1 else None
    if not isinstance(found, fx.Node):
        return None
    if not takes:
        shape = found.op == "call_method" and found.target == "size" and len(found.args) == 1
        shape = shape or (found.op == "call_function" and found.target is getattr and found.args[1:] == ("shape",))
        if not shape or not isinstance(found.args[0], fx.Node):
            return None
        found = found.args[0]
    dims = site.dims[found.name]
    return found if dims is not None and len(dims) == len(site.value) else None
