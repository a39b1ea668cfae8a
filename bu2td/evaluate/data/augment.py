"""Augmentation of training images, drawn from (seed, epoch, image): whoever loads an image makes the same of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from bu2td.evaluate.data.sets import Images, batch_of, stacked
from bu2td.evaluate.settings import Settings

#: Principal colours of ImageNet: eigenvalues and eigenvectors (columns) of the covariance of RGB values in [0, 1]
#: (Krizhevsky et al., 2012, section 4.1).
_COLOUR_VALUES = (0.2175, 0.0188, 0.0045)
_COLOUR_VECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
_MIX = 0x9E3779B97F4A7C15  # 2^64 / golden ratio
_MASK = 2**64 - 1


def mix(*numbers: int) -> int:
    """One seed below 2^63 from several numbers, so that near numbers give unrelated seeds (splitmix64)."""
    state = 0
    for number in numbers:
        state = (state ^ (number & _MASK)) + _MIX & _MASK
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _MASK
        state = (state ^ state >> 27) * 0x94D049BB133111EB & _MASK
        state ^= state >> 31
    return state >> 1


class Augmented:
    """Images with random shifts, crops, flips and colours, as the settings ask for.

    Args:
        images: (C, H, W) in [0, 1] each.
        settings: `hflip`, `hshift`, `vshift`, `random_crop`, `pca_color`.
        seed: of the epoch.
    """

    def __init__(self, images: Images, settings: Settings, seed: int) -> None:
        self.images, self.settings, self.seed = images, settings, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.images[index]
        return augment(image, self.settings, torch.Generator().manual_seed(mix(self.seed, index))), label

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Several images at once, see `batch_of`."""
        own = self.settings
        changed = any((own.hflip, own.hshift, own.vshift, own.random_crop, own.pca_color))
        return stacked(self, indices) if changed else batch_of(self.images, indices)


def augment(image: Tensor, settings: Settings, random: torch.Generator) -> Tensor:
    """Augment one image (C, H, W) in [0, 1]; what moves in from outside is black or the edge (`shift_fill`).

    Shifts are whole pixels, drawn evenly from -share .. share of the side; the crop is drawn from the image padded
    by a share of its side, which is the same as a shift up to that share in both directions at once.
    """
    _, height, width = image.shape
    down = _shift(max(settings.vshift, settings.random_crop), height, random)
    right = _shift(max(settings.hshift, settings.random_crop), width, random)
    if down or right:
        image = _moved(image, down, right, settings.shift_fill)
    if settings.hflip and torch.rand((), generator=random) < settings.hflip:
        image = image.flip(-1)
    if settings.pca_color and image.shape[0] == 3:
        strength = torch.randn(3, generator=random) * settings.pca_color * torch.tensor(_COLOUR_VALUES)
        image = (image + (torch.tensor(_COLOUR_VECTORS) @ strength)[:, None, None]).clamp(0, 1)
    return image


def _moved(image: Tensor, down: int, right: int, fill: str) -> Tensor:
    if fill == "black":
        return F.pad(image, (right, -right, down, -down))
    rows, columns = (
        (torch.arange(n) - by).clamp(0, n - 1) for n, by in zip(image.shape[1:], (down, right), strict=True)
    )
    return image[:, rows[:, None], columns]


def _shift(share: float, side: int, random: torch.Generator) -> int:
    most = int(share * side)
    return int(torch.randint(-most, most + 1, (), generator=random)) if most else 0
