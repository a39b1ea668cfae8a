"""Paths beside several levels: light ones are set aside and the levels cut, heavy ones are refused."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bu2td
from bu2td.errors import TopologyError
from tests.nets import Block, head, unit
from tests.working import shape_of, works

ARRANGEMENTS = ["td", "uni", "rev"]


class Over(nn.Module):
    """A stem, a path over stages, what it is joined to, and what follows."""

    def __init__(
        self, path: nn.Module, beside: nn.Module, meet: Callable[[Tensor, Tensor], Tensor], last: nn.Module
    ):
        super().__init__()
        self.stem, self.path, self.beside, self.meet, self.last = unit(3, 8), path, beside, meet, last

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.last(self.meet(self.path(x), self.beside(x)))


def add(a: Tensor, b: Tensor) -> Tensor:
    return F.relu(a + b)


def cat(a: Tensor, b: Tensor) -> Tensor:
    return torch.cat([a, b], 1)


def stages(count: int, plain: bool = False) -> nn.Sequential:
    """Three stages at reductions 1, 2 and 4, of so many blocks each."""
    block = (lambda i, o, s=1: unit(i, o, 3, s)) if plain else Block
    parts: list[nn.Module] = []
    for inputs, outputs, stride in ((8, 8, 1), (8, 16, 2), (16, 32, 2)):
        parts += [block(inputs, outputs, stride), *(block(outputs, outputs) for _ in range(count - 1))]
    return nn.Sequential(*parts)


#: The path beside, and where it meets the stages.
BESIDE: dict[str, tuple[Callable[[], nn.Module], Callable[[Tensor, Tensor], Tensor], int]] = {
    "projection": (lambda: nn.Conv2d(8, 32, 1, 4), add, 32),
    "normed": (lambda: nn.Sequential(nn.AvgPool2d(4), nn.Conv2d(8, 32, 1), nn.BatchNorm2d(32)), add, 32),
    "patches": (lambda: nn.Conv2d(8, 32, 4, 4), add, 32),
    "pooled": (lambda: nn.MaxPool2d(4), cat, 40),
    "resized": (lambda: nn.Upsample(scale_factor=0.25, mode="bilinear"), cat, 40),
}


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@pytest.mark.parametrize("name", BESIDE)
def test_a_shortcut_over_stages_ends_no_level(name: str, arrangement: str) -> None:
    beside, meet, width = BESIDE[name]
    last = nn.Sequential(unit(width, 32), head(32))
    network = works(Over(stages(2), beside(), meet, last), arrangement)
    assert network.plan.ladder == (4, 2, 1)
    blocks = [len(level.blocks) for level in network.plan.levels]
    assert blocks == ([2, 2, 4] if arrangement == "rev" else [4, 2, 2])
    assert any("over several levels" in note for note in network.plan.notes)


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_topology_is_cut_at_every_size(count: int, plain: bool) -> None:
    """Neither refused nor swallowed, however many blocks a stage has, of one layer or of several."""
    model = Over(stages(count, plain), nn.Conv2d(8, 32, 1, 4), add, head(32))
    network = works(model)
    assert network.plan.ladder == (4, 2, 1)
    assert network.plan.widths == (32, 16, 8)
    assert all(level.blocks for level in network.plan.levels)


@pytest.mark.parametrize("count", [1, 2])
def test_a_shortcut_over_two_stages(count: int) -> None:
    """Residual blocks of two resolutions under one shortcut are two levels."""
    path = nn.Sequential(*(Block(8, 8) for _ in range(count)), Block(8, 16, 2))
    model = Over(path, nn.Conv2d(8, 16, 1, 2), add, nn.Sequential(Block(16, 32, 2), head(32)))
    assert {r: n for r, (_, _, n) in shape_of(works(model)).items()} == {4: 1, 2: 1, 1: count}


class Nested(nn.Module):
    """A ResNet of ResNets: shortcuts over stages, over two of them, and over all."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a = unit(3, 8), nn.Sequential(Block(8, 8), Block(8, 16, 2), Block(16, 32, 2))
        self.b = nn.Sequential(Block(32, 32), Block(32, 48, 2), Block(48, 48))
        self.over_a, self.over_b = nn.Conv2d(8, 32, 1, 4), nn.Conv2d(32, 48, 1, 2)
        self.over_all, self.head = nn.Conv2d(8, 48, 1, 8), head(48)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.a(x) + self.over_a(x)
        return self.head(self.b(y) + self.over_b(y) + self.over_all(x))


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_shortcuts_within_shortcuts(arrangement: str) -> None:
    network = works(Nested(), arrangement)
    assert network.plan.ladder == (8, 4, 2, 1)
    assert sum(len(level.blocks) for level in network.plan.levels) == 8


