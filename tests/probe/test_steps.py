"""Probe: strides of odd factors, heads that bind the size of their map, and networks that run at one size only."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bu2td.capture import capture
from bu2td.errors import NoReductionError, TopologyError
from bu2td.graph import shapes_of
from bu2td.ir.bottom_up import Capture
from bu2td.probe import pooled_maps, probe


def captured(model: nn.Module, side: int) -> Capture:
    return capture(model, torch.zeros(2, 3, side, side))


def strides(model: nn.Module, side: int) -> list[Any]:
    dims = probe(captured(model, side))
    return [value[2].stride for value in dims.values() if value and len(value) == 4]


def test_strides_of_other_factors_are_measured_with_a_larger_step() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 7, 7), nn.Conv2d(4, 4, 7, 7), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert strides(net, 98)[:3] == [1, 7, 49]


def test_a_prime_of_no_step_leaves_what_the_first_step_showed() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 11, 11), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    image, conv = strides(net, 33)[:2]
    assert image == 1
    assert conv.denominator > 1
    assert round(conv) == 11


@pytest.mark.parametrize(
    ("layers", "bound"),
    [
        ((nn.Flatten(), nn.Linear(4 * 8 * 8, 5)), {"_2": (8, 8)}),
        ((nn.AvgPool2d(8), nn.Flatten()), {"_2": (8, 8), "_3": (1, 1)}),
        ((nn.Conv2d(4, 5, 8), nn.Flatten()), {"_2": (8, 8), "_3": (1, 1)}),
        ((nn.Conv2d(4, 5, 8, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten()), {"_4": (1, 1)}),
        ((nn.AvgPool2d(8), nn.Conv2d(4, 5, 1), nn.Flatten()), {"_2": (8, 8), "_4": (1, 1)}),
    ],
)
def test_heads_that_bind_the_size_of_their_map(layers: tuple[nn.Module, ...], bound: dict[str, Any]) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), *layers)
    graph = captured(net, 16).graph_module
    pooled = pooled_maps(graph, shapes_of(graph, (2, 3, 16, 16)))
    assert pooled == bound
    assert shapes_of(graph, (2, 3, 40, 56), pooled)["output"] == shapes_of(graph, (2, 3, 16, 16))["output"]


def test_a_network_that_runs_at_its_own_size_only_names_what_binds_it() -> None:
    class Placed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 5, 3, 2, 1)
            self.places = nn.Parameter(torch.zeros(4, 16, 16))

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x) + self.places).mean((2, 3))

    with pytest.raises(TopologyError, match=r"only at its own image size 32x32[\s\S]*in add .*test_steps\.py:\d+"):
        probe(captured(Placed(), 32))


def test_a_network_of_one_resolution_is_told_that_first() -> None:
    """A convolution of pooled values makes no second one."""

    class Placed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 4, 4), nn.Conv2d(4, 5, 3, padding=1)
            self.places, self.fc = nn.Parameter(torch.zeros(4, 8, 8)), nn.Conv2d(5, 6, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.b(self.a(x) + self.places).mean((2, 3), keepdim=True)).flatten(1)

    with pytest.raises(NoReductionError, match=r"one resolution only \(8x8 for an image of 32x32\)"):
        probe(captured(Placed(), 32))


def test_dimensions_cannot_be_changed() -> None:
    dims: Any = probe(captured(nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()), 16))
    with pytest.raises(TypeError):
        dims["x"] = None
