"""Norms without statistics: over whole maps, at one image size, and over channels."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bu2td
from bu2td import erf
from bu2td.errors import ImageSizeError


@pytest.mark.parametrize("arrangement", ["td", "uni", "rev"])
@pytest.mark.parametrize("affine", [True, False])
def test_a_norm_over_whole_maps_binds_the_size(arrangement: str, affine: bool) -> None:
    def norm(*shape: int) -> nn.Module:
        return nn.LayerNorm(shape, elementwise_affine=affine)

    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, 1, 1), norm(8, 32, 32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 16, 3, 1, 1), norm(16, 16, 16), nn.ReLU()),
        *(nn.Conv2d(16, 24, 3, 2, 1), norm(24, 8, 8), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5)),
    )
    td = bu2td.convert(model, arrangement, example_inputs=torch.zeros(1, 3, 32, 32), seed=0, max_macs_ratio=None)
    td(torch.rand(2, 3, 32, 32)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in td.parameters())
    if affine:
        assert "works at images of 32x32 only" in td.plan.notes[0]
        with pytest.raises(ImageSizeError):
            td(torch.rand(2, 3, 40, 32))


def test_a_response_norm_looks_at_channels_of_one_position() -> None:
    """As in AlexNet, between convolutions: no field grows, and nothing is a gate."""
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 5, padding=2), nn.LocalResponseNorm(3), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5)),
    )
    found = erf.theory(model, example_inputs=torch.zeros(1, 3, 32, 32), layers=["0", "1", "3"]).rows
    assert [(row["size"], row["gated"]) for row in found] == [((5, 5), False), ((5, 5), False), ((10, 10), False)]


class _Shares(nn.Module):
    """Features by what they are a share of: the channels of their position, or the rows of the map."""

    def __init__(self, share: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.share = nn.Conv2d(3, 8, 5, padding=2), share
        self.down = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.down(self.share(self.conv(x))).mean((2, 3)))


@pytest.mark.parametrize(
    ("share", "gated"),
    [
        (lambda x: F.softmax(x, 1), False),
        (lambda x: F.softmax(x, dim=1), False),
        (lambda x: x.softmax(1), False),
        (lambda x: F.log_softmax(x, 2), True),
        (lambda x: F.normalize(x), False),
        (lambda x: F.normalize(x, 2.0, 3), True),
    ],
)
def test_shares_of_channels_are_of_one_position(share: Any, gated: bool) -> None:
    """Over channels no field grows; over rows everything sees everything."""
    found = erf.theory(_Shares(share), example_inputs=torch.zeros(1, 3, 32, 32), layers=["conv", "down"]).rows
    assert [row["gated"] for row in found] == [False, gated]
    assert found[0]["size"] == (5, 5)
