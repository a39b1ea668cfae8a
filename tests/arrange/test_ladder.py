"""Which levels there are, which body each has, and how wide it is to be."""

from functools import cache
from typing import Any

import pytest
from nets import make

import bu2td
from bu2td import errors
from bu2td.arrange.ladder import bare_width, block_widths, ladder
from bu2td.ir import Analysis
from bu2td.options import Options


@cache
def resnet18() -> Analysis:
    return bu2td.analyze(make("resnet18"))


def table(**options: Any) -> list[tuple[int, int | None, int | None]]:
    """Reduction, reduction of the body, and width of every level."""
    slots = ladder(resnet18(), Options(**options))
    return [(s.reduction, s.body.reduction if s.body else None, s.width) for s in slots]


def test_td_gives_every_reduction_its_own_body() -> None:
    assert table() == [(32, 32, None), (16, 16, None), (8, 8, None), (4, 4, None), (2, None, None), (1, None, None)]


def test_rev_gives_the_coarsest_level_the_body_of_the_finest() -> None:
    assert [body for _, body, _ in table(arrangement="rev")] == [4, 8, 16, 32, None, None]


def test_uni_takes_the_finer_of_two_middle_widths() -> None:
    assert [width for *_, width in table(arrangement="uni")] == [128, 128, 128, 128, None, None]
    assert [width for *_, width in table(arrangement="uni", width=24)][:4] == [24] * 4


def test_custom_widths_are_for_all_levels_or_those_with_a_body() -> None:
    assert [width for *_, width in table(arrangement=(9, 8, 7, 6))] == [9, 8, 7, 6, None, None]
    assert [width for *_, width in table(arrangement=(9, 8, 7, 6, 5, 4))] == [9, 8, 7, 6, 5, 4]
    with pytest.raises(errors.WidthError, match="has 5 widths"):
        table(arrangement=(9, 8, 7, 6, 5))


def test_the_stem_goes_first_where_it_is_coarse() -> None:
    slots = ladder(resnet18(), Options(stem="coarse"))
    assert [s.reduction for s in slots] == [32, 16, 8, 4, 2, 1]
    assert [s.for_stem for s in slots] == [True, True, False, False, False, False]
    assert [s.body.width for s in slots if s.body] == [512, 256, 128, 64]
    assert bare_width(slots[0], resnet18(), Options(stem="coarse")) == 512
    assert bare_width(slots[0], resnet18(), Options("rev", stem="coarse")) == 64


def test_levels_upsample_from_the_level_that_was_kept() -> None:
    slots = ladder(resnet18(), Options(reductions=(32, 8, 2), finest_reduction=2))
    assert [(s.reduction, s.factor) for s in slots] == [(32, 1), (8, 4), (2, 4)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reductions": (32, 3)}, "3 is not on the ladder"),
        ({"finest_reduction": 64}, "64 is not on the ladder"),
        ({"reductions": (2, 1)}, "has a body"),
        ({"reductions": (32, 1), "finest_reduction": 32}, "needs two levels at least"),
    ],
)
def test_reductions_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(errors.ReductionError, match=message):
        table(**options)


def test_blocks_that_hand_their_input_on_are_fed_their_share() -> None:
    """DenseNet: what is in front of a dense block keeps its share of the block's width."""
    body = bu2td.analyze(make("densenet121")).bodies[-1]
    dense = next(i for i, b in enumerate(body.blocks) if b.concatenates_entry)
    before, block = body.blocks[dense - 1] if dense else None, body.blocks[dense]
    widths = block_widths(body.blocks, 2 * block.width)
    assert widths[block.exit] == 2 * block.width
    if before is not None:
        assert widths[before.exit] == 2 * block.entry_width
    assert block_widths(body.blocks, None) == {b.exit: b.width for b in body.blocks}
