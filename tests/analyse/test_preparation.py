"""What a network does to the image stays in front of the pyramid; a first convolution of few filters is a level."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bu2td
from tests.nets import Block, head, unit
from tests.working import shape_of, works

ARRANGEMENTS = ["td", "uni", "rev"]


def residual(channels: int) -> list[nn.Module]:
    """A residual network of levels 2, 4 and 8 whose stem is 16 wide."""
    return [unit(channels, 16, 3, 2), Block(16, 16), Block(16, 32, 2), Block(32, 48, 2), head(48)]


def plain(channels: int) -> list[nn.Module]:
    return [unit(channels, 16), nn.MaxPool2d(2), unit(16, 24), nn.MaxPool2d(2), unit(24, 32), head(32)]


class Colour(nn.Module):
    """A learned colour transform."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.conv(x))


class Grey(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, x.mean(1, keepdim=True)], 1)


class Coordinates(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        one = torch.ones_like(x[:, :1])
        return torch.cat([x, one.cumsum(2) / x.shape[2], one.cumsum(3) / x.shape[3]], 1)


class Edges(nn.Module):
    """A filter with fixed weights beside the image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 3, padding=1, bias=False).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(x)], 1)


class Kernel(nn.Module):
    """A filter that is a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", torch.rand(1, 1, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, F.conv2d(x.mean(1, keepdim=True), self.kernel, padding=1)], 1)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.conv(x))


class Autoencoder(nn.Module):
    """A network from image to image that makes the sides of its images even."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = unit(3, 8, 3, 2), nn.ConvTranspose2d(8, 3, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.up(self.down(x)))


class Denoiser(nn.Module):
    """A network from image to image, with a resolution of its own inside."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = unit(3, 8, 3, 2), nn.Upsample(scale_factor=2)
        self.last = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x - self.last(self.up(self.down(x)))


def network_of_colours() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 10, 1), nn.ReLU(), nn.Conv2d(10, 3, 1), nn.Tanh())


#: Constructor and width of what it makes.
PREPARATIONS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "colour": (Colour, 3),
    "grey": (Grey, 4),
    "coordinates": (Coordinates, 5),
    "edges": (Edges, 4),
    "kernel": (Kernel, 4),
    "attention": (Attention, 3),
    "denoiser": (Denoiser, 3),
    "autoencoder": (Autoencoder, 3),
    "colours": (network_of_colours, 3),
    "filters": (lambda: nn.Conv2d(3, 6, 3, padding=1, groups=3), 6),
    "pointwise": (lambda: nn.Conv2d(3, 3, 1), 3),
    "spatial": (lambda: unit(3, 3), 3),
    "norm": (lambda: nn.InstanceNorm2d(3, affine=True), 3),
}


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@pytest.mark.parametrize("name", PREPARATIONS)
def test_blocks_on_the_image_stay_in_front_of_the_pyramid(name: str, arrangement: str) -> None:
    make, width = PREPARATIONS[name]
    network = works(nn.Sequential(make(), *residual(width)), arrangement)
    assert network.plan.input is not None
    assert network.plan.input.exit_width == width
    widths = {"td": (48, 32, 16, 16), "uni": (32, 32, 32, 16), "rev": (16, 32, 48, 16)}[arrangement]
    assert shape_of(network) == {r: (w, w, int(r > 1)) for r, w in zip((8, 4, 2, 1), widths, strict=True)}


@pytest.mark.parametrize("name", ["colour", "grey", "coordinates", "denoiser"])
def test_they_do_so_in_front_of_plain_networks(name: str) -> None:
    make, width = PREPARATIONS[name]
    network = works(nn.Sequential(make(), *plain(width)))
    assert shape_of(network) == {4: (32, 32, 1), 2: (24, 24, 1), 1: (16, 16, 1)}
    bu2td.verify(network, full=True)


def test_padding_in_front_of_a_convolution_is_none() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.ZeroPad2d(1), nn.Conv2d(3, 16, 3, 2), *residual(3)[1:])
    network = works(model)
    assert network.plan.input is not None
    assert len(network.plan.input.nodes) == 1


def test_a_grey_image_made_a_coloured_one() -> None:
    network = works(nn.Sequential(nn.Conv2d(1, 3, 1), *residual(3)), channels=1)
    assert network.plan.input is not None
    assert network.plan.widths[-1] == 16


@pytest.mark.parametrize("filters", [6, 8])
def test_a_first_convolution_of_few_filters_is_a_level(filters: int) -> None:
    network = works(
        nn.Sequential(unit(3, filters), nn.MaxPool2d(2), unit(filters, 16), nn.MaxPool2d(2), unit(16, 24), head(24))
    )
    assert network.plan.input is None
    assert network.plan.widths == (24, 16, filters)


def test_constants_of_the_preparation_keep_their_values() -> None:
    """A layer that is frozen while the others train is no weight: a Sobel filter is one still."""
    model = nn.Sequential(Edges(), *residual(4))
    network = bu2td.convert(model, example_inputs=torch.zeros(1, 3, 32, 32), seed=0)
    kernel = network.get_parameter("prepare.0.conv.weight")
    assert not kernel.requires_grad
    assert torch.equal(kernel, model.get_parameter("0.conv.weight"))


def test_frozen_networks_are_trained_anew() -> None:
    model = nn.Sequential(Edges(), *residual(4)).requires_grad_(False)
    network = bu2td.convert(model, example_inputs=torch.zeros(1, 3, 32, 32), seed=0)
    assert all(p.requires_grad for p in network.parameters())
    assert network.plan.bottom_up_cost.parameters == sum(p.numel() for p in model.parameters())
