"""The same network in other people's words: it is found to be the same, or to be what it is."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from converted import converted
from nets import Block, head, unit
from torch import Tensor, nn

import bu2td
from bu2td.errors import UnsupportedOperationError
from bu2td.nn import ScaledSiLU


def modules(network: nn.Module, kind: str) -> list[Any]:
    return [m for m in network.modules() if type(m).__name__ == kind]


class Formula(nn.Module):
    """An activation of one's own."""

    def __init__(self, formula: Any) -> None:
        super().__init__()
        self.formula = formula

    def forward(self, x: Tensor) -> Tensor:
        return self.formula(x)


class Prepared(nn.Module):
    """Normalises the image itself."""

    def __init__(self, plain: bool) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((1, 3, 1, 1), 0.45))
        self.register_buffer("std", torch.full((1, 3, 1, 1), 0.22))
        kind = (lambda i, o: unit(i, o, 3, 2)) if plain else (lambda i, o: Block(i, o, 2))
        self.body = nn.Sequential(unit(3, 8), kind(8, 16), kind(16, 24), head(24))

    def forward(self, x: Tensor) -> Tensor:
        return self.body((x - self.mean) / self.std)


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("arrangement", ["td", "uni", "rev"])
def test_what_prepares_the_image_stays_in_front_of_the_pyramid(plain: bool, arrangement: str) -> None:
    images = torch.rand(2, 3, 32, 32)
    network = bu2td.convert(Prepared(plain), arrangement, example_inputs=images, seed=0, max_macs_ratio=None).eval()
    torch.testing.assert_close(network.prepare(images), (images - 0.45) / 0.22)
    [pyramid] = [n for n in network.graph.nodes if n.name == "pyramid"]
    assert [n.name for n in pyramid.all_input_nodes] == ["prepare"]
    torch.testing.assert_close(network.forward_branches([images] * len(network.plan.ladder)), network(images))
    assert {b.shape for b in network.prepare.buffers()} == {(1, 3, 1, 1)}


@pytest.mark.parametrize(
    "pool",
    [
        lambda x: F.avg_pool2d(x, x.size()[2:]),
        lambda x: F.max_pool2d(x, kernel_size=x.shape[-2:]),
        lambda x: F.avg_pool2d(x.clamp(min=1e-6).pow(3), (x.size(-2), x.size(-1))).pow(1 / 3),
        lambda x: x.max(-1, keepdim=True)[0].max(-2, keepdim=True)[0],
    ],
    ids=["positional", "keyword", "generalised mean", "extremes"],
)
def test_global_pools_written_by_hand(pool: Any) -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(24, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(pool(x).flatten(1))

    model = nn.Sequential(unit(3, 8), unit(8, 16, 3, 2), unit(16, 24, 3, 2), Head())
    network = bu2td.convert(model, example_inputs=torch.zeros(1, 3, 32, 32), seed=0, max_macs_ratio=None)
    assert network.plan.relaxations == ()
    assert network.eval()(torch.rand(2, 3, 37, 32)).shape == (2, 10)


class Mean(nn.Module):
    """A generalised mean over the map."""

    def __init__(self, learned: int) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.full((learned,) if learned < 2 else (learned, 1, 1), 3.0)) if learned else 3

    def forward(self, x: Tensor) -> Tensor:
        x = x.clamp(min=1e-6).pow(self.p)
        return F.avg_pool2d(x, (x.size(-2), x.size(-1))).pow(1.0 / self.p).flatten(1)


