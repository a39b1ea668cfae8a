"""Attacks that move the image."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from bu2td.evaluate.robustness.base import SearchAttack
from bu2td.evaluate.robustness.candidates import Search


class SpatialAttack(SearchAttack):
    """Rotate and shift images over a grid; the smallest change in L2 that fools the model.

    Sampling is bilinear, what comes in from outside is black. Foolbox 3 returns the first hit of its grid instead.

    Args:
        shift: greatest shift in pixels, along both axes.
        angle: greatest rotation about the centre, in degrees.
        shift_steps, angle_steps: values from the negative to the positive greatest, ends included; 1: none. Where 0
            is not among them (an even number) it comes in besides, so that every shift is tried without a rotation,
            and every rotation without a shift.
    """

    def __init__(
        self, shift: float = 5.0, angle: float = 5.0, shift_steps: int = 10, angle_steps: int = 10
    ) -> None:
        self.shift, self.angle = shift, angle
        self.shift_steps, self.angle_steps = shift_steps, angle_steps

    def improve(self, search: Search) -> None:
        """Try all transformations, the mild ones first, of which the farther ones need not be looked at."""
        device = search.images.device
        shifts, angles = symmetric(self.shift, self.shift_steps), symmetric(self.angle, self.angle_steps)
        grid = torch.cartesian_prod(angles, shifts, shifts)
        scale = torch.tensor([max(self.angle, 1e-9), max(self.shift, 1e-9), max(self.shift, 1e-9)])
        grid = grid[(grid / scale).norm(dim=1).argsort(stable=True)].to(device)
        rows = search.open_rows()
        if not len(rows):
            return
        for part in grid.split(max(1, search.chunk // len(rows))):
            every = rows.repeat(len(part))
            moves = part.repeat_interleave(len(rows), dim=0)
            search.offer(rotate_and_shift(search.images[every], moves[:, 0], moves[:, 1:]), every)


def symmetric(greatest: float, steps: int) -> Tensor:
    """Values from -greatest to greatest in equal steps, ascending; 0 is always among them."""
    half = torch.linspace(-greatest, greatest, steps)[: steps // 2]
    return torch.cat([half, torch.zeros(1), -half.flip(0)])


def rotate_and_shift(images: Tensor, degrees: Tensor, pixels: Tensor) -> Tensor:
    """Rotate images about their centre, then shift them; bilinear, black outside.

    Args:
        images: (M, C, H, W).
        degrees: (M,), counter-clockwise as one looks at the image.
        pixels: (M, 2), down and right.

    Returns:
        (M, C, H, W). The pixel at p of the result is the image at R^-1 (p - c - shift) + c, with c the image's
        centre.
    """
    height, width = images.shape[2:]
    radians = torch.deg2rad(degrees)[:, None, None]
    y = torch.arange(height, device=images.device)[None, :, None] - (height - 1) / 2 - pixels[:, 0, None, None]
    x = torch.arange(width, device=images.device)[None, None, :] - (width - 1) / 2 - pixels[:, 1, None, None]
    down = torch.cos(radians) * y + torch.sin(radians) * x
    right = torch.cos(radians) * x - torch.sin(radians) * y
    # grid_sample with align_corners: -1 and 1 are the centres of the outermost pixels.
    grid = torch.stack([right / max((width - 1) / 2, 0.5), down / max((height - 1) / 2, 0.5)], dim=-1)
    moved = F.grid_sample(images, grid.to(images.dtype), padding_mode="zeros", align_corners=True)
    return moved.clamp(0, 1)
