"""New weights are told from trained ones, whoever drew them, and `convert` says so."""

import importlib.util
import time
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import bu2td
from bu2td.measure import signs_of_training
from bu2td.models import create_model

needs_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="no timm")

Make = Callable[[], nn.Module]


def net(norm: Callable[[int], nn.Module] | None = None, bias: bool = True, widths: Any = (16, 32, 32)) -> nn.Module:
    """A small network, as PyTorch initialises it."""
    layers: list[nn.Module] = []
    before = 1
    for width in widths:
        layers += [nn.Conv2d(before, width, 3, padding=1, bias=bias), nn.ReLU(), nn.MaxPool2d(2)]
        if norm is not None:
            layers.insert(-2, norm(width))
        before = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10, bias=bias))


def layers_of(model: nn.Module) -> list[Any]:
    return [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]


def weighted(init: Callable[[Tensor], Any], zero: bool = False, **settings: Any) -> Make:
    def make() -> nn.Module:
        model = net(**settings)
        for layer in layers_of(model):
            init(layer.weight)
            if zero and layer.bias is not None:
                nn.init.zeros_(layer.bias)
        return model

    return make


def everything(init: Callable[[Tensor], Any], **settings: Any) -> Make:
    def make() -> nn.Module:
        model = net(**settings)
        for parameter in model.parameters():
            init(parameter)
        return model

    return make


def gains_around_one() -> nn.Module:
    model = net(nn.BatchNorm2d)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)
    return model


def tried() -> nn.Module:
    """A few forward passes in train mode, as one looks at a new model."""
    model = net(nn.BatchNorm2d)
    for _ in range(3):
        model(torch.rand(16, 1, 16, 16))
    return model


def biased(init: Callable[[Tensor], Any]) -> Make:
    def make() -> nn.Module:
        model = net()
        for layer in layers_of(model):
            init(layer.bias)
        return model

    return make


def parametrized() -> nn.Module:
    model = net(widths=(32, 64))
    for layer in layers_of(model)[:2]:
        parametrizations.weight_norm(layer)
    return model


WIDE = (64, 64, 128)
DRAWN: dict[str, Make] = {
    "default": net,
    "no biases": lambda: net(bias=False, widths=WIDE),
    "batch norm": lambda: net(nn.BatchNorm2d),
    "group norm": lambda: net(lambda width: nn.GroupNorm(4, width)),
    "instance norm": lambda: net(lambda width: nn.InstanceNorm2d(width, affine=True)),
    "kaiming normal": weighted(nn.init.kaiming_normal_, zero=True),
    "xavier uniform": weighted(nn.init.xavier_uniform_, widths=WIDE),
    "truncated": weighted(lambda w: nn.init.trunc_normal_(w, std=1.0), zero=True, widths=WIDE),
    "orthogonal": weighted(lambda w: nn.init.orthogonal_(w, gain=2**0.5), widths=WIDE),
    "sparse": weighted(lambda w: nn.init.sparse_(w.data.view(len(w), -1), 0.1)),
    "dirac": weighted(lambda w: nn.init.dirac_(w) if w.dim() == 4 else None, widths=WIDE),
    "constant": weighted(lambda w: nn.init.constant_(w, 0.1)),
    "all normal": everything(lambda p: nn.init.normal_(p, 0, 0.02), norm=nn.BatchNorm2d),
    "all normal without norms": everything(lambda p: nn.init.normal_(p, 0, 0.02)),
    "all uniform": everything(lambda p: nn.init.uniform_(p, -0.1, 0.1), norm=nn.BatchNorm2d),
    "gains around one": gains_around_one,
    "tried": tried,
    "biases next to zero": biased(lambda b: nn.init.normal_(b, std=1e-6)),
    "constant biases": biased(lambda b: nn.init.constant_(b, -2.0)),
    "weight norm": parametrized,
    "half": lambda: net(nn.BatchNorm2d, widths=WIDE).half(),
    "bfloat16": lambda: net(widths=WIDE).bfloat16(),
}


@pytest.mark.parametrize("make", DRAWN.values(), ids=DRAWN)
def test_no_draw_is_taken_for_training(make: Make) -> None:
    found = []
    for seed in range(3):
        torch.manual_seed(seed)
        found.append(signs_of_training(make()))
    assert found == [""] * 3


LIBRARIES = (
    *("resnet18", "ghostnet_050", "repvgg_a0", "starnet_s1", "nf_resnet26", "convnext_atto", "lcnet_050"),
    *("torchvision:squeezenet1_0", "torchvision:shufflenet_v2_x0_5", "bu2td:lenet_fc", "bu2td:resnet32"),
)
MORE = (
    *("resnet10t", "vgg11", "densenet121", "mobilenetv2_050", "mobilenetv3_small_050", "efficientnet_b0"),
    *("tf_efficientnet_b0", "convnextv2_atto", "regnetx_002", "regnety_002", "rexnet_100", "dm_nfnet_f0"),
    *("eca_nfnet_l0", "resnetv2_50", "dla34", "dpn48b", "inception_v3", "inception_next_atto", "xception41"),
    *("hardcorenas_a", "selecsls42", "skresnet18", "ese_vovnet19b_slim", "mobileone_s0", "repvit_m0_9"),
    *("edgenext_xx_small", "focalnet_tiny_srf", "poolformer_s12", "convformer_s18", "mambaout_femto"),
    *("fasternet_t0", "convmixer_768_32", "cspresnet50", "darknet53", "gernet_s", "botnet26t_256", "halonet26t"),
    *("res2net50_26w_4s", "resnest14d", "hgnetv2_b0", "mnasnet_small", "fbnetc_100", "tresnet_m", "rdnet_tiny"),
    *("mobilenetv4_conv_small", "repghostnet_050", "legacy_seresnet18", "spnasnet_100"),
    *("torchvision:alexnet", "torchvision:vgg11_bn", "torchvision:googlenet", "torchvision:mnasnet0_5"),
    *("torchvision:mobilenet_v3_small", "torchvision:efficientnet_b0", "torchvision:regnet_y_400mf"),
    *("torchvision:convnext_tiny", "torchvision:resnet18", "torchvision:densenet121", "bu2td:nin"),
)


