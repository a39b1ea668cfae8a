"""Capture, probe and analysis: what a bottom-up network looks like from outside."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nets import MODELS, convert_baseline, head, make, unit
from reference.fill import fill, picture
from torch import Tensor, nn

import bu2td
from bu2td.capture.trace import capture
from bu2td.models import baselines
from bu2td.probe.measure import probe

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


def same_in_both_modes(model: nn.Module, images: Tensor) -> None:
    """The captured graph, given the model's weights, computes what the model computes, in both modes."""
    captured = capture(model, images).graph_module
    captured = captured.to_empty(device="cpu")
    captured.load_state_dict(model.state_dict(), strict=False)
    for training in (False, True):
        twin, graph = copy.deepcopy(model).train(training), copy.deepcopy(captured).train(training)
        torch.manual_seed(7)
        expected = twin(images)
        torch.manual_seed(7)
        torch.testing.assert_close(graph(images), expected)
        for key, value in graph.state_dict().items():
            torch.testing.assert_close(value, twin.state_dict()[key], msg=key)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("mobilenetv2_100", {}),
        ("resnet10t", {"drop_path_rate": 0.3, "drop_rate": 0.2}),
        ("efficientnet_b0", {"drop_path_rate": 0.3, "drop_rate": 0.2}),
        ("convnext_atto", {"drop_path_rate": 0.3}),
        ("densenet121", {"proj_drop_rate": 0.2}),
    ],
)
def test_captured_graph_behaves_as_the_model(name: str, settings: dict[str, Any]) -> None:
    same_in_both_modes(timm.create_model(name, **settings), torch.rand(4, 3, 64, 64))


def test_functional_dropout_survives_conversion() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = unit(3, 8, stride=2), unit(8, 8, stride=2), head(8)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            if self.training:
                x = F.dropout(x, 0.5)
            return self.head(self.b(F.dropout2d(x, 0.3, self.training)))

    same_in_both_modes(Net(), torch.rand(4, 3, 16, 16))
    network = bu2td.convert(Net(), device="meta")
    assert sorted(type(m).__name__ for m in network.modules() if "Dropout" in type(m).__name__) == [
        "Dropout",
        "Dropout2d",
    ]


def test_in_place_results_survive() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = unit(3, 8, stride=2), unit(8, 8, stride=2), head(8)
            self.gain = nn.Parameter(torch.full((), 0.5))

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            x.mul_(self.gain)  # nobody reads the result of this call
            x += 1
            return self.head(self.b(x))

    same_in_both_modes(Net(), torch.rand(4, 3, 16, 16))


# --- probe --------------------------------------------------------------------------------------------


def test_probe_measures_kinds_and_strides() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, stride=2)  # valid padding shaves a pixel, which is no reduction
            self.pool, self.fc = nn.MaxPool2d(3, 2, ceil_mode=True), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.pool(self.conv(x)).permute(0, 2, 3, 1)
            return self.fc(x.flatten(1, 2).mean(1))

    captured = capture(Net(), torch.zeros(1, 3, 31, 45))
    dims = probe(captured)
    by_target = {str(n.target): dims[n.name] for n in captured.graph_module.graph.nodes if dims.get(n.name)}
    assert [(d.kind, d.stride) for d in by_target["conv"][2:]] == [("height", 2), ("width", 2)]
    assert [d.kind for d in by_target["permute"]] == ["batch", "height", "width", "channel"]
    assert by_target["permute"][1].stride == 4
    flattened = next(v for k, v in by_target.items() if "flatten" in k)
    assert [d.kind for d in flattened] == ["batch", "token", "channel"]
    assert [(d.kind, d.size) for d in by_target["fc"]] == [("batch", 2), ("channel", 5)]


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


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
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
