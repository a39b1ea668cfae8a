"""Attacks (foolbox, adversarial-robustness-toolbox, torchattacks, pyautoattack): a step is the gradient's."""

from typing import Any

import torch
from ecosystem.kit import SIZE, client, images, labels, loss, relative

STEP = 0.05


def pictures() -> torch.Tensor:
    return torch.sigmoid(images())


def by_hand(net: Any) -> torch.Tensor:
    x = pictures().requires_grad_()
    (slope,) = torch.autograd.grad(loss(net(x), labels()), x)
    return (x + STEP * slope.sign()).clamp(0, 1).detach()


def agree(found: torch.Tensor, net: Any) -> None:
    """Signs of gradients next to 0 may differ."""
    assert found.shape == by_hand(net).shape
    assert ((found - by_hand(net)).abs() > 1e-4).float().mean() < 1e-3


def test_foolbox(network: Any, plain: Any) -> None:
    foolbox = client("foolbox")
    attack = foolbox.attacks.LinfFastGradientAttack(random_start=False)
    agree(attack(foolbox.PyTorchModel(network, (0, 1)), pictures(), labels(), epsilons=STEP)[1], plain)


def test_art(network: Any, plain: Any) -> None:
    estimators, evasion = client("art.estimators.classification"), client("art.attacks.evasion")
    classifier = estimators.PyTorchClassifier(
        network, torch.nn.CrossEntropyLoss(), (3, SIZE, SIZE), 10, clip_values=(0, 1), device_type="cpu"
    )
    found = evasion.FastGradientMethod(classifier, eps=STEP).generate(pictures().numpy(), labels().numpy())
    agree(torch.from_numpy(found), plain)


def test_torchattacks(network: Any, plain: Any) -> None:
    agree(client("torchattacks").FGSM(network, eps=STEP)(pictures(), labels()), plain)


def test_autoattack(network: Any, plain: Any) -> None:
    x, y = pictures(), plain(pictures()).argmax(1)
    attack = client("pyautoattack").AutoAttack(
        network, norm="Linf", eps=STEP, version="custom", attacks=["apgd-ce", "square"], seed=0
    )
    attack.apgd.n_iter, attack.square.n_queries = 3, 3
    found = attack.run_standard_evaluation(x, y, batch_size=4)[0]
    assert float((found - x).abs().max()) <= STEP + 1e-5
    assert relative(network(found), plain(found)) < 1e-4