@needs_timm
@pytest.mark.parametrize("word", LIBRARIES)
def test_no_new_model_of_a_library_is_taken_for_trained(word: str) -> None:
    assert signs_of_training(create_model(word)) == ""


@needs_timm
@pytest.mark.slow
@pytest.mark.parametrize("word", MORE)
def test_nor_are_many_more(word: str) -> None:
    for seed in range(2):
        torch.manual_seed(seed)
        assert signs_of_training(create_model(word)) == ""


def trained(model: nn.Module, steps: int, adam: bool = False) -> nn.Module:
    """Train on images whose classes are waves of ten frequencies."""
    waves = torch.arange(1, 11)[:, None] * torch.arange(16) * (torch.pi / 16)
    optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    if adam:
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for _ in range(steps):
        labels = torch.randint(10, (32,))
        images = waves[labels].sin()[:, None, None, :] + 0.3 * torch.randn(32, 1, 16, 16)
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return model


#: (network, steps, with Adam)
TRAINED: dict[str, tuple[Make, int, bool]] = {
    "default": (net, 30, False),
    "default, Adam": (net, 30, True),
    "batch norm, one step": (DRAWN["batch norm"], 1, False),
    "batch norm, Adam": (DRAWN["batch norm"], 10, True),
    "group norm": (DRAWN["group norm"], 30, False),
    "instance norm": (DRAWN["instance norm"], 30, True),
    "gains around one": (gains_around_one, 10, True),
    "kaiming normal, five steps": (DRAWN["kaiming normal"], 5, True),
    "no biases": (DRAWN["no biases"], 20, False),
    "orthogonal without biases": (weighted(nn.init.orthogonal_, bias=False), 200, False),
    "norms without scales": (lambda: net(lambda w: nn.BatchNorm2d(w, affine=False), bias=False), 30, False),
}


@pytest.mark.parametrize(("make", "steps", "adam"), TRAINED.values(), ids=TRAINED)
def test_training_is_noticed(make: Make, steps: int, adam: bool) -> None:
    model = make()
    assert signs_of_training(model) == ""
    assert signs_of_training(trained(model, steps, adam)) != ""


def test_a_device_without_values_says_nothing() -> None:
    assert signs_of_training(trained(net(nn.BatchNorm2d), 1).to("meta")) == ""


# --- what convert makes of it -------------------------------------------------------------------------


@pytest.fixture
def lenet() -> nn.Module:
    return trained(create_model("bu2td:lenet_fc"), 2)


def test_convert_warns_once_where_weights_are_lost(lenet: nn.Module) -> None:
    example = torch.zeros(1, 1, 16, 16)
    with pytest.warns(bu2td.PretrainedWarning, match=r"LeNetFC is trained .*inherit='matching'.*1\.3%") as caught:
        bu2td.convert(lenet, example_inputs=example)
    assert len(caught) == 1
    assert caught[0].filename == __file__  # the user's own line
    analysis = bu2td.analyze(lenet, example_inputs=example)
    with pytest.warns(bu2td.PretrainedWarning):
        bu2td.convert(analysis, "rev")


def test_convert_is_silent_where_nothing_is_lost_or_it_is_meant(lenet: nn.Module) -> None:
    example = torch.zeros(1, 1, 16, 16)
    for settings in ({"inherit": "none"}, {"inherit": "matching"}, {"device": "meta"}):
        bu2td.convert(lenet, example_inputs=example, **settings)  # type: ignore[arg-type]
    bu2td.convert(create_model("bu2td:lenet_fc"), example_inputs=example)
    fresh = create_model("bu2td:lenet_fc")
    plain, explicit = (
        bu2td.convert(fresh, example_inputs=example, seed=0, **settings)  # type: ignore[arg-type]
        for settings in ({}, {"inherit": "none"})
    )
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), explicit.parameters(), strict=True))


@needs_timm
def test_the_share_is_said_where_it_is_lost_and_where_it_is_kept() -> None:
    model = create_model("resnet18")
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.bias.uniform_(-1, 1).mul_(torch.rand_like(module.bias))
    with pytest.warns(bu2td.PretrainedWarning, match=r"\(61\.5% of the new network's\)"):
        bu2td.convert(model)
    assert "(61.5%)" in str(bu2td.convert(model, inherit="matching").plan)


@pytest.mark.slow
@needs_timm
def test_looking_costs_little() -> None:
    model = create_model("resnet18")
    times: dict[Any, list[float]] = {signs_of_training: [], bu2td.convert: []}
    for _ in range(5):
        for function, spent in times.items():
            begin = time.process_time()
            with warnings.catch_warnings():
                function(model)
            spent.append(time.process_time() - begin)
    assert min(times[signs_of_training]) < 0.05 * min(times[bu2td.convert])
