"""Receptive fields by gradients: numbers, and that a positive copy's support is the theoretical field."""

import copy
import importlib.util
import json
import operator
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import convert_baseline, head, make, unit
from torch import Tensor, nn

import bu2td
from bu2td import errors
from bu2td.erf.gradient import _moments, _side, gradient, input_gradients
from bu2td.erf.intervals import intervals
from bu2td.erf.subject import subject
from bu2td.models import baselines
from bu2td.nn import REDUCERS
from erf.positive import compare_support, positive_copy

slow = pytest.mark.slow
needs_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="no timm")


class Linear(nn.Module):
    """Two linear convolutions: its gradient does not depend on the image."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 4, 2, stride=2)
        self.c, self.head = nn.Conv2d(4, 4, 3, padding=1, stride=2), head(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.c(self.b(self.a(x))))


def small(images: int = 3) -> nn.Module:
    return nn.Sequential(unit(images, 8, stride=2), unit(8, 16, stride=2), unit(16, 16), head(16))


# --- the definition -----------------------------------------------------------------------------------


def test_against_autograd() -> None:
    """The map is the mean of |d centre / d input|, summed over the channels of unit and image."""
    model = small().eval()
    images = torch.rand(3, 3, 32, 32)
    found = gradient(model, images=images, batch_size=2, layers=["r4", "r2"])
    total = torch.zeros(32, 32)
    for image in images:
        x = image[None].requires_grad_(True)
        y = model[2](model[1](model[0](x)))
        [g] = torch.autograd.grad(y[0, :, y.shape[2] // 2, y.shape[3] // 2].sum(), x)
        total += g[0].abs().sum(0)
    torch.testing.assert_close(found.maps["r4"], total / total.sum(), rtol=1e-4, atol=1e-7)
    assert found.maps["r2"].shape == (32, 32)
    assert found.maps["r2"].dtype == torch.float32
    assert found.count == 3


def test_random_images_are_reproducible_and_batches_do_not_matter() -> None:
    model = small()
    state = torch.get_rng_state()
    a = gradient(model, count=5, batch_size=2, input_size=32, seed=3)
    b = gradient(model, count=5, batch_size=5, input_size=(3, 32, 32), seed=3)
    other = gradient(model, count=5, input_size=(32, 32), seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    for name in a.maps:
        torch.testing.assert_close(a.maps[name], b.maps[name], rtol=1e-4, atol=1e-7)
    assert not torch.equal(a.maps["r4"], other.maps["r4"])


@pytest.mark.parametrize("side", [1, 4, 5])
def test_sizes_of_an_even_square(side: int) -> None:
    mass = torch.zeros(16, 16, dtype=torch.float64)
    mass[3 : 3 + side, 5 : 5 + side] = 1 / side**2
    centre, sigma = _moments(mass)
    assert centre == pytest.approx((3 + (side - 1) / 2, 5 + (side - 1) / 2))
    assert sigma == pytest.approx(((side**2 - 1) / 12) ** 0.5)
    assert _side(mass, centre, 1.0) == pytest.approx(side)
    assert _side(mass, centre, 0.95) == pytest.approx(side)


def test_sizes_of_a_gaussian() -> None:
    at = torch.arange(201, dtype=torch.float64) - 100
    line = torch.exp(-0.5 * (at / 10) ** 2)
    mass = line[:, None] * line[None, :]
    mass = mass / mass.sum()
    centre, sigma = _moments(mass)
    assert sigma == pytest.approx(10, abs=0.01)
    # A square holds 68 % where each axis holds sqrt(0.68): 2 * 1.355 sigma; 95 %: 2 * 2.236 sigma.
    assert _side(mass, centre, 0.68) == pytest.approx(27.1, abs=2)
    assert _side(mass, centre, 0.95) == pytest.approx(44.7, abs=2)


def test_lies_inside_the_theoretical_field() -> None:
    for network in (baselines.resnet32(), convert_baseline("resnet32", "td")):
        found = gradient(network, count=2, example_inputs=torch.zeros(1, 3, 32, 32), input_size=64)
        for row in found.rows:
            assert row["share"] == pytest.approx(1, abs=1e-6)
            assert 0 < row["size_68"] <= row["size_95"] <= 2 * max(row["theory"])
    assert [row["name"] for row in found.rows] == ["r4", "r2", "r1"]
    assert [row["clipped"] for row in found.rows] == [True, True, True]


def test_a_gate_sees_the_whole_image() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.head = unit(3, 8, stride=2), nn.Conv2d(8, 8, 1), unit(8, 8, 3, 2), head(8)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            return self.head(self.c(x * torch.sigmoid(self.b(x.mean((2, 3), keepdim=True)))))

    [row] = gradient(Gated(), layers=["r4"], input_size=64, count=2).rows
    assert 0.5 < row["share"] < 1
    [compared, *_] = compare_support(Gated(), 64)
    assert compared["support"] == compared["theory"]
    assert compared["whole"]


def test_a_pool_to_a_fixed_number_of_positions_is_a_gate() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.head = unit(3, 8, stride=2), nn.Conv2d(8, 8, 1), unit(8, 8, 3, 2), head(8)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            gate = nn.functional.interpolate(nn.functional.adaptive_avg_pool2d(x, 4), x.shape[-2:])
            return self.head(self.c(x * torch.sigmoid(self.b(gate))))

    [row] = gradient(Pooled(), layers=["r4"], input_size=64, count=2).rows
    assert 0.5 < row["share"] < 1
    for compared in compare_support(Pooled(), 64):
        assert compared["support"] == compared["theory"]
        assert compared["whole"]


# --- what it leaves alone ------------------------------------------------------------------------------


@pytest.mark.parametrize("top_down", [False, True])
def test_the_network_is_untouched(top_down: bool) -> None:
    model = bu2td.convert(small(), example_inputs=torch.zeros(1, 3, 32, 32)) if top_down else small()
    model.train()
    calls: list[int] = []
    model.register_forward_hook(lambda *_: calls.append(1))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        gradient(model, count=2, input_size=32)
    assert model.training
    assert all(module.training for module in model.modules())
    assert not calls
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(p.requires_grad and bool((p.grad == 1).all()) for p in model.parameters())  # type: ignore[operator]


def test_runs_in_the_precision_and_mode_of_the_caller() -> None:
    with torch.inference_mode():
        found = gradient(small().half(), count=1, input_size=32)
    assert found.rows
    model = Linear().double()
    a = gradient(model, count=1, example_inputs=torch.zeros(1, 1, 32, 32), seed=0)
    b = gradient(model, count=1, example_inputs=torch.zeros(1, 1, 32, 32), seed=1)
    torch.testing.assert_close(a.maps["r4"], b.maps["r4"])  # a linear network's gradient is the same everywhere


def test_a_frozen_checkpointed_network() -> None:
    network = bu2td.convert(small(), example_inputs=torch.zeros(1, 3, 32, 32)).requires_grad_(False)
    before = gradient(network, count=1)
    network.set_grad_checkpointing()
    after = gradient(network, count=1)
    for name, value in before.maps.items():
        torch.testing.assert_close(after.maps[name], value)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu() -> None:
    model = small()
    a, b = gradient(model, count=2, input_size=64), gradient(model, count=2, input_size=64, device="cuda")
    for name, value in a.maps.items():
        torch.testing.assert_close(b.maps[name], value, rtol=1e-3, atol=1e-6)


# --- tables ---------------------------------------------------------------------------------------------


def test_tables(tmp_path: Path) -> None:
    found = gradient(small(), count=1, input_size=32)
    assert "gradients of the centre unit, 1 images of 32x32" in str(found)
    found.to_csv(tmp_path / "a.csv")
    found.to_json(tmp_path / "a.json")
    lines = (tmp_path / "a.csv").read_text().splitlines()
    assert lines[0].startswith("name,node,reduction,size_68,size_95,sigma")
    assert len(lines) == 3
    assert json.loads((tmp_path / "a.json").read_text())["rows"][0]["name"] == "r4"
    with pytest.raises(errors.FileError, match="cannot be written"):
        found.to_csv(tmp_path / "missing" / "a.csv")


def test_pandas() -> None:
    pytest.importorskip("pandas")
    found = gradient(small(), count=1, input_size=32)
    table = found.to_pandas()
    assert list(table.columns) == list(found.rows[0])
    assert table.set_index("name").loc["r4", "sigma"] == found.rows[0]["sigma"]
    assert table["size_95"].dtype == float


def test_layers_by_node_and_module() -> None:
    found = gradient(small(), layers=["1.0", "2", "r2"], count=1, input_size=32)
    assert [row["name"] for row in found.rows] == ["1.0", "2", "r2"]
    assert [row["reduction"] for row in found.rows] == [4, 4, 2]


# --- bad input --------------------------------------------------------------------------------------------


def _spoilt(value: float) -> nn.Module:
    model = small()
    with torch.no_grad():
        model[0][0].weight[0, 0, 0, 0] = value  # type: ignore[index]
    return model


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"model": "resnet18"}, errors.NotAModelError, "live torch.nn.Module"),
    ({"model": _spoilt(float("nan"))}, errors.NonFiniteError, r"1 tensors.*not finite numbers: 0\.0\.weight"),
    ({"model": _spoilt(float("inf"))}, errors.NonFiniteError, "not finite"),
    ({"model": small().to("meta")}, errors.NotAModelError, "no weights"),
    ({"layers": ["r5"]}, errors.OptionError, r"no layer 'r5'.*Did you mean.*levels are r4, r2"),
    ({"layers": ["3"]}, errors.OptionError, "no rows and columns"),
    ({"count": 0}, errors.OptionError, "count=0"),
    ({"count": 2**41}, errors.OptionError, "more than there is"),
    ({"batch_size": 1.5}, errors.OptionError, r"batch_size=1\.5"),
    ({"seed": -1}, errors.OptionError, "seed=-1"),
    ({"input_size": (3, 4, 5, 6, 0)}, errors.OptionError, "input_size"),
    ({"input_size": -3}, errors.OptionError, "input_size"),
    ({"device": "gpu"}, errors.OptionError, "The device 'gpu' cannot be used"),
    ({"images": torch.zeros(3, 8, 8)}, errors.ExampleInputError, r"found \(3, 8, 8\)"),
    ({"images": torch.full((1, 3, 8, 8), float("nan"))}, errors.NonFiniteError, "images hold"),
    ({"images": torch.zeros(1, 4, 32, 32)}, errors.ExampleInputError, "does not run on images"),
]


@pytest.mark.parametrize(("options", "error", "match"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_bad_input(options: dict[str, Any], error: type[Exception], match: str) -> None:
    options = {"model": small(), "count": 1, **options}
    model = options.pop("model")
    with pytest.raises(error, match=match):
        gradient(model, **options)


def test_no_gradient_at_all() -> None:
    model = small()
    nn.init.zeros_(model[0][0].weight)  # type: ignore[index]
    found = gradient(model, count=1, input_size=32)
    assert [(row["size_68"], row["size_95"], row["sigma"], row["share"]) for row in found.rows] == [
        (0, 0, 0, None)
    ] * 2
    assert "r4" in str(found)


def test_gradients_that_overflow() -> None:
    model = small()
    with torch.no_grad():
        for parameter in model[:3].parameters():
            parameter.fill_(1e30)
    with pytest.raises(errors.NonFiniteError, match="overflow"):
        gradient(model, count=1, input_size=32)


# --- the positive copy --------------------------------------------------------------------------------------


def agree(network: Any, side: int, images: Tensor | None = None, whole: int = 1) -> None:
    """On a canvas the support is the theoretical field of every level, of which some lie inside it."""
    rows = compare_support(network, side, example_inputs=images)
    for row in rows:
        assert row["support"] == row["theory"] is not None, row
    assert sum(row["whole"] for row in rows) >= whole


@pytest.mark.parametrize("arrangement", [None, "td", "uni", "rev"])
@pytest.mark.parametrize("name", baselines.INPUT_SIZES)
def test_support_of_the_papers_networks(name: str, arrangement: str | None) -> None:
    images = torch.zeros(1, *baselines.INPUT_SIZES[name])
    if arrangement is None:
        agree(getattr(baselines, name)(), 256, images, whole=3)
    else:
        agree(convert_baseline(name, arrangement, device="meta"), 320, whole=3)


@pytest.mark.parametrize(
    "options",
    [
        {"upsample": "bilinear"},
        {"upsample": "transpose", "merge": "add"},
        {"merge": "concat", "merge_kernel": 1, "pyramid": "strided"},
        {"pyramid": "max"},
        {"pyramid": "max_blur"},
        {"pyramid": "max_blur", "sigma": 0.75, "merge": "add"},
        {"pyramid": "average"},
        {"sigma": 1.0, "reductions": (4, 1)},
    ],
    ids=str,
)
def test_support_for_options(options: dict[str, Any]) -> None:
    agree(convert_baseline("lenet_fc", "td", device="meta", **options), 96, whole=2)
    agree(convert_baseline("lenet_fc", "td", device="meta", **options), 61, whole=2)


@pytest.mark.parametrize("side", [28, 37])
@pytest.mark.parametrize("reducer", REDUCERS)
def test_every_pixel_of_a_reducers_window_has_a_gradient(reducer: str, side: int) -> None:
    """The reducers themselves, maxima included: over enough images every pixel of a window is once the largest."""
    td = convert_baseline("lenet_fc", "td", pyramid=reducer)
    seen = subject(td)
    coarse, *_ = (n.name for n in seen.graph_module.graph.nodes if n.target is operator.getitem)
    network = seen.runnable(torch.device("cpu"), torch.float64)
    images = torch.rand(192, 1, side, side, dtype=torch.float64)
    at = input_gradients(network, {coarse: seen.axes(coarse)}, iter([images]))[coarse].nonzero()
    found = intervals(seen.graph_module, seen.dims, (2, 1, side, side), borders=True)
    for axis, kind in enumerate(("height", "width")):
        line = found.lines[kind][coarse]
        centre = len(line.lo) // 2
        assert (line.lo[centre], line.hi[centre]) == (at[:, axis].min(), at[:, axis].max())


@needs_timm
@pytest.mark.parametrize(
    ("word", "side", "whole"),
    [
        *(("mobilenetv2_100", 576, 1), ("test_efficientnet", 576, 6), ("resnest14d", 576, 1)),
        ("halonet26t", 512, 0),  # attention inside blocks
        *(pytest.param("resnet18", 768, 6, marks=slow), pytest.param("skresnet18", 768, 1, marks=slow)),
        *(pytest.param("test_convnext", 1344, 5, marks=slow), pytest.param("ghostnet_050", 768, 0, marks=slow)),
    ],
)
def test_support_of_models(word: str, side: int, whole: int) -> None:
    analysis = bu2td.analyze(make(word))
    agree(analysis, side, whole=2)
    agree(bu2td.convert(analysis, device="meta", max_macs_ratio=None), side, whole=whole)


@needs_timm
def test_a_positive_copy_is_a_linear_double_module() -> None:
    model = make("resnet18")
    network = positive_copy(model)
    assert not list(network.parameters())
    images = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    outputs = network(images)
    assert [tuple(y.shape) for y in outputs] == [
        (2, 512, 2, 2), (2, 256, 4, 4), (2, 128, 8, 8), (2, 64, 16, 16), (2, 64, 32, 32)
    ]  # fmt: skip
    for once, twice in zip(outputs, network(2 * images), strict=True):
        torch.testing.assert_close(twice, 2 * once)
    [only] = positive_copy(model, layers=["layer1"])(images)
    torch.testing.assert_close(only, outputs[3])


@needs_timm
def test_attention_has_no_positive_copy() -> None:
    with pytest.raises(errors.UnsupportedOperationError, match=r"no rule[\s\S]*matmul"):
        positive_copy(make("edgenext_xx_small"))
    assert positive_copy(make("edgenext_xx_small"), layers=["r4"])


def test_a_wrong_field_is_noticed() -> None:
    """The comparison can fail: a kernel that is not what theory thinks moves the support."""
    looked_at = subject(small(), torch.zeros(1, 3, 32, 32))
    [first, *_] = compare_support(small(), 64)
    network = positive_copy(nn.Sequential(unit(3, 8, 5, 2), unit(8, 16, stride=2), unit(16, 16), head(16)))
    node = looked_at.levels["r4"]
    image = torch.ones(1, 3, 64, 64, dtype=torch.float64)
    at = input_gradients(network, {node: (2, 3)}, iter([image]))[node].nonzero()  # type: ignore[arg-type]
    assert (*at.min(0).values.tolist(), *at.max(0).values.tolist()) != first["theory"]
