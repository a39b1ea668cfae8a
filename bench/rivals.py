"""The rivals of `bench/speed.py`: the same top-down networks, written by hand in ordinary PyTorch.

They are what one writes from the paper's text without a compiler: modules of `torch.nn`, in-place activations, a
pyramid whose matrices are made once, `torch.cat` and `F.interpolate` where the text says so. `copy_weights` gives
them the weights of a converted network, and `check` refuses a rival that does not compute the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bu2td
from bu2td.models.words import create_model

Size = tuple[int, int]
Act = Callable[[], nn.Module]

ReLU = partial(nn.ReLU, inplace=True)
ReLU6 = partial(nn.ReLU6, inplace=True)
#: Norm of the plain networks (TensorFlow's defaults).
KerasNorm = partial(nn.BatchNorm2d, eps=1e-3, momentum=0.01)


# --- what all share -----------------------------------------------------------------------------------


def gaussian(inputs: int, outputs: int) -> Tensor:
    """The matrix that resamples an axis: standard deviation half the factor, cut off at 1.5 times the factor."""
    factor = inputs / outputs
    centres = factor * (torch.arange(outputs, dtype=torch.float64) + 0.5)
    pixels = torch.arange(inputs, dtype=torch.float64) + 0.5
    distance = (centres[:, None] - pixels).abs() / factor
    weights = torch.exp(-2 * distance**2).masked_fill(distance > 1.5 - 1e-9, 0.0)
    return (weights / weights.sum(1, keepdim=True)).float()


class Pyramid(nn.Module):
    """The image at every reduction, for images of one (square) size."""

    def __init__(self, size: int, reductions: Sequence[int]) -> None:
        super().__init__()
        self.reductions = reductions
        for reduction in reductions:
            if reduction > 1:
                matrix = gaussian(size, -(-size // reduction))
                self.register_buffer(f"matrix{reduction}", matrix, persistent=False)

    def forward(self, image: Tensor) -> list[Tensor]:
        levels = []
        for reduction in self.reductions:
            if reduction == 1:
                levels.append(image)
            else:
                matrix = getattr(self, f"matrix{reduction}")
                levels.append(matrix @ image @ matrix.t())
        return levels


def conv_norm_act(
    inputs: int, outputs: int, kernel: int, act: Act = ReLU, norm: Callable = nn.BatchNorm2d, bias: bool = False
) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=bias), norm(outputs), act())


def norm_act_conv(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(inputs), ReLU(), nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2))


def upsample(x: Tensor, size: Size) -> Tensor:
    return F.interpolate(x, size=size, mode="nearest")


def merge(unit: nn.Module, x: Tensor, lateral: Tensor) -> Tensor:
    return unit(torch.cat([x + lateral, lateral], dim=1))


class Entry(nn.Module):
    """A level whose blocks follow the merge, or that has none: transition, upsampling, merge."""

    def __init__(
        self, lateral: nn.Module, merge: nn.Module, body: nn.Module, transition: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.lateral, self.transition = lateral, transition
        self.merge, self.body = merge, body

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        lateral = self.lateral(image)
        if self.transition is not None:
            x = self.transition(x)
        return self.body(merge(self.merge, upsample(x, lateral.shape[-2:]), lateral))


class Level(nn.Module):
    """A level whose first block upsamples: block, merge, the other blocks."""

    def __init__(self, lateral: nn.Module, block: nn.Module, merge: nn.Module, rest: nn.Module) -> None:
        super().__init__()
        self.lateral, self.block, self.merge, self.rest = lateral, block, merge, rest

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        lateral = self.lateral(image)
        return self.rest(merge(self.merge, self.block(x, lateral.shape[-2:]), lateral))


class TopDown(nn.Module):
    """The coarsest level, the finer ones, the head."""

    def __init__(
        self, size: int, reductions: Sequence[int], coarsest: nn.Module, finer: list[nn.Module], head: nn.Module
    ) -> None:
        super().__init__()
        self.pyramid = Pyramid(size, reductions)
        self.coarsest, self.finer, self.head = coarsest, nn.ModuleList(finer), head

    def forward(self, image: Tensor) -> Tensor:
        images = self.pyramid(image)
        x = self.coarsest(images[0])
        for level, level_image in zip(self.finer, images[1:], strict=True):
            x = level(x, level_image)
        return self.head(x)


def linear_head(width: int, classes: int) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


# --- LeNetFC and NIN ----------------------------------------------------------------------------------

plain_unit = partial(conv_norm_act, norm=KerasNorm, bias=True)


def plain_body(inputs: int, convs: Sequence[tuple[int, int]], dropout: float = 0.0) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Dropout(dropout)] if dropout else []
    for kernel, width in convs:
        layers.append(plain_unit(inputs, width, kernel))
        inputs = width
    return nn.Sequential(*layers)


def plain(channels: int, size: int, levels: Sequence[Sequence[tuple[int, int]]], dropout: float) -> TopDown:
    """Levels, coarse to fine, of (kernel, width) of every conv."""
    finer: list[nn.Module] = []
    for before, convs in pairwise(levels):
        inputs, (kernel, width) = before[-1][1], convs[0]
        transition = plain_unit(inputs, width, 1) if inputs != width else None
        lateral, join = plain_unit(channels, width, kernel), plain_unit(2 * width, width, 3)
        finer.append(Entry(lateral, join, plain_body(width, convs, dropout), transition))
    classifier = plain_unit(levels[-1][-1][1], 10, 1)
    head = nn.Sequential(classifier, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return TopDown(size, (4, 2, 1), plain_body(channels, levels[0]), finer, head)


def lenet_fc() -> TopDown:
    return plain(1, 28, [[(3, 32)], [(5, 16)], [(5, 6)]], 0.0)


def nin_light() -> TopDown:
    levels = [[(3, 48), (1, 48)], [(5, 48), (1, 48), (1, 48)], [(5, 48), (1, 40), (1, 24)]]
    return plain(1, 28, levels, 0.5)


def nin() -> TopDown:
    levels = [[(3, 192), (1, 192)], [(5, 192), (1, 192), (1, 192)], [(5, 192), (1, 160), (1, 96)]]
    return plain(3, 32, levels, 0.5)


# --- the paper's residual networks --------------------------------------------------------------------


class PreActBlock(nn.Module):
    """BN-ReLU-conv-BN-ReLU-conv; with a size it upsamples before its first conv."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.project = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x: Tensor, size: Size | None = None) -> Tensor:
        out = F.relu(self.norm1(x), inplace=True)
        shortcut = x if self.project is None else self.project(out)
        if size is not None:
            out, shortcut = upsample(out, size), upsample(shortcut, size)
        out = self.conv1(out)
        out = self.conv2(F.relu(self.norm2(out), inplace=True))
        return out + shortcut


