"""Rows and columns that are added, taken away or moved: what windows needed goes, moves stay."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nets import Block, head, unit
from torch import Tensor, nn
from working import tried


class Reduced(nn.Module):
    """Halves a map by two strided 1x1 convolutions, one of which sees the pixels that the other leaves out."""

    def __init__(self, inputs: int, outputs: int, moved: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a = nn.Conv2d(inputs, outputs // 2, 1, 2)
        self.b = nn.Conv2d(inputs, outputs - outputs // 2, 1, 2)
        self.norm, self.moved = nn.BatchNorm2d(outputs), moved

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        return self.norm(torch.cat([self.a(x), self.b(self.moved(x))], 1))


class Cell(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, moved: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        same = nn.Sequential(nn.ReLU(), nn.Conv2d(inputs, outputs, 1), nn.BatchNorm2d(outputs))
        self.a = same if stride == 1 else Reduced(inputs, outputs, moved)
        depthwise = nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs)
        self.b = nn.Sequential(nn.ReLU(), depthwise, nn.Conv2d(inputs, outputs, 1), nn.BatchNorm2d(outputs))
        self.c = nn.Sequential(nn.ReLU(), nn.Conv2d(outputs, outputs, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return torch.cat([y + self.b(x), self.c(y)], 1)


PICKED: dict[str, Callable[[Tensor], Tensor]] = {
    "slice": lambda x: x[:, :, 1:, 1:],
    "padded": lambda x: F.pad(x, (0, 1, 0, 1))[:, :, 1:, 1:],
    "ellipsis": lambda x: F.pad(x, [0, 1, 0, 1])[..., 1:, 1:],
    "negative": lambda x: F.pad(x, (-1, 1, -1, 1)),
    "narrow": lambda x: F.pad(x, (0, 1, 0, 1)).narrow(2, 1, x.shape[2]).narrow(3, 1, x.shape[3]),
    "pool": lambda x: F.avg_pool2d(F.pad(x, (0, 1, 0, 1))[:, :, 1:, 1:], 1, 1),
}


@pytest.mark.parametrize("picked", PICKED)
def test_pixels_that_a_stride_picks_anew(picked: str) -> None:
    """Without a stride there is nothing to pick: convolutions read the map as it is."""

    def model() -> nn.Module:
        cells = [Cell(8, 8, 1, PICKED[picked]), Cell(16, 12, 2, PICKED[picked]), Cell(24, 16, 2, PICKED[picked])]
        return nn.Sequential(unit(3, 8), *cells, head(32))

    networks = tried(model)
    assert [n.plan.widths for n in networks] == [(32, 24, 16), (24, 24, 24), (16, 24, 32)]
    for network in networks:
        code = "".join(level.code for level in network.children() if hasattr(level, "code"))
        assert "slice(1" not in code
        assert "functional_pad" not in code


class Moved(nn.Module):
    """A 1x1 convolution over a map that was moved."""

    def __init__(self, width: int, move: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.move = nn.Conv2d(width, width, 1), move

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(self.move(x))


def _four_ways(x: Tensor) -> Tensor:
    g = x.shape[1] // 4
    down, up = F.pad(x[:, :g, 1:], (0, 0, 0, 1)), F.pad(x[:, g : 2 * g, :-1], (0, 0, 1, 0))
    right, left = F.pad(x[:, 2 * g : 3 * g, :, 1:], (0, 1)), F.pad(x[:, 3 * g :, :, :-1], (1, 0))
    return torch.cat([down, up, right, left], 1)


MOVES: dict[str, Callable[[Tensor], Tensor]] = {
    "diagonal": lambda x: F.pad(x[:, :, :-1, :-1], (1, 0, 1, 0)),
    "border": lambda x: F.pad(x[:, :, 1:-1, 1:-1], (1, 1, 1, 1)),
    "difference": lambda x: F.pad(x[..., 1:] - x[..., :-1], (0, 1)),
    "four ways": _four_ways,
    "joined": lambda x: torch.cat([x[:, :, -1:], x[:, :, :-1]], 2),
    "negative": lambda x: F.pad(x, (-1, 1, 0, 0)),
    "roll": lambda x: torch.roll(x, (1, 1), (2, 3)),
}


@pytest.mark.parametrize("move", MOVES)
def test_moves_stay(move: str) -> None:
    """A level's features depend on the move: it is not lost on the way."""

    def model() -> nn.Module:
        return nn.Sequential(
            unit(3, 8), Block(8, 16, 2), Moved(16, MOVES[move]), Block(16, 24, 2), Moved(24, MOVES[move]), head(24)
        )

    for network in tried(model):
        assert network.plan.relaxations == ()
        assert not any("without a converter" in note for note in network.plan.notes)
        code = "".join(level.code for level in network.children() if hasattr(level, "code"))
        assert any(word in code for word in ("slice(1", "slice(None, -1", "_pad", "roll"))


class Valid(nn.Module):
    """A convolution that shaves the map, with what it leaves of the map for a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x) + x[:, :, 1:-1, 1:-1])


class Shaved(nn.Module):
    """A convolution that pads too much, and a crop."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x)[:, :, 1:-1, 1:-1])


@pytest.mark.parametrize("kind", [Valid, Shaved])
def test_crops_that_make_up_for_windows_go(kind: Any) -> None:
    for network in tried(
        lambda: nn.Sequential(unit(3, 8), Block(8, 16, 2), kind(16), Block(16, 24, 2), kind(24), head(24))
    ):
        assert "slice" not in "".join(level.code for level in network.children() if hasattr(level, "code"))


class Halved(nn.Module):
    """Half of the channels and every other pixel, in one index."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.a, self.b = unit(inputs, outputs, 3, 2), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.c = nn.Conv2d(inputs // 2, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.b(self.a(x)) + self.c(x[:, : x.shape[1] // 2, ::2, ::2]))


def test_channels_and_pixels_in_one_index() -> None:
    for network in tried(lambda: nn.Sequential(unit(3, 8), Block(8, 8), Halved(8, 16), Halved(16, 24), head(24))):
        assert network.plan.relaxations == ()
