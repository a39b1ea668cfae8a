"""Grad-CAM: closed forms, pixel loops, and that a model is left as it was."""

import copy
from typing import Any

import pytest
import torch
from nets import convert_baseline, head, make, ready, unit
from torch import Tensor, nn

from bu2td import errors
from bu2td.evaluate.checks import evaluating, logits_of
from bu2td.evaluate.explain.gradcam import GradCam, HeatMaps, grad_cam
from bu2td.models import baselines


class Wrapped(nn.Module):
    """A classifier as the suite builds it: normalisation inside."""

    def __init__(self, network: nn.Module, mean: float = 0.3, std: float = 0.5) -> None:
        super().__init__()
        self.network, self.mean, self.std = network, mean, std

    def prepare(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std

    def forward(self, images: Tensor) -> Tensor:
        return self.network(self.prepare(images))


def small(images: int = 1, classes: int = 3) -> nn.Sequential:
    """Two levels, r2 and r4; the head is a mean and a linear layer, so that Grad-CAM of r4 has a closed form."""
    return nn.Sequential(unit(images, 6, stride=2), unit(6, 8, stride=2), unit(8, 8), head(8, classes))


def maps_of(raw: Tensor, size: tuple[int, int]) -> HeatMaps:
    return HeatMaps(("r1",), {"r1": raw}, torch.zeros(len(raw)), torch.zeros(len(raw), 2), size)


# --- the definition -----------------------------------------------------------------------------------


def test_closed_form_behind_a_mean_and_a_linear_layer() -> None:
    """y_k = sum_c W_kc mean(A_c) + b_k, so dy_k/dA_c = W_kc / (h w) everywhere and L = sum_c W_kc A_c / (h w)."""
    model: Any = ready(small())
    images = torch.rand(5, 1, 16, 12)
    targets = torch.tensor([0, 1, 2, 1, 0])
    found = grad_cam(model, images, targets)
    features = model[2](model[1](model[0](images))).detach()
    n, channels, height, width = features.shape
    linear = model[3][2]
    expected = torch.zeros(n, height, width)
    for i in range(n):
        for c in range(channels):
            expected[i] += linear.weight[targets[i], c].detach() * features[i, c] / (height * width)
    assert found.levels == ("r2", "r4")
    torch.testing.assert_close(found.maps["r4"], expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found.logits, model(images).detach())
    assert torch.equal(found.targets, targets)
    assert found.size == (16, 12)


def test_an_earlier_level_against_autograd() -> None:
    model: Any = ready(small())
    images = torch.rand(4, 1, 16, 16)
    found = grad_cam(model, images)
    at = model[0](images).detach().requires_grad_(True)
    logits = model[3](model[2](model[1](at)))
    targets = logits.argmax(1)
    assert torch.equal(found.targets, targets)
    for i in range(4):
        [g] = torch.autograd.grad(logits[i, targets[i]], at, retain_graph=True)
        weights = g[i].mean((1, 2))
        expected = sum(weights[c] * at[i, c].detach() for c in range(6))
        torch.testing.assert_close(found.maps["r2"][i], expected, rtol=1e-5, atol=1e-7)


def bilinear(values: list[list[float]], height: int, width: int) -> list[list[float]]:
    """Resize by looking up every pixel's centre."""
    h, w = len(values), len(values[0])
    rows = []
    for y in range(height):
        fy = min(max((y + 0.5) * h / height - 0.5, 0), h - 1)
        y0 = int(fy)
        y1 = min(y0 + 1, h - 1)
        row = []
        for x in range(width):
            fx = min(max((x + 0.5) * w / width - 0.5, 0), w - 1)
            x0 = int(fx)
            x1 = min(x0 + 1, w - 1)
            top = values[y0][x0] * (1 - fx + x0) + values[y0][x1] * (fx - x0)
            bottom = values[y1][x0] * (1 - fx + x0) + values[y1][x1] * (fx - x0)
            row.append(top * (1 - fy + y0) + bottom * (fy - y0))
        rows.append(row)
    return rows


def reference(raw: Tensor, normalisation: str, height: int, width: int) -> list[list[float]]:
    values = raw.tolist()
    if normalisation == "plain":
        values = [[max(v, 0) for v in row] for row in values]
    else:
        flat = [v for row in values for v in row]
        mean = sum(flat) / len(flat)
        norm = sum((v - mean) ** 2 for v in flat) ** 0.5
        values = [[(v - mean) / norm for v in row] for row in values]
    values = [[max(v, 0) for v in row] for row in bilinear(values, height, width)]
    top = max(max(row) for row in values)
    return [[v / top for v in row] for row in values]


@pytest.mark.parametrize("normalisation", ["plain", "centred"])
@pytest.mark.parametrize("size", [(8, 8), (13, 9), (4, 5), (2, 2)])
def test_normalisations_against_pixel_loops(normalisation: str, size: tuple[int, int]) -> None:
    raw = torch.randn(3, 4, 5)
    found = maps_of(raw, size).resized(normalisation)
    assert found.shape == (3, 1, *size)
    for i in range(3):
        expected = torch.tensor(reference(raw[i], normalisation, *size))
        torch.testing.assert_close(found[i, 0], expected, rtol=1e-4, atol=1e-6)
    assert float(found.amax()) == 1
    assert float(found.amin()) >= 0


def test_shift_and_scale_of_a_raw_map() -> None:
    raw = torch.randn(2, 4, 4)
    one, other = maps_of(raw, (8, 8)), maps_of(5 * raw + 3, (8, 8))
    torch.testing.assert_close(one.centred(), other.centred(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(one.plain(), maps_of(5 * raw, (8, 8)).plain(), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(one.plain(), other.plain())


def test_maps_without_anything_stay_zero() -> None:
    negative, constant = -torch.rand(1, 4, 4) - 0.1, torch.full((1, 4, 4), 0.1)
    zero, one = torch.zeros(1, 4, 4), torch.rand(1, 1, 1)
    rounded = constant.clone()
    rounded[0, 1, 2] += 1e-8  # the next number of single precision
    assert not torch.equal(rounded, constant)
    for raw, plain, centred in ((negative, 0, 1), (constant, 1, 0), (zero, 0, 0), (rounded, 1, 0)):
        found = maps_of(raw, (9, 7))
        assert float(found.plain().amax()) == plain
        assert float(found.centred().amax()) == centred
    assert float(maps_of(one, (3, 3)).centred().amax()) == 0  # a level of one position has no spread
    assert torch.equal(maps_of(one, (3, 3)).plain(), torch.ones(1, 1, 3, 3))


def test_a_class_that_no_level_speaks_for() -> None:
    model: Any = ready(small())
    nn.init.zeros_(model[3][2].weight)
    found = grad_cam(model, torch.rand(2, 1, 16, 16))
    for kind in ("plain", "centred"):
        assert torch.equal(found.resized(kind), torch.zeros(2, 2, 16, 16))


# --- levels of both kinds of network ------------------------------------------------------------------


@pytest.mark.parametrize("arrangement", ["td", "uni", "rev"])
def test_levels_are_in_the_networks_order(arrangement: str) -> None:
    bottom_up = ready(baselines.lenet_fc())
    top_down = ready(convert_baseline("lenet_fc", arrangement))
    images = torch.rand(3, 1, 28, 28)
    bu, td = grad_cam(bottom_up, images), grad_cam(top_down, images)
    assert bu.levels == ("r1", "r2", "r4")
    assert td.levels == ("r4", "r2", "r1")
    sides = {"r1": 28, "r2": 14, "r4": 7}
    for maps in (bu, td):
        assert {name: raw.shape for name, raw in maps.maps.items()} == {
            name: (3, side, side) for name, side in sides.items()
        }
        assert maps.plain().shape == (3, 3, 28, 28)
    torch.testing.assert_close(td.logits, top_down(images).detach())


def test_top_down_levels_against_its_own_parts() -> None:
    """The last level of a top-down network is what its head reads."""
    td: Any = ready(convert_baseline("lenet_fc", "td"))
    images = torch.rand(3, 1, 28, 28)
    found = grad_cam(td, images)
    features = td.forward_features(images).detach().requires_grad_(True)
    logits = td.forward_head(features)
    [g] = torch.autograd.grad(logits.gather(1, found.targets[:, None]).sum(), features)
    expected = (g.mean((2, 3), keepdim=True) * features).sum(1).detach()
    torch.testing.assert_close(found.maps["r1"], expected, rtol=1e-4, atol=1e-6)


def test_batches_and_choice_of_levels_do_not_matter() -> None:
    td = ready(convert_baseline("lenet_fc", "td"))
    images = torch.rand(5, 1, 32, 32)
    cam = GradCam(td, images)
    whole, parts, last = cam(images), cam(images, batch_size=2), cam(images, levels="r1")
    assert last.levels == ("r1",)
    for level in whole.levels:
        torch.testing.assert_close(whole.maps[level], parts.maps[level], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(whole.maps["r1"], last.maps["r1"], rtol=1e-4, atol=1e-6)
    assert whole.plain(levels="r2").shape == (5, 1, 32, 32)
    assert torch.equal(whole.plain(levels=["r1", "r4"])[:, 1], whole.plain()[:, 0])
    assert whole.centred((7, 9)).shape == (5, 3, 7, 9)


def test_layers_by_name() -> None:
    model = ready(small())
    images = torch.rand(2, 1, 16, 16)
    found = grad_cam(model, images, levels=["2", "1.0", "r4"])
    assert found.levels == ("2", "1.0", "r4")
    assert torch.equal(found.maps["2"], found.maps["r4"])
    assert not torch.equal(found.maps["1.0"], found.maps["r4"])


class ChannelsLast(nn.Module):
    """A layer works on (N, H, W, C)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = unit(1, 6, stride=2), unit(6, 8, stride=2)
        self.norm, self.head = nn.LayerNorm(8), head(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.b(self.a(x)).permute(0, 2, 3, 1))
        return self.head(x.permute(0, 3, 1, 2))


def test_a_layer_with_channels_last() -> None:
    model: Any = ready(ChannelsLast())
    images = torch.rand(2, 1, 16, 24)
    found = grad_cam(model, images, levels="norm").maps["norm"]
    values = model.norm(model.b(model.a(images)).permute(0, 2, 3, 1)).detach()
    weight = model.head[2].weight[model(images).argmax(1)].detach()
    assert found.shape == (2, 4, 6)
    torch.testing.assert_close(found, (values * weight[:, None, None]).sum(3) / 24, rtol=1e-4, atol=1e-6)


class InPlaceBehind(nn.Module):
    """What follows a level works in place on the level's own tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 6, 3, 2, 1), nn.Conv2d(6, 8, 3, 2, 1)
        self.act, self.head = nn.ReLU(inplace=True), head(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.b(self.act(self.a(x)))))


def test_a_layer_before_an_activation_in_place() -> None:
    model: Any = ready(InPlaceBehind())
    images = torch.rand(3, 1, 16, 16) - 0.5
    found = grad_cam(model, images, torch.tensor([0, 1, 2]), levels="b").maps["b"]
    at = model.b(torch.relu(model.a(images))).detach().requires_grad_(True)
    logits = model.head(torch.relu(at))
    [g] = torch.autograd.grad(logits.diagonal().sum(), at)
    assert bool((at < 0).any())
    torch.testing.assert_close(found, (g.mean((2, 3), keepdim=True) * at).sum(1).detach(), rtol=1e-4, atol=1e-7)


# --- classifiers, devices, precisions -----------------------------------------------------------------


def test_a_classifier_prepares_its_images() -> None:
    network = ready(small())
    images = torch.rand(3, 1, 16, 16)
    inside, outside = grad_cam(Wrapped(network), images), grad_cam(network, (images - 0.3) / 0.5)
    for level in inside.levels:
        assert torch.equal(inside.maps[level], outside.maps[level])
    assert not torch.equal(inside.maps["r4"], grad_cam(network, images).maps["r4"])


def test_the_suites_classifier_and_a_top_down_network() -> None:
    from bu2td.evaluate.train.model import Classifier

    td = ready(convert_baseline("nin_light", "td"))
    model = Classifier(td, mean=torch.full((1, 1, 1), 0.2), std=torch.full((1, 1, 1), 0.4)).eval()
    images = torch.rand(2, 1, 28, 28)
    found = grad_cam(model, images)
    torch.testing.assert_close(found.logits, model(images).detach(), rtol=1e-4, atol=1e-5)
    assert found.levels == ("r4", "r2", "r1")


def test_double_precision_and_frozen_weights() -> None:
    model = ready(small())
    images = torch.rand(3, 1, 16, 16)
    expected = grad_cam(model, images).maps["r2"]
    frozen = copy.deepcopy(model).requires_grad_(False)
    assert torch.equal(grad_cam(frozen, images).maps["r2"], expected)
    found = grad_cam(copy.deepcopy(model).double(), images.double())
    assert found.maps["r2"].dtype == torch.float32
    torch.testing.assert_close(found.maps["r2"], expected, rtol=1e-4, atol=1e-6)


def test_half_precision_is_explained_in_single() -> None:
    model = ready(small())
    images = torch.rand(3, 1, 16, 16)
    found = grad_cam(copy.deepcopy(model).bfloat16(), images)
    torch.testing.assert_close(found.plain(), grad_cam(model, images, found.targets).plain(), rtol=0.2, atol=0.2)


def test_under_no_grad_and_inference_mode() -> None:
    model = ready(small())
    images = torch.rand(2, 1, 16, 16)
    expected = grad_cam(model, images).maps["r4"]
    with torch.no_grad():
        assert torch.equal(grad_cam(model, images).maps["r4"], expected)
    with torch.inference_mode():
        assert torch.equal(grad_cam(model, images.clone()).maps["r4"], expected)


def test_gradient_checkpointing() -> None:
    td: Any = ready(convert_baseline("lenet_fc", "td"))
    images = torch.rand(2, 1, 28, 28)
    expected = grad_cam(td, images).maps["r4"]
    td.set_grad_checkpointing(True)
    torch.testing.assert_close(grad_cam(td, images).maps["r4"], expected)
    assert td.grad_checkpointing


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu() -> None:
    td = ready(convert_baseline("lenet_fc", "td"))
    images = torch.rand(4, 1, 28, 28)
    expected = grad_cam(td, images)
    moved = grad_cam(td, images, device="cuda")
    own = grad_cam(copy.deepcopy(td).cuda(), images)
    for found in (moved, own):
        torch.testing.assert_close(found.plain(), expected.plain(), rtol=0.05, atol=0.05)
        assert found.maps["r1"].device.type == "cpu"
    assert next(td.parameters()).device.type == "cpu"


# --- left as found ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bu", "td", "classifier"])
def test_a_model_is_left_as_it_was(kind: str) -> None:
    model: Any = baselines.nin_light() if kind == "bu" else convert_baseline("nin_light", "td")
    if kind == "classifier":
        model = Wrapped(model)
    model.train()
    frozen = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    frozen.eval()
    first = next(model.parameters())
    first.grad = torch.full_like(first, 7)
    first.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    random = torch.get_rng_state()
    grad_cam(model, torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.get_rng_state(), random)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(first.grad, torch.full_like(first, 7))
    assert all(p.grad is None for p in list(model.parameters())[1:])
    assert not first.requires_grad
    assert not any(m._forward_hooks or m._backward_hooks for m in model.modules())


def test_modes_come_back_after_an_error() -> None:
    model = small().train()
    model[2].eval()
    modes = [m.training for m in model.modules()]
    with evaluating(model):
        assert not any(m.training for m in model.modules())
    with pytest.raises(errors.ExampleInputError, match="does not run on images"):
        logits_of(model, torch.rand(2, 3, 16, 16))
    assert [m.training for m in model.modules()] == modes


# --- bad input ----------------------------------------------------------------------------------------

IMAGES = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"images": torch.rand(1, 16, 16)}, errors.ExampleInputError, "image batch"),
        ({"images": torch.zeros(2, 1, 16, 16, dtype=torch.uint8)}, errors.ExampleInputError, "uint8"),
        ({"images": torch.rand(0, 1, 16, 16)}, errors.ExampleInputError, "image batch"),
        ({"images": [[1.0]]}, errors.ExampleInputError, "list"),
        ({"images": torch.full((2, 1, 16, 16), float("nan"))}, errors.NonFiniteError, "finite"),
        ({"images": 255 * IMAGES, "classifier": True}, errors.ExampleInputError, r"\[0, 1\]"),
        ({"images": IMAGES - 0.5, "classifier": True}, errors.ExampleInputError, r"\[0, 1\]"),
        ({"images": torch.rand(2, 3, 16, 16)}, errors.Bu2tdError, "3"),
        ({"targets": torch.tensor([0, 3])}, errors.DataError, "0 to 2, for the model has 3 classes; found 0 to 3"),
        ({"targets": torch.tensor([-1, 0])}, errors.DataError, "found -1"),
        ({"targets": torch.tensor([0])}, errors.OptionError, "one whole number per image"),
        ({"targets": torch.tensor([0.0, 1.0])}, errors.OptionError, "float32"),
        ({"targets": "ab"}, errors.OptionError, "targets"),
        ({"levels": "r5"}, errors.OptionError, "r5"),
        ({"levels": ["r4", "lastconv"]}, errors.OptionError, "lastconv"),
        ({"levels": "3.2"}, errors.OptionError, "no rows and columns"),
        ({"levels": []}, errors.OptionError, "no level"),
        ({"batch_size": 0}, errors.OptionError, "batch_size"),
        ({"batch_size": 2.5}, errors.OptionError, "batch_size"),
        ({"device": "gpu7"}, errors.OptionError, "gpu7"),
    ],
)
def test_bad_input(options: dict[str, Any], error: type[Exception], words: str) -> None:
    options = dict(options)
    model: nn.Module = ready(small())
    if options.pop("classifier", False):
        model = Wrapped(model)
    with pytest.raises(error, match=words):
        grad_cam(model, options.pop("images", IMAGES), options.pop("targets", None), **options)