def bare(width: int) -> nn.Conv2d:
    return nn.Conv2d(3, width, 3, padding=1)


def preact(size: int, widths: Sequence[int], blocks: int, coarse_stem: bool) -> TopDown:
    first = widths[0]
    body = nn.Sequential(*(PreActBlock(first, first) for _ in range(blocks)))
    finer: list[nn.Module] = []
    coarsest = nn.Sequential(bare(first), body)
    if coarse_stem:
        coarsest = nn.Sequential(bare(first))
        finer.append(Entry(bare(first), norm_act_conv(2 * first, first, 3), body))
    for inputs, width in pairwise(widths):
        rest = nn.Sequential(*(PreActBlock(width, width) for _ in range(blocks - 1)))
        finer.append(Level(bare(width), PreActBlock(inputs, width), norm_act_conv(2 * width, width, 3), rest))
    head = nn.Sequential(nn.BatchNorm2d(widths[-1]), ReLU(), *linear_head(widths[-1], 10))
    reductions = [2**k for k in reversed(range(len(widths) + coarse_stem))]
    return TopDown(size, reductions, coarsest, finer, head)


def resnet32() -> TopDown:
    return preact(32, (64, 32, 16), 5, False)


def resnet18_imagenette() -> TopDown:
    return preact(128, (256, 128, 64, 32), 2, True)


# --- timm's ResNets -----------------------------------------------------------------------------------


