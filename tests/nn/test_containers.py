"""Containers: blocks are reached by the numbers and names that they have in the bottom-up network."""

import copy
import re
from typing import Any

import pytest
import torch
from nets import make
from torch import nn

import bu2td
from bu2td.nn import Named, Numbered


@pytest.fixture(scope="module")
def resnet18() -> Any:
    return bu2td.convert(make("resnet18"), device="meta")


def test_a_whole_stage_is_indexed_as_it_was(resnet18: Any) -> None:
    layer4 = resnet18.r32.layer4
    assert layer4[-1] is layer4[1] is layer4["1"] is resnet18.get_submodule("r32.layer4.1")
    assert len(layer4) == 2
    assert list(layer4) == [layer4[0], layer4[1]] == layer4[:] == [*layer4[:1], *layer4[1:]]
    assert layer4[0] in layer4
    assert resnet18.r32 not in layer4
    assert isinstance(layer4[0]["conv1"], nn.Conv2d)
    assert list(layer4[0]) == list(layer4[0].keys()) == [name for name, _ in layer4[0].named_children()]
    assert "conv1" in layer4[0]
    assert "conv7" not in layer4[0]


def test_a_part_of_a_stage_keeps_the_numbers_of_the_whole(resnet18: Any) -> None:
    layer3, up = resnet18.r16.layer3, resnet18.r16_up.layer3
    assert len(layer3) == len(up) == 1
    assert layer3[1] is layer3[-1] is next(iter(layer3))
    assert layer3[:] == [layer3[1]]
    assert layer3[:1] == []
    assert up[0] is up[-1]
    with pytest.raises(IndexError, match=r"no module 0 here.*bottom-up network.*holds 1$"):
        layer3[0]
    with pytest.raises(IndexError, match=r"no module 2 here.*holds 1$"):
        layer3[2]
    with pytest.raises(KeyError, match="Did you mean 'conv1'"):
        up[0]["conv11"]


def test_names_of_parameters_are_as_paths(resnet18: Any) -> None:
    """Whatever is reached by [] is what the dotted name means, in every network, at every depth."""
    for word in ("test_convnext", "torchvision:vgg11", "torchvision:squeezenet1_1"):
        network = bu2td.convert(make(word), device="meta", finest_reduction=4)
        found = 0
        for name, module in network.named_modules():
            assert type(module) is not nn.Module, name
            if isinstance(module, Named):
                for key, child in module.named_children():
                    assert module[int(key) if isinstance(module, Numbered) else key] is child, (name, key)
                    found += 1
        assert found > 10, word
        for name, _ in network.named_parameters():
            assert not re.search(r"_modules|Numbered", name)


def test_copies_and_optimised_networks_have_them_too() -> None:
    network = bu2td.convert(make("lenet_fc"), device="cpu").eval()
    nested = bu2td.convert(make("resnet18"), device="meta").eval()
    for twin in (copy.deepcopy(nested), copy.deepcopy(copy.deepcopy(nested))):
        assert isinstance(twin.r32.layer4, Numbered)
        assert type(twin.r32).__name__ == "Level_r32"
        assert not any(module.training for module in twin.modules())
    assert nested.state_dict().keys() == copy.deepcopy(nested).state_dict().keys()
    images = torch.rand(1, 1, 28, 28)
    with torch.no_grad():
        optimised = bu2td.optimize(network, "training")
        torch.testing.assert_close(optimised(images), network(images), rtol=1e-4, atol=1e-4)
    assert all(type(module) is not nn.Module for module in optimised.modules())