@pytest.mark.parametrize(
    "pool",
    [
        Mean(0),
        Mean(1),
        Formula(lambda x: (x * 0.5).mean((2, 3))),
        Formula(lambda x: (x**2 + 0.1).mean((2, 3)).sqrt()),
        Formula(lambda x: torch.log(torch.exp(2 * x).mean((2, 3))) / 2),
    ],
    ids=["power", "learned power", "scaled", "quadratic", "exponential"],
)
@pytest.mark.parametrize("arrangement", ["td", "uni", "rev"])
def test_arithmetic_in_front_of_the_global_pool_belongs_to_the_head(pool: nn.Module, arrangement: str) -> None:
    """The logits are the classifier's of the pooled last features, as in the bottom-up network."""
    model = nn.Sequential(unit(3, 8), Block(8, 16, 2), Block(16, 24, 2), pool, nn.Linear(24, 10))
    images = torch.rand(2, 3, 32, 32)
    network = bu2td.convert(model, arrangement, example_inputs=images, seed=0, max_macs_ratio=None).eval()
    last = network.features(images)[-1]
    [classifier] = modules(network.head, "Linear")
    torch.testing.assert_close(network(images), classifier(pool(last)))
    network(images).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())
    assert network.plan.relaxations == ()


def test_a_generalised_mean_with_an_exponent_per_channel() -> None:
    model = nn.Sequential(unit(3, 8), Block(8, 16, 2), Block(16, 24, 2), Mean(24), nn.Linear(24, 10))
    network = converted(model, example_inputs=torch.zeros(1, 3, 32, 32))
    assert {n: tuple(p.shape) for n, p in network.named_parameters() if n.endswith(".p")} == {"head.3.p": (8, 1, 1)}


def test_an_activation_of_two_operations_stays_with_its_unit() -> None:
    """The square of ReLU follows every unit, so the last one is no part of the head."""

    def part(inputs: int, outputs: int) -> nn.Module:
        square = Formula(lambda x: F.relu(x).square())
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, 2, 1), nn.BatchNorm2d(outputs), square)

    model = nn.Sequential(part(3, 8), part(8, 16), part(16, 24), head(24))
    network = converted(model, example_inputs=torch.zeros(1, 3, 32, 32))
    assert "square" in network.r8.code
    assert "square" not in network.head.code


def test_a_parameter_that_several_levels_read() -> None:
    class Tempered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))
            self.stages = nn.ModuleList([unit(3, 8), Block(8, 16, 2), Block(16, 24, 2)])
            self.head = head(24)

        def forward(self, x: Tensor) -> Tensor:
            factor = self.scale.exp()
            for stage in self.stages:
                x = stage(x) * factor
            return self.head(x)

    network = converted(Tempered(), example_inputs=torch.zeros(1, 3, 32, 32))
    assert [n for n, _ in network.named_parameters() if n.endswith("scale")] == ["r4.scale", "r2_up.scale"]
    assert any("separate in each: scale" in note for note in network.plan.notes)


@pytest.mark.parametrize(
    ("factor", "steps", "size"), [(3, 3, (81, 90)), (3, 5, (243, 250)), (5, 2, (100, 75)), (7, 2, (98, 98))]
)
def test_strides_of_odd_factors(factor: int, steps: int, size: tuple[int, int]) -> None:
    model = nn.Sequential(unit(3, 8), *(Block(8, 8, factor) for _ in range(steps)), head(8))
    ladder = tuple(factor**i for i in range(steps, -1, -1))
    assert converted(model, example_inputs=torch.zeros(1, 3, *size)).plan.ladder == ladder


