"""Converters of users: what little they must say is enough everywhere, and what they do not say is asked for."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nets import head, unit
from torch import Tensor, nn

import bu2td
from bu2td import erf
from bu2td.errors import ConverterError

IMAGES = torch.zeros(1, 3, 32, 32)
EXAMPLE = Path(__file__).parents[2] / "examples" / "custom_converter.py"


@contextmanager
def knowing(target: Any, cls: type[bu2td.Converter]) -> Iterator[None]:
    bu2td.register_converter(target)(cls)
    try:
        yield
    finally:
        bu2td.unregister_converter(target)


@pytest.fixture(scope="module")
def example() -> Iterator[Any]:
    """The example's module, its three converters registered."""
    spec = importlib.util.spec_from_file_location("custom_converter", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.register()
    yield module
    for cls in (module.GaussianUnit, module.PowerNorm, module.GainConv):
        bu2td.unregister_converter(cls)


def kinds(module: nn.Module) -> list[str]:
    return [type(part).__name__ for part in module.children()]


@pytest.mark.parametrize("arrangement", ["td", "uni", "rev", [48, 24, 12]])
def test_the_examples_layers_are_in_every_new_unit(example: Any, arrangement: Any) -> None:
    td = bu2td.convert(example.Net(), arrangement, example_inputs=IMAGES, seed=0, max_macs_ratio=None)
    assert td.plan.relaxations == ()
    for level in td.plan.levels:
        lateral = td.get_submodule(f"{level.name}_lateral")
        assert kinds(lateral) == ["GainConv", "PowerNorm", "GaussianUnit"]
        assert [p.shape[0] for p in lateral.parameters()] == [level.merge_width] * 4
    for level in td.plan.levels[1:]:
        assert kinds(td.get_submodule(f"{level.name}_merge")) == ["GainConv", "PowerNorm", "GaussianUnit"]
    norms = [m for m in td.modules() if isinstance(m, example.PowerNorm)]
    assert all(m.channels == len(m.gain) for m in norms)
    assert all(m.weight.shape[:2] == (m.outputs, m.inputs) for m in td.modules() if isinstance(m, example.GainConv))
    td(torch.rand(2, 3, 30, 34)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in td.parameters())


def test_the_examples_layers_have_receptive_fields(example: Any) -> None:
    """Those of plain layers: 3x3 windows, pointwise norms and activations."""

    class Plain(nn.Module):
        def __init__(self, inputs: int, outputs: int, size: int = 3, step: int = 1) -> None:
            super().__init__()
            self.conv = nn.Conv2d(inputs, outputs, size, step, size // 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x)

    own = [row["size"] for row in erf.theory(example.Net(), example_inputs=IMAGES).rows]
    convolution, example.GainConv = example.GainConv, Plain
    try:
        plain = [row["size"] for row in erf.theory(example.Net(), example_inputs=IMAGES).rows]
    finally:
        example.GainConv = convolution
    assert own == plain
    assert None not in own[:-1]
    td = bu2td.convert(example.Net(), example_inputs=IMAGES, seed=0)
    assert not any(row["unknown"] for row in erf.theory(td, layers="all").rows)


@pytest.mark.parametrize("mode", ["inference", "training"])
def test_the_examples_layers_survive_optimisation(example: Any, mode: str) -> None:
    td = bu2td.convert(example.Net(), "uni", example_inputs=IMAGES, seed=0).eval()
    fast = bu2td.optimize(td, mode).eval()
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(fast(images), td(images), rtol=1e-4, atol=1e-4)


# --- defaults by role ---------------------------------------------------------------------------------


class Bent(nn.Module):
    """An activation that cannot be traced; ``width`` slopes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.full((width, 1, 1), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        return torch.maximum(x, self.slope * x) if x.numel() > 0 else x


class Noise(nn.Module):
    """A dropout of a user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = 0.5

    def forward(self, x: Tensor) -> Tensor:
        return x * (torch.rand_like(x) > self.rate) if self.training else x


class Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, act: Any = Bent) -> None:
        super().__init__()
        self.conv1, self.norm, self.act = nn.Conv2d(inputs, outputs, 3, 2, 1), nn.BatchNorm2d(outputs), act(outputs)
        self.conv2, self.short = nn.Conv2d(outputs, outputs, 3, 1, 1), nn.Conv2d(inputs, outputs, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv2(self.act(self.norm(self.conv1(x)))) + self.short(x))


def net(act: Any = Bent) -> nn.Module:
    return nn.Sequential(unit(3, 8), Residual(8, 12, act), Residual(12, 20, act), head(20))


class OnlyRole(bu2td.Converter):
    role = bu2td.Role.ACT


class RoleAndTie(bu2td.Converter):
    role = bu2td.Role.ACT

    def tie(self, site: bu2td.Site, system: bu2td.System) -> Any:
        return system.of(site.tensor())


@pytest.mark.parametrize("converter", [OnlyRole, RoleAndTie, bu2td.Activation])
@pytest.mark.parametrize("arrangement", ["td", "uni", "rev"])
def test_an_activation_that_says_little_is_lost_nowhere(converter: type[bu2td.Converter], arrangement: str) -> None:
    with knowing(Bent, converter):
        td = bu2td.convert(net(), arrangement, example_inputs=IMAGES, seed=0, max_macs_ratio=None)
    for level in td.plan.levels[:-1]:  # the finest is of the kind of the stem
        assert kinds(td.get_submodule(f"{level.name}_lateral"))[-1] == "Bent"
    assert kinds(td.get_submodule("r2_merge"))[-1] == "Bent"
    td(torch.randn(2, 3, 32, 32)).square().sum().backward()
    assert all(p.grad is not None for p in td.parameters())


class Scaled(nn.Module):
    """An activation with a value per channel, written (1, C, 1, 1)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.scale * x) if x.numel() > 0 else x


def test_values_per_channel_follow_however_they_are_written() -> None:
    with knowing(Scaled, bu2td.Activation):
        td = bu2td.convert(net(Scaled), "uni", example_inputs=IMAGES, seed=0, max_macs_ratio=None)
    assert {tuple(m.scale.shape) for m in td.modules() if isinstance(m, Scaled)} == {(1, 12, 1, 1)}
    td(torch.randn(2, 3, 32, 32))


@pytest.mark.parametrize("act", [nn.PReLU, Scaled, lambda w: nn.Hardtanh()])
@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm2d,
        lambda width: nn.GroupNorm(1, width),
        lambda width: nn.InstanceNorm2d(width, affine=True, track_running_stats=True),
        "PowerNorm",
    ],
)
@pytest.mark.parametrize("arrangement", ["td", "uni", "rev"])
def test_layers_of_one_channel_grow(example: Any, norm: Any, act: Any, arrangement: str) -> None:
    """No shape says that the one value of a norm or a bias belongs to the one channel."""
    norm = getattr(example, norm) if isinstance(norm, str) else norm

    def layers(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), norm(outputs), act(outputs))

    model = nn.Sequential(layers(3, 8), nn.MaxPool2d(2), layers(8, 1), nn.MaxPool2d(2), layers(1, 12), head(12))
    with knowing(Scaled, bu2td.Activation):
        td = bu2td.convert(
            model, arrangement, width=6 if arrangement == "uni" else None, example_inputs=IMAGES, seed=0
        )
    for name, module in td.named_modules():
        if isinstance(module, nn.Conv2d):
            assert module.bias is not None
            assert len(module.bias) == module.out_channels, name
        elif hasattr(module, "running_mean"):
            assert len(module.running_mean) == module.num_features, name
    if arrangement == "uni":
        assert td.plan.levels[1].merge_width == 6
    td(torch.randn(2, 3, 32, 32)).square().sum().backward()
    assert all(p.grad is not None for p in td.parameters())


class Inside(nn.Module):
    """An activation that holds another one with slopes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.act = nn.PReLU(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x) if x.numel() > 0 else x


def test_modules_inside_of_a_module_are_asked_for() -> None:
    """They are copied where the width stays, and refused where it changes."""

    class Follows(bu2td.Activation):
        def with_width(self, module: Any, width: int, before: int | None = None) -> nn.Module:
            return Inside(width)

    with knowing(Inside, bu2td.Activation):
        bu2td.convert(net(Inside), "td", example_inputs=IMAGES, device="meta")
        with pytest.raises(ConverterError, match=r"no with_width\(\).* how act inside of a Inside .* follow"):
            bu2td.convert(net(Inside), "uni", example_inputs=IMAGES, device="meta")
    with knowing(Inside, Follows):
        td = bu2td.convert(net(Inside), "uni", example_inputs=IMAGES, device="meta")
    assert {m.act.num_parameters for m in td.modules() if isinstance(m, Inside)} == {12}


def test_a_dropout_that_says_little_is_lost_nowhere() -> None:
    class NoiseConverter(bu2td.Converter):
        role = bu2td.Role.DROPOUT

    layers = [unit(3, 8), nn.MaxPool2d(2), Noise(), unit(8, 16), nn.MaxPool2d(2), Noise(), unit(16, 20), head(20)]
    with knowing(Noise, NoiseConverter):
        td = bu2td.convert(nn.Sequential(*layers), example_inputs=IMAGES, seed=0)
    assert [n for n, m in td.named_modules() if isinstance(m, Noise)] == ["r2_dropout", "r1_dropout"]


def test_converters_are_asked_for_what_they_do_not_say() -> None:
    """The class, the method, and what to do are named."""

    class Conv(nn.Module):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3))

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.weight, padding=1)

    class Says(bu2td.Converter):
        role = bu2td.Role.CONV

    class SaysMore(Says):
        def tie(self, site: bu2td.Site, system: bu2td.System) -> Any:
            entry = system.of(site.tensor())
            return (entry[0], system.fresh(len(site.layer.weight), site.node.name), *entry[2:])

        def kernel(self, site: bu2td.Site) -> tuple[int, int]:
            return (3, 3)

    class Rebuilds(SaysMore):
        def rebuild(self, site: bu2td.Site, change: bu2td.Change) -> bu2td.Rebuilt:
            return bu2td.Rebuilt(module=Conv(change.sizes[site.source()][1], change.sizes[site.node.name][1]))

    layers = [
        Conv(3, 8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        Conv(8, 16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        Conv(16, 20),
        head(20),
    ]
    model = nn.Sequential(*layers)
    for converter, method in ((Says, "tie"), (SaysMore, "(rebuild|dense)"), (Rebuilds, "dense")):
        with (
            knowing(Conv, converter),
            pytest.raises(ConverterError, match=rf"{converter.__name__}.* no {method}\(\)"),
        ):
            bu2td.convert(model, example_inputs=IMAGES)


@pytest.mark.parametrize("method", ["tie", "rebuild", "unit"])
def test_a_bug_in_a_converter_is_reported_as_such(method: str) -> None:
    def broken(*args: Any) -> Any:
        raise IndexError("tuple index out of range")

    cls = type("Broken", (bu2td.Activation,), {method: broken})
    with knowing(Bent, cls), pytest.raises(ConverterError, match=r"Broken failed to .*IndexError: tuple index"):
        bu2td.convert(net(), example_inputs=IMAGES)


def test_a_broken_rule_of_fields_is_reported_as_such() -> None:
    class Broken(bu2td.Activation):
        def interval(self, site: bu2td.Site, fields: Any) -> Any:
            return fields["nowhere"]

    with knowing(Bent, Broken), pytest.raises(ConverterError, match="Broken failed to carry receptive fields"):
        erf.theory(net(), example_inputs=IMAGES)


def test_a_structure_that_does_not_fit_is_reported() -> None:
    class Short(bu2td.Activation):
        def tie(self, site: bu2td.Site, system: bu2td.System) -> Any:
            return system.of(site.tensor())[:2]

    with knowing(Bent, Short), pytest.raises(ConverterError, match="Short failed to tie"):
        bu2td.convert(net(), example_inputs=IMAGES)


def test_a_converter_may_decline() -> None:
    """Where it has no rule, the operation is opaque, and named."""

    class Declines(bu2td.Activation):
        def tie(self, site: bu2td.Site, system: bu2td.System) -> Any:
            raise bu2td.NoRuleError("not here")

    with knowing(Bent, Declines):
        td = bu2td.convert(net(), example_inputs=IMAGES, device="meta")
    assert any("without a converter" in note and "Bent" in note for note in td.plan.notes)


def test_roles_are_members_of_the_enum() -> None:
    class Word(bu2td.Converter):
        role = "act"  # type: ignore[assignment]

    with pytest.raises(ConverterError, match=r"Word.role is 'act'.*Did you mean 'act'"):
        bu2td.register_converter(Bent)(Word)


def test_what_cannot_be_built_anew_is_refused() -> None:
    """An activation that is a function has no module that a lateral could copy."""
    with knowing("method:logit", bu2td.Activation), pytest.raises(ConverterError, match=r"has no unit\(\)"):
        bu2td.convert(net(lambda w: Call()), example_inputs=IMAGES)


class Call(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.logit(1e-3)


DOCS = Path(__file__).parents[2] / "docs" / "converters.md"


def test_the_documentation_names_the_whole_interface() -> None:
    """Every public name of the interface stands in its table, and nothing that is not there."""
    table = DOCS.read_text().partition("## The interface")[2].partition("The rules of `system`")[0]
    rows = [row.split("|")[1] for row in table.splitlines() if row.startswith("| `")]
    named = {word.partition("(")[0] for row in rows for word in row.replace("`", " ").split()}
    public = {name for name in vars(bu2td.Converter) if not name.startswith("_")} - {"width_attributes"}
    assert {name.strip(",") for name in named if name[:1].isalpha()} >= public
    assert all(
        hasattr(bu2td.Converter, row.replace("`", " ").split()[0].partition("(")[0].strip(",")) for row in rows
    )


def my_split(x: Tensor, half: int) -> tuple[Tensor, Tensor]:
    return x[:, :half], x[:, half:]


torch.fx.wrap("my_split")


class Swap(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = my_split(x, self.conv.in_channels // 2)
        return x + self.conv(torch.cat([b, a], 1))


def test_the_documentations_examples_work() -> None:
    """A downsampler, a gate and a function as the page has them."""

    class MyPool(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.max_pool2d(x, 2) if x.numel() > 0 else x

    class MyGate(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(width, width))

        def forward(self, x: Tensor) -> Tensor:
            return x * (x.mean((2, 3)) @ self.weight).sigmoid()[:, :, None, None] if x.numel() > 0 else x

    blocks = DOCS.read_text().split("```python\n")[1:]
    chosen = [block.partition("```")[0] for block in blocks if "class My" in block and "MyAct" not in block]
    for block in chosen:
        exec(
            block, {"bu2td": bu2td, "my_split": my_split, "MyPool": MyPool, "MyGate": MyGate, "MyGroupNorm": Noise}
        )

    layers = [unit(3, 8), MyPool(), unit(8, 16), MyGate(16), MyPool(), unit(16, 20), MyGate(20), Swap(20), head(20)]
    try:
        td = bu2td.convert(nn.Sequential(*layers), "uni", example_inputs=IMAGES, seed=0)
        assert td.plan.ladder == (4, 2, 1)
        assert [m.weight.shape for m in td.modules() if isinstance(m, MyGate)] == [(16, 16), (16, 16)]
        assert not any(isinstance(m, MyPool) for m in td.modules())
        assert any(row["gated"] for row in erf.theory(td, layers=["r2", "r4"]).rows)
        assert td.get_submodule("r4.7.conv").in_channels == 16
        assert td.plan.notes == ()
        td(torch.rand(2, 3, 32, 32)).sum().backward()
    finally:
        for target in (MyPool, MyGate, my_split, Noise):
            bu2td.unregister_converter(target)
