"""Widths: levels that have no common one without help get a transition or a share, not a relaxation."""

import pytest
import torch
import torch.nn.functional as F
from converted import of_timm
from nets import head, unit
from torch import Tensor, nn

import bu2td

timm = pytest.importorskip("timm")


@pytest.mark.parametrize("name", ["dpn48b", "rexnet_100"])
def test_blocks_that_grow_share_the_common_width(name: str) -> None:
    """In uni a block that adds to its input's channels is fed its bottom-up share of what it makes."""
    plan = of_timm(name, "uni").plan
    bodies = [level for level in plan.levels if level.body]
    assert plan.relaxations == ()
    assert len({level.width for level in bodies}) == 1


@pytest.mark.parametrize(("name", "reduction"), [("hgnet_tiny", 16), ("poolformer_s12", 4)])
def test_a_first_block_that_cannot_change_a_width_gets_a_transition(name: str, reduction: int) -> None:
    """A depthwise downsampler, or a pooling mixer, is as wide behind as before: that is no relaxation."""
    network = of_timm(name)
    assert network.plan.relaxations == ()
    [level] = [level for level in network.plan.levels if level.reduction == reduction]
    assert level.transition is not None
    assert level.transition.in_channels == level.entry_width


class Mixing(nn.Module):
    """A residual block without convolution whose main path reads its own normalised entry twice."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.gamma = nn.GroupNorm(1, width), nn.Parameter(torch.ones(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return x + self.gamma * (F.avg_pool2d(y, 3, 1, 1) - y)


def test_transition_where_a_first_block_cannot_change_its_width() -> None:
    model = nn.Sequential(
        unit(3, 8), Mixing(8), Mixing(8), unit(8, 16, 3, 2), Mixing(16), unit(16, 24, 3, 2), Mixing(24), head(24)
    )
    network = bu2td.convert(model, example_inputs=torch.zeros(1, 3, 32, 32), seed=0, max_macs_ratio=None)
    assert network.plan.relaxations == ()
    assert network.get_submodule("r1_transition.conv").in_channels == 16
    network(torch.rand(2, 3, 30, 30)).square().sum().backward()
    assert all(p.grad is not None for p in network.parameters())
