"""Where paths meet and part: add, multiply, concat, split, chunk, slices."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from bu2td.ir import Dim
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
    broadcast,
    register_converter,
)
from bu2td.ops.fields import Field, compressed, hull, joined, lift, transpose, viewed


def _parts_of(site: Site) -> list[fx.Node]:
    """The tensors that a site joins."""
    parts = site.argument(0, "tensors")
    if not isinstance(parts, list | tuple) or not all(isinstance(n, fx.Node) and site.dims[n.name] for n in parts):
        raise NoRuleError("what is joined is no list of tensors")
    return list(parts)


def _joined_axis(site: Site) -> int:
    """The dimension along which a site joins."""
    axis = site.literal(1, "dim", site.argument(1, "axis", 0))
    if not isinstance(axis, int):
        raise NoRuleError(f"dim={axis!r} is not a number")
    return axis % len(site.value)


@register_converter("_operator.add", torch.add, "method:add", "_operator.sub", torch.sub, "method:sub",
                    "torch.ops.aten.add.Tensor")  # fmt: skip
class AddConverter(Converter):
    """Sums: residual connections, or the arithmetic of a gate or of sizes."""

    role = Role.ADD


@register_converter(
    "_operator.mul", torch.mul, "method:mul", "_operator.truediv", torch.div, "method:div",
    "torch.true_divide", "_operator.floordiv", "torch.maximum", "torch.minimum", "method:where",
    torch.where,
)  # fmt: skip
class MulConverter(Converter):
    """Products: gates, layer scales, constants; and the arithmetic of sizes."""

    role = Role.MUL


@register_converter(torch.addcmul, "method:addcmul")
class AddMulConverter(Converter):
    """``x + value * a * b``: no join of paths, but an affine layer written in one call."""

    role = Role.MUL

    def tie(self, site: Site, system: System) -> Any:
        """Operands have equal widths, but for broadcasting."""
        return broadcast(site, system, 3)


@register_converter(torch.stack)
class StackConverter(Converter):
    """Tensors of equal shape along a new dimension."""

    role = Role.CONCAT

    def tie(self, site: Site, system: System) -> Any:
        """Tie the tensors; the new dimension counts them."""
        parts = [system.of(n) for n in _parts_of(site)]
        axis = _joined_axis(site)
        merged = list(parts[0])
        for part in parts[1:]:
            merged = [
                a if a is None or b is None else system.equal(a, b) for a, b in zip(merged, part, strict=True)
            ]
        return (*merged[:axis], system.constant(len(parts)), *merged[axis:])

    def interval(self, site: Site, fields: Mapping[str, Any]) -> Any:
        """Concatenated along the new dimension."""
        axis = _joined_axis(site)
        parts = [fields[n.name] for n in _parts_of(site)]
        parts = [Field(np.expand_dims(p.lo, axis), np.expand_dims(p.hi, axis), p.gated) for p in parts]
        return compressed(joined(parts, [1] * len(parts), axis), [axis])


@register_converter(torch.unbind, "method:unbind")
class UnbindConverter(Converter):
    """The slices of a tensor along a dimension that counts them."""

    role = Role.SPLIT
    aliases = True

    def tie(self, site: Site, system: System) -> Any:
        """The dimension stays as long as it is, and goes."""
        entry, axis = system.of(site.tensor()), site.axis(1, default=0)
        system.equal(entry[axis], system.constant(len(site.value)))
        return tuple((*entry[:axis], *entry[axis + 1 :]) for _ in site.value)

    def interval(self, site: Site, fields: Mapping[str, Any]) -> Any:
        axis = site.axis(1, default=0)
        return tuple(part.without(axis) for part in _parts(site, fields, axis))


@register_converter(torch.cat, torch.concat, "torch.concatenate")
class CatConverter(Converter):
    """Concatenation; along the channels widths add up."""

    role = Role.CONCAT

    def tie(self, site: Site, system: System) -> Any:
        """Concatenate along one dimension, tie the others."""
        parts = [system.of(n) for n in _parts_of(site)]
        axis = _joined_axis(site)
        result: list[Expr | None] = []
        for i, dim in enumerate(site.value):
            exprs = [part[i] for part in parts]
            if dim.kind != "channel":
                result.append(None)
            elif i == axis:
                result.append(tuple(term for expr in exprs for term in expr))
            else:
                merged = exprs[0]
                for expr in exprs[1:]:
                    merged = system.equal(merged, expr)
                result.append(merged)
        return tuple(result)

    def interval(self, site: Site, fields: Mapping[str, Any]) -> Any:
        """Fields are concatenated likewise."""
        sources = _parts_of(site)
        axis = _joined_axis(site)
        sizes = [site.dims[n.name][axis].size for n in sources]
        return joined([lift(fields[n.name], len(site.value)) for n in sources], sizes, axis)


def cut(expr: Expr, sizes: list[int], name: str, system: System) -> list[Expr]:
    """Cut an expression into parts of the given bottom-up sizes.

    Where borders of terms and parts line up the terms are dealt out; equal parts are a fraction of the
    whole each; otherwise every part is a new variable and their sum is the whole. A part of one channel among
    others is a map of its own (a mask, a depth), and stays one channel.
    """
    if len(sizes) == 1:
        return [expr]
    parts: list[list[Term]] = []
    rest = list(expr)
    for size in sizes:
        part: list[Term] = []
        while rest and system.size(tuple(part)) < size:
            part.append(rest.pop(0))
        if system.size(tuple(part)) != size:
            break
        parts.append(part)
    if len(parts) == len(sizes) and not rest:
        return [tuple(part) for part in parts]
    if len(set(sizes)) == 1 and (sizes[0] > 1 or len(sizes) == 2):
        return equal_parts(expr, len(sizes), name, system)
    fresh = [system.fresh(size, f"{name}[{i}]") if size > 1 else system.constant(1) for i, size in enumerate(sizes)]
    system.equal(tuple(term for part in fresh for term in part), expr)
    return fresh


def equal_parts(expr: Expr, count: int, name: str, system: System) -> list[Expr]:
    """Cut an expression into equal parts."""
    system.divisible(expr, count, name)
    whole = system.collapse(expr)
    return [(Term(whole.variable, whole.scale / count),)] * count


def _parts(site: Site, fields: Mapping[str, Any], axis: int) -> tuple[Field, ...]:
    """The parts of a field that is cut along a dimension into as many parts as the value has."""
    field, start, parts = fields[site.source()], 0, []
    for part in site.value:
        length = part[axis].size if len(part) == len(site.input_dims()) else 1
        parts.append(field.part(axis, slice(start, start + length)))
        start += length
    return tuple(compressed(p, [axis]) if site.input_dims()[axis].kind == "channel" else p for p in parts)


@register_converter(torch.chunk, "method:chunk")
class ChunkConverter(Converter):
    """Chunk into equal parts."""

    role = Role.SPLIT
    aliases = True
    equal = True

    def tie(self, site: Site, system: System) -> Any:
        """Cut the dimension into the parts."""
        return _split(site, system, site.axis(2, default=0), equal=self.equal)

    def interval(self, site: Site, fields: Mapping[str, Any]) -> Any:
        return _parts(site, fields, site.axis(2, default=0))


@register_converter(torch.split, "method:split")
class SplitConverter(ChunkConverter):
    """Split into parts of given sizes, which are literals that go stale."""

    equal = False

    def rebuild(self, site: Site, change: Change) -> Rebuilt:
        """Rewrite the sizes as a list."""
        axis = site.axis(2, default=0)
        if site.input_dims()[axis].kind != "channel":
            return Rebuilt()
        sizes = [part[axis] for part in change.sizes[site.node.name]]
        return Rebuilt(args=(site.tensor(), sizes), kwargs={"dim": axis})


@register_converter(nn.ChannelShuffle, "torch.channel_shuffle", "torch.native_channel_shuffle")
class ChannelShuffleConverter(Converter):
    """Channels dealt out anew among groups."""

    role = Role.PASS

    def tie(self, site: Site, system: System) -> Any:
        """Channels pass; the groups divide them."""
        entry = system.of(site.tensor())
        groups = site.layer.groups if site.module is not None else site.argument(1, "groups")
        system.divisible(entry[1], groups, site.node.name)
        return entry

    def interval(self, site: Site, fields: Mapping[str, Any]) -> Any:
        """Channels are dealt out: (groups, rest) becomes (rest, groups)."""
        groups = site.layer.groups if site.module is not None else site.argument(1, "groups")
        n, c, *plane = (d.size for d in site.value)
        order = (0, 2, 1, *range(3, 3 + len(plane)))
        dealt = transpose(viewed(fields[site.source()], (n, c, *plane), (n, groups, c // groups, *plane)), order)
        return viewed(dealt, (n, c // groups, groups, *plane), (n, c, *plane))


@register_converter(nn.GLU, torch.nn.functional.glu)
class GluConverter(Converter):
    """The first half of the channels, gated by the second."""

    role = Role.SPLIT

    def _axis(self, site: Site) -> int:
        if site.module is None:
            return site.axis(1, default=-1)
        return int(site.layer.dim % len(site.input_dims()))

    def tie(self, site: Site, system: System) -> Any:
        """Half of one dimension is left."""
        entry, axis = system.of(site.tensor()), self._axis(site)
        if entry[axis] is None:
            return entry
        half = equal_parts(entry[axis], 2, site.node.name, system)[0]
        return (*entry[:axis], half, *entry[axis + 1 :])

    def interval(self, site: Site, fields: Mapping[str, Any]) -> Any:
        """The hull of two halves."""
        field, axis = fields[site.source()], self._axis(site)
        size = field.lo.shape[axis]
        if size == 1:
            return field
        halves = [field.part(axis, slice(0, size // 2)), field.part(axis, slice(size // 2, size))]
        return hull(halves, field.lo.ndim)


def _split(site: Site, system: System, axis: int, equal: bool) -> Any:
    entry = system.of(site.tensor())
    parts: list[Any]
    if entry[axis] is None:
        parts = [None] * len(site.value)
    else:
        sizes = [part[axis].size for part in site.value]
        if equal and len(set(sizes)) == 1:
            parts = equal_parts(entry[axis], len(sizes), site.node.name, system)
        else:
            parts = cut(entry[axis], sizes, site.node.name, system)
    return tuple(tuple(part if i == axis else e for i, e in enumerate(entry)) for part in parts)


@dataclass(frozen=True)
class _Axis:
    """A dimension of an indexed tensor's value: the one that it comes from (None: new), and its bounds."""

    source: int | None
    start: int = 0
    stop: int = 0
    step: int = 1