def test_unknown_names_are_answered_with_the_nearest() -> None:
    found = grad_cam(ready(small()), IMAGES)
    with pytest.raises(errors.OptionError, match="Did you mean 'centred'"):
        found.resized("centered")
    with pytest.raises(errors.OptionError, match="Did you mean 'r4'"):
        found.plain(levels="r44")
    for size in ((0, 4), (4,), "ab", (4.0, 4)):
        with pytest.raises(errors.OptionError, match="height, width"):
            found.plain(size)  # type: ignore[arg-type]
    with pytest.raises(errors.OptionError, match="none of those that were asked for"):
        GradCam(ready(small()), IMAGES, levels="r4")(IMAGES, levels="r2")


def test_models_that_are_none() -> None:
    with pytest.raises(errors.NotAModelError):
        grad_cam("resnet18", IMAGES)  # type: ignore[arg-type]
    with pytest.raises(errors.NotAModelError, match="meta"):
        grad_cam(make("bu2td:lenet_fc"), IMAGES)


def test_weights_that_are_not_finite() -> None:
    model: Any = ready(small())
    with torch.no_grad():
        model[1][0].weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(errors.NonFiniteError, match="weights"):
        grad_cam(model, IMAGES)


def test_a_graph_that_is_not_the_model() -> None:
    """A hook changes what the model computes; the graph has none."""
    model: Any = ready(small())
    handle = model[1].register_forward_hook(lambda m, args, out: out * 2)
    with pytest.raises(errors.CaptureError, match="does not compute what the model computes"):
        grad_cam(model, IMAGES)
    handle.remove()
    grad_cam(model, IMAGES)


class NoLogits(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = small()

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x).sum()


def test_a_model_without_logits() -> None:
    with pytest.raises(errors.ModelOutputError, match="logits"):
        logits_of(NoLogits(), IMAGES)
