"""Attacks on single pixels."""

from __future__ import annotations

import torch

from bu2td.evaluate.robustness.base import SearchAttack
from bu2td.evaluate.robustness.candidates import Search


class SinglePixelAttack(SearchAttack):
    """Set one pixel to black or white, in all channels; the smallest change that fools the model.

    Foolbox 2 draws 1000 pixels at random and stops at the first hit. Here they lie on a regular lattice (for images
    of up to `side` x `side` pixels: all of them) and are tried in the order of their distance.

    Args:
        side: how many rows and columns of the lattice at most.
    """

    def __init__(self, side: int = 32) -> None:
        self.side = side

    def improve(self, search: Search) -> None:
        """Try every candidate, nearest first."""
        images = search.images
        height, width = images.shape[2:]
        lattice = [torch.linspace(0, n - 1, min(n, self.side)).round().long() for n in (height, width)]
        places = (lattice[0][:, None] * width + lattice[1]).flatten().to(images.device)
        old = images.flatten(2)[:, :, places]
        distance = torch.cat([(old - value).norm(dim=1) for value in (0.0, 1.0)], dim=1)  # (N, 2P)
        distance, order = distance.sort(dim=1, stable=True)
        rows, start = search.open_rows(), 0
        while len(rows) and start < order.shape[1]:
            count = min(max(1, search.chunk // len(rows)), order.shape[1] - start)
            every = rows.repeat_interleave(count)
            pick = order[rows, start : start + count].flatten()
            changed = images[every].flatten(2)
            value = (pick >= len(places)).to(images.dtype)
            changed[torch.arange(len(every), device=rows.device), :, places[pick % len(places)]] = value[:, None]
            search.offer(changed.reshape(-1, *images.shape[1:]), every)
            rows, start = search.open_rows(), start + count