@register_converter("_operator.getitem", torch.narrow, "method:narrow")
class GetItemConverter(Converter):
    """A part of several tensors, a slice of one, or a number out of a shape."""

    role = Role.SPLIT
    aliases = True

    def role_at(self, site: Site) -> Role:
        """Every k-th row and column is a pool, without some at the border a crop; a new dimension or a chosen one
        changes no width.
        """
        axes = _axes(site) if site.value is not None else None
        if axes is None:
            return self.role
        before = site.input_dims()
        if any(a.step > 1 and before[a.source].kind in ("height", "width") for a in axes if a.source):
            return Role.POOL
        cut = {
            before[a.source].kind for a in axes if a.source is not None and a.stop - a.start < before[a.source].size
        }
        if cut and cut <= {"height", "width"} and len(axes) == len(before):
            return Role.PAD
        whole = all(a.source is None or a.stop - a.start == site.input_dims()[a.source].size for a in axes)
        return Role.PASS if whole else self.role

    def stride(self, site: Site) -> tuple[int, int]:
        """The steps over the image plane."""
        axes = _axes(site) or []
        kinds = {site.input_dims()[a.source].kind: a.step for a in axes if a.source is not None}
        return kinds.get("height", 1), kinds.get("width", 1)

    def tie(self, site: Site, system: System) -> Any:
        """Pick the part, or cut the sliced dimensions."""
        if site.value is None:
            return None
        exprs = system.of(site.tensor())
        if not isinstance(site.dims[site.source()][0], Dim):
            return exprs[site.node.args[1]]
        axes = _axes(site)
        if axes is None:
            raise NoRuleError("an index that is no slice has no rule")
        result: list[Expr | None] = []
        for axis, dim in zip(axes, site.value, strict=True):
            expr = exprs[axis.source] if axis.source is not None else None
            if dim.kind != "channel":
                result.append(None)
            elif expr is None:
                result.append(system.constant(dim.size))
            else:
                result.append(self._cut(expr, axis, site, system))
        return tuple(result)

    def _cut(self, expr: Expr, axis: _Axis, site: Site, system: System) -> Expr:
        assert axis.source is not None
        total = site.input_dims()[axis.source].size
        if axis.step > 1:
            if (axis.start, axis.stop) != (0, total) or total % axis.step:
                raise NoRuleError("every k-th channel from another than the first has no rule")
            return equal_parts(expr, axis.step, site.node.name, system)[0]
        if axis.stop <= axis.start:
            return system.constant(0)
        borders = sorted({0, total, *(at for _, _, a in _slices(site, axis.source) for at in (a.start, a.stop))})
        sizes = [stop - start for start, stop in pairwise(borders)]
        name = site.source()
        parts = system.once((name, axis.source), lambda: cut(expr, sizes, name, system))
        first, last = borders.index(axis.start), borders.index(axis.stop)
        return tuple(term for part in parts[first:last] for term in part)

    def interval(self, site: Site, fields: Mapping[str, Any]) -> Any:
        """The part, or what the slices leave."""
        field = fields[site.source()]
        if not isinstance(field, Field):
            index = site.literal(1, "index")
            return field[index] if isinstance(index, int | slice) else None
        axes = _axes(site)
        if axes is None:
            return None
        gone = sorted(set(range(field.lo.ndim)) - {a.source for a in axes if a.source is not None})
        written = [e for e in _written(site) if e is not None]
        for axis in gone:
            at = written[axis] % site.input_dims()[axis].size
            field = field.part(axis, slice(at, at + 1))
        for a in axes:
            if a.source is not None:
                field = field.part(a.source, slice(a.start, a.stop, a.step))
        shape = [1 if a.source is None else field.lo.shape[a.source] for a in axes]
        return Field(field.lo.reshape(shape), field.hi.reshape(shape), field.gated)

    def rebuild(self, site: Site, change: Change) -> Rebuilt:
        """Rewrite the bounds of channel slices; what keeps the resolution takes all rows and columns."""
        axes = _axes(site) if site.value is not None else None
        if axes is None:
            return Rebuilt()
        before = site.input_dims()
        bounds: dict[int, slice] = {}
        for axis, size in zip(axes, change.sizes[site.node.name], strict=True):
            if axis.source is not None and change.stride_one and before[axis.source].kind in ("height", "width"):
                bounds[axis.source] = slice(None)
            if axis.source is None or before[axis.source].kind != "channel" or axis.step > 1:
                continue
            total, whole = before[axis.source].size, change.sizes[site.source()][axis.source]
            first = _moved(site, change, axis.source, total, whole).get(axis.start)
            if first is None:  # nobody reads the channels before these, or those behind
                first = min(round(Fraction(axis.start * whole, total)), whole - size)
            bounds[axis.source] = slice(first, first + size)
        if not bounds:
            return Rebuilt()
        if site.name == "narrow":
            [(at, bound)] = bounds.items()
            return Rebuilt(args=(site.tensor(), at, bound.start, bound.stop - bound.start), kwargs={})
        entries: list[Any] = []
        position = 0
        for entry in _as_written(site):
            literal = isinstance(entry, slice) and entry != slice(None)
            entries.append(bounds.get(position, entry) if literal else entry)
            position += entry is not None
        return Rebuilt(args=(site.tensor(), tuple(entries)))


