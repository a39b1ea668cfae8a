"""Runs of blocks as pieces: upsamplings, relaxations and adapters."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from nets import head, make, unit
from torch import Tensor, nn

import bu2td
from bu2td.arrange.levels import arrange
from bu2td.arrange.widths import ATTEMPTS
from bu2td.graph import GraphView
from bu2td.graph.edited import Edited
from bu2td.ir import Analysis, LevelShape, Piece, Relaxation, is_spatial
from bu2td.ops import Role
from bu2td.options import Options

MODELS = (
    "resnet18",
    "resnetv2_50",
    "densenet121",
    "torchvision:googlenet",
    "mobilenetv3_small_100",
    "convnext_atto",
)


@cache
def analysis_of(word: str) -> Analysis:
    return bu2td.analyze(make(word))


def up_blocks(word: str, arrangement: str) -> Iterator[tuple[GraphView, Piece]]:
    analysis = analysis_of(word)
    view = GraphView(analysis.capture, analysis.dims)
    for level in arrange(analysis, Options(arrangement)).levels:
        if level.up is not None:
            yield view, level.up


def crossings(view: GraphView, piece: Piece) -> set[int]:
    """How many upsamplings lie on the paths from a piece's entry to its exit."""
    run = Edited(view, piece.nodes, piece.exit, piece.edits)
    counts: dict[str, set[int]] = {piece.entry: {0}}

    def behind(operand: str, reader: str) -> set[int]:
        return {n + run.upsampled(operand, reader) for n in counts[run.source(operand, reader)]}

    for name in piece.nodes:
        if name in run.alive and is_spatial(view.dims[name]):
            counts[name] = set().union(*(behind(operand, name) for operand in view.inputs(name)))
    return behind(piece.exit, "")


@pytest.mark.parametrize("arrangement", ["td", "rev"])
@pytest.mark.parametrize("word", MODELS)
def test_every_path_through_an_up_block_passes_one_upsampling(word: str, arrangement: str) -> None:
    found = [crossings(view, piece) for view, piece in up_blocks(word, arrangement)]
    assert all(counts == {1} for counts in found)


def test_upsampling_waits_for_the_first_operation_that_looks_around() -> None:
    """A raw shortcut and a 3x3 convolution read the entry upsampled, a 1x1 projection reads it as it is."""
    for view, piece in up_blocks("resnet18", "td"):
        join = next(name for name in piece.nodes if view.role(name) is Role.ADD)
        behind = {reader: what for what, reader in piece.edits.upsample}
        conv = next(reader for reader in behind if reader != join)
        assert behind.keys() == {conv, join}
        assert (behind[conv], view.kernel(conv)) == (piece.entry, (3, 3))
        projected = any("downsample" in name for name in piece.nodes)
        assert (behind[join] != piece.entry) is projected


def test_attempts_give_up_more_and_more() -> None:
    given = [(a.regroup, a.entry_free, a.exit_free) for a in ATTEMPTS]
    assert given[0] == (False, False, False)
    assert given[-1] == (True, True, True)
    assert len(set(given)) == len(given)
    named = [a.relaxation for a in ATTEMPTS]
    assert named == [None, *(r for r in Relaxation if r is not Relaxation.FROZEN)]


class Grouped(nn.Module):
    """Two levels; the convolution of the second has groups."""

    def __init__(self, inner: int = 32, groups: int = 16) -> None:
        super().__init__()
        self.first, self.pool = unit(3, 16), nn.MaxPool2d(2)
        self.second = nn.Sequential(unit(16, inner), unit(inner, 32, groups=groups))
        self.head = head(32)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.pool(self.first(x))))


def relaxations(model: nn.Module, arrangement: Any) -> tuple[tuple[str, Relaxation], ...]:
    return arrange(bu2td.analyze(model), Options(arrangement)).relaxations


def test_groups_are_given_up_where_widths_do_not_divide() -> None:
    assert relaxations(Grouped(), (32, 16)) == ()
    assert relaxations(Grouped(), (36, 16)) == (("r2", Relaxation.REGROUP),)


class Opaque(nn.Module):
    """Nobody has told bu2td what it does."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.lerp(x, x * self.weight, 0.5)


class Pinned(nn.Module):
    """The second level ends in an operation whose width cannot change."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.pool = unit(3, 16), nn.MaxPool2d(2)
        self.second = nn.Sequential(unit(16, 32), Opaque(32))
        self.head = head(32)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.pool(self.first(x))))


def test_an_adapter_makes_the_width_that_an_opaque_operation_cannot() -> None:
    """The piece keeps the widths that its level asked for, and names the operation."""
    plan = arrange(bu2td.analyze(Pinned()), Options((40, 16)))
    body = plan.levels[0].body
    assert body is not None
    assert (body.relaxations, body.exit_width) == ((Relaxation.EXIT_ADAPTER,), 40)
    assert body.sizes[body.exit][1] == 32
    assert body.exit_adapter is not None
    assert (body.exit_adapter.in_channels, body.exit_adapter.out_channels) == (32, 40)
    assert body.entry_adapter is None
    [name] = body.opaque
    assert any("without a converter" in note and name in note for note in plan.notes)


def test_shapes_of_levels() -> None:
    """A level whose first block strides or has a shortcut is entered through it, any other by a merge."""
    levels = arrange(analysis_of("resnet18"), Options()).levels
    assert [level.shape for level in levels] == ["coarsest", "block", "block", "block", "bare", "bare"]
    assert levels[-1].shape is LevelShape.BARE
    assert [len(level.pieces) for level in levels] == [1, 2, 2, 2, 0, 0]
    coarse = arrange(analysis_of("resnet18"), Options(stem="coarse")).levels
    assert [level.shape for level in coarse] == ["coarsest", "bare", "chain", "block", "block", "block"]