class Fed(nn.Module):
    """The image comes in again at every stage."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, more = how, 0 if how in ("add", "gate") else 3
        self.a, self.b, self.c = unit(3, 8), unit(8, 16, 3, 2), unit(16 + more, 32, 3, 2)
        self.d, self.head = unit(32 + more, 32), head(32)
        if not more:
            self.one, self.two = nn.Conv2d(3, 16, 1), nn.Conv2d(3, 32, 1)

    def again(self, y: Tensor, image: Tensor, layer: str) -> Tensor:
        if self.how in ("cat", "resized"):
            return torch.cat([image, y], 1)
        image = self.get_submodule(layer)(image)
        return y + image if self.how == "add" else y * torch.sigmoid(image)

    def forward(self, x: Tensor) -> Tensor:
        half = F.interpolate(x, scale_factor=0.5) if self.how == "resized" else F.avg_pool2d(x, 2)
        y = self.c(self.again(self.b(self.a(x)), half, "one"))
        return self.head(self.d(self.again(y, F.avg_pool2d(half, 2), "two")))


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@pytest.mark.parametrize("how", ["cat", "add", "gate", "resized"])
def test_an_image_that_is_fed_in_again_comes_in_by_laterals(how: str, arrangement: str) -> None:
    network = works(Fed(how), arrangement)
    assert network.plan.ladder == (4, 2, 1)
    assert [len(level.blocks) for level in network.plan.levels] == (
        [1, 1, 2] if arrangement == "rev" else [2, 1, 1]
    )
    if arrangement == "td":
        assert network.plan.widths == (32, 16, 8)
    assert any("laterals" in note for note in network.plan.notes)
    assert not [name for name, _ in network.named_parameters() if ".one." in name or ".two." in name]


def test_a_residual_block_on_the_image_keeps_its_shortcut() -> None:
    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = unit(3, 16, 1), nn.Conv2d(16, 16, 3, 2, 1)
            self.shortcut = nn.Conv2d(3, 16, 1, 2)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.b(self.a(x)) + self.shortcut(x))

    network = works(nn.Sequential(First(), Block(16, 32, 2), head(32)))
    assert any(name.startswith("r2") and ".shortcut." in name for name, _ in network.named_parameters())


class Streams(nn.Module):
    def __init__(self, joined: bool) -> None:
        super().__init__()
        stream = unit if not joined else Block
        self.a = nn.Sequential(
            unit(3, 8), *(stream(i, 2 * i, *((3, 2) if stream is unit else (2,))) for i in (8, 16))
        )
        self.b = nn.Sequential(unit(3, 8), unit(8, 16, 5, 2), unit(16, 32, 5, 2))
        self.head = head(64)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.a(x), self.b(x)], 1))


@pytest.mark.parametrize("joined", [False, True])
def test_a_second_stream_is_refused(joined: bool) -> None:
    """Whether its blocks have joins of their own or not; the message says where the streams part and meet."""
    with pytest.raises(
        TopologyError, match=r"several resolutions at once.* part behind x.*a.0.0.*b.0.0.*meet.* cat"
    ):
        bu2td.convert(Streams(joined), example_inputs=torch.zeros(1, 3, 32, 32), device="meta")


def test_a_shortcut_without_a_layer_is_refused() -> None:
    """What would make it as wide as the level in which it ends is not there."""
    model = Over(stages(1), nn.AvgPool2d(4), lambda a, b: a + torch.cat([b] * 4, 1), head(32))
    with pytest.raises(TopologyError, match="several resolutions at once"):
        bu2td.convert(model, example_inputs=torch.zeros(1, 3, 32, 32), device="meta")