def _slices(site: Site, axis: int) -> list[tuple[str, int, _Axis]]:
    """The slices of the site's source along a dimension: the node, its dimension, and from where to where."""
    found = []
    for user in site.tensor().users:
        if user.target is site.node.target and site.dims.get(user.name) is not None:
            axes = _axes(replace(site, node=user)) or []
            found += [
                (user.name, i, a)
                for i, a in enumerate(axes)
                if a.source == axis and a.step == 1 and a.stop > a.start
            ]
    return found


def _moved(site: Site, change: Change, axis: int, total: int, whole: int) -> dict[int, int]:
    """Where the borders of slices lie among the new channels, as far as the slices beside them tell."""
    known = {0: 0, total: whole}
    sized = [(a, change.sizes[name][i]) for name, i, a in _slices(site, axis) if change.sizes.get(name)]
    for _ in sized:
        for a, size in sized:
            if a.start in known:
                known.setdefault(a.stop, known[a.start] + size)
            elif a.stop in known:
                known[a.start] = known[a.stop] - size
    return known


def _written(site: Site) -> list[Any]:
    """The index of a tensor with one entry per dimension, None for new ones, with the numbers that are computed."""
    return _spread(site, site.literal(1, "index"))


def _as_written(site: Site) -> list[Any]:
    """The same, with the nodes that compute numbers."""
    return _spread(site, site.argument(1, "index"))