def projection(inputs: int, outputs: int) -> nn.Sequential | None:
    if inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """timm's basic block; with a size it upsamples before its first conv."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = ReLU()
        self.downsample = projection(inputs, outputs)

    def forward(self, x: Tensor, size: Size | None = None) -> Tensor:
        out = x if size is None else upsample(x, size)
        out = self.relu(self.bn1(self.conv1(out)))
        out = self.bn2(self.conv2(out))
        shortcut = x if self.downsample is None else self.downsample(x)
        out += shortcut if size is None else upsample(shortcut, size)
        return self.relu(out)


class Bottleneck(nn.Module):
    """timm's bottleneck; with a size it upsamples before its 3x3 conv."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        inner = outputs // 4
        self.conv1, self.bn1 = nn.Conv2d(inputs, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.relu = ReLU()
        self.downsample = projection(inputs, outputs)

    def forward(self, x: Tensor, size: Size | None = None) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        if size is not None:
            out = upsample(out, size)
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        shortcut = x if self.downsample is None else self.downsample(x)
        out += shortcut if size is None else upsample(shortcut, size)
        return self.relu(out)


def resnet(block: Callable[[int, int], nn.Module], widths: Sequence[int], blocks: Sequence[int]) -> TopDown:
    first = widths[0]
    coarsest = nn.Sequential(conv_norm_act(3, first, 3), *(block(first, first) for _ in range(blocks[0])))
    finer: list[nn.Module] = []
    for (inputs, width), count in zip(pairwise(widths), blocks[1:], strict=True):
        rest = nn.Sequential(*(block(width, width) for _ in range(count - 1)))
        finer.append(
            Level(conv_norm_act(3, width, 3), block(inputs, width), conv_norm_act(2 * width, width, 3), rest)
        )
    for inputs in (widths[-1], 64):
        transition = conv_norm_act(inputs, 64, 1) if inputs != 64 else None
        finer.append(Entry(conv_norm_act(3, 64, 7), conv_norm_act(128, 64, 3), nn.Identity(), transition))
    return TopDown(224, (32, 16, 8, 4, 2, 1), coarsest, finer, linear_head(64, 1000))


def resnet18() -> TopDown:
    return resnet(BasicBlock, (512, 256, 128, 64), (2, 2, 2, 2))


def resnet50() -> TopDown:
    return resnet(Bottleneck, (2048, 1024, 512, 256), (3, 6, 4, 3))


# --- timm's MobileNetV2 -------------------------------------------------------------------------------

mobile_unit = partial(conv_norm_act, act=ReLU6)


def depthwise(width: int) -> nn.Sequential:
    conv = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width), ReLU6())


