"""torch.nn.utils (torch): pruning, parametrisations and norms of weights change them as they do in any network."""

from typing import Any

import torch
from ecosystem.kit import gradients, images, labels, loss, relative
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune


def convs(net: nn.Module) -> list[Any]:
    return [module for module in net.modules() if isinstance(module, nn.Conv2d)]


def by_hand(net: nn.Module, change: Any) -> None:
    with torch.no_grad():
        for conv in convs(net):
            conv.weight.copy_(change(conv.weight))


class Halved(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight / 2


def test_parametrised_weights(trainable: Any, plain: Any) -> None:
    net = trainable.eval()
    for conv in convs(net):
        parametrize.register_parametrization(conv, "weight", Halved())
    by_hand(plain, lambda weight: weight / 2)
    assert relative(net(images()), plain(images())) < 1e-5
    loss(net(images()), labels()).backward()
    found = net.get_parameter(
        "head.fc.weight" if hasattr(net.head, "fc") else list(dict(net.named_parameters()))[-2]
    )
    assert relative(found.grad, list(gradients(plain).values())[-2]) < 1e-4


def test_pruned_weights(trainable: Any, plain: Any) -> None:
    net = trainable.eval()
    for conv in convs(net):
        prune.l1_unstructured(conv, "weight", amount=0.5)
    masks = iter([conv.weight_mask for conv in convs(net)])
    by_hand(plain, lambda weight: weight * next(masks))
    assert relative(net(images()), plain(images())) < 1e-5
    for conv in convs(net):
        prune.remove(conv, "weight")
    assert relative(net(images()), plain(images())) < 1e-5


def test_norms_of_weights(trainable: Any, plain: Any) -> None:
    for net in (trainable.train(), plain.train()):
        torch.manual_seed(0)
        for conv in convs(net):
            parametrizations.spectral_norm(parametrizations.weight_norm(conv))
        net(images())
    assert relative(trainable.eval()(images()), plain.eval()(images())) < 1e-4
