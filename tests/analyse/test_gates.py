"""Paths without layers compute value by value: they belong to the convolution in front, as activations do."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.nets import Block, head, unit
from tests.working import shape_of, works


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    a, b = x.chunk(2, 1)
    return a, b


def by_slices(x: Tensor, half: int) -> Tensor:
    return torch.maximum(x[:, :half], x[:, half:])


def of_pairs(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, c // 2, 2, h, w).max(2)[0]


#: How many channels a convolution makes for each that is left, and what becomes of them.
GATES: dict[str, tuple[float, Callable[..., Tensor]]] = {
    "maxout": (2, lambda x: torch.max(*halves(x))),
    "slices": (2, by_slices),
    "pairs": (2, of_pairs),
    "glu": (2, lambda x: F.glu(x, 1)),
    "sigmoid": (2, lambda x: halves(x)[0] * torch.sigmoid(halves(x)[1])),
    "tanh": (2, lambda x: torch.tanh(halves(x)[0]) * torch.sigmoid(halves(x)[1])),
    "product": (2, lambda x: halves(x)[0] * halves(x)[1]),
    "both signs": (0.5, lambda x: F.relu(torch.cat([x, -x], 1))),
    "self": (1, lambda x: x * torch.tanh(F.softplus(x) + 1)),
}


class Gated(nn.Module):
    def __init__(self, gate: str, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        share, self.gate = GATES[gate]
        self.conv = nn.Conv2d(inputs, int(share * outputs), 3, stride, 1)
        self.norm = nn.BatchNorm2d(self.conv.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return self.gate(x, self.conv.out_channels // 2) if self.gate is by_slices else self.gate(x)


@pytest.mark.parametrize("arrangement", ["td", "uni", "rev"])
@pytest.mark.parametrize("gate", GATES)
def test_a_gate_belongs_to_its_convolution(gate: str, arrangement: str) -> None:
    """A network of gated convolutions is a plain one: no level without weights, no stem."""
    model = nn.Sequential(Gated(gate, 3, 16), Gated(gate, 16, 24, 2), Gated(gate, 24, 32, 2), head(32))
    network = works(model, arrangement)
    widths = {"td": (32, 24, 16), "uni": (24, 24, 24), "rev": (16, 24, 32)}[arrangement]
    assert shape_of(network) == {r: (w, w, 1) for r, w in zip((4, 2, 1), widths, strict=True)}
    assert network.plan.relaxations == ()


@pytest.mark.parametrize("gate", ["maxout", "glu"])
def test_so_it_does_among_residual_blocks(gate: str) -> None:
    """A stem of gated convolutions is a stem."""
    model = nn.Sequential(
        Gated(gate, 3, 8, 2), Block(8, 8), Gated(gate, 8, 16, 2), Block(16, 16), Block(16, 32, 2), head(32)
    )
    assert shape_of(works(model)) == {8: (32, 32, 1), 4: (16, 16, 2), 2: (8, 8, 1), 1: (8, 8, 0)}


def test_a_gate_lends_no_activation() -> None:
    """The sigmoid of a gate is none of the network's activations: laterals go without."""
    network = works(
        nn.Sequential(Gated("sigmoid", 3, 16), Gated("sigmoid", 16, 24, 2), unit(24, 32, 3, 2), head(32))
    )
    assert [level.merge.act for level in network.plan.levels[1:]] == [None, None]


class Mask(nn.Module):
    """One channel weighs the others."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs + 1, 3, stride, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return F.relu(x[:, 1:]) * torch.sigmoid(x[:, :1])


@pytest.mark.parametrize("arrangement", ["td", "uni", "rev"])
def test_a_mask_belongs_to_its_convolution(arrangement: str) -> None:
    model = nn.Sequential(Mask(3, 16), Mask(16, 24, 2), Mask(24, 48, 2), head(48))
    widths = {"td": (48, 24, 16), "uni": (24, 24, 24), "rev": (16, 24, 48)}[arrangement]
    network = works(model, arrangement)
    assert network.plan.widths == widths
    found = [
        m.out_channels for n, m in network.named_modules() if n.endswith("conv") and ".conv" in n and n[0] == "r"
    ]
    assert {w + 1 for w in widths} <= set(found)


class Beside(nn.Module):
    """Coordinates in the middle of a network."""

    def forward(self, x: Tensor) -> Tensor:
        one = torch.zeros_like(x[:, :1]) + 1
        return torch.cat([x, one], 1)


def test_what_is_put_beside_features_belongs_to_the_next_block() -> None:
    model = nn.Sequential(unit(3, 8), unit(8, 16, 3, 2), Beside(), unit(17, 24, 3, 2), head(24))
    assert shape_of(works(model)) == {4: (24, 24, 1), 2: (16, 16, 1), 1: (8, 8, 1)}
