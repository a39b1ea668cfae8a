"""A small integer program, and its solution nearest to wanted values.

    minimise  sum_v |x_v - d_v| / d_v    subject to  A x = b,  x_v >= 1 integer

where d_v is the wanted width, solved by `scipy.optimize.milp`. Where the wanted widths satisfy every row already,
no solver is called.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from bu2td.ir import FrozenMap

#: Seconds that the solver may take.
_TIME_LIMIT = 10.0


@dataclass(frozen=True)
class Row:
    """``sum coefficient * variable + constant``."""

    coefficients: FrozenMap[int, Fraction]
    constant: Fraction = Fraction(0)

    def amount(self, values: Mapping[int, int]) -> Fraction:
        """What the row comes to for values of its variables."""
        return sum((c * values[v] for v, c in self.coefficients.items()), self.constant)


@dataclass(frozen=True)
class Problem:
    """Whole numbers of at least 1 are looked for.

    Attributes:
        targets: variable -> the value that is wanted.
        zero: rows that must come to nothing.
        divisible: rows that must be divisible, and by what.
    """

    targets: FrozenMap[int, Fraction]
    zero: tuple[Row, ...]
    divisible: tuple[tuple[Row, int], ...]

    def holds(self, values: Mapping[int, int]) -> bool:
        """Whether values satisfy every row."""
        return (
            not any(row.amount(values) for row in self.zero)
            and all((row.amount(values) / divisor).denominator == 1 for row, divisor in self.divisible)
            and all(value >= 1 for value in values.values())
        )


def solve(problem: Problem) -> Mapping[int, int] | None:
    """The admissible values nearest to the wanted ones, or None."""
    values = {variable: max(1, round(target)) for variable, target in problem.targets.items()}
    for row in problem.zero:
        if len(row.coefficients) == 1:
            [(variable, coefficient)] = row.coefficients.items()
            value = -row.constant / coefficient
            if value.denominator != 1 or value < 1:
                return None
            values[variable] = int(value)
    if problem.holds(values):
        return values
    found = _milp(problem)
    return found if found and problem.holds(found) else None


def _milp(problem: Problem) -> Mapping[int, int] | None:
    """Columns: the widths, their distances from the wanted widths, the quotients of divisibilities."""
    from scipy.optimize import Bounds, LinearConstraint, milp  # 0.3 s to import, and seldom needed

    n, m = len(problem.targets), len(problem.divisible)
    cost = np.zeros(2 * n + m)
    cost[n : 2 * n] = [1 / float(target) for target in problem.targets.values()]
    result = milp(
        cost,
        constraints=LinearConstraint(*_constraints(problem)),
        integrality=np.r_[np.ones(n), np.zeros(n), np.ones(m)],
        bounds=Bounds(np.r_[np.ones(n), np.zeros(n + m)], np.inf),
        options={"time_limit": _TIME_LIMIT},
    )
    if result.x is None:
        return None
    return {variable: round(x) for variable, x in zip(problem.targets, result.x[:n], strict=True)}


def _constraints(problem: Problem) -> tuple[Any, list[float], list[float]]:
    """Lines of coefficients with their lower and upper bounds."""
    index = {variable: i for i, variable in enumerate(problem.targets)}
    n, m = len(problem.targets), len(problem.divisible)
    lines: list[tuple[dict[int, float], float, float]] = []
    for row in problem.zero:
        line = {index[v]: float(c) for v, c in row.coefficients.items()}
        lines.append((line, -float(row.constant), -float(row.constant)))
    for k, (row, divisor) in enumerate(problem.divisible):
        line = {index[v]: float(c) for v, c in row.coefficients.items()}
        lines.append(({**line, 2 * n + k: -float(divisor)}, -float(row.constant), -float(row.constant)))
    for variable, i in index.items():
        target = float(problem.targets[variable])
        lines.append(({i: -1.0, n + i: 1.0}, -target, np.inf))
        lines.append(({i: 1.0, n + i: 1.0}, target, np.inf))
    matrix = np.zeros((len(lines), 2 * n + m))
    for place, (line, _, _) in enumerate(lines):
        matrix[place, list(line)] = list(line.values())
    return matrix, [low for _, low, _ in lines], [high for _, _, high in lines]
