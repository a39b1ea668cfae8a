"""Bottom-up networks that tests convert, written in several people's ways."""

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bu2td
from bu2td.models import baselines

#: The 25 real models of `bench/real_models.py`.
MODELS = (Path(__file__).parents[1] / "bench" / "real_models.txt").read_text().split()


def make(word: str) -> nn.Module:
    """A model by its word, without weights of its own (init is skipped where it is slow)."""
    from bu2td.models.words import create_model

    return create_model(word, device="meta")


def slim_resnet(depth: int) -> nn.Module:
    """A ResNet as TensorFlow-Slim strides it: in the last block of a stage, whose shortcut is subsampled."""
    model: Any = make(f"torchvision:resnet{depth}")
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        stage[0].conv2.stride = stage[0].downsample[0].stride = (1, 1)
        if stage is not model.layer4:
            stage[-1].conv2.stride = (2, 2)
            stage[-1].downsample = nn.MaxPool2d(1, 2)
    return model


class Block(nn.Module):
    """A residual block with a projection."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.a, self.b = unit(inputs, outputs, 3, stride), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.shortcut(x) + self.b(self.a(x)))


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def convert_baseline(name: str, arrangement: Any, model: nn.Module | None = None, **options: Any) -> Any:
    model = model if model is not None else getattr(baselines, name)()
    images = torch.zeros(2, *baselines.INPUT_SIZES[name])
    options.setdefault("stem", "coarse" if name == "resnet18_imagenette" else "mirror")
    return bu2td.convert(model, arrangement, example_inputs=images, max_macs_ratio=None, **options)


def unit(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, **conv: Any) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, **conv), nn.BatchNorm2d(outputs), nn.ReLU()
    )


def head(inputs: int, classes: int = 10) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


# --- the paper's networks, written otherwise ----------------------------------------------------------


def flat_lenet() -> nn.Sequential:
    """LeNetFC as one flat nn.Sequential with in-place activations."""

    def parts(inputs: int, outputs: int, kernel: int) -> list[nn.Module]:
        return [
            nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2),
            nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.01),
            nn.ReLU(inplace=True),
        ]

    layers = [*parts(1, 6, 5), nn.MaxPool2d(2), *parts(6, 16, 5), nn.MaxPool2d(2), *parts(16, 32, 3)]
    return nn.Sequential(*layers, *parts(32, 10, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


class FunctionalLeNet(nn.Module):
    """LeNetFC with functional calls, padding='same', squeezes, and norms registered before convs."""

    def __init__(self) -> None:
        super().__init__()
        shapes = [(1, 6, 5), (6, 16, 5), (16, 32, 3), (32, 10, 1)]
        self.norms = nn.ModuleList(nn.BatchNorm2d(o, eps=1e-3, momentum=0.01) for _, o, _ in shapes)
        self.convs = nn.ModuleList(nn.Conv2d(i, o, k, padding="same") for i, o, k in shapes)

    def forward(self, x: Tensor) -> Tensor:
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = F.relu(norm(conv(x)))
            if i < 2:
                x = F.max_pool2d(x, 2)
        return F.adaptive_avg_pool2d(x, 1).squeeze(-1).squeeze(-1)


class NestedNIN(nn.Module):
    """NIN-light with every conv unit and every pool wrapped in modules of its own, and functional dropout."""

    def __init__(self) -> None:
        super().__init__()
        groups = [((1, 48, 5), (48, 40, 1), (40, 24, 1)), ((24, 48, 5), (48, 48, 1), (48, 48, 1))]
        groups.append(((48, 48, 3), (48, 48, 1)))
        self.groups = nn.ModuleList(nn.Sequential(*(self._unit(i, o, k) for i, o, k in g)) for g in groups)
        self.pools = nn.ModuleList(nn.Sequential(nn.MaxPool2d(3, 2, 1)) for _ in range(2))
        self.classifier = self._unit(48, 10, 1)

    def _unit(self, inputs: int, outputs: int, kernel: int) -> nn.Sequential:
        conv = nn.Sequential(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2))
        return nn.Sequential(conv, nn.Sequential(nn.BatchNorm2d(outputs, 1e-3, 0.01), nn.Sequential(nn.ReLU())))

    def forward(self, x: Tensor) -> Tensor:
        x = self.groups[0](x)
        for pool, group in zip(self.pools, self.groups[1:], strict=True):  # type: ignore[arg-type]
            x = group(F.dropout(pool(x), 0.5, training=self.training))
        return torch.flatten(F.adaptive_avg_pool2d(self.classifier(x), (1, 1)), 1)


class FlatResNet(nn.Module):
    """Pre-activation ResNet written flat: functional relu, add the other way round, modules in reverse order."""

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64), blocks: int = 5, pool: bool = False) -> None:
        super().__init__()
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        self.spec: list[tuple[str, bool]] = []
        self.stem_pool = pool
        width = widths[0]
        parts["stem"] = nn.Conv2d(3, width, 3, 1, 1)
        for i, outputs in enumerate(widths):
            for b in range(blocks):
                stride = 2 if b == 0 and i else 1
                name = f"b{i}_{b}"
                projected = stride != 1 or width != outputs
                self.spec.append((name, projected))
                parts[name + "n1"] = nn.BatchNorm2d(width)
                parts[name + "c1"] = nn.Conv2d(width, outputs, 3, stride, 1)
                parts[name + "n2"] = nn.BatchNorm2d(outputs)
                parts[name + "c2"] = nn.Conv2d(outputs, outputs, 3, 1, 1)
                if projected:
                    parts[name + "p"] = nn.Conv2d(width, outputs, 1, stride)
                width = outputs
        parts["bn"], parts["fc"] = nn.BatchNorm2d(width), nn.Linear(width, 10)
        for name in reversed(parts):
            self.add_module(name, parts[name])

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.stem_pool:
            x = F.max_pool2d(x, 3, 2, 1)
        for name, projected in self.spec:
            out = F.relu(getattr(self, name + "n1")(x))
            shortcut = getattr(self, name + "p")(out) if projected else x
            out = getattr(self, name + "c1")(out)
            out = getattr(self, name + "c2")(torch.relu(getattr(self, name + "n2")(out)))
            x = shortcut + out
        return self.fc(torch.flatten(self.bn(x).relu().mean((2, 3)), 1))


REWRITTEN: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "flat_lenet": ("lenet_fc", flat_lenet),
    "functional_lenet": ("lenet_fc", FunctionalLeNet),
    "nested_nin": ("nin_light", NestedNIN),
    "flat_resnet32": ("resnet32", FlatResNet),
    "flat_imagenette": ("resnet18_imagenette", lambda: FlatResNet((32, 64, 128, 256), 2, pool=True)),
}


def ready(model: nn.Module, seed: int = 1) -> nn.Module:
    """Batch statistics and scales of a network that has seen images, so that no map is trivial."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            width = module.num_features
            module.running_mean = 0.1 * torch.randn(width, generator=generator)
            module.running_var = 0.5 + torch.rand(width, generator=generator)
            nn.init.normal_(module.weight, 1, 0.3, generator=generator)
            nn.init.normal_(module.bias, 0.1, 0.3, generator=generator)
    return model.eval()