def _spread(site: Site, index: Any) -> list[Any]:
    """An index with one entry per dimension: no ellipsis is left."""
    if site.name == "narrow":
        axis, start, length = site.axis(1), site.literal(2, "start"), site.literal(3, "length")
        stop = start + length if isinstance(start, int) and isinstance(length, int) else length
        return [slice(start, stop) if i == axis else slice(None) for i in range(len(site.input_dims()))]
    entries = list(index) if isinstance(index, tuple) else [index]
    missing = len(site.input_dims()) - sum(e is not None and e is not Ellipsis for e in entries)
    full = [slice(None)] * missing
    if Ellipsis in entries:
        at = entries.index(Ellipsis)
        return [*entries[:at], *full, *entries[at + 1 :]]
    return [*entries, *full]


def _axes(site: Site) -> list[_Axis] | None:
    """Where the dimensions of an indexed tensor's value come from; None where the index is a tensor."""
    before = site.dims.get(site.source())
    if not before or not isinstance(before[0], Dim):
        return None
    result: list[_Axis] = []
    position = 0
    for entry in _written(site):
        if entry is None:
            result.append(_Axis(None))
            continue
        if isinstance(entry, slice):
            if any(isinstance(b, fx.Node) for b in (entry.start, entry.stop, entry.step)):
                return None
            start, stop, step = entry.indices(before[position].size)
            if step < 1:
                return None
            result.append(_Axis(position, start, stop, step))
        elif not isinstance(entry, int):
            return None
        position += 1
    return result
