"""Which map is that of the last convolution: hand-written networks of every kind, real ones, and top-down ones."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nets import FlatResNet, FunctionalLeNet, NestedNIN, convert_baseline, flat_lenet, head, ready, unit
from torch import Tensor, nn

import bu2td
from bu2td import errors
from bu2td.erf.subject import Subject, subject
from bu2td.evaluate.explain.gradcam import GradCam, grad_cam
from bu2td.evaluate.explain.layers import find_layer, last_convolution
from bu2td.models import baselines


class Net(nn.Module):
    """Two conv units that stride, then whatever a subclass does."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = unit(1, 6, stride=2), unit(6, 8, stride=2)
        self.build()

    def build(self) -> None:
        self.head = head(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.finish(self.b(self.a(x)))

    def finish(self, x: Tensor) -> Tensor:
        return self.head(x)


class VggLike(Net):
    """A pool and a flattening classifier behind the last convolution."""

    def build(self) -> None:
        self.pool, self.fc = nn.MaxPool2d(2), nn.Linear(8 * 2 * 2, 3)

    def finish(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(self.pool(x), 2), 1))


class Residual(Net):
    """The last block has a projection, which is the last convolution to be called."""

    def build(self) -> None:
        self.main, self.shortcut = unit(8, 8), nn.Conv2d(8, 8, 1)
        self.act, self.head = nn.ReLU(), head(8, 3)

    def finish(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.main(x) + self.shortcut(x)))


class Parallel(Net):
    """An inception module at the end: three ways of different depth, joined by concat, then dropped out."""

    def build(self) -> None:
        self.one, self.two, self.three = unit(8, 4, 1), nn.Sequential(unit(8, 4, 1), unit(4, 5)), unit(8, 3, 1)
        self.drop, self.head = nn.Dropout(0.3), head(12, 3)

    def finish(self, x: Tensor) -> Tensor:
        ways = [self.one(x), self.two(x), self.three(F.max_pool2d(x, 3, 1, 1))]
        return self.head(self.drop(torch.cat(ways, 1)))


class Gated(Net):
    """A gate behind the last convolution, with 1x1 convolutions of its own, and a wide 1x1 conv behind the pool."""

    def build(self) -> None:
        self.c, self.down, self.up = unit(8, 8), nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)
        self.act, self.wide, self.fc = nn.Hardswish(), nn.Conv2d(8, 16, 1), nn.Linear(16, 3)

    def finish(self, x: Tensor) -> Tensor:
        x = self.c(x)
        gate = torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))
        x = F.adaptive_avg_pool2d(self.act(x * gate), 1)
        return self.fc(F.relu(self.wide(x)).flatten(1))


class TwoHeads(Net):
    """Two last convolutions whose maps never meet: what they share is the map before them."""

    def build(self) -> None:
        self.left, self.right = nn.Conv2d(8, 3, 1), nn.Conv2d(8, 3, 3, padding=1)

    def finish(self, x: Tensor) -> Tensor:
        return self.left(x).mean((2, 3)) + self.right(x).amax((2, 3))


class Attentive(Net):
    """Attention over all positions behind the last convolution."""

    def build(self) -> None:
        self.c, self.qkv, self.fc = unit(8, 8), nn.Linear(8, 24), nn.Linear(8, 3)

    def finish(self, x: Tensor) -> Tensor:
        tokens = self.c(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).chunk(3, -1)
        return self.fc(F.scaled_dot_product_attention(q, k, v).mean(1))


class ChannelsLastMlp(Net):
    """Linear layers at every position are 1x1 convolutions, in another layout."""

    def build(self) -> None:
        self.dw, self.norm = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.LayerNorm(8)
        self.up, self.down, self.act, self.head = nn.Linear(8, 16), nn.Linear(16, 8), nn.GELU(), head(8, 3)

    def finish(self, x: Tensor) -> Tensor:
        y = self.down(self.act(self.up(self.norm(self.dw(x).permute(0, 2, 3, 1)))))
        return self.head(x + y.permute(0, 3, 1, 2))