def test_resampling_that_reduces_is_a_downsampler() -> None:
    class Half(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.interpolate(x, scale_factor=0.5)

    model = nn.Sequential(unit(3, 8), Half(), unit(8, 16), Half(), unit(16, 24), head(24))
    assert converted(model, example_inputs=torch.zeros(1, 3, 32, 32)).plan.ladder == (4, 2, 1)


class Sized(nn.Module):
    """Reads a size before the block that it is used behind."""

    def __init__(self, of_image: bool) -> None:
        super().__init__()
        self.of_image = of_image
        self.a, self.b = nn.Sequential(unit(3, 8), Block(8, 16, 2)), Block(16, 16)
        self.c = nn.Sequential(Block(16, 32, 2), head(32))

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        height, width = x.shape[-2:] if self.of_image else y.shape[-2:]
        if self.of_image:
            height, width = height // 2, width // 2
        return self.c(self.b(y).reshape(-1, 16, height, width))


def test_sizes_of_earlier_tensors_are_read_again() -> None:
    images = torch.zeros(1, 3, 32, 32)
    assert converted(Sized(False), example_inputs=images).plan.ladder == (4, 2, 1)
    with pytest.raises(UnsupportedOperationError, match="size of a map at another resolution"):
        converted(Sized(True), example_inputs=images)


def test_spatial_gates_and_shuffles_scale() -> None:
    class Gated(nn.Module):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.a, self.gate = unit(inputs, outputs, 3, 2), nn.Conv2d(2, 1, 7, padding=3)
            self.shuffle = nn.ChannelShuffle(2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            seen = torch.cat([x.mean(1, keepdim=True), torch.max(x, 1, keepdim=True)[0]], 1)
            return self.shuffle(x * torch.sigmoid(self.gate(seen)))

    model = nn.Sequential(unit(3, 8), Gated(8, 16), Gated(16, 24), Gated(24, 40), head(40))
    assert converted(model, "uni", example_inputs=torch.zeros(1, 3, 32, 32)).plan.relaxations == ()


class Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


@pytest.mark.parametrize(
    ("own", "kind"),
    [
        (Swish, nn.SiLU),
        (lambda: Formula(lambda x: x.mul(x.sigmoid())), nn.SiLU),
        (lambda: Formula(lambda x: x * F.relu6(x + 3) / 6), nn.Hardswish),
        (lambda: Formula(lambda x: x * (F.relu6(x + 3.0, inplace=True) / 6.0)), nn.Hardswish),
        (lambda: Formula(lambda x: F.relu6(3 + x) * (1 / 6) * x), nn.Hardswish),
        (lambda: Formula(lambda x: x * torch.clamp(x + 3, 0, 6) / 6), nn.Hardswish),
        (lambda: Formula(lambda x: x * torch.tanh(F.softplus(x))), nn.Mish),
        (lambda: Formula(lambda x: x * torch.sigmoid(1.702 * x)), lambda: ScaledSiLU(1.702)),
        (lambda: Formula(lambda x: x.clamp(min=0)), nn.ReLU),
        (lambda: Formula(lambda x: torch.clamp(x, min=0, max=6)), nn.ReLU6),
    ],
    ids=["swish", "method", "hard", "quotient first", "product", "clamp", "mish", "scaled", "relu", "relu6"],
)
def test_activations_written_by_hand(own: Any, kind: Any) -> None:
    """They are the module of that name: an activation, not a block with two paths."""

    def model(act: Any) -> nn.Module:
        def part(inputs: int, outputs: int, stride: int) -> nn.Module:
            return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), act())

        return nn.Sequential(part(3, 8, 1), Block(8, 16, 2), part(16, 16, 1), Block(16, 24, 2), head(24))

    images = torch.zeros(1, 3, 32, 32)
    a, b = (bu2td.analyze(model(act), example_inputs=images) for act in (own, kind))
    assert a.rows() == b.rows()
    found = bu2td.convert(model(own), example_inputs=images, seed=0, max_macs_ratio=None).eval()
    expected = bu2td.convert(model(kind), example_inputs=images, seed=0, max_macs_ratio=None).eval()
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(found(images), expected(images))
    by_hand = own()
    torch.testing.assert_close(by_hand(images.clone()), kind()(images.clone()))


def test_a_formula_that_is_no_activation_stays() -> None:
    """x relu6(x + 2) / 6 is not Hardswish, and x sigmoid(y) gates x with another map."""
    model = nn.Sequential(
        unit(3, 8), Block(8, 16, 2), Formula(lambda x: x * F.relu6(x + 2) / 6), Block(16, 24, 2), head(24)
    )
    network = converted(model, example_inputs=torch.zeros(1, 3, 32, 32))
    assert not modules(network, "Hardswish")


