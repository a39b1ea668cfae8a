"""`bu2td.PatchNetwork`: the finest levels on crops that the coarser levels choose; what it costs and keeps."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nets import convert_baseline
from reference.fill import fill
from torch import Tensor, nn

import bu2td
from bu2td import baselines
from bu2td.baselines import PreActResNet
from bu2td.errors import ImageSizeError, NotAModelError, OptimizeError, OptionError


def converted(name: str, arrangement: str = "td", **options: Any) -> Any:
    """A network with weights that tell positions and channels apart, in double precision."""
    network = convert_baseline(name, arrangement, seed=0, **options)
    fill(network)
    return network.double().eval()


def images_for(name: str, height: int, width: int, count: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (count, baselines.INPUT_SIZES[name][0], height, width)
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def with_auxiliary(network: Any, **options: Any) -> bu2td.PatchNetwork:
    """Patches whose auxiliary classifier has weights of the size of a trained one."""
    patches = bu2td.PatchNetwork(network, **options)
    with torch.no_grad():
        patches.auxiliary.weight.mul_(100)
    return patches.eval()


# --- the same function --------------------------------------------------------------------------------


@pytest.mark.parametrize("arrangement", ["td", "rev"])
def test_whole_images_are_the_network(arrangement: str) -> None:
    network = converted("lenet_fc", arrangement)
    patches = bu2td.PatchNetwork(network, share=1.0).eval()
    images = images_for("lenet_fc", 33, 46)
    with torch.no_grad():
        assert torch.equal(patches(images), network(images))
    assert patches.windows(images).tolist() == [[0, 0, 33, 46]] * 3


@pytest.mark.parametrize("finest", [1, 2])
@pytest.mark.parametrize(("name", "optimised"), [("lenet_fc", False), ("resnet32", False), ("resnet32", True)])
def test_with_enough_margin_the_window_has_the_features_of_the_whole_image(
    name: str, optimised: bool, finest: int
) -> None:
    """The head reads exactly that part of the whole image's features; without a margin it does not."""
    network = converted(name)
    if optimised:
        network = bu2td.optimize(network, "training")
    images = images_for(name, 160, 224)
    found = {}
    for margin in (0, 12):
        patches = with_auxiliary(network, share=0.25, finest=finest, margin=margin)
        with torch.no_grad():
            features = network.features(images)[-1]
            crops = [
                features[i : i + 1, :, top : top + height, left : left + width]
                for i, (top, left, height, width) in enumerate(patches.windows(images).tolist())
            ]
            expected = network.forward_head(torch.cat(crops))
            found[margin] = float((patches(images) - expected).abs().max() / expected.abs().max())
    assert found[12] < 1e-10
    assert found[0] > 1e-6


def test_with_recomputing_gradients_are_the_same() -> None:
    network = converted("resnet32").train()
    images = images_for("resnet32", 32, 48)
    gradients = []
    for enable in (False, True):
        network.set_grad_checkpointing(enable, inside=True)
        patches = with_auxiliary(network).train()
        patches.zero_grad()
        for logits in patches.forward_both(images):
            logits.square().sum().backward(retain_graph=True)
        gradients.append([p.grad.clone() for p in patches.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)
    assert all(bool(g.abs().sum() > 0) for g in gradients[0])


# --- where --------------------------------------------------------------------------------------------


def gradient_cam(patches: bu2td.PatchNetwork, images: Tensor) -> Tensor:
    """Grad-CAM by autograd: the mean gradient of the predicted class's logit weighs the channels."""
    network = patches.network
    level = [level.name for level in network.plan.levels].index(patches.coarse)
    features = network.features(images)[level].detach().requires_grad_()
    logits = patches.auxiliary(features.mean((2, 3)))
    logits.max(dim=1).values.sum().backward()
    weights = features.grad.mean((2, 3), keepdim=True)  # type: ignore[union-attr]
    return (weights * features.detach()).sum(1)


@pytest.mark.parametrize(("name", "finest"), [("lenet_fc", 1), ("resnet32", 1), ("resnet32", 2)])
@pytest.mark.parametrize("size", [(48, 64), (37, 51)])
def test_windows_are_where_grad_cam_is_largest(name: str, finest: int, size: tuple[int, int]) -> None:
    network = converted(name)
    patches = with_auxiliary(network, share=0.4, finest=finest)
    images = images_for(name, *size)
    cam = gradient_cam(patches, images)
    maps = patches.heat_maps(images)
    scale = cam.shape[-2] * cam.shape[-1]
    torch.testing.assert_close(maps, scale * cam.clamp(min=0))
    factor = patches.reduction
    for one, (top, left, height, width) in zip(cam, patches.windows(images).tolist(), strict=True):
        assert 0 <= top <= top + height <= size[0]
        assert 0 <= left <= left + width <= size[1]
        assert abs(height - 0.4 * size[0]) <= factor
        assert abs(width - 0.4 * size[1]) <= factor
        heat = one.clamp(min=0) if bool((one > 0).any()) else one
        rows, columns = (size[0] - height) // factor + 1, (size[1] - width) // factor + 1
        h, w = height // factor, width // factor
        sums = {(i, j): float(heat[i : i + h, j : j + w].sum()) for i in range(rows) for j in range(columns)}
        assert sums[top // factor, left // factor] == pytest.approx(max(sums.values()))


def test_images_of_a_batch_do_not_see_each_other() -> None:
    patches = with_auxiliary(converted("resnet32"), share=0.3)
    images = images_for("resnet32", 40, 56)
    with torch.no_grad():
        alone = torch.cat([patches(image[None]) for image in images])
        torch.testing.assert_close(patches(images), alone)


# --- accuracy and cost on digits ----------------------------------------------------------------------

SIDE, DIGIT = 64, 20


def scenes() -> tuple[Tensor, Tensor]:
    """Handwritten digits somewhere in a noisy image nine times their area: (N, 1, 64, 64), labels."""
    data = pytest.importorskip("sklearn.datasets").load_digits()
    generator = torch.Generator().manual_seed(0)
    digits = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    digits = F.interpolate(digits, size=DIGIT, mode="bilinear", align_corners=False)
    images = 0.3 * torch.rand(len(digits), 1, SIDE, SIDE, generator=generator)
    for image, digit in zip(images, digits, strict=True):
        top, left = torch.randint(0, SIDE - DIGIT + 1, (2,), generator=generator).tolist()
        image[:, top : top + DIGIT, left : left + DIGIT] += digit
    order = torch.randperm(len(images), generator=generator)
    return images[order], torch.tensor(data.target)[order]
