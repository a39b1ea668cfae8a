"""Windows that hold a whole map are the head's, also where they are larger than the map."""

from collections.abc import Callable

import pytest
import torch.nn.functional as F
from nets import Block, unit
from torch import Tensor, nn
from working import tried


class Large(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 100, ceil_mode=True)


POOLS: dict[str, Callable[[], nn.Module]] = {
    "exact": lambda: nn.AvgPool2d(8),
    "larger": lambda: nn.AvgPool2d(1280, ceil_mode=True),
    "maximum": lambda: nn.MaxPool2d(640, ceil_mode=True),
    "power": lambda: nn.LPPool2d(2, 1000, ceil_mode=True),
    "function": Large,
    "oblong": lambda: nn.AvgPool2d((8, 100), ceil_mode=True),
}


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("pool", POOLS)
def test_a_window_over_the_whole_map(pool: str, behind: bool) -> None:
    def model() -> nn.Module:
        convs = [nn.Conv2d(24, 32, 1), nn.ReLU()] if behind else []
        tail = [*convs, nn.Flatten(), nn.Linear(32 if behind else 24, 10)]
        return nn.Sequential(unit(3, 8), Block(8, 16, 2), Block(16, 24, 2), POOLS[pool](), *tail)

    kind = "AvgPool2d" if pool == "function" else type(POOLS[pool]()).__name__
    for network in tried(model):
        assert network.plan.ladder == (4, 2, 1)
        assert network.plan.notes == ()
        assert [type(m).__name__ for m in network.head.modules()].count(kind) == 1
