"""The paper's five bottom-up baselines, written as an ordinary user writes PyTorch.

Source: Lelekas et al. (2020), section 4, and the authors' Keras models. Every convolution has a bias
and 'same' padding; every network returns logits.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn


def _conv_unit(in_channels: int, out_channels: int, kernel_size: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2),
        nn.BatchNorm2d(out_channels, eps=1e-3, momentum=0.01),
        nn.ReLU(),
    )


class LeNetFC(nn.Module):
    """Fully convolutional LeNet: three conv units, a 1x1 classifier unit, a global average pool."""

    def __init__(self, num_classes: int = 10, in_channels: int = 1) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.unit1 = _conv_unit(in_channels, 6, 5)
        self.pool1 = nn.MaxPool2d(2)
        self.unit2 = _conv_unit(6, 16, 5)
        self.pool2 = nn.MaxPool2d(2)
        self.unit3 = _conv_unit(16, 32, 3)
        self.classifier = _conv_unit(32, num_classes, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits (N, num_classes)."""
        x = self.pool1(self.unit1(x))
        x = self.pool2(self.unit2(x))
        x = self.classifier(self.unit3(x))
        return torch.flatten(self.pool(x), 1)


class NIN(nn.Module):
    """Network in Network: three groups of a spatial convolution and 1x1 convolutions."""

    def __init__(
        self,
        widths: tuple[tuple[int, ...], ...],
        kernels: tuple[int, ...],
        num_classes: int = 10,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for group, (group_widths, kernel) in enumerate(zip(widths, kernels, strict=True), start=1):
            if group > 1:
                layers[f"pool{group - 1}"] = nn.MaxPool2d(3, stride=2, padding=1)
                layers[f"drop{group - 1}"] = nn.Dropout(0.5)
            for index, width in enumerate(group_widths, start=1):
                layers[f"unit{group}_{index}"] = _conv_unit(in_channels, width, kernel if index == 1 else 1)
                in_channels = width
        self.features = nn.Sequential(layers)
        self.classifier = _conv_unit(in_channels, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits (N, num_classes)."""
        return self.classifier(self.features(x)).mean((2, 3))


class PreActBlock(nn.Module):
    """Pre-activation basic block: x + conv(relu(bn(conv(relu(bn(x))))))."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.relu = nn.ReLU()
        self.projection = (
            nn.Conv2d(in_channels, out_channels, 1, stride=stride)
            if stride != 1 or in_channels != out_channels
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map features (N, C_in, H, W) to (N, C_out, H / stride, W / stride)."""
        out = self.relu(self.bn1(x))
        shortcut = x if self.projection is None else self.projection(out)
        out = self.conv1(out)
        out = self.conv2(self.relu(self.bn2(out)))
        return out + shortcut


class PreActResNet(nn.Module):
    """Pre-activation ResNet with a bare convolution as stem, optionally followed by a max pool."""

    def __init__(
        self,
        widths: tuple[int, ...],
        blocks: int,
        stem_width: int,
        stem_pool: bool = False,
        num_classes: int = 10,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.stem = nn.Conv2d(in_channels, stem_width, 3, padding=1)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1) if stem_pool else nn.Identity()
        stages = []
        width = stem_width
        for index, stage_width in enumerate(widths):
            stage = []
            for block in range(blocks):
                stride = 2 if block == 0 and index > 0 else 1
                stage.append(PreActBlock(width, stage_width, stride))
                width = stage_width
            stages.append(nn.Sequential(*stage))
        self.stages = nn.Sequential(*stages)
        self.norm = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits (N, num_classes)."""
        x = self.stages(self.pool(self.stem(x)))
        x = self.avgpool(self.relu(self.norm(x)))
        return self.fc(x.flatten(1))


def lenet_fc(num_classes: int = 10, in_channels: int = 1) -> LeNetFC:
    """LeNetFC for images of 1x28x28 (7,670 parameters)."""
    return LeNetFC(num_classes, in_channels)


def nin_light(num_classes: int = 10, in_channels: int = 1) -> NIN:
    """NIN-light for images of 1x28x28 (62,094 parameters)."""
    widths = ((48, 40, 24), (48, 48, 48), (48, 48))
    return NIN(widths, (5, 5, 3), num_classes, in_channels)


def nin(num_classes: int = 10, in_channels: int = 3) -> NIN:
    """Network in Network for images of 3x32x32 (969,822 parameters)."""
    widths = ((192, 160, 96), (192, 192, 192), (192, 192))
    return NIN(widths, (5, 5, 3), num_classes, in_channels)


def resnet32(num_classes: int = 10, in_channels: int = 3) -> PreActResNet:
    """Pre-activation ResNet32 for images of 3x32x32 (467,946 parameters)."""
    return PreActResNet((16, 32, 64), 5, 16, num_classes=num_classes, in_channels=in_channels)


def resnet18_imagenette(num_classes: int = 10, in_channels: int = 3) -> PreActResNet:
    """Narrow pre-activation ResNet18 for images of 3x128x128 (2,799,114 parameters)."""
    return PreActResNet((32, 64, 128, 256), 2, 32, stem_pool=True, num_classes=num_classes, in_channels=in_channels)


#: Input size (channels, height, width) of each baseline in the paper.
INPUT_SIZES: dict[str, tuple[int, int, int]] = {
    "lenet_fc": (1, 28, 28),
    "nin_light": (1, 28, 28),
    "nin": (3, 32, 32),
    "resnet32": (3, 32, 32),
    "resnet18_imagenette": (3, 128, 128),
}