class OnePosition(Net):
    """The last convolution reads the whole map: nothing is left to look at."""

    def build(self) -> None:
        self.c, self.whole = unit(8, 8), nn.Conv2d(8, 3, 4)

    def finish(self, x: Tensor) -> Tensor:
        return self.whole(self.c(x)).mean((2, 3))


class Aside(Net):
    """A convolution that the logits do not depend on, and two streams that end in one product."""

    def build(self) -> None:
        self.unused, self.c, self.d, self.act = nn.Conv2d(8, 8, 1), unit(8, 8), nn.Conv2d(8, 8, 1), nn.ReLU()
        self.head = head(8, 3)

    def finish(self, x: Tensor) -> Tensor:
        self.unused(x)
        return self.head(self.act(self.c(x) * self.d(x)))


HAND_WRITTEN: dict[str, tuple[Callable[[], nn.Module], str, tuple[int, ...]]] = {
    "linear head": (Net, "b.2", (8, 4, 4)),
    "vgg": (VggLike, "b.2", (8, 4, 4)),
    "residual": (Residual, "act", (8, 4, 4)),
    "parallel": (Parallel, "drop", (12, 4, 4)),
    "gated": (Gated, "act", (8, 4, 4)),
    "two heads": (TwoHeads, "b.2", (8, 4, 4)),
    "attention": (Attentive, "c.2", (8, 4, 4)),
    "channels last": (ChannelsLastMlp, "add", (8, 4, 4)),
    "one position": (OnePosition, "c.2", (8, 4, 4)),
    "aside": (Aside, "act", (8, 4, 4)),
    "lenet": (baselines.lenet_fc, "classifier.2", (10, 4, 4)),
    "lenet, flat": (flat_lenet, "13", (10, 4, 4)),
    "lenet, functions": (FunctionalLeNet, "relu_3", (10, 4, 4)),
    "nin": (baselines.nin_light, "classifier.2", (10, 4, 4)),
    "nin, nested": (NestedNIN, "classifier", (10, 4, 4)),
    "pre-activation": (lambda: FlatResNet((8, 12), 1), "relu", (12, 8, 8)),
}


def shape_of(looked_at: Subject, node: str) -> tuple[int, ...]:
    return tuple(d.size for d in looked_at.dims[node][1:])


@pytest.mark.parametrize("name", HAND_WRITTEN)
def test_the_last_convolution(name: str) -> None:
    build, layer, shape = HAND_WRITTEN[name]
    images = torch.zeros(2, 3 if name == "pre-activation" else 1, 16, 16)
    looked_at = subject(build(), images)
    found = last_convolution(looked_at)
    assert shape_of(looked_at, found) == shape
    assert found == looked_at.nodes_of([layer])[layer] if layer != "relu" else found.startswith("relu")


@pytest.mark.parametrize("build", [Net, VggLike, Residual, Parallel])
def test_behind_a_linear_head_it_is_the_last_level(build: Callable[[], nn.Module]) -> None:
    looked_at = subject(build(), torch.zeros(2, 1, 16, 16))
    level = find_layer(looked_at, "last-level")
    assert level == looked_at.levels["r4"]
    if build is not Parallel:  # the dropout is not part of the level
        assert find_layer(looked_at, "last-convolution") == level


def test_layers_of_a_classifier_with_a_convolution_differ() -> None:
    cam = GradCam(ready(baselines.lenet_fc()), torch.rand(2, 1, 16, 16), levels=("levels", "last-convolution"))
    assert cam.levels == ("r1", "r2", "r4", "last-convolution")
    assert cam.nodes["r4"] != cam.nodes["last-convolution"]


@pytest.mark.parametrize("arrangement", ["td", "uni", "rev"])
@pytest.mark.parametrize("name", ["lenet_fc", "nin_light", "resnet32"])
def test_top_down_networks(name: str, arrangement: Any) -> None:
    """The head's own convolution or norm-act, at the finest level."""
    td = convert_baseline(name, arrangement)
    looked_at = subject(td)
    found, level = (find_layer(looked_at, layer) for layer in ("last-convolution", "last-level"))
    assert found.startswith("head")
    assert found != level == looked_at.levels["r1"]
    assert shape_of(looked_at, found)[1:] == tuple(baselines.INPUT_SIZES[name][1:])
    assert shape_of(looked_at, found)[0] == (shape_of(looked_at, level)[0] if name == "resnet32" else 10)


