"""What the tests of clients share: networks in all forms, a batch, and what plain PyTorch makes of both."""

import copy
import functools
import importlib
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nets import Block, head, unit
from reference.fill import fill, picture
from torch import Tensor, nn

import bu2td
from bu2td.optimization import RULES

#: A converted network, and what `bu2td.optimize` makes of it with every rewrite.
FORMS = ("plain", "inference", "training")
TRAIN = ("plain", "training")
SIZE = 32
ALL = dict.fromkeys(RULES, "always")


def bottom_up() -> nn.Module:
    """A residual network of 16 to 48 channels that reduces by 8."""
    return nn.Sequential(unit(3, 16, 3, 2), Block(16, 32, 2), Block(32, 32), Block(32, 48, 2), head(48))


@functools.lru_cache
def _converted() -> Any:
    td = bu2td.convert(bottom_up(), example_inputs=images(), seed=0)
    fill(td)
    return td.eval()


def network(form: str, seed: int = 0) -> Any:
    """A converted network in eval mode, whose weights and norm statistics are as if it had been trained."""
    td, generator = copy.deepcopy(_converted()), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in td.parameters():
            p += 0.02 * seed * torch.randn(p.shape, generator=generator)
    return td if form == "plain" else bu2td.optimize(td, form, rules=ALL).eval()


def images(count: int = 4) -> Tensor:
    return picture(count, 3, SIZE, SIZE)


def labels(count: int = 4) -> Tensor:
    return torch.arange(count) % 10


def loss(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits, target)


def gradients(net: nn.Module, count: int = 4) -> dict[str, Tensor]:
    """The gradients of the loss of a batch, by the name of the parameter."""
    net.zero_grad()
    loss(net(images(count)), labels(count)).backward()
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


def relative(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach(), expected.detach()
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-12))


def same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-4) -> None:
    """Both hold the same tensors, up to a share of the largest value of all."""
    assert found.keys() == expected.keys()
    largest = max(float(t.detach().abs().max()) for t in expected.values())
    for name, tensor in expected.items():
        worst = float((found[name].detach() - tensor.detach()).abs().max())
        assert worst <= tolerance * largest, f"{name}: {worst:.1e} of {largest:.1e}"


def client(module: str) -> Any:
    """A client's module; the test is skipped where the client is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of packages about their own imports
        try:
            return importlib.import_module(module)
        except ModuleNotFoundError as error:
            pytest.skip(f"{error.name} is not installed")


def step(net: nn.Module, rate: float = 0.1) -> None:
    """One step of plain gradient descent on the batch, by hand."""
    found = gradients(net)
    with torch.no_grad():
        for name, p in net.named_parameters():
            p -= rate * found[name]
    net.zero_grad()


def state(net: nn.Module) -> dict[str, Tensor]:
    """Weights and norm statistics."""
    return {name: tensor for name, tensor in net.state_dict().items() if tensor.is_floating_point()}
