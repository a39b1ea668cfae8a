"""A small trained network and its images: a bright spot in one of four quarters."""

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bu2td.evaluate.robustness.curves import Perturbations

#: Options under which an attack on these images takes well below a second.
QUICK: dict[str, Any] = {"budget": "quick", "repeats": 2, "batch_size": 8}


class Small(nn.Module):
    """Two convolutions with batch norm and dropout: everything that behaves otherwise in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.last = nn.Linear(8 * 9, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.norm(self.conv(x))), 4)
        return self.last(self.drop(x.flatten(1)))


def blobs(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """A bright spot in one of four quarters, on noise: (count, 1, 12, 12)."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (count,), generator=generator)
    place = torch.randint(1, 5, (count, 2), generator=generator) + 6 * torch.stack([labels // 2, labels % 2], 1)
    grid = torch.arange(12)
    spots = [torch.exp(-((grid - p[:, None]) ** 2) / 3) for p in place.T]
    images = spots[0][:, :, None] * spots[1][:, None] + 0.3 * torch.rand(count, 12, 12, generator=generator)
    return images.clamp(0, 1)[:, None], labels


@cache
def trained() -> nn.Module:
    """The network after three epochs."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return train(Small(), 3)


def train(model: nn.Module, epochs: int) -> nn.Module:
    """Train in place, on other images than `attacked` returns."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        images, labels = blobs(600, 1)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(epochs):
            for part in torch.randperm(600).split(50):
                optimizer.zero_grad()
                F.cross_entropy(model(images[part]), labels[part]).backward()
                optimizer.step()
    return model.eval()


def attacked() -> tuple[nn.Module, Tensor, Tensor]:
    """The trained network, 22 images, and their labels, one of which is wrong."""
    images, labels = blobs(22, 2)
    labels[3] = (labels[3] + 1) % 4
    return trained(), images, labels


def equal(first: Perturbations, second: Perturbations) -> None:
    """Refuse any difference."""
    for name in ("distance", "clean", "images", "dropped"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
