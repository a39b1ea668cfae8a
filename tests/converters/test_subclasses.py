"""Classes with a forward of their own are no layers of their base class: their forward is followed."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nets import head, unit
from torch import Tensor, nn
from working import tried

from bu2td.ops import converter_for_type


class Masked(nn.Conv2d):
    """A mask of the weight's shape in a buffer."""

    mask: Tensor

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.register_buffer("mask", (torch.rand_like(self.weight) > 0.3).float())

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight * self.mask
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Scored(nn.Conv2d):
    """Scores of the weight's shape, which are learned."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.scores = nn.Parameter(torch.randn_like(self.weight))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight * torch.sigmoid(self.scores)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Differences(nn.Conv2d):
    """Central differences: the convolution, less one of window 1 by the kernels' sums."""

    def forward(self, x: Tensor) -> Tensor:
        sums = self.weight.sum(2).sum(2)[:, :, None, None]
        out = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        return out - 0.7 * F.conv2d(x, sums, None, self.stride, 0, self.dilation, self.groups)


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        deviation = weight.view(weight.size(0), -1).std(dim=1).view(-1, 1, 1, 1) + 1e-5
        weight = weight / deviation.expand_as(weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Normalised(nn.Conv2d):
    """Weights on the unit sphere."""

    def forward(self, x: Tensor) -> Tensor:
        weight = F.normalize(self.weight.view(self.weight.shape[0], -1), dim=1).view_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class Binary(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight.abs().mean((1, 2, 3), keepdim=True)
        weight = (scale * torch.sign(self.weight)).detach() - self.weight.detach() + self.weight
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Equalised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * math.sqrt(2 / (self.in_channels * self.kernel_size[0] ** 2)))


class Centred(nn.Conv2d):
    """Another function of the weight, a level deeper."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, weight - weight.mean((1, 2, 3), keepdim=True), bias)


class Gated(nn.Conv2d):
    """A layer of its own inside."""

    def __init__(self, inputs: int, outputs: int, *args: Any) -> None:
        super().__init__(inputs, outputs, *args)
        self.gate = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * torch.sigmoid(self.gate(x.mean((2, 3))))[:, :, None, None]


CONVS: list[type[nn.Conv2d]] = [
    *(Masked, Scored, Differences, Standardised, Normalised, Binary, Equalised, Centred, Gated)
]


class Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, conv: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.a = nn.Sequential(conv(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), nn.ReLU())
        self.b, self.shortcut = conv(outputs, outputs, 3, 1, 1), nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.b(self.a(x)) + self.shortcut(x))


@pytest.mark.parametrize("conv", CONVS)
def test_convolutions_with_a_forward_of_their_own(conv: type[nn.Conv2d]) -> None:
    """Widths follow without relaxation, weights are drawn, and no lateral is of such a class."""

    def model() -> nn.Module:
        blocks = [Residual(8, 16, 2, conv), Residual(16, 16, 1, conv), Residual(16, 24, 2, conv)]
        return nn.Sequential(unit(3, 8), *blocks, head(24))

    networks = tried(model)
    assert [n.plan.widths for n in networks] == [(24, 16, 8), (16, 16, 8), (16, 24, 8)]
    for network in networks:
        assert network.plan.relaxations == ()
        assert not any("without a converter" in note for note in network.plan.notes)
        assert {type(level.conv) for level in network.children() if hasattr(level, "conv")} == {nn.Conv2d}
        weights = [p for n, p in network.named_parameters() if p.dim() == 4]
        assert all(float(w.detach().std()) > 0 for w in weights if w.numel() > 1)


@pytest.mark.filterwarnings("ignore:Using padding=.same.")
@pytest.mark.parametrize("conv", [Masked, Standardised])
@pytest.mark.parametrize("kernel", [2, 4])
def test_even_kernels_whose_weights_are_computed(conv: type[nn.Conv2d], kernel: int) -> None:
    def part(inputs: int, outputs: int) -> nn.Module:
        down = conv(inputs, outputs, kernel, 2, kernel // 2 - 1)
        return nn.Sequential(down, nn.BatchNorm2d(outputs), nn.ReLU())

    for network in tried(lambda: nn.Sequential(unit(3, 8), part(8, 16), part(16, 24), head(24))):
        assert network.plan.relaxations == ()


def test_a_depthwise_convolution_whose_weight_is_computed() -> None:
    def model() -> nn.Module:
        def part(inputs: int, outputs: int) -> nn.Module:
            return nn.Sequential(
                Masked(inputs, inputs, 3, 2, 1, 1, inputs), nn.Conv2d(inputs, outputs, 1), nn.ReLU()
            )

        return nn.Sequential(unit(3, 8), part(8, 16), part(16, 24), head(24))

    for network in tried(model):
        assert network.plan.relaxations == ()


class MaskedLinear(nn.Linear):
    mask: Tensor

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.register_buffer("mask", torch.ones_like(self.weight))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.mask, self.bias)


class Cosine(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 10 * F.linear(F.normalize(x), F.normalize(self.weight), self.bias)


@pytest.mark.parametrize("linear", [MaskedLinear, Cosine])
def test_classifiers_with_a_forward_of_their_own(linear: type[nn.Linear]) -> None:
    def model() -> nn.Module:
        blocks = [Residual(8, 16, 2, nn.Conv2d), Residual(16, 24, 2, nn.Conv2d)]
        return nn.Sequential(unit(3, 8), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear(24, 10))

    for network in tried(model):
        assert network.plan.relaxations == ()


class Doubled(nn.Dropout):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


class Lowered(nn.ReLU):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) - 0.1


class Mixed(nn.MaxPool2d):
    def forward(self, input: Tensor) -> Tensor:
        return 0.5 * (super().forward(input) + F.avg_pool2d(input, 2))


class Plain(nn.Conv2d):
    """Nothing of its own but a setting."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.word = "plain"


def test_what_a_class_inherits_it_is() -> None:
    assert converter_for_type(Plain) is converter_for_type(nn.Conv2d)
    for cls in (*CONVS, MaskedLinear, Doubled, Lowered, Mixed):
        assert converter_for_type(cls) is None


def test_small_layers_with_a_forward_of_their_own() -> None:
    def model() -> nn.Module:
        def part(inputs: int, outputs: int) -> nn.Module:
            return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), Lowered(), Mixed(2))

        return nn.Sequential(
            part(3, 8),
            part(8, 16),
            part(16, 24),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            Doubled(0.1),
            nn.Linear(24, 10),
        )

    for network in tried(model):
        assert network.plan.relaxations == ()
