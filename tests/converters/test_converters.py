"""Converters: every operation is rebuilt for other widths, and the registry keeps its rules."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nets import head, unit
from torch import Tensor, nn

import bu2td
from bu2td.errors import ConverterError
from bu2td.ops import Role


class Around(nn.Module):
    """Puts an operation on maps into a residual network whose levels differ in width."""

    def __init__(self, operation: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.stem = unit(3, 8)
        self.one, self.two = Branch(8, 8, 1, operation), Branch(8, 16, 2, operation)
        self.three = Branch(16, 24, 2, operation)
        self.head = head(24)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.three(self.two(self.one(self.stem(x)))))


class Branch(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, operation: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.conv1, self.operation = nn.Conv2d(inputs, outputs, 3, stride, 1), operation(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1)
        same = inputs == outputs and stride == 1
        self.projection = None if same else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.projection is None else self.projection(x)
        return F.relu(self.conv2(self.operation(self.conv1(x))) + shortcut)


class SqueezeExcite(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(width, width // 4, 1), nn.Conv2d(width // 4, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))


class Shuffle(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.size()
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


class Halves(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width // 2, width // 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=1)
        return torch.cat([a, self.conv(b)], dim=1)


class Split(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.sizes = (width // 4, width - width // 4)
        self.conv = nn.Conv2d(self.sizes[0], self.sizes[0], 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.split(x, list(self.sizes), dim=1)
        return torch.cat([self.conv(a), b], 1)


class Slices(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.half = width // 2
        self.conv = nn.Conv2d(self.half, self.half, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.conv(x[:, : self.half]), x[:, self.half :]], 1)


class ChannelsLast(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.fc = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


class FunctionalNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.weight = width, nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x.permute(0, 2, 3, 1), (self.width,), self.weight, self.bias, 1e-6)
        return x.permute(0, 3, 1, 2)


class LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma.view(1, -1, 1, 1)


class Excursion(nn.Module):
    """Goes to a coarser map and back; must keep its strides."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.interpolate(self.conv(x), size=x.shape[-2:])


OPERATIONS: dict[str, Callable[[int], nn.Module]] = {
    "batch_norm": nn.BatchNorm2d,
    "instance_norm": lambda w: nn.InstanceNorm2d(w, affine=True),
    "group_norm": lambda w: nn.GroupNorm(4, w),
    "prelu": nn.PReLU,
    "leaky_relu": lambda w: nn.LeakyReLU(0.2, inplace=True),
    "grouped": lambda w: nn.Conv2d(w, w, 3, padding=1, groups=4),
    "depthwise": lambda w: nn.Conv2d(w, w, 3, padding=1, groups=w),
    "multiplier": lambda w: nn.Sequential(nn.Conv2d(w, 2 * w, 3, 1, 1, groups=w), nn.Conv2d(2 * w, w, 1)),
    "dilated": lambda w: nn.Conv2d(w, w, 3, padding=2, dilation=2),
    "reflect": lambda w: nn.Conv2d(w, w, 3, padding=1, padding_mode="reflect"),
    "squeeze_excite": SqueezeExcite,
    "shuffle": lambda w: Shuffle(),
    "halves": Halves,
    "split": Split,
    "slices": Slices,
    "channels_last": ChannelsLast,
    "functional_norm": FunctionalNorm,
    "layer_scale": LayerScale,
    "excursion": Excursion,
    "stride_one_pool": lambda w: nn.MaxPool2d(3, 1, 1),
    "dropout": lambda w: nn.Dropout2d(0.1),
}


@pytest.mark.parametrize("arrangement", ["td", "uni", "rev", [20, 12, 36]])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_retargeted(name: str, arrangement: Any) -> None:
    """Without relaxation, for other widths, and the rebuilt network runs and learns everywhere."""
    model = Around(OPERATIONS[name])
    network = bu2td.convert(
        model, arrangement, example_inputs=torch.zeros(1, 3, 32, 32), seed=0, max_macs_ratio=None
    )
    expected = {"td": (24, 16, 8), "uni": (16, 16, 16), "rev": (8, 16, 24)}
    assert network.plan.widths == (tuple(arrangement) if isinstance(arrangement, list) else expected[arrangement])
    assert network.plan.relaxations == ()
    assert not any("without a converter" in note for note in network.plan.notes)
    network(torch.rand(2, 3, 30, 30)).square().sum().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_excursions_keep_their_strides() -> None:
    network = bu2td.convert(Around(Excursion), example_inputs=torch.zeros(1, 3, 32, 32), device="meta")
    strides = [m.stride for n, m in network.named_modules() if n.endswith("operation.conv")]
    assert strides == [(2, 2)] * 3