def test_a_shared_activation_moves_no_border() -> None:
    shared = nn.ReLU()

    def model(act: Any) -> nn.Module:
        def part(inputs: int, outputs: int, kernel: int = 3) -> nn.Module:
            return nn.Sequential(
                nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2), nn.BatchNorm2d(outputs), act()
            )

        class Aggregation(nn.Module):
            def __init__(self, inputs: int, outputs: int) -> None:
                super().__init__()
                self.pool, self.a = nn.MaxPool2d(3, 2, 1), part(inputs, outputs // 2)
                self.close = part(inputs + outputs // 2, outputs, 1)

            def forward(self, x: Tensor) -> Tensor:
                x = self.pool(x)
                return self.close(torch.cat([x, self.a(x)], 1))

        return nn.Sequential(part(3, 12), Aggregation(12, 8), Aggregation(8, 16), head(16))

    images = torch.zeros(1, 3, 32, 32)
    found = [bu2td.analyze(model(act), example_inputs=images) for act in (lambda: shared, nn.ReLU)]
    assert found[0].rows() == found[1].rows()
    assert [level.width for level in found[0].levels] == [16, 8, 12]


def test_gates_that_are_expanded_are_gates() -> None:
    class Expanded(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            y = F.adaptive_avg_pool2d(x, 1).squeeze(-1).transpose(-1, -2)
            return x * self.conv(y).transpose(-1, -2).unsqueeze(-1).sigmoid().expand_as(x)

    def inverted(inputs: int, outputs: int, stride: int) -> nn.Module:
        wide = 4 * inputs
        return nn.Sequential(
            unit(inputs, wide, 1),
            unit(wide, wide, 3, stride, groups=wide),
            Expanded(wide),
            nn.Conv2d(wide, outputs, 1),
        )

    model = nn.Sequential(unit(3, 8, 3, 2), inverted(8, 12, 1), inverted(12, 16, 2), inverted(16, 24, 2), head(24))
    analysis = bu2td.analyze(model, example_inputs=torch.zeros(1, 3, 64, 64))
    assert [len(level.blocks) for level in analysis.levels] == [1, 1, 1, 0]


class PadsBefore(nn.Conv2d):
    """Pads in its own forward, as copies of TensorFlow's SAME do."""

    def forward(self, x: Tensor) -> Tensor:
        high, wide = ((k - 1) // 2 for k in self.kernel_size)
        return super().forward(F.pad(x, (wide, wide, high, high)))


class PadsByModule(nn.Conv2d):
    """Keeps a padding module that is made for its stride."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__(inputs, outputs, kernel, stride)
        total = kernel - stride
        self.padded = nn.ZeroPad2d((total // 2, total - total // 2, total // 2, total - total // 2))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(self.padded(x), self.weight, self.bias, self.stride, self.padding)


@pytest.mark.parametrize("conv", [PadsBefore, PadsByModule])
def test_convolutions_that_pad_in_their_own_forward(conv: Any) -> None:
    """Their padding goes, as any other does."""

    def part(inputs: int, outputs: int, stride: int) -> nn.Module:
        return nn.Sequential(conv(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs), nn.ReLU())

    model = nn.Sequential(unit(3, 8, 3, 2), part(8, 16, 2), part(16, 24, 2), head(24))
    network = converted(model, example_inputs=torch.zeros(1, 3, 32, 32))
    assert network.plan.ladder == (8, 4, 2, 1)
    assert not modules(network, conv.__name__)
    assert not any("functional_pad" in level.code for level in network.children() if hasattr(level, "code"))


@pytest.mark.parametrize("last", [(unit(24, 24, 3, 2, groups=24), unit(24, 32, 1)), (Block(24, 32, 2),)])
def test_a_plain_network_that_ends_in_one_block_has_no_stem(last: Any) -> None:
    """Else one level alone would have blocks."""
    model = nn.Sequential(unit(3, 8, 3, 2), unit(8, 16, 3, 2), unit(16, 24, 3, 2), *last, head(32))
    for arrangement, widths in (
        ("td", (32, 24, 16, 8, 8)),
        ("uni", (16, 16, 16, 16, 8)),
        ("rev", (8, 16, 24, 32, 8)),
    ):
        plan = converted(model, arrangement, example_inputs=torch.zeros(1, 3, 64, 64)).plan
        assert (plan.ladder, plan.widths, plan.relaxations) == ((16, 8, 4, 2, 1), widths, ())
