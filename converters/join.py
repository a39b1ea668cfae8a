"""Where paths meet and part: add, multiply, concat, split, chunk, slices."""

from fractions import Fraction
from typing import Any

import torch
from torch import fx

from bu2td.converter import (
    Change,
    Converter,
    Expr,
    Rebuilt,
    Site,
    System,
    Term,
    constants,
    register_converter,
)
from bu2td.plan import Dim


def _broadcast(site: Site, system: System) -> Any:
    """Tie the dimensions of all tensor operands, aligned from the right; size 1 broadcasts."""
    if site.value is None:
        return None
    operands = [
        (system.of(node), site.dims[node.name])
        for node in site.node.args[:2]
        if isinstance(node, fx.Node) and site.dims[node.name]
    ]
    result = []
    for offset in range(len(site.value), 0, -1):
        dim: Dim = site.value[-offset]
        found: Expr | None = None
        for exprs, dims in operands:
            if offset > len(dims) or exprs[-offset] is None:
                continue
            expr = exprs[-offset]
            if dims[-offset].size == 1 and dim.size != 1:
                system.equal(expr, system.constant(1))
                continue
            found = expr if found is None else system.equal(found, expr)
        result.append(found if dim.kind == "channel" else None)
    return tuple(result)


class _Arithmetic(Converter):
    def tie(self, site: Site, system: System) -> Any:
        """Operands have equal widths, but for broadcasting."""
        return _broadcast(site, system)


@register_converter("_operator.add", torch.add, "method:add", "_operator.sub", torch.sub, "method:sub",
                    "torch.ops.aten.add.Tensor")  # fmt: skip
class AddConverter(_Arithmetic):
    """Sums: residual connections, or the arithmetic of a gate or of sizes."""

    role = "add"


@register_converter(
    "_operator.mul", torch.mul, "method:mul", "_operator.truediv", torch.div, "method:div",
    "torch.true_divide", "_operator.floordiv", "torch.maximum", "torch.minimum", "method:where",
    torch.where,
)  # fmt: skip
class MulConverter(_Arithmetic):
    """Products: gates, layer scales, constants; and the arithmetic of sizes."""

    role = "mul"


@register_converter(torch.cat, torch.concat, "torch.concatenate")
class CatConverter(Converter):
    """Concatenation; along the channels widths add up."""

    role = "concat"

    def tie(self, site: Site, system: System) -> Any:
        """Concatenate along one dimension, tie the others."""
        parts = [system.of(n) for n in site.argument(0, "tensors")]
        axis = site.argument(1, "dim", 0) % len(site.value)
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


def cut(expr: Expr, sizes: list[int], name: str, system: System) -> list[Expr]:
    """Cut an expression into parts of the given bottom-up sizes.

    Where borders of terms and parts line up the terms are dealt out; equal parts are a fraction of the
    whole each; otherwise every part is a new variable and their sum is the whole.
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
    if len(set(sizes)) == 1:
        return equal_parts(expr, len(sizes), name, system)
    fresh = [system.fresh(size, f"{name}[{i}]") for i, size in enumerate(sizes)]
    system.equal(tuple(term for part in fresh for term in part), expr)
    return fresh


def equal_parts(expr: Expr, count: int, name: str, system: System) -> list[Expr]:
    """Cut an expression into equal parts."""
    system.divisible(expr, count, name)
    whole = system.collapse(expr)
    return [(Term(whole.variable, whole.scale / count),)] * count


def _axis(site: Site, position: int) -> int:
    return site.argument(position, "dim", 0) % len(site.input_dims())


@register_converter(torch.split, "method:split")
class SplitConverter(Converter):
    """Split into parts of given sizes, which are literals that go stale."""

    role = "split"

    def tie(self, site: Site, system: System) -> Any:
        """Cut the dimension into the parts."""
        return _split(site, system, _axis(site, 2), equal=False)

    def rebuild(self, site: Site, change: Change) -> Rebuilt:
        """Rewrite the sizes as a list."""
        axis = _axis(site, 2)
        if site.input_dims()[axis].kind != "channel":
            return Rebuilt()
        sizes = [part[axis] for part in change.sizes[site.node.name]]
        return Rebuilt(args=(site.node.args[0], sizes), kwargs={"dim": axis})


@register_converter(torch.chunk, "method:chunk")
class ChunkConverter(Converter):
    """Chunk into equal parts."""

    role = "split"

    def tie(self, site: Site, system: System) -> Any:
        """Cut the dimension into equal parts."""
        return _split(site, system, _axis(site, 2), equal=True)


def _split(site: Site, system: System, axis: int, equal: bool) -> Any:
    entry = system.of(site.node.args[0])
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


@register_converter("_operator.getitem")
class GetItemConverter(Converter):
    """A part of several tensors, a slice of one, or a number out of a shape."""

    role = "split"

    def tie(self, site: Site, system: System) -> Any:
        """Pick the part, or cut the sliced dimension."""
        if site.value is None:
            return None
        source, index = site.source(), site.node.args[1]
        value = site.dims[source]
        exprs = system.of(site.node.args[0])
        if not isinstance(value[0], Dim):
            return exprs[index]
        sliced = _sliced(site)
        if sliced is None:
            return constants(site.value, system)
        result = list(exprs)
        for axis, (start, stop) in sliced.items():
            total = value[axis].size
            sizes = [s for s in (start, stop - start, total - stop) if s]
            parts = cut(exprs[axis], sizes, site.node.name, system)
            result[axis] = parts[1 if start else 0]
        return tuple(result)

    def rebuild(self, site: Site, change: Change) -> Rebuilt:
        """Rewrite the bounds of a channel slice."""
        sliced = _sliced(site) if site.value is not None else None
        if not sliced or not isinstance(site.node.args[1], tuple):
            return Rebuilt()
        index = list(site.node.args[1])
        for axis, (start, stop) in sliced.items():
            whole = change.sizes[site.source()][axis]
            part = change.sizes[site.node.name][axis]
            total = site.input_dims()[axis].size
            if start == 0:
                index[axis] = slice(0, part)
            elif stop == total:
                index[axis] = slice(whole - part, whole)
            else:
                first = round(Fraction(start * whole, total))
                index[axis] = slice(first, first + part)
        return Rebuilt(args=(site.node.args[0], tuple(index)))


def _sliced(site: Site) -> dict[int, tuple[int, int]] | None:
    """Channel dimensions that are cut by literal bounds; None where the index is anything else."""
    dims = site.input_dims()
    index = site.node.args[1]
    if isinstance(index, slice):
        index = (index,)
    if not isinstance(index, tuple) or len(dims) != len(site.value):
        return None
    found = {}
    position = 0
    for entry in index:
        if entry is Ellipsis:
            position = len(dims) - (len(index) - index.index(Ellipsis) - 1)
            continue
        if not isinstance(entry, slice) or (entry.step not in (None, 1)):
            return None
        bounds = (entry.start, entry.stop)
        if any(isinstance(b, fx.Node) for b in bounds):
            return None
        if bounds != (None, None) and dims[position].kind == "channel":
            start, stop, _ = slice(*bounds).indices(dims[position].size)
            found[position] = (start, stop)
        position += 1
    return found
