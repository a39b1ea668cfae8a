"""Top-down networks of four timm models, by hand: ResNet18, ResNet50, MobileNetV2 and DenseNet121.

Every layer is written out from `torch.nn`, after timm's own blocks: BatchNorm with eps 1e-5 and
momentum 0.1, convs without bias, no dropout and no drop-path by default. All have the
levels 32, 16, 8, 4, 2, 1, coarse to fine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from .parts import Entry, Kind, Merge, Pyramid, Size, Unit, conv, lateral, size_of, upsample

NAMES = ("resnet18", "resnet50", "mobilenetv2_100", "densenet121")
ARRANGEMENTS = ("td", "rev")
REDUCTIONS = (32, 16, 8, 4, 2, 1)
CHANNELS = 3
CLASSES = 1000


def run(levels: nn.ModuleList, x: Tensor, images: Sequence[Tensor]) -> Tensor:
    """Take `x` through `levels`, each with its image of the pyramid."""
    for level, image in zip(levels, images, strict=True):
        x = level(x, image)
    return x


# --- ResNets: post-activation blocks --------------------------------------------------------------

RESNET = Kind(bias=False)


def projection(inputs: int, outputs: int) -> nn.Module:
    """Return the shortcut of a block: a 1x1 conv with a norm if the width changes, else nothing."""
    if inputs == outputs:
        return nn.Identity()
    return nn.Sequential(conv(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """timm's BasicBlock at stride 1; with a size, as an up-block.

    Rules, "Block": upsampling just before the first 3x3 conv; the shortcut is a 1x1 conv with a
    norm at low resolution, then upsampled, if the width changes (also in layer1, whose missing
    projection is built after the model's own kind), else the upsampled input.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = conv(inputs, outputs, 3, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = conv(outputs, outputs, 3, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.projection = projection(inputs, outputs)

    def forward(self, x: Tensor, size: Size | None = None) -> Tensor:
        """Run the block; with `size`, as an up-block to that size."""
        shortcut = self.projection(x)
        if size is not None:
            x, shortcut = upsample(x, size), upsample(shortcut, size)
        x = self.relu(self.norm1(self.conv1(x)))
        x = self.norm2(self.conv2(x))
        x += shortcut
        return self.relu(x)


class Bottleneck(nn.Module):
    """timm's Bottleneck at stride 1; with a size, as an up-block.

    Rules, "Block": as a basic block, but that the upsampling stands before the 3x3 conv; the 1x1
    conv runs at low resolution.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        inner = outputs // 4
        self.conv1 = conv(inputs, inner, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(inner)
        self.conv2 = conv(inner, inner, 3, bias=False)
        self.norm2 = nn.BatchNorm2d(inner)
        self.conv3 = conv(inner, outputs, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.projection = projection(inputs, outputs)

    def forward(self, x: Tensor, size: Size | None = None) -> Tensor:
        """Run the block; with `size`, as an up-block to that size."""
        shortcut = self.projection(x)
        x = self.relu(self.norm1(self.conv1(x)))
        if size is not None:
            x, shortcut = upsample(x, size), upsample(shortcut, size)
        x = self.relu(self.norm2(self.conv2(x)))
        x = self.norm3(self.conv3(x))
        x += shortcut
        return self.relu(x)


Block = Callable[[int, int], nn.Module]


class BlockLevel(nn.Module):
    """Rules, "Block": up-block, merge outside the residual, then the other blocks."""

    def __init__(self, block: Block, inputs: int, width: int, count: int) -> None:
        super().__init__()
        self.up_block = block(inputs, width)
        self.merge = Merge(CHANNELS, width, 3, RESNET)
        self.rest = nn.Sequential(*(block(width, width) for _ in range(count - 1)))

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        """Take features of the coarser level to this one."""
        return self.rest(self.merge(self.up_block(x, size_of(image)), image))


class ResNetTopDown(nn.Module):
    """ResNet18 and ResNet50: blocks with the widths and numbers of the levels 32 to 4.

    Rules, "Coarsest level": a lateral of the first block's width, then plain blocks. Reductions 2
    and 1 have no body: the stem's width 64 and laterals like the stem's 7x7 conv.
    """

    def __init__(self, block: Block, widths: Sequence[int], counts: Sequence[int]) -> None:
        super().__init__()
        self.pyramid = Pyramid(REDUCTIONS)
        first = widths[0]
        self.lateral = lateral(CHANNELS, first, 3, RESNET)
        self.coarsest = nn.Sequential(*(block(first, first) for _ in range(counts[0])))
        bodies = zip(pairwise(widths), counts[1:], strict=True)
        levels: list[nn.Module] = [BlockLevel(block, *both, count) for both, count in bodies]
        stem = [Entry(widths[-1], 64, CHANNELS, 7, RESNET), Entry(64, 64, CHANNELS, 7, RESNET)]
        self.finer = nn.ModuleList([*levels, *stem])
        self.fc = nn.Linear(64, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        coarsest, *images = self.pyramid(image)
        x = self.coarsest(self.lateral(coarsest))
        return self.fc(run(self.finer, x, images).mean(dim=(2, 3)))


def resnet18(arrangement: str) -> nn.Module:
    """Return ResNet18."""
    widths = {"td": (512, 256, 128, 64), "rev": (64, 128, 256, 512)}[arrangement]
    return ResNetTopDown(BasicBlock, widths, (2, 2, 2, 2))


def resnet50(arrangement: str) -> nn.Module:
    """Return ResNet50, which has 3, 4, 6 and 3 blocks."""
    widths, counts = ((2048, 1024, 512, 256), (3, 6, 4, 3))
    if arrangement == "rev":
        widths, counts = widths[::-1], counts[::-1]
    return ResNetTopDown(Bottleneck, widths, counts)


# --- MobileNetV2: inverted residuals --------------------------------------------------------------

MOBILENET = Kind(bias=False, act=nn.ReLU6)


class DepthwiseSeparable(nn.Module):
    """timm's DepthwiseSeparableConv of `blocks.0.0`: no shortcut, no act after the 1x1 conv.

    Rules, "Chain": the depthwise conv at its entry follows the width that enters.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.depthwise = conv(inputs, inputs, 3, bias=False, groups=inputs)
        self.norm1 = nn.BatchNorm2d(inputs)
        self.project = conv(inputs, outputs, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.relu6 = nn.ReLU6(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu6(self.norm1(self.depthwise(x)))
        return self.norm2(self.project(x))


class InvertedResidual(nn.Module):
    """timm's InvertedResidual at stride 1; with a size, as an up-block.

    Rules, "Block": upsampling just before the depthwise conv, so the expansion runs at low
    resolution; a block without a shortcut in BU gets none, even where in == out. "Stage order":
    the inner width is BU's whatever the input.
    """

    def __init__(self, inputs: int, inner: int, outputs: int, *, shortcut: bool) -> None:
        super().__init__()
        self.expand = conv(inputs, inner, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(inner)
        self.depthwise = conv(inner, inner, 3, bias=False, groups=inner)
        self.norm2 = nn.BatchNorm2d(inner)
        self.project = conv(inner, outputs, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(outputs)
        self.relu6 = nn.ReLU6(inplace=True)
        self.shortcut = shortcut

    def forward(self, x: Tensor, size: Size | None = None) -> Tensor:
        """Run the block; with `size`, as an up-block to that size."""
        y = self.relu6(self.norm1(self.expand(x)))
        if size is not None:
            y = upsample(y, size)
        y = self.relu6(self.norm2(self.depthwise(y)))
        y = self.norm3(self.project(y))
        return x + y if self.shortcut else y


def repeated(width: int, count: int) -> list[nn.Module]:
    """Return `count` inverted residuals with shortcut, expansion 6."""
    return [InvertedResidual(width, 6 * width, width, shortcut=True) for _ in range(count)]


class InvertedLevel(nn.Module):
    """Rules, "Block": up-block, merge at the up-block's width, then the remaining blocks."""

    def __init__(self, inputs: int, inner: int, width: int, rest: list[nn.Module]) -> None:
        super().__init__()
        self.up_block = InvertedResidual(inputs, inner, width, shortcut=False)
        self.merge = Merge(CHANNELS, width, 3, MOBILENET)
        self.rest = nn.Sequential(*rest)

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        """Take features of the coarser level to this one."""
        return self.rest(self.merge(self.up_block(x, size_of(image)), image))


class SeparableLevel(nn.Module):
    """Rules, "Chain": `blocks.0.0` does not stride and has no shortcut, so it follows the merge."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.entry = Entry(inputs, width, CHANNELS, 3, MOBILENET)
        self.block = DepthwiseSeparable(width, width)

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        """Take features of the coarser level to this one."""
        return self.block(self.entry(x, image))


def mobilenet_rest() -> dict[int, list[nn.Module]]:
    """Return what follows the first block of BU's levels 32, 16, 8 and 4."""
    wide = InvertedResidual(160, 960, 320, shortcut=False)  # blocks.6.0
    middle = InvertedResidual(64, 384, 96, shortcut=False)  # blocks.4.0
    return {
        32: [*repeated(160, 2), wide],  # blocks.5.1 to blocks.6.0
        16: [*repeated(64, 3), middle, *repeated(96, 2)],  # blocks.3.1 to blocks.4.2
        8: repeated(32, 2),  # blocks.2.1, blocks.2.2
        4: repeated(24, 1),  # blocks.1.1
    }


class MobileNetV2TopDown(nn.Module):
    """MobileNetV2.

    Rules, "Coarsest level": a dense 3x3 lateral of the first block's width, then the blocks.
    Reduction 1 has no body: the stem's width 32 and a lateral like its 3x3 conv. "Head": the
    1x1 head conv ends the coarsest level in td, and runs after the global pool in rev.
    """

    def __init__(self, arrangement: str) -> None:
        super().__init__()
        self.pyramid = Pyramid(REDUCTIONS)
        self.head_conv_first = arrangement == "td"
        rest = mobilenet_rest()
        if arrangement == "td":
            self.lateral = lateral(CHANNELS, 160, 3, MOBILENET)
            self.coarsest = nn.Sequential(InvertedResidual(160, 576, 160, shortcut=False), *rest[32])
            self.head_conv = Unit(320, 1280, 1, MOBILENET)
            self.finer = nn.ModuleList(
                [
                    InvertedLevel(1280, 192, 64, rest[16]),
                    InvertedLevel(96, 144, 32, rest[8]),
                    InvertedLevel(32, 96, 24, rest[4]),
                    SeparableLevel(24, 16),
                    Entry(16, 32, CHANNELS, 3, MOBILENET),
                ]
            )
            self.classifier = nn.Linear(32, CLASSES)
        else:
            self.lateral = lateral(CHANNELS, 16, 3, MOBILENET)
            self.coarsest = nn.Sequential(DepthwiseSeparable(16, 16))
            self.finer = nn.ModuleList(
                [
                    InvertedLevel(16, 96, 24, rest[4]),
                    InvertedLevel(24, 144, 32, rest[8]),
                    InvertedLevel(32, 192, 64, rest[16]),
                    InvertedLevel(96, 576, 160, rest[32]),
                    Entry(320, 32, CHANNELS, 3, MOBILENET),
                ]
            )
            self.head_conv = Unit(32, 1280, 1, MOBILENET)
            self.classifier = nn.Linear(1280, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        coarsest, *images = self.pyramid(image)
        x = self.coarsest(self.lateral(coarsest))
        if self.head_conv_first:
            x = self.head_conv(x)
        x = run(self.finer, x, images).mean(dim=(2, 3), keepdim=True)
        if not self.head_conv_first:
            x = self.head_conv(x)
        return self.classifier(x.flatten(1))


# --- DenseNet121: pre-activation dense blocks -----------------------------------------------------

DENSENET = Kind(bias=False, pre_activation=True)
GROWTH = 32


class DenseLayer(nn.Module):
    """timm's DenseLayer: norm-ReLU-1x1-norm-ReLU-3x3 of all that came before in its block."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv(inputs, 4 * GROWTH, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * GROWTH)
        self.conv2 = conv(4 * GROWTH, GROWTH, 3, bias=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Append the new features to `x`."""
        y = self.conv1(self.relu(self.norm1(x)))
        y = self.conv2(self.relu(self.norm2(y)))
        return torch.cat([x, y], dim=1)


def dense_block(inputs: int, layers: int) -> nn.Sequential:
    """Return a dense block, which hands its input on and appends 32 channels per layer."""
    return nn.Sequential(*(DenseLayer(inputs + k * GROWTH) for k in range(layers)))


class DenseLevel(nn.Module):
    """Rules, "Block": BU's transition (norm-ReLU-1x1 conv) with its pool become an upsampling.

    The up-block has no spatial conv, so the upsampling ends it. Then the merge at the
    transition's width, then the dense block.
    """

    def __init__(self, inputs: int, width: int, layers: int) -> None:
        super().__init__()
        self.transition = Unit(inputs, width, 1, DENSENET)
        self.merge = Merge(CHANNELS, width, 3, DENSENET)
        self.dense = dense_block(width, layers)

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        """Take features of the coarser level to this one."""
        x = upsample(self.transition(x), size_of(image))
        return self.dense(self.merge(x, image))


class FirstDenseLevel(nn.Module):
    """Rules, "Chain": the dense block behind the stem's pool does not stride.

    C is the width that BU feeds the dense block, reached by a transition at low resolution.
    """

    def __init__(self, inputs: int, width: int, layers: int) -> None:
        super().__init__()
        self.entry = Entry(inputs, width, CHANNELS, 3, DENSENET)
        self.dense = dense_block(width, layers)

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        """Take features of the coarser level to this one."""
        return self.dense(self.entry(x, image))


class DenseNet121TopDown(nn.Module):
    """DenseNet121.

    Rules, "Coarsest level": in td the first block is a transition, now without its pool, from a
    lateral of its output width; in rev it is the first dense block, and the lateral has the width
    that BU feeds it. Reductions 2 and 1 have no body: the stem's width 64, bare laterals of the
    kernel of the stem's 7x7 conv. "Head": norm-ReLU, global pool, classifier at the last width.
    """

    def __init__(self, arrangement: str) -> None:
        super().__init__()
        self.pyramid = Pyramid(REDUCTIONS)
        if arrangement == "td":
            self.lateral = lateral(CHANNELS, 512, 3, DENSENET)
            self.coarsest = nn.Sequential(Unit(512, 512, 1, DENSENET), dense_block(512, 16))
            levels: list[nn.Module] = [
                DenseLevel(1024, 256, 24),
                DenseLevel(1024, 128, 12),
                FirstDenseLevel(512, 64, 6),
                Entry(256, 64, CHANNELS, 7, DENSENET),
            ]
        else:
            self.lateral = lateral(CHANNELS, 64, 3, DENSENET)
            self.coarsest = dense_block(64, 6)
            levels = [
                DenseLevel(256, 128, 12),
                DenseLevel(512, 256, 24),
                DenseLevel(1024, 512, 16),
                Entry(1024, 64, CHANNELS, 7, DENSENET),
            ]
        self.finer = nn.ModuleList([*levels, Entry(64, 64, CHANNELS, 7, DENSENET)])
        self.norm = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.classifier = nn.Linear(64, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        coarsest, *images = self.pyramid(image)
        x = run(self.finer, self.coarsest(self.lateral(coarsest)), images)
        return self.classifier(self.relu(self.norm(x)).mean(dim=(2, 3)))


MODELS: dict[str, Callable[[str], nn.Module]] = {
    "resnet18": resnet18,
    "resnet50": resnet50,
    "mobilenetv2_100": MobileNetV2TopDown,
    "densenet121": DenseNet121TopDown,
}


def build(name: str, arrangement: str) -> nn.Module:
    """Return the top-down network of timm's `name`."""
    if name not in MODELS or arrangement not in ARRANGEMENTS:
        raise ValueError(f"no reference of {name} in {arrangement}")
    return MODELS[name](arrangement)
