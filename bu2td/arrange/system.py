"""The channel system of a piece: variables, ties in classes with ratios, sums and divisibilities.

Every channel dimension is a sum of terms ``scale * variable``. Converters tie dimensions (add, depthwise
convolution), sum them (concat, split) and ask for divisibility (groups, chunk). Ties of single terms go into
classes; what is left are the rows of a `bu2td.arrange.solver.Problem`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from bu2td.arrange.solver import Problem, Row
from bu2td.ir import FrozenMap
from bu2td.ops import Expr, Term


class Ratios:
    """Variables in classes: each is a ratio times the root of its class (a union-find)."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._ratio: list[Fraction] = []

    def __len__(self) -> int:
        return len(self._parent)

    def add(self) -> int:
        """A new variable, alone in its class."""
        self._parent.append(len(self._parent))
        self._ratio.append(Fraction(1))
        return len(self._parent) - 1

    def find(self, variable: int) -> tuple[int, Fraction]:
        """Root and ratio of a variable (variable = ratio * root); the path to the root is shortened."""
        path, root = [], variable
        while self._parent[root] != root:
            path.append(root)
            root = self._parent[root]
        ratio = Fraction(1)
        for member in reversed(path):
            ratio = self._ratio[member] * ratio
            self._parent[member], self._ratio[member] = root, ratio
        return root, ratio

    def unite(self, a: int, b: int, ratio: Fraction) -> bool:
        """Join two classes such that b = ratio * a; whether that is so afterwards."""
        (x, rx), (y, ry) = self.find(a), self.find(b)
        if x == y:
            return ry == ratio * rx
        self._parent[y], self._ratio[y] = x, ratio * rx / ry
        return True


class ChannelSystem:
    """What converters state about channels (see `bu2td.ops.converter.System`), piece by piece."""

    def __init__(self) -> None:
        self._sizes: list[int] = []
        self._wanted: list[Fraction] = []
        self._ratios = Ratios()
        self._equalities: list[tuple[Expr, Expr]] = []
        self._divisibles: list[tuple[Expr, int, bool]] = []
        self._made: dict[tuple[str, int], list[Expr]] = {}
        self.visit(lambda node: None)

    def visit(self, lookup: Callable[[Any], Any], factor: Fraction = Fraction(1)) -> None:
        """Turn to another node: how its operands are looked up, and by what its widths are wanted to scale."""
        self._lookup, self._factor = lookup, factor

    # -- what converters call ----------------------------------------------------------------------

    def once(self, key: tuple[str, int], make: Callable[[], list[Expr]]) -> list[Expr]:
        """What was made for a key: the same for everybody who asks."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def of(self, node: Any) -> Any:
        """Expressions of an operand."""
        return self._lookup(node)

    def fresh(self, size: int, name: str, wanted: int | None = None) -> Expr:
        """A new variable with its bottom-up size; by default it is wanted in proportion to that."""
        self._sizes.append(size)
        self._wanted.append(size * self._factor if wanted is None else Fraction(wanted))
        return (Term(self._ratios.add(), Fraction(1)),)

    def constant(self, size: int) -> Expr:
        """A size that never changes."""
        return (Term(None, Fraction(size)),)

    def size(self, expr: Expr) -> int:
        """The bottom-up size of an expression."""
        sizes = (t.scale * (1 if t.variable is None else self._sizes[t.variable]) for t in expr)
        return int(sum(sizes, Fraction(0)))

    def equal(self, a: Expr, b: Expr) -> Expr:
        """Tie two sizes; returns the more detailed of the two expressions."""
        if a == b:
            return a
        if len(a) == len(b) and all(self.size((x,)) == self.size((y,)) for x, y in zip(a, b, strict=True)):
            for x, y in zip(a, b, strict=True):
                self._unite(x, y)
        else:
            self._equalities.append((a, b))
        return a if len(a) >= len(b) else b

    def _unite(self, a: Term, b: Term) -> None:
        united = (
            a.variable is not None
            and b.variable is not None
            and self._ratios.unite(a.variable, b.variable, a.scale / b.scale)
        )
        if not united:
            self._equalities.append(((a,), (b,)))

    def collapse(self, expr: Expr) -> Term:
        """The whole expression as one term."""
        if len(expr) == 1:
            return expr[0]
        whole = self.fresh(self.size(expr), "sum")
        self._equalities.append((whole, expr))
        return whole[0]

    def divisible(self, expr: Expr, divisor: int, what: str, relaxable: bool = False) -> None:
        """Ask for divisibility."""
        self._divisibles.append((expr, divisor, relaxable))

    # -- what the system is then -------------------------------------------------------------------

    def mark(self) -> tuple[int, int, int]:
        """A place to `reset` to."""
        return len(self._equalities), len(self._divisibles), len(self._made)

    def reset(self, mark: tuple[int, int, int]) -> None:
        """Forget the sums and divisibilities that were stated since, and what was made."""
        del self._equalities[mark[0] :]
        del self._divisibles[mark[1] :]
        self._made = dict(list(self._made.items())[: mark[2]])

    def row(self, expr: Expr, minus: Expr = ()) -> Row:
        """An expression, or the difference of two, over the roots of the classes."""
        coefficients: dict[int, Fraction] = {}
        constant = Fraction(0)
        for term in [*expr, *(Term(t.variable, -t.scale) for t in minus)]:
            if term.variable is None:
                constant += term.scale
            else:
                root, ratio = self._ratios.find(term.variable)
                coefficients[root] = coefficients.get(root, 0) + term.scale * ratio
        return Row(FrozenMap({root: c for root, c in coefficients.items() if c}), constant)

    def bottom_up(self) -> Mapping[int, int]:
        """The network's own widths, by root."""
        roots = {self._ratios.find(v)[0] for v in range(len(self._ratios))}
        return {root: self._sizes[root] for root in roots}

    def problem(self, pins: list[tuple[Expr, int]], regroup: bool) -> Problem:
        """What the widths must satisfy, with some expressions pinned; ``regroup`` gives up groups."""
        zero = [self.row(expr, self.constant(size)) for expr, size in pins]
        zero += [self.row(a, b) for a, b in self._equalities]
        divisible = [(self.row(e), d) for e, d, relaxable in self._divisibles if not (relaxable and regroup)]
        wanted: dict[int, list[Fraction]] = {}
        for variable, width in enumerate(self._wanted):
            root, ratio = self._ratios.find(variable)
            wanted.setdefault(root, []).append(width / ratio)
            if ratio.denominator > 1:  # a member of a class must be whole, as its root is
                divisible.append((Row(FrozenMap({root: Fraction(ratio.numerator)})), ratio.denominator))
        targets = {root: max(sum(w, Fraction(0)) / len(w), Fraction(1)) for root, w in wanted.items()}
        return Problem(FrozenMap(targets), tuple(zero), tuple(divisible))
