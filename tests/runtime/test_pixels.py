"""Networks that score every pixel, and networks of features: another head on the levels of a converted network."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bu2td
from bu2td.errors import NotAModelError, OptimizeError, OptionError, ReductionError
from bu2td.models.baselines import LeNetFC, resnet32

IMAGES = torch.zeros(2, 1, 28, 28)


def lenet(**options: Any) -> Any:
    return bu2td.convert(LeNetFC(), example_inputs=IMAGES, seed=1, **options)


def settled(network: Any) -> Any:
    """In eval mode, with norms that do something."""
    generator = torch.Generator().manual_seed(7)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.weight.data, module.running_var):
                values.copy_(0.5 + torch.rand(values.shape, generator=generator))
            for values in (module.bias.data, module.running_mean):
                values.copy_(0.3 * torch.randn(values.shape, generator=generator))
    return network.eval()


def by_hand(dense: Any, maps: list[Tensor], size: tuple[int, int]) -> Tensor:
    """What the head should make of features, from its weights alone."""
    weights = dict(dense.head.named_parameters()) | dict(dense.head.named_buffers())
    x = maps[-1]
    if "laterals.0.weight" in weights:
        for i, each in enumerate(maps):
            lateral = F.conv2d(each, weights[f"laterals.{i}.weight"], weights[f"laterals.{i}.bias"])
            x = lateral if i == 0 else lateral + F.interpolate(x, size=each.shape[-2:])
    x = F.conv2d(x, weights["unit.conv.weight"], padding=1)
    mean, var = weights["unit.norm.running_mean"], weights["unit.norm.running_var"]
    x = F.batch_norm(x, mean, var, weights["unit.norm.weight"], weights["unit.norm.bias"])
    x = F.conv2d(x.clamp(min=0), weights["classifier.weight"], weights["classifier.bias"])
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


@pytest.mark.parametrize("head", ["conv", "fpn"])
@pytest.mark.parametrize("finest", [1, 2])
def test_scores_every_pixel(head: str, finest: int) -> None:
    td = lenet(finest_reduction=finest)
    dense = settled(bu2td.dense(td, 5, head=head))
    assert (dense.num_classes, dense.head_kind) == (5, head)
    assert dense.reductions == (td.plan.ladder if head == "fpn" else td.plan.ladder[-1:])
    for size in ((28, 28), (37, 50), (31, 33)):
        images = torch.rand(2, 1, *size)
        found = dense(images)
        assert found.shape == (2, 5, *size)
        torch.testing.assert_close(found, by_hand(dense, td.features(images), size))
        features = dense.features(images)
        assert dense.forward_head(features).shape[-2:] == features[-1].shape[-2:]
        torch.testing.assert_close(dense.forward_branches([images] * len(td.plan.ladder)), found)


def test_the_converted_network_keeps_its_head() -> None:
    td = lenet().eval()
    images = torch.rand(2, 1, 28, 28)
    before = td(images)
    dense = bu2td.dense(td, 5).train()
    dense(images).sum().backward()
    assert all(p.grad is not None for p in dense.parameters())
    assert all(p.grad is None for p in td.head.parameters())
    assert dense.get_parameter("r4.unit3.0.weight") is td.get_parameter("r4.unit3.0.weight")
    torch.testing.assert_close(td.eval()(images).shape, before.shape)
    assert td.num_classes == 10


def test_the_same_seed_makes_the_same_network() -> None:
    states = [bu2td.dense(LeNetFC(), 5, head="fpn", seed=s, example_inputs=IMAGES).state_dict() for s in (4, 4, 5)]
    assert all(torch.equal(a, b) for a, b in zip(states[0].values(), states[1].values(), strict=True))
    assert not torch.equal(states[0]["head.classifier.weight"], states[2]["head.classifier.weight"])
    random = torch.random.get_rng_state()
    bu2td.dense(LeNetFC(), 5, seed=4, example_inputs=IMAGES)
    torch.random.set_rng_state(random)  # building LeNetFC draws; the head itself must not
    td = lenet()
    random = torch.random.get_rng_state()
    bu2td.dense(td, 5)
    assert torch.equal(torch.random.get_rng_state(), random)


@pytest.mark.parametrize(("head", "finest"), [("conv", 1), ("fpn", 2)])
def test_every_form_gives_the_same_scores(head: str, finest: int) -> None:
    dense = settled(bu2td.dense(lenet(finest_reduction=finest), 5, head=head))
    images = torch.rand(2, 1, 30, 45)
    expected = dense(images)
    forms: dict[str, Callable[[], Tensor]] = {
        "copy": lambda: copy.deepcopy(dense)(images),
        "training": lambda: bu2td.optimize(dense, "training").eval()(images),
        "inference": lambda: bu2td.optimize(dense)(images),
        "double": lambda: dense.to(torch.float64)(images.double()).float(),
    }
    for name, run in forms.items():
        torch.testing.assert_close(run(), expected, msg=name)
    assert type(copy.deepcopy(dense)).__name__ == "PixelNetwork"
    report = bu2td.verify(dense.float(), full=True)  # gradients, compile, export, autocast, an odd size
    assert report.checks["logits"].startswith("(N, 5, H, W)")


def test_checkpointing_passes_through() -> None:
    td = bu2td.convert(resnet32(), example_inputs=torch.zeros(2, 3, 32, 32), seed=1)
    images = torch.rand(2, 3, 32, 32)
    dense = bu2td.dense(td, 3, head="fpn")
    gradients = []
    for enable in (False, True):
        dense.set_grad_checkpointing(enable)
        dense.zero_grad()
        dense(images).square().mean().backward()
        gradients.append({name: p.grad.clone() for name, p in dense.named_parameters()})
    assert dense.grad_checkpointing
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)
    assert bu2td.dense(dense, 4).grad_checkpointing  # a head for a head


def test_it_learns() -> None:
    torch.manual_seed(0)
    images = torch.rand(8, 1, 28, 28) * 0.2
    labels = torch.zeros(8, 28, 28, dtype=torch.long)
    for i in range(8):
        labels[i, i : i + 9, 2 * i : 2 * i + 7] = 1
        labels[i, 18:25, 3 + i : 9 + i] = 2
    images += 0.3 * labels[:, None]
    dense = bu2td.dense(LeNetFC(), 3, example_inputs=IMAGES, seed=0)
    optimizer = torch.optim.Adam(dense.parameters(), 0.02)
    for _ in range(50):
        optimizer.zero_grad()
        F.cross_entropy(dense(images), labels).backward()
        optimizer.step()
    wrong = float((dense(images).argmax(1) != labels).float().mean())
    assert wrong < 0.06  # of pixels, 13 % of which are not background


@pytest.mark.parametrize("mode", [None, "training", "inference"])
def test_files_hold_the_head(tmp_path: Path, mode: str | None) -> None:
    dense = bu2td.dense(lenet(finest_reduction=2), 5, head="fpn")
    dense.reset_classifier(4)
    network = settled(dense) if mode is None else bu2td.optimize(settled(dense), mode)
    bu2td.save(network, tmp_path / "dense.pt")
    again = bu2td.load(tmp_path / "dense.pt", model=LeNetFC()).eval()
    images = torch.rand(2, 1, 31, 40)
    assert torch.equal(again(images), network(images))
    assert (again.num_classes, again.head_kind, again.recipe) == (4, "fpn", network.recipe)


def test_reset_classifier() -> None:
    dense = bu2td.dense(lenet(), 5)
    dense.reset_classifier(3)
    assert dense.num_classes == 3
    assert dense(torch.rand(2, 1, 28, 28)).shape == (2, 3, 28, 28)
    assert dense.get_classifier().out_channels == 3
    assert dense.recipe["dense"] == [3, "conv"]
    with pytest.raises(OptionError, match="pools nothing"):
        dense.reset_classifier(3, "avg")
    with pytest.raises(OptionError, match="at least 1"):
        dense.reset_classifier(0)


WRONG: dict[str, tuple[Callable[[Any], Any], type[Exception], str]] = {
    "head": (lambda td: bu2td.dense(td, 5, head="fnp"), OptionError, "Did you mean 'fpn'"),
    "classes": (lambda td: bu2td.dense(td, 0), OptionError, "at least 1"),
    "true": (lambda td: bu2td.dense(td, True), OptionError, "at least 1"),
    "keyword": (lambda td: bu2td.dense(LeNetFC(), 5, heads="fpn"), TypeError, "Did you mean 'head'"),
    "converted": (lambda td: bu2td.dense(td, 5, reductions=(4, 2)), OptionError, "converted already"),
    "fused": (lambda td: bu2td.dense(bu2td.optimize(td), 5), OptimizeError, "optimise the new one"),
    "no model": (lambda td: bu2td.dense("resnet18", 5), NotAModelError, "live torch.nn.Module"),
    "ladder": (lambda td: bu2td.dense(LeNetFC(), 5, finest_reduction=3), ReductionError, "3"),
    "patches": (lambda td: bu2td.PatchNetwork(bu2td.dense(td, 5)), NotAModelError, "maps"),
    "of patches": (lambda td: bu2td.dense(bu2td.PatchNetwork(td), 5), NotAModelError, "model.network"),
    "file": (lambda td: bu2td.save(bu2td.backbone(td, (4,)).body, "x.pt"), OptionError, "state_dict"),
    "maps": (
        lambda td: bu2td.dense(td, 5, head="fpn").forward_head(torch.rand(1, 6, 8, 8)),
        OptionError,
        "found 1",
    ),
    "levels": (lambda td: bu2td.backbone(td, (64, 4)), ReductionError, r"\[4, 2, 1\]"),
}


@pytest.mark.parametrize("case", WRONG)
def test_refuses(case: str) -> None:
    wrong, error, message = WRONG[case]
    with pytest.raises(error, match=message):
        wrong(lenet())
