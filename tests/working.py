"""Converted networks that are run: small ones, with weights, on real tensors."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import bu2td
from bu2td.options import ARRANGEMENTS


def works(model: nn.Module, arrangement: str = "td", channels: int = 3, size: int | tuple[int, int] = 32) -> Any:
    """Convert a model; check that the network trains whole, and that `optimize` changes nothing of it.

    Parameters that are constants of the network are exempt.
    """
    sides = (size, size) if isinstance(size, int) else size
    images = torch.rand(2, channels, *sides, generator=torch.Generator().manual_seed(0))
    network = bu2td.convert(model, arrangement, example_inputs=images, seed=0, max_macs_ratio=None)
    logits = network(images)
    (logits * torch.linspace(-1, 1, logits.shape[1])).sum().backward()
    missing = [n for n, p in network.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing
    assert all(bool(p.grad.isfinite().all()) for p in network.parameters() if p.grad is not None)
    network.eval()
    with torch.no_grad():
        expected = network(images)
        found = bu2td.optimize(network, mode="inference")(images)
    assert float((found - expected).abs().max()) <= 1e-4 * max(1.0, float(expected.abs().max()))
    return network


def tried(make: Callable[[], nn.Module], size: int | tuple[int, int] = 32, channels: int = 3) -> list[Any]:
    """A model's top-down networks in all arrangements, each of which works."""
    torch.manual_seed(0)
    return [works(make(), arrangement, channels, size) for arrangement in ARRANGEMENTS]


def shape_of(network: Any) -> dict[int, tuple[int, int, int]]:
    """By reduction: width of the merge, width of the level, number of blocks."""
    return {level.reduction: (level.merge_width, level.width, len(level.blocks)) for level in network.plan.levels}
