"""Poolings of stride 1, which keep the size however they do it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch.nn.functional as F
from converted import of_timm
from nets import Block, head, unit
from torch import Tensor, nn
from working import tried


@pytest.mark.parametrize("stride", [8, 16])
@pytest.mark.parametrize("name", ["resnet50d", "resnest14d", "resnetv2_18d", "nfnet_l0", "test_resnet"])
def test_dilated_stages_of_timm(name: str, stride: int) -> None:
    """What pools in front of a projection pools at stride 1 there, and pads itself."""
    found = of_timm(name, output_stride=stride).plan
    assert found.ladder[0] == stride
    assert found.relaxations == ()


class Pooled(nn.Module):
    """A residual block with a pooled projection, as dilated as need be."""

    def __init__(self, inputs: int, outputs: int, pool: nn.Module, stride: int = 1) -> None:
        super().__init__()
        d = 1 if stride > 1 else 2
        self.a = nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, d, d), nn.BatchNorm2d(outputs), nn.ReLU())
        self.b = nn.Conv2d(outputs, outputs, 3, padding=d, dilation=d)
        self.shortcut = nn.Sequential(pool, nn.Conv2d(inputs, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.b(self.a(x)) + self.shortcut(x))


class Same(nn.AvgPool2d):
    """Pads to the right and below, so that it keeps the size at stride 1."""

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(F.pad(x, (0, 1, 0, 1)), 2, self.stride, 0, self.ceil_mode)


class Cropped(nn.Module):
    """Pads on all sides, and drops what is too much."""

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 2, 1, 1)[:, :, :-1, :-1]


POOLS: dict[str, Callable[[], nn.Module]] = {
    "padded": lambda: nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.AvgPool2d(2, 1)),
    "mirrored": lambda: nn.Sequential(nn.ReflectionPad2d((0, 1, 0, 1)), nn.MaxPool2d(2, 1)),
    "class": lambda: Same(2, 1),
    "odd": lambda: nn.AvgPool2d(3, 1, 1, ceil_mode=True, count_include_pad=False),
    "cropped": Cropped,
}


@pytest.mark.parametrize("pool", POOLS)
def test_pools_that_do_not_reduce(pool: str) -> None:
    def model() -> nn.Module:
        first = Pooled(8, 16, nn.AvgPool2d(2, 2, ceil_mode=True), 2)
        return nn.Sequential(unit(3, 8), Block(8, 8), first, Pooled(16, 24, POOLS[pool]()), head(24))

    networks = tried(model)
    assert [n.plan.widths for n in networks] == [(24, 8), (8, 8), (8, 24)]
    blocks: Any = [[len(level.blocks) for level in n.plan.levels] for n in networks]
    assert blocks == [[2, 1], [2, 1], [1, 2]]
