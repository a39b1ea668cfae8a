"""What analyse hands on of a block and a head: shortcuts, pre-activation, the bound map size."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cut import Branches, add, cat
from nets import head, make, unit
from torch import Tensor, nn

import bu2td
from bu2td.errors import TopologyError
from bu2td.graph import GraphView
from bu2td.ir import Analysis, Block, BlockKind, ShortcutKind


def analysed(*parts: nn.Module) -> Analysis:
    return bu2td.analyze(nn.Sequential(*parts), example_inputs=torch.zeros(1, 3, 64, 64))


def block_of(part: nn.Module, width: int = 8) -> Block:
    """The block that a part becomes, between a unit and another level."""
    analysis = analysed(unit(3, 8, 3, 2), part, unit(width, 8, 3, 2), head(8))
    return next(b for level in analysis.levels for b in level.blocks if b.kind == BlockKind.COMPOUND)


def conv(inputs: int, outputs: int, kernel: int = 3, **settings: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **settings)


def pad(x: Tensor) -> Tensor:
    return F.pad(x, (0, 0, 0, 0, 2, 2))


class Pad(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return pad(x)


def main(outputs: int = 8) -> nn.Sequential:
    return nn.Sequential(unit(8, outputs), conv(outputs, outputs))


@pytest.mark.parametrize(
    ("shortcut", "width", "kind"),
    [
        (nn.Identity(), 8, ShortcutKind.IDENTITY),
        (nn.AvgPool2d(3, 1, 1), 8, ShortcutKind.IDENTITY),
        (Pad(), 12, ShortcutKind.PADDED),
        (conv(8, 12, 1), 12, ShortcutKind.PROJECTION),
        (nn.Sequential(nn.ReLU(), conv(8, 12, 1)), 12, ShortcutKind.PROJECTION),
        (nn.ReLU(), 8, ShortcutKind.CHANGED),
    ],
)
def test_what_reaches_the_add_beside_the_main_path(shortcut: nn.Module, width: int, kind: ShortcutKind) -> None:
    found = block_of(Branches(add, main(width), shortcut), width)
    assert found.shortcut is not None
    assert found.shortcut.kind == kind
    assert (found.shortcut.conv is not None) == (kind == ShortcutKind.PROJECTION)
    assert found.shortcut.width == width
    assert found.shortcuts == (found.shortcut,)


def test_a_projection_is_known_with_its_norm() -> None:
    found = block_of(Branches(add, main(12), nn.Sequential(conv(8, 12, 1), nn.BatchNorm2d(12))), 12)
    assert found.shortcut is not None
    assert found.shortcut.norm is not None
    assert found.shortcut.operand == found.shortcut.norm


@pytest.mark.parametrize("second", [main(), conv(8, 8, 3)])
def test_branches_that_look_around_are_no_shortcut(second: nn.Module) -> None:
    found = block_of(Branches(add, main(), second))
    assert found.shortcut is None
    assert found.shortcuts == ()


def test_an_inner_add_binds_the_width_of_the_entry() -> None:
    """A residual behind a depthwise conv: the map that it adds is as wide as the block's entry."""
    depthwise = unit(8, 8, 3, groups=8)
    inner = nn.Sequential(depthwise, Branches(add, nn.Identity(), conv(8, 8)))
    found = block_of(Branches(cat, inner, unit(8, 4)), 12)
    assert found.shortcut is None
    assert [s.kind for s in found.inner_shortcuts] == [ShortcutKind.TIED]


class Preactivated(nn.Module):
    def __init__(self, acts: bool) -> None:
        super().__init__()
        self.norm, self.act = nn.BatchNorm2d(8), nn.ReLU() if acts else nn.Identity()
        self.a, self.b = unit(8, 8), conv(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(self.a(self.act(self.norm(x))))


def test_preactivation_is_norm_and_act() -> None:
    found = block_of(Preactivated(True)).preactivation
    assert found is not None
    assert (found.norm, found.act, found.exit) == ("_1_norm", "_1_act", "_1_act")
    assert block_of(Preactivated(False)).preactivation is None


def test_preactivation_is_of_the_branch_that_has_it() -> None:
    """A norm without activation in front of another branch is none, though it comes first."""
    bare = nn.Sequential(nn.BatchNorm2d(8), conv(8, 8))
    found = block_of(Branches(cat, bare, nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), conv(8, 4))), 12)
    assert found.preactivation is not None
    assert found.preactivation.act == "_1_paths_1_1"


