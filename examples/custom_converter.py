"""Teach bu2td operations of your own.

bu2td knows the operations of torch, torchvision and timm. One that it does not know is left as it
is, opaque, with its channels pinned; the plan names it. Where widths have to change, that costs
adapters. A converter, one small class, tells bu2td what the operation is instead: an activation, a
norm and a convolution take one, three and ten lines. `docs/converters.md` has all that a converter may say.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bu2td


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


class PowerNorm(nn.Module):
    """Divides every position by the root mean square over its channels; one gain per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.gain = nn.Parameter(torch.empty(channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start with gains of 1."""
        nn.init.ones_(self.gain)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (N, C, H, W)."""
        power = x.square().sum(1, keepdim=True) / self.channels
        return x * torch.rsqrt(power + 1e-6) * self.gain[:, None, None]


class GainConv(nn.Module):
    """A convolution with 'same' padding whose kernels have length 1, and one learnable gain per kernel."""

    def __init__(self, inputs: int, outputs: int, size: int = 3, step: int = 1) -> None:
        super().__init__()
        self.inputs, self.outputs, self.size, self.step = inputs, outputs, size, step
        self.weight = nn.Parameter(torch.empty(outputs, inputs, size, size))
        self.gain = nn.Parameter(torch.empty(outputs, 1, 1, 1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Random directions, gains of 1."""
        nn.init.normal_(self.weight)
        nn.init.ones_(self.gain)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (N, C, H, W)."""
        kernels = self.gain * F.normalize(self.weight, dim=(1, 2, 3))
        return F.conv2d(x, kernels, stride=self.step, padding=self.size // 2)


class Block(nn.Module):
    """A residual block made of the three."""

    def __init__(self, inputs: int, outputs: int, step: int) -> None:
        super().__init__()
        self.conv1, self.norm1, self.act1 = (
            GainConv(inputs, outputs, 3, step),
            PowerNorm(outputs),
            GaussianUnit(outputs),
        )
        self.conv2, self.norm2, self.act2 = GainConv(outputs, outputs), PowerNorm(outputs), GaussianUnit(outputs)
        self.project = GainConv(inputs, outputs, 1, step)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H / step, W / step)."""
        y = self.act1(self.norm1(self.conv1(x)))
        return self.act2(self.norm2(self.conv2(y)) + self.project(x))


class Net(nn.Module):
    """Three residual blocks, each of another width and resolution."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.blocks = nn.Sequential(Block(16, 16, 1), Block(16, 32, 2), Block(32, 64, 2))
        self.fc = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to logits (N, num_classes)."""
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)))


def register() -> None:
    """Say what the three operations are."""

    @bu2td.register_converter(GaussianUnit)
    class GaussianUnitConverter(bu2td.Activation):
        pass

    @bu2td.register_converter(PowerNorm)
    class PowerNormConverter(bu2td.Norm):
        width_attributes = ("channels",)

    @bu2td.register_converter(GainConv)
    class GainConvConverter(bu2td.Convolution):
        names = {
            **{"in_channels": "inputs", "out_channels": "outputs", "kernel_size": "size", "stride": "step"},
            **dict.fromkeys(("padding", "padding_mode", "dilation", "groups")),  # it has no such settings
        }

        def pads_itself(self, conv: nn.Module) -> bool:
            return True  # whatever its kernel, and whatever happens to its stride


def convert() -> bu2td.TopDownNetwork:
    """Ask for one width in every level, so that all operations have to follow."""
    images = torch.zeros(1, 3, 32, 32)
    return bu2td.convert(Net(), arrangement="uni", example_inputs=images, seed=0)


def main() -> None:
    """Convert without converters, register them, convert again."""
    print("Without converters:\n")
    try:
        print(convert().plan)
    except bu2td.Bu2tdError as error:
        print(f"{type(error).__name__}: {error}")

    register()

    print("\nWith converters:\n")
    td = convert()
    print(td.plan)

    logits = td(torch.rand(2, 3, 32, 32))
    logits.sum().backward()
    for kind in (GainConv, PowerNorm, GaussianUnit):
        modules = [module for module in td.modules() if isinstance(module, kind)]
        trained = sum(all(p.grad is not None for p in module.parameters()) for module in modules)
        print(f"{len(modules)} of {kind.__name__}, {trained} of them with gradients")


if __name__ == "__main__":
    main()
