"""How regions are read: which norm, activation, dropout and arithmetic belong to which layer."""

from typing import Any

import pytest
import torch.nn.functional as F
from cut import Branches, add, regions_of, segments_of
from nets import head, unit
from torch import Tensor, nn

from bu2td.analyse.segments import SegmentKind, read_segments
from bu2td.ops import Role


def bare(inputs: int, outputs: int, kernel: int = 3) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)


def block(*behind: nn.Module) -> nn.Sequential:
    """conv, norm, act, then a projection beside conv, norm, act, conv."""
    return nn.Sequential(unit(3, 8), Branches(add, bare(8, 8, 1), nn.Sequential(unit(8, 8), bare(8, 8))), *behind)


def kinds(model: nn.Module) -> list[tuple[SegmentKind, bool, bool]]:
    """Kind, whether norm or act stand before the first conv, and whether there is a norm, of every segment."""
    _, segments = segments_of(model)
    return [(s.kind, s.prefixed, any(r.normalises for r in s.roles)) for s in segments]


def test_a_block_of_bare_convs_has_the_norm_before_it() -> None:
    found = kinds(nn.Sequential(block(), nn.MaxPool2d(2), head(8)))
    assert found[:2] == [(SegmentKind.CONV, False, False), (SegmentKind.BRANCHING, True, True)]


@pytest.mark.parametrize("behind", [nn.ReLU(), nn.Sigmoid()])
def test_a_block_that_activates_its_sum_leaves_the_norm_to_the_conv(behind: nn.Module) -> None:
    found = kinds(nn.Sequential(block(behind), nn.MaxPool2d(2), head(8)))
    assert found[:2] == [(SegmentKind.CONV, False, True), (SegmentKind.BRANCHING, False, True)]


class NormFree(nn.Module):
    """A residual block without norms that activates its entry, or its sum."""

    def __init__(self, inputs: int, outputs: int, first: bool) -> None:
        super().__init__()
        self.a, self.b, self.first = bare(inputs, outputs), bare(outputs, outputs), first
        self.projection = bare(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(x) if self.first else x
        shortcut = x if self.projection is None else self.projection(y)
        y = self.b(F.relu(self.a(y))) + shortcut
        return y if self.first else F.relu(y)


@pytest.mark.parametrize("first", [True, False])
def test_one_raw_sum_shows_where_all_activations_belong(first: bool) -> None:
    """The activation between two blocks is the second's if a shortcut reads a raw sum anywhere in the network."""
    parts = [NormFree(8, 8, first), NormFree(8, 12, first), nn.MaxPool2d(2), NormFree(12, 12, first)]
    view, segments = segments_of(nn.Sequential(bare(3, 8), *parts, head(12)))
    projecting = segments[2]
    assert projecting.prefixed is first
    assert (view.role(projecting.exit) == Role.ACT) is not first


def test_dropout_behind_a_pool_is_the_pools() -> None:
    _, segments = segments_of(nn.Sequential(unit(3, 8), nn.MaxPool2d(2), nn.Dropout(), unit(8, 8), head(8)))
    assert [s.kind for s in segments] == [SegmentKind.CONV, SegmentKind.POOL, SegmentKind.CONV]
    assert len(segments[1].dropouts) == 1


class Ends(nn.Module):
    """x.clamp().pow() before the global pool, and behind every unit as well if it ``repeats``."""

    def __init__(self, repeats: bool) -> None:
        super().__init__()
        self.a, self.b, self.head, self.repeats = unit(3, 8, 3, 2), unit(8, 8, 3, 2), head(8), repeats

    def forward(self, x: Any) -> Tensor:
        x = self.a(x)
        if self.repeats:
            x = x.clamp(min=0.1).pow(3)
        return self.head(self.b(x).clamp(min=0.1).pow(3))


@pytest.mark.parametrize("repeats", [True, False])
def test_arithmetic_at_the_end_alone_waits_for_the_head(repeats: bool) -> None:
    view, regions = regions_of(Ends(repeats))
    segments, waiting = read_segments(view, regions)
    assert len(waiting) == (0 if repeats else 2)
    assert sum("pow" in n for s in segments for n in s.nodes) == (2 if repeats else 0)