def test_kernels() -> None:
    """k = stride becomes 1x1, another even k becomes k + 1, odd ones stay, valid padding becomes 'same'."""

    def model(kernel: int, stride: int, padding: int) -> nn.Module:
        class Down(nn.Module):
            def __init__(self, inputs: int, outputs: int) -> None:
                super().__init__()
                self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding)
                self.block = Branch(outputs, outputs, 1, nn.BatchNorm2d)

            def forward(self, x: Tensor) -> Tensor:
                return self.block(self.conv(x))

        return nn.Sequential(unit(3, 8), Branch(8, 8, 1, nn.BatchNorm2d), Down(8, 12), Down(12, 16), head(16))

    for kernel, stride, padding, expected in ((2, 2, 0, 1), (4, 2, 1, 5), (3, 2, 1, 3), (3, 2, 0, 3), (5, 2, 2, 5)):
        network = bu2td.convert(
            model(kernel, stride, padding), example_inputs=torch.zeros(1, 3, 64, 64), device="meta"
        )
        conv = network.get_submodule("r2_up.2.conv")
        assert (conv.kernel_size, conv.stride) == ((expected,) * 2, (1, 1))
        assert conv.padding == (expected // 2,) * 2


# --- relaxations --------------------------------------------------------------------------------------


def test_regroup_and_frozen_are_named_and_counted() -> None:
    grouped = bu2td.convert(
        Around(OPERATIONS["grouped"]), [20, 11, 13], example_inputs=torch.zeros(1, 3, 32, 32), max_macs_ratio=None
    )
    assert grouped.plan.relaxations == ()  # inner widths move to multiples of the groups
    normed = bu2td.convert(
        Around(lambda w: nn.GroupNorm(8, w)), [20, 12, 30], example_inputs=torch.zeros(1, 3, 32, 32)
    )
    assert normed.plan.relaxations == ()

    class Tied(nn.Module):
        """A grouped convolution on the trunk's own width."""

        def __init__(self, width: int) -> None:
            super().__init__()
            self.conv = nn.Conv2d(width, width, 3, padding=1, groups=4)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.conv(x)

    model = nn.Sequential(unit(3, 8), Tied(8), unit(8, 16, 3, 2), Tied(16), unit(16, 32, 3, 2), Tied(32), head(32))
    network = bu2td.convert(model, [30, 15, 7], example_inputs=torch.zeros(1, 3, 32, 32), max_macs_ratio=None)
    assert {what for _, what in network.plan.relaxations} == {"regroup"}
    assert network.plan.widths == (30, 15, 7)
    assert "regroup" in str(network.plan)
    assert network(torch.rand(2, 3, 32, 32)).shape == (2, 10)


class Mystery(nn.Module):
    """An operation of a user's own: scales every channel by a learned gain, on a fixed number of channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.gain = width, nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        if int(x.shape[1]) != self.width:  # cannot be traced, so it needs a converter
            raise ValueError("wrong width")
        return torch.einsum("nchw,c->nchw", x, self.gain)


class TracedMystery(nn.Module):
    """The same, written so that it traces into an operation without converter."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.lerp(x, x * self.gain[:, None, None], 1.0)


def test_an_operation_without_converter_is_opaque_and_named() -> None:
    images = torch.zeros(1, 3, 32, 32)
    network = bu2td.convert(Around(TracedMystery), "uni", example_inputs=images, seed=0, max_macs_ratio=None)
    note = next(n for n in network.plan.notes if "without a converter" in n)
    assert "lerp" in note
    assert "test_converters.py" in note
    gains = [p.numel() for n, p in network.named_parameters() if n.endswith("gain")]
    assert gains == [24, 16, 8]  # pinned at their bottom-up widths
    assert network.plan.widths == (16, 16, 16)
    assert network(torch.rand(2, 3, 32, 32)).shape == (2, 10)


def test_a_users_converter_retargets_its_operation() -> None:
    images = torch.zeros(1, 3, 32, 32)

    @bu2td.register_converter(Mystery)
    class MysteryConverter(bu2td.Converter):
        role = Role.PASS

        def tie(self, site: bu2td.Site, system: bu2td.System) -> Any:
            return system.of(site.node.args[0])

        def rebuild(self, site: bu2td.Site, change: bu2td.Change) -> bu2td.Rebuilt:
            return bu2td.Rebuilt(module=Mystery(change.sizes[site.node.name][1]))

    try:
        network = bu2td.convert(Around(Mystery), "uni", example_inputs=images, seed=0, max_macs_ratio=None)
        assert [p.numel() for n, p in network.named_parameters() if n.endswith("gain")] == [16, 16, 16]
        assert network.plan.notes == ()
        with pytest.raises(ConverterError, match="already has the converter"):
            bu2td.register_converter(Mystery)(MysteryConverter)
    finally:
        bu2td.unregister_converter(Mystery)
    with pytest.raises(ConverterError, match="no converter to remove"):
        bu2td.unregister_converter(Mystery)


def test_bad_registrations() -> None:
    with pytest.raises(ConverterError, match="subclass of"):
        bu2td.register_converter(Mystery)(Mystery)  # type: ignore[type-var]
    with pytest.raises(ConverterError, match="cannot have a converter"):
        bu2td.register_converter(3)(bu2td.Converter)


def test_a_converter_that_fails_is_named() -> None:
    @bu2td.register_converter(Mystery)
    class Broken(bu2td.Converter):
        role = Role.PASS

        def tie(self, site: bu2td.Site, system: bu2td.System) -> Any:
            return system.of(site.node.args[0])

        def rebuild(self, site: bu2td.Site, change: bu2td.Change) -> bu2td.Rebuilt:
            raise RuntimeError("no idea")

    try:
        with pytest.raises(bu2td.Bu2tdError, match=r"Broken failed to rebuild three\.operation .*no idea"):
            bu2td.convert(Around(Mystery), example_inputs=torch.zeros(1, 3, 32, 32))
    finally:
        bu2td.unregister_converter(Mystery)
