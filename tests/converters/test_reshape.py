"""Views, and broadcasting that is written out: their literals follow the widths."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nets import Block, head, unit
from torch import Tensor, nn
from working import tried


class Gate(nn.Module):
    """Multiplies a map by one channel, which is spread over all of them."""

    def __init__(self, width: int, spread: Callable[[Tensor, Tensor], Tensor], pooled: bool = False) -> None:
        super().__init__()
        self.conv, self.spread, self.pooled = nn.Conv2d(width, 1, 1), spread, pooled

    def forward(self, x: Tensor) -> Tensor:
        y = x.mean((2, 3), keepdim=True) if self.pooled else x
        return x * self.spread(torch.sigmoid(self.conv(y)), x)


SPREADS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "expand_as": lambda gate, x: gate.expand_as(x),
    "size": lambda gate, x: gate.expand(x.size()),
    "shape": lambda gate, x: gate.broadcast_to(x.shape),
    "one size": lambda gate, x: gate.expand(-1, x.shape[1], -1, -1),
    "sizes": lambda gate, x: gate.expand(x.size(0), x.size(1), x.size(2), x.size(3)),
    "repeat": lambda gate, x: gate.repeat(1, x.size(1), 1, 1),
    "function": lambda gate, x: torch.tile(gate, (1, x.size(1), 1, 1)),
}


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("spread", SPREADS)
def test_a_gate_of_one_channel_stays_one_channel(spread: str, pooled: bool) -> None:
    if pooled and spread in ("one size", "repeat", "function"):
        pytest.skip("spreads over the channels alone")

    def model() -> nn.Module:
        gates = (nn.Sequential(unit(w, w), Gate(w, SPREADS[spread], pooled)) for w in (8, 16, 24))
        return nn.Sequential(
            unit(3, 8), next(gates), Block(8, 16, 2), next(gates), Block(16, 24, 2), next(gates), head(24)
        )

    for network in tried(model):
        assert network.plan.relaxations == ()
        assert not any("without a converter" in note for note in network.plan.notes)
        gates = [p.shape[0] for n, p in network.named_parameters() if n.endswith(".1.conv.weight")]
        assert gates in ([1, 1], [1, 1, 1])


class Literal(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.width = nn.Conv2d(width, 1, 1), width

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.conv(x)).expand(-1, self.width, -1, -1)


def test_a_written_number_of_channels_follows() -> None:
    networks = tried(
        lambda: nn.Sequential(unit(3, 8), Block(8, 16, 2), Literal(16), Block(16, 24, 2), Literal(24), head(24))
    )
    assert [n.plan.widths for n in networks] == [(24, 16, 8), (16, 16, 8), (16, 24, 8)]
    assert all(n.plan.relaxations == () for n in networks)


class Repeated(nn.Module):
    """A residual block whose shortcut repeats the channels."""

    def __init__(self, inputs: int, times: int, interleaved: bool) -> None:
        super().__init__()
        self.a, self.b = unit(inputs, inputs * times, 3, 2), nn.Conv2d(inputs * times, inputs * times, 3, padding=1)
        self.pool, self.times, self.interleaved = nn.AvgPool2d(2), times, interleaved

    def forward(self, x: Tensor) -> Tensor:
        y = self.pool(x)
        y = y.repeat_interleave(self.times, dim=1) if self.interleaved else y.repeat(1, self.times, 1, 1)
        return F.relu(self.b(self.a(x)) + y)


@pytest.mark.parametrize("interleaved", [False, True])
def test_repeated_channels_are_a_multiple(interleaved: bool) -> None:
    for network in tried(
        lambda: nn.Sequential(unit(3, 8), Repeated(8, 2, interleaved), Repeated(16, 3, interleaved), head(48))
    ):
        assert not any("without a converter" in note for note in network.plan.notes)


class Shuffled(nn.Module):
    """A residual block that shuffles its sum, with a shortcut that top-down widths make a projection."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.a, self.b = unit(inputs, outputs, 3, stride), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut: Any = nn.MaxPool2d(1, stride) if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.a(x)) + self.shortcut(x)
        n, c, h, w = y.shape
        return F.relu(y.view(n, 4, c // 4, h, w).transpose(1, 2).reshape(n, c, h, w))


@pytest.mark.parametrize("widths", [(16, 16, 64, 64), (64, 64, 16, 16), (8, 8, 8, 48)])
def test_a_view_behind_a_shortcut_that_is_built(widths: tuple[int, ...]) -> None:
    def model() -> nn.Module:
        ends = zip((8, *widths), widths, (1, 2, 1, 2), strict=False)
        return nn.Sequential(unit(3, 8), *(Shuffled(i, o, s) for i, o, s in ends), head(widths[-1]))

    for network in tried(model):
        assert network.plan.relaxations == ()


EMPTY: dict[str, Callable[[Tensor], Tensor]] = {
    "slice": lambda x: x[:, :0],
    "view": lambda x: x[:, :0].reshape(x.shape[0], 0, x.shape[2], x.shape[3]),
    "views": lambda x: x[:, :0].reshape(x.shape[0], 0, 4, x.shape[2], x.shape[3]).flatten(1, 2),
    "behind": lambda x: x[:, x.shape[1] :],
}


@pytest.mark.parametrize("empty", EMPTY)
def test_parts_of_no_channels(empty: str) -> None:
    class Joined(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.conv = nn.Conv2d(width, width, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(torch.cat([x, EMPTY[empty](x)], 1))

    tried(lambda: nn.Sequential(unit(3, 8), Block(8, 16, 2), Joined(16), Block(16, 24, 2), Joined(24), head(24)))


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_a_hidden_layer_of_no_width() -> None:
    """Squeeze and excitation that divides 8 channels by 16."""

    class Squeeze(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(width, width // 16), nn.Linear(width // 16, width)

        def forward(self, x: Tensor) -> Tensor:
            n, c = x.shape[:2]
            return x * torch.sigmoid(self.b(F.relu(self.a(F.adaptive_avg_pool2d(x, 1).view(n, c))))).view(
                n, c, 1, 1
            )

    tried(lambda: nn.Sequential(unit(3, 8), Block(8, 8), Squeeze(8), Block(8, 16, 2), Squeeze(16), head(16)))