class InvertedResidual(nn.Module):
    """timm's inverted residual; with a size it upsamples before its depthwise conv."""

    def __init__(self, inputs: int, inner: int, outputs: int, shortcut: bool = False) -> None:
        super().__init__()
        self.expand = mobile_unit(inputs, inner, 1)
        self.depthwise = depthwise(inner)
        self.project = nn.Sequential(nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.shortcut = shortcut

    def forward(self, x: Tensor, size: Size | None = None) -> Tensor:
        out = self.expand(x)
        if size is not None:
            out = upsample(out, size)
        out = self.project(self.depthwise(out))
        return x + out if self.shortcut else out


def mobilenetv2_100() -> TopDown:
    def repeat(width: int, count: int) -> list[nn.Module]:
        return [InvertedResidual(width, 6 * width, width, shortcut=True) for _ in range(count)]

    def level(inputs: int, inner: int, width: int, rest: list[nn.Module]) -> Level:
        block, join = InvertedResidual(inputs, inner, width), mobile_unit(2 * width, width, 3)
        return Level(mobile_unit(3, width, 3), block, join, nn.Sequential(*rest))

    def entry(inputs: int, width: int, body: nn.Module) -> Entry:
        lateral, join = mobile_unit(3, width, 3), mobile_unit(2 * width, width, 3)
        return Entry(lateral, join, body, mobile_unit(inputs, width, 1))

    coarsest = nn.Sequential(
        mobile_unit(3, 160, 3),
        InvertedResidual(160, 576, 160),
        *repeat(160, 2),
        InvertedResidual(160, 960, 320),
        mobile_unit(320, 1280, 1),
    )
    separable = nn.Sequential(depthwise(16), nn.Conv2d(16, 16, 1, bias=False), nn.BatchNorm2d(16))
    middle = [*repeat(64, 3), InvertedResidual(64, 384, 96), *repeat(96, 2)]
    finer: list[nn.Module] = [
        level(1280, 192, 64, middle),
        level(96, 144, 32, repeat(32, 2)),
        level(32, 96, 24, repeat(24, 1)),
        entry(24, 16, separable),
        entry(16, 32, nn.Identity()),
    ]
    return TopDown(224, (32, 16, 8, 4, 2, 1), coarsest, finer, linear_head(32, 1000))


# --- the pairs ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """A network and its rival.

    Attributes:
        word: of the bottom-up model.
        rival: builds the rival.
        shape: (C, H, W) of its images.
        stem: of the conversion.
        batches: images at once in inference and in training.
    """

    word: str
    rival: Callable[[], TopDown]
    shape: tuple[int, int, int]
    stem: str = "mirror"
    batches: tuple[int, int] = (1, 4)

    def convert(self) -> bu2td.TopDownNetwork:
        """The converted network, with weights and statistics that all matter."""
        model = create_model(self.word)
        images = torch.zeros(2, *self.shape)
        network = bu2td.convert(model, "td", stem=self.stem, example_inputs=images, max_macs_ratio=None, seed=0)
        randomise(network)
        return network


PAIRS: dict[str, Pair] = {
    "lenet_fc": Pair("bu2td:lenet_fc", lenet_fc, (1, 28, 28), batches=(32, 32)),
    "nin_light": Pair("bu2td:nin_light", nin_light, (1, 28, 28), batches=(32, 32)),
    "nin": Pair("bu2td:nin", nin, (3, 32, 32), batches=(8, 32)),
    "resnet32": Pair("bu2td:resnet32", resnet32, (3, 32, 32), batches=(8, 32)),
    "resnet18_imagenette": Pair(
        "bu2td:resnet18_imagenette", resnet18_imagenette, (3, 128, 128), "coarse", batches=(1, 8)
    ),
    "resnet18": Pair("resnet18", resnet18, (3, 224, 224)),
    "resnet50": Pair("resnet50", resnet50, (3, 224, 224)),
    "mobilenetv2_100": Pair("mobilenetv2_100", mobilenetv2_100, (3, 224, 224)),
}


@torch.no_grad()
def randomise(network: nn.Module) -> None:
    """Give convs weights that keep the signal's size, and norms gains, shifts and statistics of their own.

    A fresh network damps its image, so that its logits hardly tell a branch that is wrong.
    """
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
        if isinstance(module, nn.BatchNorm2d):
            for name, low, high in (("weight", 0.5, 1.0), ("bias", -0.1, 0.1), ("running_mean", -0.1, 0.1)):
                getattr(module, name).uniform_(low, high, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)  # type: ignore[union-attr]


def weighted_modules(network: nn.Module, images: Tensor) -> list[nn.Module]:
    """The convs, norms and linear layers of a network in the order in which they run."""
    found: list[nn.Module] = []
    kinds = (nn.Conv2d, nn.BatchNorm2d, nn.Linear)
    handles = [
        module.register_forward_pre_hook(lambda module, args: found.append(module))
        for module in network.modules()
        if isinstance(module, kinds)
    ]
    training = network.training
    with torch.no_grad():
        network.eval()(images)
    network.train(training)
    for handle in handles:
        handle.remove()
    return found


@torch.no_grad()
def copy_weights(network: nn.Module, rival: nn.Module, images: Tensor) -> None:
    """Give a rival the weights of a converted network.

    Modules of a kind and shape are matched in the order in which they run; `check` tells if that was wrong.

    Raises:
        ValueError: the networks do not have the same modules.
    """

    def kinds(model: nn.Module) -> dict[tuple, list[nn.Module]]:
        found: dict[tuple, list[nn.Module]] = {}
        for module in weighted_modules(model, images):
            kind = (isinstance(module, nn.BatchNorm2d), tuple(module.weight.shape))  # type: ignore[arg-type]
            found.setdefault(kind, []).append(module)
        return found

    given, wanted = kinds(network), kinds(rival)
    if {k: len(v) for k, v in given.items()} != {k: len(v) for k, v in wanted.items()}:
        raise ValueError("the rival does not have the modules of the converted network")
    for kind, modules in given.items():
        for module, other in zip(modules, wanted[kind], strict=True):
            other.load_state_dict(module.state_dict())


def check(network: nn.Module, rival: nn.Module, images: Tensor, tolerance: float = 1e-4) -> float:
    """The relative difference of the logits in eval mode.

    Raises:
        ValueError: it is more than the tolerance.
    """
    modes = network.training, rival.training
    with torch.no_grad():
        expected, found = network.eval()(images), rival.eval()(images)
    for model, mode in zip((network, rival), modes, strict=True):
        if mode:
            model.train()
    difference = float((found - expected).abs().max() / expected.abs().max())
    if not difference <= tolerance:
        raise ValueError(f"the rival differs by {difference:.1e} relative, more than {tolerance:.0e}")
    return difference


def build(name: str) -> tuple[bu2td.TopDownNetwork, TopDown]:
    """A converted network and its rival, which has its weights and is checked."""
    pair = PAIRS[name]
    network, rival = pair.convert(), pair.rival()
    images = torch.rand(1, *pair.shape, generator=torch.Generator().manual_seed(1))
    copy_weights(network, rival, images)
    check(network, rival, images)
    return network, rival