def test_a_head_knows_what_binds_its_map() -> None:
    units = [unit(3, 8, 3, 2), unit(8, 8, 3, 2)]
    bound = analysed(*units, nn.Flatten(), nn.Linear(8 * 16 * 16, 5))
    assert bound.head.pooled_size == (16, 16)
    assert bound.head.pools == {bound.head.pooled_reader: (16, 16)}
    assert bound.view.operation(bound.head.pooled_reader) == "Flatten"
    assert analysed(*units, head(8)).head.pools == {}


@pytest.mark.parametrize(("word", "count"), [("resnet18", 1), ("test_mambaout", 2)])
def test_a_conversion_looks_at_its_graph_once(word: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second view is of the graph in which channels-last maps are shown as maps."""
    views: list[GraphView] = []
    built = GraphView.__init__

    def counted(view: GraphView, *arguments: Any) -> None:
        views.append(view)
        built(view, *arguments)

    monkeypatch.setattr(GraphView, "__init__", counted)
    analysis = bu2td.analyze(make(word))
    bu2td.convert(analysis, device="meta", max_macs_ratio=None)
    assert len(views) == count
    assert analysis.view is views[-1]


# --- levels inside one piece --------------------------------------------------------------------------


def test_branches_that_work_at_a_resolution_between_are_no_block() -> None:
    """Two branches that reduce eight times, each at its own pace: no trunk parts what they do on the way."""
    branches = Branches(
        add,
        nn.Sequential(unit(8, 8, 3, 2), unit(8, 8, 3, 2), unit(8, 8, 3, 2)),
        nn.Sequential(unit(8, 8, 3, 4), unit(8, 8, 3, 2)),
    )
    with pytest.raises(TopologyError, match="several resolutions at once"):
        analysed(unit(3, 8), Branches(add, nn.Identity(), main()), branches, head(8))


def test_paths_that_pass_a_resolution_without_layers_make_no_level() -> None:
    """A branch that pools twice before its one layer, beside one that strides at once, is one block."""
    pools = nn.Sequential(nn.MaxPool2d(2), nn.MaxPool2d(2), unit(8, 8))
    analysis = analysed(
        unit(3, 8), Branches(add, nn.Identity(), main()), Branches(add, pools, unit(8, 8, 3, 4)), head(8)
    )
    assert [level.reduction for level in analysis.bodies] == [4, 1]


def test_one_layer_beside_levels_is_set_aside() -> None:
    """A branch with a residual block at reduction 2, beside one layer that reads the entry, is cut into levels."""
    inside = nn.Sequential(unit(8, 8, 3, 2), Branches(add, nn.Identity(), main()), unit(8, 8, 3, 2))
    body = Branches(add, inside, unit(8, 8, 3, 4))
    analysis = analysed(unit(3, 8), Branches(add, nn.Identity(), main()), body, head(8))
    assert [level.reduction for level in analysis.bodies] == [4, 2, 1]


class Cells(nn.Module):
    """Every cell reads the two before it; two of them stride."""

    def __init__(self, strides: tuple[int, ...]) -> None:
        super().__init__()
        self.strides, self.stem, self.head = strides, unit(3, 8, 3, 2), head(8)
        self.a = nn.ModuleList(unit(8, 8, 3, s) for s in strides)
        self.b = nn.ModuleList(unit(8, 8, 3, s * (strides[i - 1] if i else 1)) for i, s in enumerate(strides))

    def forward(self, x: Tensor) -> Tensor:
        before = x = self.stem(x)
        for a, b in zip(self.a, self.b, strict=True):
            before, x = x, a(x) + b(before)
        return self.head(x)


@pytest.mark.parametrize("strides", [(1, 2, 1, 2, 1), (2, 1, 2, 1)])
def test_cells_that_read_two_back_are_levels(strides: tuple[int, ...]) -> None:
    """However little they reduce in all: here the trunk's one stretch goes from 1/2 to 1/8."""
    analysis = bu2td.analyze(Cells(strides), example_inputs=torch.zeros(1, 3, 64, 64))
    assert [level.reduction for level in analysis.bodies][:2] == [8, 4]
    assert analysis.aside
