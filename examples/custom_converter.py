"""Teach bu2td an operation of your own.

bu2td knows the operations of torch, torchvision and timm. One that it does not know is left as it
is, opaque, with its channels pinned; the plan names it. Where widths have to change, that costs
adapters. A converter, one small class, tells bu2td how to rebuild the operation instead.
"""

from typing import Any

import torch
from torch import Tensor, nn

import bu2td
from bu2td.ops.surgery import resized


class GaussianUnit(nn.Module):
    """The activation x * Phi(a x), Phi the normal distribution, with one learnable slope a per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.empty(channels, 1, 1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start with a slope of 1. bu2td initialises every new module by this method."""
        nn.init.ones_(self.slope)

    def forward(self, x: Tensor) -> Tensor:
        """Apply it to (N, C, H, W)."""
        return x * torch.special.ndtr(self.slope * x)


class Net(nn.Module):
    """Three conv units with the activation above."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.unit1 = self.unit(3, 16)
        self.unit2 = self.unit(16, 32)
        self.unit3 = self.unit(32, 64)
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(64, num_classes)

    @staticmethod
    def unit(in_channels: int, out_channels: int) -> nn.Sequential:
        """Conv, norm, act."""
        return nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            GaussianUnit(out_channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to logits (N, num_classes)."""
        x = self.pool(self.unit1(x))
        x = self.pool(self.unit2(x))
        return self.fc(self.unit3(x).mean((2, 3)))


def convert() -> bu2td.TopDownNetwork:
    """Ask for one width in every level, so that the activation has to follow."""
    images = torch.zeros(1, 3, 32, 32)
    return bu2td.convert(Net(), arrangement="uni", example_inputs=images, seed=0)


def main() -> None:
    """Convert without a converter, register one, convert again."""
    print("Without a converter:\n")
    print(convert().plan)

    @bu2td.register_converter(GaussianUnit)
    class GaussianUnitConverter(bu2td.Converter):
        role = bu2td.Role.ACT

        def tie(self, site: bu2td.Site, system: bu2td.System) -> Any:
            """Say how channels depend on one another: as many come out as go in."""
            return system.of(site.node.args[0])

        def rebuild(self, site: bu2td.Site, change: bu2td.Change) -> bu2td.Rebuilt:
            """Build the activation for another width."""
            width = change.sizes[site.node.name][1]
            return bu2td.Rebuilt(module=resized(site.module, {"slope": (width, 1, 1)}, {}))

    print("\nWith a converter:\n")
    td = convert()
    print(td.plan)

    logits = td(torch.rand(2, 3, 32, 32))
    logits.sum().backward()
    slopes = [module.slope for module in td.modules() if isinstance(module, GaussianUnit)]
    trained = sum(slope.grad is not None for slope in slopes)
    print(f"\n{len(slopes)} activations, {trained} of them with a gradient")


if __name__ == "__main__":
    main()
