"""Windows beside a level's own map, where `rev` moves them to a map that is smaller than they are."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from nets import Block, head, unit
from torch import Tensor, nn
from working import tried

import bu2td
from bu2td.errors import ImageSizeError


class Aside(nn.Module):
    """Looks at a coarser map and comes back."""

    def __init__(self, width: int, window: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.window, self.conv = window(width), nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(F.interpolate(self.conv(self.window(x)), size=x.shape[2:]))


WINDOWS: dict[str, Callable[[int], nn.Module]] = {
    "convolution": lambda w: nn.Conv2d(w, w, 7, 4, groups=w),
    "patches": lambda w: nn.Conv2d(w, w, 8, 8),
    "dilated": lambda w: nn.Conv2d(w, w, 3, 2, dilation=3),
    "average": lambda w: nn.AvgPool2d(8),
    "maximum": lambda w: nn.MaxPool2d(7, 4),
    "padded": lambda w: nn.MaxPool2d(9, 4, 1),
    "two": lambda w: nn.Sequential(nn.Conv2d(w, w, 3, 2), nn.MaxPool2d(7, 3)),
}


@pytest.mark.parametrize("window", WINDOWS)
def test_windows_are_no_larger_than_their_map(window: str) -> None:
    def model() -> nn.Module:
        blocks = [Block(8, 16, 2), Block(16, 24, 2), Block(24, 32, 2)]
        return nn.Sequential(unit(3, 8), Aside(8, WINDOWS[window]), *blocks, head(32))

    td, _, rev = tried(model)
    assert td.plan.ladder == rev.plan.ladder == (8, 4, 2, 1)
    assert rev.plan.relaxations == ()


class Pooled(nn.Module):
    """Joins a strided convolution and a pool that only meet at even sizes."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv2d(inputs, outputs - inputs, 3, 2, 1), nn.MaxPool2d(2)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(torch.cat([self.conv(x), self.pool(x)], 1)))


class Scaled(nn.Module):
    """Comes back from a coarser map by a factor, which fits where the factor divides the map."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(F.interpolate(self.conv(F.max_pool2d(x, 4)), scale_factor=4))


class Patched(nn.Module):
    """Mixes the pixels of patches of two by two."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        y = x.view(n, c, h // 2, 2, w // 2, 2).permute(0, 1, 2, 4, 3, 5).reshape(n, c, h // 2, w // 2, 4)
        return self.mix(y).reshape(n, c, h // 2, w // 2, 2, 2).permute(0, 1, 2, 4, 3, 5).reshape(n, c, h, w) + x


HEADS: dict[str, Callable[[], list[nn.Module]]] = {
    "pooled": lambda: [head(24)],
    "flat": lambda: [nn.Flatten(), nn.Linear(24 * 64, 10)],
    "window": lambda: [nn.AvgPool2d(8), nn.Flatten(), nn.Linear(24, 10)],
}


@pytest.mark.parametrize("end", HEADS)
@pytest.mark.parametrize("kind", [Pooled, Scaled, Patched])
def test_networks_that_work_at_some_sizes(kind: type[nn.Module], end: str) -> None:
    """The body is asked at an odd size, whatever the head binds; where it fails the plan says so."""

    def model() -> nn.Module:
        if kind is Pooled:
            return nn.Sequential(
                Pooled(3, 8), Block(8, 8), Pooled(8, 16), Pooled(16, 24), Block(24, 24), *HEADS[end]()
            )
        inside = [Block(8, 16, 2), kind(16), Block(16, 24, 2), kind(24), Block(24, 24, 2)]
        return nn.Sequential(unit(3, 8), *inside, *HEADS[end]())

    for network in tried(model, 64):
        notes = [note for note in network.plan.notes if "tried at images of 64x64 only" in note]
        assert len(network.plan.check_sizes) == (2 if kind is Pooled else 1)
        assert len(notes) == (kind is not Pooled)


def test_an_odd_size_is_tried_where_only_the_head_binds_one() -> None:
    for network in tried(
        lambda: nn.Sequential(unit(3, 8), Block(8, 16, 2), Block(16, 24, 2), nn.Flatten(), nn.Linear(24 * 64, 10))
    ):
        assert network.plan.check_sizes == ((32, 32), (37, 46))


class Bounces(nn.Module):
    """A gate that goes down and back by fixed factors: it works on even maps alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(width, width, 3, 2, 1), nn.Upsample(scale_factor=2)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.up(self.down(x)))


def test_a_block_that_cannot_work_on_the_maps_of_a_coarser_level_is_refused() -> None:
    model = nn.Sequential(
        *(unit(3, 8), nn.MaxPool2d(2), unit(8, 12), Bounces(12), nn.MaxPool2d(2), unit(12, 16), nn.MaxPool2d(2)),
        *(unit(16, 20), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, 5)),
    )
    images = torch.zeros(1, 3, 56, 56)
    assert bu2td.convert(model, "td", example_inputs=images, device="meta").plan.widths == (20, 16, 12, 8)
    with pytest.raises(ImageSizeError, match="multiples of"):
        bu2td.convert(model, "rev", example_inputs=images, device="meta", max_macs_ratio=None)
    even = torch.zeros(1, 3, 64, 64)
    assert bu2td.convert(model, "rev", example_inputs=even, device="meta", max_macs_ratio=None).plan.levels


def test_images_are_multiples_of_what_blocks_ask_for_and_of_no_more() -> None:
    """Blocks of three and of five pixels on one map: its sides are multiples of 15, odd ones too."""
    layers = pytest.importorskip("timm.layers.halo_attn")

    def halo(block: int) -> nn.Module:
        return layers.HaloAttn(12, num_heads=2, dim_head=6, block_size=block, halo_size=1)

    model = nn.Sequential(
        unit(3, 8), Block(8, 12, 2), halo(3), nn.ReLU(), halo(5), nn.ReLU(), Block(12, 16, 2), head(16)
    )
    td = bu2td.convert(model, "td", example_inputs=torch.zeros(1, 3, 60, 60), device="meta", max_macs_ratio=None)
    for side in (30, 60, 90):
        assert td(torch.empty(1, 3, side, side, device="meta")).shape == (1, 10)
    for side in (18, 20, 54):
        with pytest.raises(ImageSizeError, match="multiples of 15; found"):
            td(torch.empty(1, 3, side, side, device="meta"))
