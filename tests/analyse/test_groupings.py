"""Which segments form one block: each criterion, on the smallest networks that it holds and does not hold for."""

import pytest
from cut import Branches, add, cat, segments_of
from nets import head, unit
from torch import Tensor, nn

from bu2td.analyse.groupings import Criterion, aggregated, group, pooled, separable, squeezed

Span = tuple[int, int]


def spans(criterion: Criterion, *parts: nn.Module) -> list[Span]:
    """Where the criterion joins segments of a network with these parts."""
    view, segments = segments_of(nn.Sequential(*parts, head(8)))
    return [span for at in range(len(segments)) if (span := criterion(view, segments, at, 0))]


def depthwise(width: int = 8, stride: int = 1) -> nn.Sequential:
    return unit(width, width, 3, stride, groups=width)


def nested(*parts: nn.Module) -> nn.Sequential:
    return nn.Sequential(*parts)


def dense(growth: int = 4) -> Branches:
    return Branches(cat, nn.Identity(), unit(8, growth))


class Stage(nn.Module):
    """A conv, two branches that are appended to it, and the 1x1 conv that aggregates them, in one module."""

    def __init__(self) -> None:
        super().__init__()
        self.opening, self.a, self.b, self.closing = unit(8, 8), unit(8, 4), unit(8, 4), unit(16, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.opening(x)
        return self.closing(cat([x, self.a(x), self.b(x)]))


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        # Flat: the 1x1 conv behind it, and one before it that expands.
        ([unit(3, 8, 3, 2), depthwise(), unit(8, 8, 1)], [(1, 3)]),
        ([unit(3, 4, 3, 2), unit(4, 8, 1), depthwise(), unit(8, 8, 1)], [(1, 4)]),
        ([unit(3, 9, 3, 2), unit(9, 8, 1), depthwise(), unit(8, 8, 1)], [(2, 4)]),
        # One module: all that it holds, with an anti-aliasing pool between.
        ([unit(3, 9, 3, 2), nested(unit(9, 8, 1), depthwise(), unit(8, 8, 1))], [(1, 4)]),
        ([unit(3, 8), nested(depthwise(), nn.AvgPool2d(2), unit(8, 8, 1))], [(1, 4)]),
        # A container of several is a stage.
        ([unit(3, 8, 3, 2), nested(depthwise(), unit(8, 8, 1), depthwise(), unit(8, 8, 1))], [(1, 3), (3, 5)]),
        # Branches of depthwise convs.
        ([unit(3, 8, 3, 2), Branches(add, depthwise(), unit(8, 8, 5, groups=8)), unit(8, 8, 1)], [(1, 3)]),
        # A module's border keeps the 1x1 conv apart; a depthwise conv alone is a block, a grouped one none.
        ([unit(3, 8, 3, 2), depthwise(), nested(unit(8, 8, 1), unit(8, 8))], [(1, 2)]),
        ([unit(3, 8, 3, 2), unit(8, 8, groups=2), unit(8, 8)], []),
        ([unit(3, 8, 3, 2), unit(8, 8, groups=2), unit(8, 8, 1)], [(1, 3)]),
        ([unit(3, 8, 3, 2), unit(8, 8), unit(8, 8, 1)], []),
    ],
)
def test_separable(parts: list[nn.Module], expected: list[Span]) -> None:
    assert spans(separable, *parts) == expected


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        # A module that holds both, and the 1x1 conv that it begins with.
        ([unit(3, 8, 3, 2), nested(dense(), unit(12, 8, 1))], [(1, 3)]),
        ([unit(3, 9, 3, 2), nested(unit(9, 8, 1), dense(), unit(12, 6, 1), unit(6, 8, 1))], [(1, 5)]),
        # A module that holds more in front: the 1x1 conv right behind, if it is of this module.
        ([unit(3, 8, 3, 2), Stage()], [(2, 4)]),
        ([unit(3, 8, 3, 2), dense(), unit(12, 8, 1)], []),
        # A module that goes on otherwise is no aggregation.
        ([unit(3, 8, 3, 2), nested(dense(), unit(12, 8, 1), unit(8, 8))], []),
        # With a pool behind it is a transition.
        ([unit(3, 8), dense(), unit(12, 8, 1), nn.AvgPool2d(2)], []),
        ([unit(3, 8, 3, 2), dense(), unit(12, 8)], []),
        # Nothing is appended to the entry.
        ([unit(3, 8, 3, 2), Branches(cat, unit(8, 8, 1), unit(8, 4)), unit(12, 8, 1)], []),
    ],
)
def test_aggregated(parts: list[nn.Module], expected: list[Span]) -> None:
    assert spans(aggregated, *parts) == expected


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([unit(3, 9, 3, 2), unit(9, 4, 1), Branches(cat, unit(4, 4, 1), unit(4, 4))], [(1, 3)]),
        # Another kernel, another join, a norm of its own, a stride.
        ([unit(3, 9, 3, 2), unit(9, 4), Branches(cat, unit(4, 4, 1), unit(4, 4))], []),
        ([unit(3, 9, 3, 2), unit(9, 8, 1), Branches(add, unit(8, 8, 1), unit(8, 8))], []),
        ([unit(3, 9, 3, 2), unit(9, 4, 1), nn.BatchNorm2d(4), Branches(cat, unit(4, 4, 1), unit(4, 4))], []),
        ([unit(3, 9), unit(9, 4, 1), Branches(cat, unit(4, 4, 1, 2), unit(4, 4, 3, 2))], []),
        # A module's border keeps them apart.
        ([unit(3, 9, 3, 2), nested(unit(9, 9), unit(9, 4, 1)), Branches(cat, unit(4, 4, 1), unit(4, 4))], []),
    ],
)
def test_squeezed(parts: list[nn.Module], expected: list[Span]) -> None:
    assert spans(squeezed, *parts) == expected


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([unit(3, 8), dense(), unit(12, 8, 1), nn.AvgPool2d(2)], [(2, 4)]),
        ([unit(3, 8), dense(), unit(12, 8), nn.AvgPool2d(2)], []),
        ([unit(3, 8, 1), nn.AvgPool2d(2), dense(), unit(12, 8)], []),  # the stem's
    ],
)
def test_pooled(parts: list[nn.Module], expected: list[Span]) -> None:
    assert spans(pooled, *parts) == expected


def test_criteria_apply_in_order() -> None:
    """What one has joined is out of reach for the next: the transition's conv is not the aggregation's."""
    parts = [unit(3, 8), nested(dense(), unit(12, 8, 1)), dense(), unit(12, 8, 1), nn.AvgPool2d(2)]
    view, segments = segments_of(nn.Sequential(*parts, head(8)))
    exits = [s.exit for s in group(view, segments)]
    assert exits == [segments[i].exit for i in (0, 2, 3, 5)]
