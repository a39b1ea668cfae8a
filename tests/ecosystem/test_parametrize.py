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
    expected = gradients(plain)
    for name, conv in net.named_modules():
        if f"{name}.weight" in expected and isinstance(conv, nn.Conv2d):
            found = conv.parametrizations.weight.original.grad * 2
            assert (found - expected[f"{name}.weight"]).abs().max() < 1e-4 * max(
                1, expected[f"{name}.weight"].abs().max()
            )


def test_pruned_weights_train(trainable: Any, plain: Any) -> None:
    trainable = trainable.to(memory_format=torch.contiguous_format)  # pruning refuses others
    for net in (trainable, plain.train()):
        for conv in convs(net):
            prune.l1_unstructured(conv, "weight", amount=0.5)
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        for _ in range(2):
            optimizer.zero_grad()
            loss(net(images()), labels()).backward()
            optimizer.step()
    assert relative(trainable.eval()(images()), plain.eval()(images())) < 1e-4
    for conv in convs(trainable):
        prune.remove(conv, "weight")
    assert relative(trainable(images()), plain(images())) < 1e-4


def test_hooks_see_every_layer(trainable: Any, plain: Any) -> None:
    seen: list[list[str]] = []
    for net in (trainable, plain.train()):
        calls: list[str] = []
        seen.append(calls)
        for name, conv in net.named_modules():
            if isinstance(conv, nn.Conv2d):
                conv.register_forward_hook(lambda *_, name=name, calls=calls: calls.append(name))
        net(images())
    assert sorted(seen[0]) == sorted(seen[1])


def test_norms_of_weights(trainable: Any, plain: Any) -> None:
    for net in (trainable.train(), plain.train()):
        torch.manual_seed(0)
        for conv in convs(net):
            parametrizations.spectral_norm(parametrizations.weight_norm(conv))
        net(images())
    assert relative(trainable.eval()(images()), plain.eval()(images())) < 1e-4
