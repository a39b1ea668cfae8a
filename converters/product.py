"""Matrix products of activations: attention written out."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from bu2td.ir import Dim
from bu2td.ops import Converter, Expr, NoRuleError, Role, Site, System, positions, register_converter
from bu2td.ops.fields import hull, lift, mix


@register_converter(torch.matmul, torch.bmm, "_operator.matmul", "method:matmul", "method:bmm")
class MatmulConverter(Converter):
    """``a @ b``: every output position reads many input positions."""

    role = Role.ATTENTION

    def tie(self, site: Site, system: System) -> Any:
        """Leading dimensions are equal or broadcast, the inner ones are equal."""
        a, b = (system.of(site.tensor(i)) for i in range(2))
        before, behind = site.input_dims(0), site.input_dims(1)
        if min(len(a), len(b)) < 2:
            raise NoRuleError("a product with a vector has no rule")
        if a[-1] is not None and b[-2] is not None:
            system.equal(a[-1], b[-2])
        leading: list[Expr | None] = []
        for offset in range(len(site.value), 2, -1):
            dim = site.value[-offset]
            found = [_at(e, d, offset) for e, d in ((a, before), (b, behind))]
            exprs = [e for e in found if e is not None]
            if len(exprs) == 2:
                exprs = [system.equal(*exprs)]
            leading.append((exprs[0] if exprs else system.constant(dim.size)) if dim.kind == "channel" else None)
        return (*leading, a[-2], b[-1])

    def interval(self, site: Site, fields: Mapping[str, Any]) -> Any:
        """Rows of a and columns of b; what is summed over all positions of the image is a gate.

        A matrix of positions by positions (attention weights) keeps the fields of its rows, the queries.
        """
        nodes = [site.tensor(i) for i in range(2)]
        a, b = (
            mix(fields[n.name], [k], positions(site.dims[n.name])) for n, k in zip(nodes, (-1, -2), strict=True)
        )
        rank = len(site.value)
        if rank - 2 in positions(site.value) and rank - 1 in positions(site.value):
            b = replace(mix(b, [-1], positions(site.dims[nodes[1].name])), gated=True)
        return hull([lift(a, rank), lift(b, rank)], rank)


@register_converter(torch.einsum)
class EinsumConverter(Converter):
    """A product of tensors that is written in letters: a letter is one size wherever it stands."""

    role = Role.ATTENTION

    def tie(self, site: Site, system: System) -> Any:
        """Dimensions of one letter are tied; what is summed over is gone."""
        operands, made = _letters(site)
        found: dict[str, Expr] = {}
        for i, letters in enumerate(operands, start=1):
            for letter, expr in zip(letters, system.of(site.tensor(i)), strict=True):
                if expr is not None:
                    found[letter] = system.equal(found[letter], expr) if letter in found else expr
        return tuple(
            found.get(letter, system.constant(dim.size)) if dim.kind == "channel" else None
            for letter, dim in zip(made, site.value, strict=True)
        )

    def interval(self, site: Site, fields: Mapping[str, Any]) -> Any:
        """No rule."""
        return None


def _letters(site: Site) -> tuple[list[str], str]:
    """The letters of the operands of an einsum, and those of what it makes.

    Raises:
        NoRuleError: they are written in another way, or one stands for several dimensions.
    """
    equation = site.argument(0, "equation")
    operands, arrow, made = (equation if isinstance(equation, str) else "").replace(" ", "").partition("->")
    each = operands.split(",")
    if not arrow or "." in operands or len(each) != len(site.node.args) - 1:
        raise NoRuleError(f"an einsum written as {equation!r} has no rule")
    return each, made


def _at(exprs: tuple[Expr | None, ...], dims: tuple[Dim, ...], offset: int) -> Expr | None:
    """The size of a dimension from the right; None where it is not there or broadcasts."""
    return exprs[-offset] if offset <= len(dims) and dims[-offset].size > 1 else None


@register_converter("torch._C._nn.scaled_dot_product_attention", "torch.nn.functional.scaled_dot_product_attention")
class AttentionConverter(Converter):
    """Scaled dot product attention: (.., L, d), (.., S, d), (.., S, v) -> (.., L, v)."""

    role = Role.ATTENTION

    def tie(self, site: Site, system: System) -> Any:
        """Queries and keys have one width, values their own; heads are the same or shared."""
        query, key, value = (system.of(site.tensor(i)) for i in range(3))
        if query[-1] is not None and key[-1] is not None:
            system.equal(query[-1], key[-1])
        leading: list[Expr | None] = []
        for offset in range(len(query), 2, -1):
            found = [_at(e, site.input_dims(i), offset) for i, e in enumerate((query, key, value))]
            exprs = [e for e in found if e is not None]
            for other in exprs[1:]:
                system.equal(exprs[0], other)
            dim = site.value[-offset]
            leading.append((exprs[0] if exprs else system.constant(dim.size)) if dim.kind == "channel" else None)
        return (*leading, query[-2], value[-1])

    def interval(self, site: Site, fields: Mapping[str, Any]) -> Any:
        """The query's own place; keys and values of all positions are a gate, those of a window mix."""
        query, key, value = (site.source(i) for i in range(3))
        found = [mix(fields[query], [-1], ())]
        found.append(mix(mix(fields[key], [-2], positions(site.dims[key])), [-1], ()))
        found.append(mix(fields[value], [-2], positions(site.dims[value])))
        return hull(found, len(site.value))
