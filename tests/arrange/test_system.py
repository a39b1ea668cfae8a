"""The channel system: classes with ratios, rows, and the solution nearest to what is wanted."""

from fractions import Fraction

import pytest

from bu2td.arrange.solver import Problem, Row, solve
from bu2td.arrange.system import ChannelSystem, Ratios
from bu2td.ir import FrozenMap
from bu2td.ops import Expr, Term


def scaled(expr: Expr, scale: int | Fraction) -> Expr:
    return tuple(Term(t.variable, t.scale * scale) for t in expr)


def widths(
    system: ChannelSystem, *exprs: Expr, pins: list[tuple[Expr, int]], regroup: bool = False
) -> list[int] | None:
    values = solve(system.problem(pins, regroup))
    return None if values is None else [int(system.row(e).amount(values)) for e in exprs]


def test_classes_know_the_ratio_of_every_member() -> None:
    ratios = Ratios()
    a, b, c = ratios.add(), ratios.add(), ratios.add()
    assert ratios.unite(a, b, Fraction(2))
    assert ratios.unite(b, c, Fraction(1, 6))
    assert ratios.find(a) == (a, 1)
    assert ratios.find(b) == (a, 2)
    assert ratios.find(c) == (a, Fraction(1, 3))
    assert ratios.unite(a, c, Fraction(1, 3))
    assert not ratios.unite(c, a, Fraction(1, 3))


def test_ties_scale_together() -> None:
    system = ChannelSystem()
    narrow, wide = system.fresh(16, "narrow"), system.fresh(64, "wide")
    system.equal(scaled(narrow, 4), wide)
    assert widths(system, narrow, wide, pins=[(wide, 40)]) == [10, 40]
    assert widths(system, narrow, wide, pins=[(wide, 41)]) is None  # a quarter of it is not whole


def test_wanted_widths_follow_the_factor_of_the_node() -> None:
    system = ChannelSystem()
    system.visit(lambda node: None, Fraction(1, 2))
    halved = system.fresh(64, "inner")
    system.visit(lambda node: None)
    kept = system.fresh(64, "inner")
    assert widths(system, halved, kept, pins=[]) == [32, 64]


def test_sums_and_divisibilities_give_the_nearest_solution() -> None:
    system = ChannelSystem()
    left, right = system.fresh(30, "left"), system.fresh(70, "right")
    whole = system.fresh(100, "whole")
    system.equal((*left, *right), whole)
    system.divisible(right, 32, "groups")
    assert widths(system, left, right, pins=[(whole, 100)]) == [36, 64]


def test_regrouping_gives_up_relaxable_divisibilities_alone() -> None:
    system = ChannelSystem()
    width = system.fresh(32, "width")
    system.divisible(width, 32, "groups", relaxable=True)
    assert widths(system, width, pins=[(width, 40)]) is None
    assert widths(system, width, pins=[(width, 40)], regroup=True) == [40]
    system.divisible(width, 16, "chunks")
    assert widths(system, width, pins=[(width, 40)], regroup=True) is None


def test_a_reset_forgets_what_was_stated_since() -> None:
    system = ChannelSystem()
    width = system.fresh(32, "width")
    mark = system.mark()
    system.divisible(width, 32, "groups")
    system.equal((*width, *width), system.constant(64))
    system.reset(mark)
    assert widths(system, width, pins=[(width, 5)]) == [5]


def test_the_more_detailed_side_of_a_tie_is_kept() -> None:
    system = ChannelSystem()
    parts = (*system.fresh(24, "a"), *system.fresh(8, "b"))
    whole = system.fresh(32, "whole")
    assert system.equal(whole, parts) == system.equal(parts, whole) == parts
    assert system.size(parts) == 32
    collapsed = (system.collapse(parts),)
    assert widths(system, collapsed, whole, pins=[(whole, 48)]) == [48, 48]


@pytest.mark.parametrize(
    ("zero", "divisible", "expected"),
    [
        ([Row(FrozenMap({0: Fraction(1)}), Fraction(-7))], [], {0: 7, 1: 20}),
        ([Row(FrozenMap({0: Fraction(2)}), Fraction(-7))], [], None),
        ([Row(FrozenMap({0: Fraction(1)}), Fraction(0))], [], None),  # widths are at least 1
        ([Row(FrozenMap(), Fraction(1))], [], None),
        ([], [(Row(FrozenMap({1: Fraction(1)})), 6)], {0: 10, 1: 18}),
        ([Row(FrozenMap({0: Fraction(1), 1: Fraction(-3)}))], [], {0: 9, 1: 3}),
    ],
)
def test_solutions(zero: list[Row], divisible: list[tuple[Row, int]], expected: dict[int, int] | None) -> None:
    targets = FrozenMap({0: Fraction(10), 1: Fraction(20)})
    assert solve(Problem(targets, tuple(zero), tuple(divisible))) == expected
