"""Pass 4, channels: the integer system of a piece's channel widths, and its relaxations.

Every channel dimension is a sum of terms ``scale * variable``. Converters tie dimensions (add, depthwise
convolution), sum them (concat, split) and ask for divisibility (groups, chunk). Ties of single terms go
into a union-find with ratios; sums and divisibilities become rows of

    minimise  sum_v |x_v - d_v| / d_v    subject to  A x = b,  x_v >= 1 integer

where d_v is the wanted width (the bottom-up one times the block's factor), solved by
`scipy.optimize.milp`. Where the wanted widths satisfy every row already, no solver is called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np

from bu2td.errors import ConverterError
from bu2td.graph.view import GraphView
from bu2td.ir.plan import Edits
from bu2td.ir.values import Dim, Dims
from bu2td.ops import Expr, NoRuleError, Role, Term, blaming, pinned

#: The relaxations in the order in which they are tried: (name, groups may change, entry free, exit free).
RELAXATIONS = (
    ("", False, False, False),
    ("regroup", True, False, False),
    ("entry adapter", True, True, False),
    ("exit adapter", True, False, True),
    ("entry and exit adapter", True, True, True),
)


@dataclass(frozen=True)
class Request:
    """What a piece is asked for.

    Attributes:
        nodes: in graph order; ``entry`` is the tensor that they read, ``exit`` the one they produce.
        entry_width, exit_width: widths to meet; None for an entry that is not a feature map.
        pins: further trunk tensors inside the piece and their widths.
        factors: node -> factor by which its widths are wanted to scale.
    """

    name: str
    nodes: tuple[str, ...]
    entry: str
    exit: str
    entry_width: int
    exit_width: int
    edits: Edits
    pins: Mapping[str, int]
    factors: Mapping[str, Fraction]


@dataclass(frozen=True)
class Solution:
    """Sizes of every value in the piece, the widths at its borders, and what was relaxed."""

    sizes: Mapping[str, Any]
    entry_width: int
    exit_width: int
    relaxations: tuple[str, ...] = ()
    opaque: tuple[str, ...] = ()


def solve_widths(view: GraphView, request: Request) -> Solution:
    """Find the width of every channel dimension in a piece.

    Needs: a `Request` whose nodes read nothing from outside but its entry.
    Returns: a `Solution`; where the widths at the borders differ from the requested ones, adapters are
        needed, and the solution names them among its relaxations. A frozen one holds for the piece with all
        widths as in the bottom-up network, its shortcuts included, and must be asked for again as such.
    Guarantees: the sizes satisfy every tie, sum and divisibility that the converters state.
    """
    system = _System()
    exprs, opaque = _build(view, request, system)
    entry, exit_ = exprs[request.entry][1], exprs[request.exit][1]
    border = [(entry, request.entry_width), (exit_, request.exit_width)]
    inner = [(exprs[n][1], width) for n, width in request.pins.items() if n in exprs]
    for what, regroup, free_entry, free_exit in RELAXATIONS:
        pins = [p for p, free in zip(border, (free_entry, free_exit), strict=True) if not free]
        values = system.solve([*pins, *inner], regroup)
        if values is not None:
            relaxations = (what,) if what else ()
            break
    else:
        values, relaxations = system.bottom_up(), ("frozen",)
    measure = system.measure(values)
    return Solution(
        sizes={name: _map(expr, view.dims[name], measure) for name, expr in exprs.items()},
        entry_width=measure(entry),
        exit_width=measure(exit_),
        relaxations=relaxations,
        opaque=tuple(opaque),
    )


def _map(exprs: Any, value: Dims, measure: Callable[[Expr], int]) -> Any:
    """Sizes in the structure of a value; a scalar has none."""
    if exprs is None or value is None:
        return None
    if value and not isinstance(value[0], Dim):
        return tuple(_map(part, inner, measure) for part, inner in zip(exprs, value, strict=True))
    return tuple(None if expr is None else measure(expr) for expr in exprs)


def _build(view: GraphView, request: Request, system: _System) -> tuple[dict[str, Any], list[str]]:
    """Ask every converter for its ties, in graph order; returns expressions and opaque nodes."""
    edits = request.edits
    entry_dims = view.dims[request.entry]
    entry = tuple(system.fresh(d.size, "entry") if d.kind == "channel" else None for d in entry_dims)
    exprs: dict[str, Any] = {request.entry: entry}
    exprs |= {name: entry for name, place in edits.bypass.items() if place == request.entry}
    overrides: dict[tuple[str, str], Any] = {}
    for p in edits.projections:
        out = system.fresh(p.unit.out_channels, "projection")
        overrides[p.join, p.operand] = tuple(out if d.kind == "channel" else None for d in view.dims[p.operand])
    opaque: list[str] = []
    system.factor = Fraction(1)
    for name in request.nodes:
        if name in edits.bypass:
            if edits.bypass[name] in exprs:
                exprs[name] = exprs[edits.bypass[name]]
            continue
        if any(n.name not in exprs and view.dims[n.name] for n in view.nodes[name].all_input_nodes):
            continue  # dead code behind a dropped projection
        value = view.dims[name]
        if value is None:
            exprs[name] = None
            continue
        system.factor = request.factors.get(name, Fraction(1))
        system.lookup = partial(_lookup, exprs, overrides, name)
        exprs[name], known = _tie(view, name, system)
        if not known:
            opaque.append(name)
    return exprs, opaque


def _tie(view: GraphView, name: str, system: _System) -> tuple[Any, bool]:
    """The expressions of a node's value, and whether its converter has a rule for it.

    Where arguments are computed by the graph, a converter may not understand them: such a node is opaque, as is
    one for which its converter says that it has no rule. Any other failure is the converter's.
    """
    converter, site, mark = view.converter(name), view.site(name), system.mark()
    computed = any(view.dims[n.name] is None for n in site.node.all_input_nodes)
    try:
        with blaming(converter, "tie the channels of", view.where(name)):
            return _checked(converter.tie(site, system), site.value), view.role(name) is not Role.OPAQUE
    except (NoRuleError, ConverterError) as error:
        if isinstance(error, ConverterError) and not computed:
            raise
        system.reset(mark)
        return pinned(site, system), False


def _lookup(exprs: dict[str, Any], overrides: dict[tuple[str, str], Any], reader: str, node: Any) -> Any:
    """The expressions that a reader sees for a node; a built projection stands in for its operand."""
    return overrides.get((reader, node.name), exprs.get(node.name))


def _checked(exprs: Any, value: Any) -> Any:
    """Assert that expressions have the structure of a value."""
    if value is None:
        return None
    if value and not isinstance(value[0], Dim):
        return tuple(_checked(e, v) for e, v in zip(exprs, value, strict=True))
    for expr, dim in zip(exprs, value, strict=True):
        if (expr is None) != (dim.kind != "channel"):
            raise ValueError(f"it says {expr} of a dimension that counts {dim.kind}, of size {dim.size}")
    return tuple(exprs)


class _System:
    """Variables, ties and constraints; what converters see is `bu2td.ops.converter.System`."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.names: list[str] = []
        self.wanted: list[Fraction] = []
        self.parent: list[int] = []
        self.ratio: list[Fraction] = []
        self.equalities: list[tuple[Expr, Expr]] = []
        self.divisibles: list[tuple[Expr, int, bool]] = []
        self.factor = Fraction(1)
        self.lookup: Callable[[Any], Any] = lambda node: None

    # -- what converters call ----------------------------------------------------------------------

    def of(self, node: Any) -> Any:
        return self.lookup(node)

    def fresh(self, size: int, name: str) -> Expr:
        self.sizes.append(size)
        self.names.append(name)
        self.wanted.append(size * self.factor)
        self.parent.append(len(self.parent))
        self.ratio.append(Fraction(1))
        return (Term(len(self.sizes) - 1, Fraction(1)),)

    def constant(self, size: int) -> Expr:
        return (Term(None, Fraction(size)),)

    def size(self, expr: Expr) -> int:
        total = sum(
            (t.scale * (1 if t.variable is None else self.sizes[t.variable]) for t in expr),
            Fraction(0),
        )
        return int(total)

    def equal(self, a: Expr, b: Expr) -> Expr:
        if a == b:
            return a
        if len(a) == len(b) and all(self.size((x,)) == self.size((y,)) for x, y in zip(a, b, strict=True)):
            for x, y in zip(a, b, strict=True):
                self._unite(x, y)
        else:
            self.equalities.append((a, b))
        return a if len(a) >= len(b) else b

    def collapse(self, expr: Expr) -> Term:
        if len(expr) == 1:
            return expr[0]
        whole = self.fresh(self.size(expr), "sum")
        self.equalities.append((whole, expr))
        return whole[0]

    def divisible(self, expr: Expr, divisor: int, what: str, relaxable: bool = False) -> None:
        self.divisibles.append((expr, divisor, relaxable))

    # -- solving -----------------------------------------------------------------------------------

    def mark(self) -> tuple[int, int]:
        return len(self.equalities), len(self.divisibles)

    def reset(self, mark: tuple[int, int]) -> None:
        del self.equalities[mark[0] :]
        del self.divisibles[mark[1] :]

    def _find(self, variable: int) -> tuple[int, Fraction]:
        """Root and ratio of a variable (variable = ratio * root); the path to the root is shortened."""
        path, root = [], variable
        while self.parent[root] != root:
            path.append(root)
            root = self.parent[root]
        ratio = Fraction(1)
        for member in reversed(path):
            ratio = self.ratio[member] * ratio
            self.parent[member], self.ratio[member] = root, ratio
        return root, ratio

    def _unite(self, a: Term, b: Term) -> None:
        if a.variable is None or b.variable is None:
            self.equalities.append(((a,), (b,)))
            return
        (x, rx), (y, ry) = self._find(a.variable), self._find(b.variable)
        if x == y:
            if a.scale * rx != b.scale * ry:
                self.equalities.append(((a,), (b,)))
            return
        # a.scale rx x = b.scale ry y, so y = (a.scale rx) / (b.scale ry) x.
        self.parent[y], self.ratio[y] = x, (a.scale * rx) / (b.scale * ry)

    def _row(self, expr: Expr) -> tuple[dict[int, Fraction], Fraction]:
        row: dict[int, Fraction] = {}
        constant = Fraction(0)
        for term in expr:
            if term.variable is None:
                constant += term.scale
            else:
                root, ratio = self._find(term.variable)
                row[root] = row.get(root, Fraction(0)) + term.scale * ratio
        return row, constant

    def bottom_up(self) -> dict[int, int]:
        """The network's own widths, by root."""
        roots = {self._find(v)[0] for v in range(len(self.sizes))}
        return {root: self.sizes[root] for root in roots}

    def measure(self, values: Mapping[int, int]) -> Callable[[Expr], int]:
        """A function that evaluates expressions."""

        def evaluate(expr: Expr) -> int:
            row, constant = self._row(expr)
            return int(sum((c * values[v] for v, c in row.items()), constant))

        return evaluate

    def _targets(self) -> dict[int, Fraction]:
        wanted: dict[int, list[Fraction]] = {}
        for v in range(len(self.sizes)):
            root, ratio = self._find(v)
            wanted.setdefault(root, []).append(self.wanted[v] / ratio)
        return {root: max(sum(w, Fraction(0)) / len(w), Fraction(1)) for root, w in wanted.items()}

    def _integral(self) -> list[tuple[Expr, int, bool]]:
        """Members of a class whose ratio is a fraction must still be whole."""
        return [
            (
                (Term(v, Fraction(self._find(v)[1].denominator)),),
                self._find(v)[1].denominator,
                False,
            )
            for v in range(len(self.sizes))
            if self._find(v)[1].denominator > 1
        ]

    def holds(self, values: Mapping[int, int], pins: list[tuple[Expr, int]], regroup: bool) -> bool:
        """Whether values satisfy every row."""

        def amount(expr: Expr) -> Fraction:
            row, constant = self._row(expr)
            return sum((c * values[v] for v, c in row.items()), constant)

        return (
            all(amount(a) == amount(b) for a, b in self.equalities)
            and all(amount(e) == size for e, size in pins)
            and all(
                (amount(e) / d).denominator == 1
                for e, d, relaxable in self.divisibles
                if not (relaxable and regroup)
            )
            and all(amount(e).denominator == 1 for e in self._all())
            and all(v >= 1 for v in values.values())
        )

    def _all(self) -> Iterable[Expr]:
        return ((Term(v, Fraction(1)),) for v in range(len(self.sizes)))

    def solve(self, pins: list[tuple[Expr, int]], regroup: bool) -> dict[int, int] | None:
        """The admissible values nearest to the wanted ones, or None."""
        targets = self._targets()
        values = {root: max(1, round(target)) for root, target in targets.items()}
        rows = [(self._row(e), Fraction(size)) for e, size in pins]
        rows += [
            (self._row((*a, *(replace(t, scale=-t.scale) for t in b))), Fraction(0)) for a, b in self.equalities
        ]
        for (row, constant), size in rows:
            if len(row) == 1:
                [(root, coefficient)] = row.items()
                value = (size - constant) / coefficient
                if value.denominator != 1 or value < 1:
                    return None
                values[root] = int(value)
        if self.holds(values, pins, regroup):
            return values
        return self._milp(targets, rows, regroup)

    def _milp(self, targets: Mapping[int, Fraction], rows: list[Any], regroup: bool) -> dict[int, int] | None:
        from scipy.optimize import Bounds, LinearConstraint, milp  # 0.3 s to import, and seldom needed

        divisibles = [d for d in self.divisibles if not (d[2] and regroup)] + self._integral()
        roots = list(targets)
        index = {root: i for i, root in enumerate(roots)}
        n, m = len(roots), len(divisibles)
        # Columns: the widths, their distances from the wanted widths, the quotients of divisibilities.
        matrix, low, high = [], [], []

        def add(coefficients: Mapping[int, Fraction], lower: float, upper: float) -> None:
            line = np.zeros(2 * n + m)
            for column, value in coefficients.items():
                line[column] = float(value)
            matrix.append(line)
            low.append(lower)
            high.append(upper)

        for (row, constant), size in rows:
            right = float(size - constant)
            add({index[r]: c for r, c in row.items()}, right, right)
        for k, (expr, divisor, _) in enumerate(divisibles):
            row, constant = self._row(expr)
            line = {index[r]: c for r, c in row.items()}
            add({**line, 2 * n + k: Fraction(-divisor)}, -float(constant), -float(constant))
        for root, i in index.items():
            target = float(targets[root])
            add({i: Fraction(-1), n + i: Fraction(1)}, -target, np.inf)
            add({i: Fraction(1), n + i: Fraction(1)}, target, np.inf)
        cost = np.zeros(2 * n + m)
        cost[n : 2 * n] = [1 / float(targets[root]) for root in roots]
        result = milp(
            cost,
            constraints=LinearConstraint(np.array(matrix), low, high),
            integrality=np.r_[np.ones(n), np.zeros(n), np.ones(m)],
            bounds=Bounds(np.r_[np.ones(n), np.zeros(n + m)], np.inf),
            options={"time_limit": 10.0},
        )
        if result.x is None:
            return None
        values = {root: round(result.x[i]) for root, i in index.items()}
        return values if self.holds(values, [], regroup) else None
