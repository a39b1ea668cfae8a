"""A network in all arrangements on real tensors: what every test of a construct asks of it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import bu2td

ARRANGEMENTS = ("td", "uni", "rev")


def tried(make: Callable[[], nn.Module], size: int | tuple[int, int] = 32, channels: int = 3) -> list[Any]:
    """Its top-down networks: each runs, gives every parameter a gradient, and is the same when optimised."""
    height, width = (size, size) if isinstance(size, int) else size
    torch.manual_seed(0)
    images = torch.rand(2, channels, height, width)
    found = []
    for arrangement in ARRANGEMENTS:
        network = bu2td.convert(make(), arrangement, example_inputs=images, seed=0, max_macs_ratio=None)
        _learns(network, images)
        _optimises(network, images)
        found.append(network)
    return found


def _learns(network: nn.Module, images: Tensor) -> None:
    logits = network(images)
    (logits * torch.linspace(-1, 1, logits.shape[1])).sum().backward()
    bad = [n for n, p in network.named_parameters() if p.grad is None or not bool(torch.isfinite(p.grad).all())]
    assert not bad
    assert bool(torch.isfinite(logits).all())


def _optimises(network: Any, images: Tensor) -> None:
    fast = bu2td.optimize(network)
    with torch.no_grad():
        torch.testing.assert_close(fast(images), network.eval()(images), rtol=1e-4, atol=1e-4)
