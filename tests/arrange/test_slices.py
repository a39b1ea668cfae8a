"""Slices mean something: streams, halves, one channel that weighs the others."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bu2td
from tests.nets import Block, head, unit
from tests.working import works

ARRANGEMENTS = ["td", "uni", "rev"]


class Applied(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def net(function: Callable[[Tensor], Tensor], width: int = 16) -> nn.Module:
    return nn.Sequential(
        unit(3, 8, 3, 2), Block(8, width, 2), Applied(function), Block(width, 32, 2), Block(32, 32), head(32)
    )


def slices_of(network: Any) -> list[tuple[Any, ...]]:
    """The channel slices of a network, as they are written."""
    found = []
    for module in network.modules():
        for node in getattr(getattr(module, "graph", None), "nodes", ()):
            index = node.args[1] if getattr(node.target, "__name__", "") == "getitem" else None
            if isinstance(index, tuple) and isinstance(index[1], slice):
                found.append((index[1].start, index[1].stop))
    return found


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * torch.sigmoid(x[:, :1]),
        lambda x: x * torch.sigmoid(x[:, 3:4]),
        lambda x: x * torch.sigmoid(x[:, -1:]),
        lambda x: x + x[:, 2:3] * x[:, 5:6],
    ],
)
def test_a_slice_of_one_channel_stays_one(function: Callable[[Tensor], Tensor], arrangement: str) -> None:
    network = works(net(function), arrangement)
    assert {stop - start for start, stop in slices_of(network)} == {1}
    assert network.plan.relaxations == ()


class Halves(nn.Module):
    """Streams of unequal width, each through a convolution of its own."""

    def __init__(self, *borders: int) -> None:
        super().__init__()
        self.borders = list(pairwise(borders))
        self.convs = nn.ModuleList(nn.Conv2d(b - a, b - a, 3, padding=1) for a, b in self.borders)

    def forward(self, x: Tensor) -> Tensor:
        parts = [conv(x[:, a:b]) for conv, (a, b) in zip(self.convs, self.borders, strict=True)]
        return torch.cat(parts, 1)


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@pytest.mark.parametrize("borders", [(0, 8, 16), (0, 4, 16), (0, 4, 12, 16), (0, 1, 16), (0, 3, 4, 16)])
def test_streams_lie_side_by_side(borders: tuple[int, ...], arrangement: str) -> None:
    """No channel is read twice or by nobody, whatever the widths are."""
    model = nn.Sequential(
        unit(3, 8, 3, 2), Block(8, 16, 2), Halves(*borders), Block(16, 32, 2), Block(32, 32), head(32)
    )
    found = slices_of(works(model, arrangement))
    assert [stop for _, stop in found][:-1] == [start for start, _ in found][1:]
    assert found[0][0] == 0


class Depth(nn.Module):
    """Colours and depth, each with a convolution of its own."""

    def __init__(self, stride: int, joined: str) -> None:
        super().__init__()
        self.joined = joined
        self.rgb, self.depth = unit(3, 12, 3, stride), unit(1, 12 if joined == "add" else 4, 3, stride)

    def forward(self, x: Tensor) -> Tensor:
        rgb, depth = self.rgb(x[:, :3]), self.depth(x[:, 3:])
        return rgb + depth if self.joined == "add" else torch.cat([rgb, depth], 1)


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@pytest.mark.parametrize(("stride", "joined"), [(1, "cat"), (2, "cat"), (1, "add"), (2, "add")])
def test_streams_of_the_image_read_all_features(stride: int, joined: str, arrangement: str) -> None:
    width = 12 if joined == "add" else 16
    model = nn.Sequential(Depth(stride, joined), Block(width, 24, 2), Block(24, 32, 2), head(32))
    network = works(model, arrangement, channels=4)
    convs = {n: m for n, m in network.named_modules() if isinstance(m, nn.Conv2d) and ("rgb" in n or "depth" in n)}
    assert len({conv.in_channels for conv in convs.values()}) == 1
    assert slices_of(network) == []
    assert network.plan.relaxations == ()
    assert any("parts of the image" in note for note in network.plan.notes)


def test_a_glu_follows_the_width() -> None:
    network = works(nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.GLU(1), unit(16, 32, 3, 2), head(32)), "uni")
    assert network.plan.widths == (16, 16)
    bu2td.verify(network, full=True)