def test_a_network_optimised_for_training() -> None:
    """Its fused modules are known to no converter; those with weights are convolutions."""
    torch.manual_seed(0)
    model = ready(nn.Sequential(unit(1, 6), nn.MaxPool2d(2), Residual().main, head(8, 3)))
    model[2] = unit(6, 8)
    images = torch.rand(3, 1, 16, 16)
    td = ready(bu2td.convert(model, "td", example_inputs=images, inherit="none"))
    fast: Any = bu2td.optimize(td, "training").eval()
    layers = ["last-convolution", "last-level"]
    one, other = (grad_cam(network, images, levels=layers) for network in (td, fast))
    for layer in layers:
        torch.testing.assert_close(one.maps[layer], other.maps[layer], rtol=1e-4, atol=1e-6)


def test_maps_of_the_last_convolution_by_autograd() -> None:
    model: Any = ready(Residual())
    images, targets = torch.rand(4, 1, 16, 16), torch.tensor([0, 1, 2, 0])
    found = grad_cam(model, images, targets, levels="last-convolution").maps["last-convolution"]
    x = model.b(model.a(images))
    at = torch.relu(model.main(x) + model.shortcut(x)).detach().requires_grad_(True)
    [g] = torch.autograd.grad(model.head(at).gather(1, targets[:, None]).sum(), at)
    torch.testing.assert_close(found, (g.mean((2, 3), keepdim=True) * at).sum(1).detach(), rtol=1e-4, atol=1e-7)


class Streams(nn.Module):
    """Two convolutions of the image that never meet as maps."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(1, 3, 3, 2, 1), nn.Conv2d(1, 3, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.left(x).mean((2, 3)) + self.right(x).amax((2, 3))


def test_networks_without_a_last_convolution() -> None:
    with pytest.raises(errors.OptionError, match=r"Streams has no last convolution.*levels=\[\.\.\.\]"):
        grad_cam(Streams(), torch.rand(2, 1, 16, 16), levels="last-convolution")


#: Networks as timm and torchvision write them: the module whose output is the map, and its shape at 64 x 64.
REAL: dict[str, tuple[str, tuple[int, ...]]] = {
    "resnet18": ("layer4.1.act2", (512, 2, 2)),
    "densenet121": ("features.norm5", (1024, 2, 2)),
    "mobilenetv3_small_100": ("blocks.5.0.bn1", (576, 2, 2)),
    "torchvision:vgg11": ("features.19", (512, 4, 4)),
    "torchvision:squeezenet1_1": ("classifier.2", (1000, 3, 3)),
    "convnext_atto": ("stages.3", (320, 2, 2)),
    "resnetv2_50": ("norm", (2048, 2, 2)),
    "mobilevit_xxs": ("final_conv.bn", (320, 2, 2)),
    "hrnet_w18_small": ("final_layer.2", (2048, 2, 2)),
}


@pytest.mark.slow
@pytest.mark.parametrize("word", REAL)
def test_real_networks(word: str) -> None:
    pytest.importorskip("timm")
    from bu2td.models.words import create_model

    layer, shape = REAL[word]
    images = torch.zeros(2, 3, 64, 64)
    model = create_model(word, device="meta")
    looked_at = subject(model, images)
    found = last_convolution(looked_at)
    assert found == looked_at.nodes_of([layer])[layer]
    assert shape_of(looked_at, found) == shape
    if word in ("resnet18", "mobilenetv3_small_100", "torchvision:squeezenet1_1"):
        for arrangement in ("td", "uni", "rev"):
            td = bu2td.convert(model, arrangement, example_inputs=images, max_macs_ratio=None, device="meta")
            looked_at = subject(td)
            found, level = (find_layer(looked_at, name) for name in ("last-convolution", "last-level"))
            assert shape_of(looked_at, found)[1:] == (64, 64)
            assert (found == level) == (word != "torchvision:squeezenet1_1")
