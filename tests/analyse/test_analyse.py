"""Capture, probe and analysis: what a bottom-up network looks like from outside."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nets import MODELS, convert_baseline, head, make, unit
from reference.fill import fill, picture
from torch import Tensor, nn

import bu2td
from bu2td.models import baselines

timm = pytest.importorskip("timm")


#: timm's models; mobilenetv3's feature_info counts its head conv to the last level.
OF_TIMM = [m for m in MODELS if ":" not in m and m != "mobilenetv3_small_100"]


@pytest.mark.parametrize("name", OF_TIMM)
def test_levels_agree_with_timm(name: str) -> None:
    """Reduction and width of every level are those of timm's feature_info."""
    model = make(name)
    info = {f["reduction"]: f["num_chs"] for f in model.feature_info}  # type: ignore[union-attr, attr-defined]
    analysis = bu2td.analyze(model)
    ours = {level.reduction: level.width for level in analysis.levels}
    if name == "vgg11_bn":
        info.pop(32)  # a pool without parameters, whose level is dropped
    if name == "densenet121":
        # feature_info taps behind the transitions' convolutions; our blocks end where the dense blocks do.
        info |= {r: ours[r] for r in (4, 8, 16)}
    assert {r: ours[r] for r in info} == info
    assert set(ours) == {1, *info}


def test_analysis_is_a_table() -> None:
    analysis = bu2td.analyze(make("resnet18"))
    assert analysis.ladder == (32, 16, 8, 4, 2, 1)
    assert analysis.stem.strides == (2, 2)
    rows = analysis.rows()
    assert [row["width"] for row in rows] == [512, 256, 128, 64, 64, 64]
    assert [row["blocks"] for row in rows] == [2, 2, 2, 2, 0, 0]
    assert "layer1.0" in str(analysis)


# --- capture ------------------------------------------------------------------------------------------


# --- probe --------------------------------------------------------------------------------------------


# --- writing does not matter --------------------------------------------------------------------------


class Flat(nn.Module):
    """Plays a list of parts one after another, as one flat sequence."""

    def __init__(self, parts: list[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.Sequential(*(p for part in parts for p in _leaves(part)))

    def forward(self, x: Tensor) -> Tensor:
        return self.parts(x)


def _leaves(part: nn.Module) -> list[nn.Module]:
    if isinstance(part, nn.Sequential):
        return [leaf for child in part for leaf in _leaves(child)]
    return [part]


class Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            unit(inputs, outputs, 3, stride), nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        )
        self.norm = nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        self.projection = None if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.projection is None else self.projection(x)
        return F.relu(self.norm(self.body(x)) + shortcut)


def separable(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(unit(inputs, inputs, 3, stride, groups=inputs), unit(inputs, outputs, 1))


@st.composite
def networks(draw: st.DrawFn) -> tuple[list[nn.Module], str]:
    """A stem, two to four stages of one family, a head; as parts that may be nested or flat."""
    family = draw(st.sampled_from(["plain", "residual", "separable"]))
    widths = draw(st.lists(st.integers(2, 12), min_size=2, max_size=4))
    kernel = draw(st.sampled_from([1, 3, 5]))
    parts: list[nn.Module] = []
    width = 3
    if family != "plain":
        width = draw(st.integers(2, 8))
        parts.append(unit(3, width, 3, draw(st.sampled_from([1, 2]))))
        if draw(st.booleans()):
            parts.append(nn.MaxPool2d(3, 2, 1))
    for i, outputs in enumerate(widths):
        pool = family == "plain" and i > 0
        if pool:
            parts.append(draw(st.sampled_from([nn.MaxPool2d(2), nn.AvgPool2d(2), nn.MaxPool2d(3, 2, 1)])))
        for b in range(draw(st.integers(1, 3))):
            stride = 2 if b == 0 and i > 0 and not pool else 1
            if family == "plain":
                parts.append(unit(width, outputs, 3 if b == 0 else kernel))
            elif family == "residual":
                parts.append(Residual(width, outputs, stride))
            else:
                parts.append(separable(width, outputs, stride))
            width = outputs
    parts.append(head(width, 5))
    return parts, family


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(networks(), st.sampled_from(["td", "uni", "rev"]))
def test_flat_and_nested_give_one_network(drawn: tuple[list[nn.Module], str], arrangement: str) -> None:
    parts, _ = drawn
    nested = nn.Sequential(nn.Sequential(*parts[:2]), nn.Sequential(nn.Sequential(*parts[2:-1])), parts[-1])
    outputs = []
    for model in (nested, Flat(parts)):
        network = bu2td.convert(
            model, arrangement, example_inputs=torch.zeros(1, 3, 64, 64), seed=1, max_macs_ratio=None
        )
        assert network.plan.relaxations == ()
        output = network(torch.rand(2, 3, 33, 47))
        output.sum().backward()
        assert output.shape == (2, 5)
        assert all(p.grad is not None for p in network.parameters())
        fill(network.eval())
        with torch.no_grad():
            outputs.append(network(picture(2, 3, 40, 40)))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-5, atol=1e-5)


def test_wrapping_plain_units_and_pools_changes_nothing() -> None:
    wrapped = nn.Sequential(
        nn.Sequential(unit(3, 8), nn.Sequential(unit(8, 12, 1), nn.MaxPool2d(2))),
        nn.Sequential(nn.Sequential(unit(12, 16)), unit(16, 16, 1)),
        head(16),
    )
    flat = Flat([wrapped])
    plans = [
        bu2td.convert(m, example_inputs=torch.zeros(1, 3, 32, 32), device="meta").plan for m in (wrapped, flat)
    ]
    assert plans[0].widths == plans[1].widths == (16, 12)
    assert [len(level.blocks) for level in plans[0].levels] == [len(level.blocks) for level in plans[1].levels]
    assert plans[0].cost == plans[1].cost


def test_a_head_that_flattens_a_map_pools_to_its_size() -> None:
    """The network of PyTorch's CIFAR tutorial."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.pool, self.conv2 = nn.Conv2d(3, 6, 5), nn.MaxPool2d(2, 2), nn.Conv2d(6, 16, 5)
            self.fc1, self.fc2, self.fc3 = nn.Linear(16 * 5 * 5, 120), nn.Linear(120, 84), nn.Linear(84, 10)

        def forward(self, x: Tensor) -> Tensor:
            x = self.pool(F.relu(self.conv1(x)))
            x = self.pool(F.relu(self.conv2(x))).view(-1, 16 * 5 * 5)
            return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))

    network = bu2td.convert(Net(), example_inputs=torch.zeros(1, 3, 32, 32), seed=0)
    assert network.head.fc1.in_features == 6 * 5 * 5  # type: ignore[union-attr]
    assert network(torch.rand(2, 3, 47, 33)).shape == (2, 10)
    assert any("trailing level" in note for note in network.plan.notes)


def test_a_reduction_that_valid_padding_hides() -> None:
    analysis = bu2td.analyze(make("torchvision:inception_v3"))
    assert analysis.ladder == (32, 16, 8, 4, 2, 1)
    assert [b.blocks[0].concatenates_entry for b in analysis.bodies] == [True, True, False]


def test_preactivation_is_recognised() -> None:
    assert bu2td.analyze(baselines.resnet32(), example_inputs=torch.zeros(1, 3, 32, 32)).preactivation
    assert not bu2td.analyze(make("resnet18")).preactivation
    assert not bu2td.analyze(make("convnext_atto")).preactivation
    network = convert_baseline("resnet32", "td", device="meta")
    assert [n for n, _ in network.r2_merge.named_children()] == ["norm", "act", "conv"]
