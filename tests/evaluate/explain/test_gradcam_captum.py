"""Grad-CAM with captum on the other side: bottom-up networks, and top-down ones at their leaf modules."""

import warnings
from collections.abc import Callable

import pytest
import torch
from nets import FlatResNet, convert_baseline, flat_lenet, ready
from torch import Tensor, nn

import bu2td
from bu2td.erf.subject import subject
from bu2td.evaluate.explain.gradcam import grad_cam
from bu2td.models import baselines

pytest.importorskip("captum")


def captum_map(model: nn.Module, layer: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from captum.attr import LayerGradCam

        return LayerGradCam(model, layer).attribute(images, targets, relu_attributions=False)[:, 0].detach()


BOTTOM_UP: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], list[str]]] = {
    "lenet_fc": (baselines.lenet_fc, (1, 32, 32), ["unit1.2", "unit2", "unit3.1", "classifier"]),
    "flat_lenet": (flat_lenet, (1, 28, 28), ["2", "4", "11"]),
    "nin_light": (baselines.nin_light, (1, 28, 28), ["features.unit1_3", "features.pool1", "features.unit3_2"]),
    "preactivation": (lambda: FlatResNet((8, 12), 1), (3, 16, 16), ["stem", "b1_0p", "bn"]),
}


@pytest.mark.parametrize("name", BOTTOM_UP)
def test_bottom_up_equals_captum(name: str) -> None:
    build, shape, layers = BOTTOM_UP[name]
    model = ready(build())
    images, targets = torch.rand(3, *shape), torch.tensor([1, 7, 4])
    found = grad_cam(model, images, targets, levels=layers)
    for layer in layers:
        expected = captum_map(model, model.get_submodule(layer), images, targets)
        torch.testing.assert_close(found.maps[layer], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("build", "convolution", "level"),
    [
        (baselines.lenet_fc, "classifier", "unit3"),
        (flat_lenet, "13", "10"),
        (baselines.nin_light, "classifier", "features.unit3_2"),
    ],
)
def test_both_layers_equal_captum(build: Callable[[], nn.Module], convolution: str, level: str) -> None:
    model = ready(build())
    images, targets = torch.rand(3, 1, 28, 28), torch.tensor([1, 7, 4])
    found = grad_cam(model, images, targets, levels=["last-convolution", "last-level"])
    for name, layer in (("last-convolution", convolution), ("last-level", level)):
        expected = captum_map(model, model.get_submodule(layer), images, targets)
        torch.testing.assert_close(found.maps[name], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("arrangement", ["td", "rev"])
@pytest.mark.parametrize("name", ["lenet_fc", "nin_light"])
def test_top_down_equals_captum(name: str, arrangement: str) -> None:
    td = ready(convert_baseline(name, arrangement))
    images, targets = torch.rand(2, 1, 28, 28), torch.tensor([3, 0])
    found = grad_cam(td, images, targets)
    nodes = {n.name: n for n in subject(td).graph_module.graph.nodes}
    for level, node in subject(td).levels.items():
        assert nodes[node].op == "call_module"  # a leaf, whose hooks fire
        layer = td.get_submodule(str(nodes[node].target))
        expected = captum_map(td, layer, images, targets)
        torch.testing.assert_close(found.maps[level], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("word", "layers"),
    [("torchvision:resnet18", {"r4": "layer1", "r32": "layer4"}), ("resnet10t", {"r8": "layer2", "r32": "layer4"})],
)
def test_real_models_equal_captum(word: str, layers: dict[str, str]) -> None:
    pytest.importorskip("timm")
    from bu2td.models.words import create_model

    model = ready(create_model(word, device="cpu"))
    images, targets = torch.rand(2, 3, 64, 64), torch.tensor([17, 900])
    found = grad_cam(model, images, targets)
    assert found.levels[-1] == "r32"
    for level, layer in layers.items():
        expected = captum_map(model, model.get_submodule(layer), images, targets)
        torch.testing.assert_close(found.maps[level], expected, rtol=1e-3, atol=1e-6)
    td = ready(bu2td.convert(model, "td", example_inputs=images, inherit="none", max_macs_ratio=None))
    assert grad_cam(td, images).levels == ("r32", "r16", "r8", "r4", "r2", "r1")
