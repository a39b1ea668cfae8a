"""Weights of a new network: drawn, kept or inherited, each in one place."""

import pytest
import torch
from nets import convert_baseline
from torch import nn

import bu2td
from bu2td.models import baselines

timm = pytest.importorskip("timm")


def test_constants_of_the_bottom_up_network_are_kept() -> None:
    network = bu2td.convert(timm.create_model("resnet10t", zero_init_last=True), finest_reduction=8, seed=0)
    gammas = {k: v for k, v in network.named_parameters() if k.endswith("bn2.weight") and "layer" in k}
    assert gammas
    assert all(bool((v == 0).all()) for v in gammas.values())
    convnext = bu2td.convert(timm.create_model("convnext_atto", ls_init_value=1e-6), finest_reduction=16, seed=0)
    scales = [v for k, v in convnext.named_parameters() if k.endswith("gamma")]
    assert scales
    assert all(bool((v == 1e-6).all()) for v in scales)


def test_frozen_weights_are_trained_again() -> None:
    model = baselines.lenet_fc().requires_grad_(False)
    network = convert_baseline("lenet_fc", "td", model)
    assert all(p.requires_grad for p in network.parameters())
    assert not any(p.requires_grad for p in model.parameters())


def test_shared_weights_are_separate_and_named() -> None:
    conv = nn.Conv2d(8, 8, 3, padding=1)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), conv, conv, nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, padding=1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10),
    )  # fmt: skip
    plan = bu2td.convert(model, example_inputs=torch.zeros(1, 1, 28, 28)).plan
    assert any("separate in each: 1" in note for note in plan.notes)


def test_inherit_matching() -> None:
    model = timm.create_model("resnet10t")
    with torch.no_grad():
        for p in model.parameters():
            p.uniform_(-1, 1)
    network = bu2td.convert(model, inherit="matching", finest_reduction=4, seed=0)
    source = model.state_dict()
    name = "layer3.0.conv2.weight"
    level = next(k for k in network.state_dict() if k.endswith(name))
    assert torch.equal(network.state_dict()[level], source[name])
    copied, total = network.plan.inherited
    assert 0 < copied < total == sum(p.numel() for p in network.parameters())
    assert "inherited" in str(network.plan)
    fresh = bu2td.convert(model, finest_reduction=4, seed=0)
    assert fresh.plan.inherited is None
    assert not torch.equal(fresh.state_dict()[level], source[name])


def test_conversion_leaves_the_random_state_alone() -> None:
    model = baselines.lenet_fc()
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    convert_baseline("lenet_fc", "td", model, seed=0)
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(2)
    first = convert_baseline("lenet_fc", "td", model)
    torch.manual_seed(2)
    second = convert_baseline("lenet_fc", "td", model)
    assert first.plan.options.seed == second.plan.options.seed
