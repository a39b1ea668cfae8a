"""Attacks that blur the image, or take its contrast."""

from __future__ import annotations

import torch
from torch import Tensor

from bu2td.evaluate.robustness.base import PathAttack
from bu2td.evaluate.robustness.candidates import Search, spread


class GaussianBlurAttack(PathAttack):
    """Blur images more and more, as scipy.ndimage.gaussian_filter does (reflected edges, cut off at 4 sigma).

    Foolbox 3 blurs on the host and keeps images that are done in its batch.

    Args:
        steps, bisections: values of sigma, and halvings of the step to the first hit.
        extent: greatest sigma as a share of the longer side (Foolbox: 1).
    """

    def __init__(self, steps: int = 1000, bisections: int = 0, extent: float = 1.0) -> None:
        super().__init__(steps, bisections)
        self.extent = extent

    def improve(self, search: Search) -> None:
        """Walk from sigma 0 up."""
        greatest = self.extent * max(search.images.shape[2:])
        self.walk(search, lambda rows, t: gaussian_blur(search.images[rows], t * greatest))


def gaussian_blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Blur images (M, C, H, W), each with a standard deviation of its own (M,) in pixels.

    The filter is separable and linear, so it is a matrix product from either side: W_h X W_w^T, where the weights
    that fall outside an axis are added to the pixels that they mirror (d c b a | a b c d | d c b a).
    """
    values, index = sigma.unique(return_inverse=True)
    rows, columns = (_blur_matrices(size, values)[index][:, None] for size in images.shape[2:])
    return (rows @ images @ columns.transpose(-1, -2)).clamp(0, 1)


def _blur_matrices(size: int, sigma: Tensor) -> Tensor:
    """(S,) -> (S, size, size)."""
    reach = (4 * sigma + 0.5).floor()
    radius = int(reach.max())
    offsets = torch.arange(-radius, radius + 1, device=sigma.device)
    weights = torch.exp(-0.5 * (offsets / sigma[:, None].clamp_min(1e-6)) ** 2) * (offsets.abs() <= reach[:, None])
    weights = weights / weights.sum(1, keepdim=True)
    places = (torch.arange(size, device=sigma.device)[:, None] + offsets) % (2 * size)
    places = torch.where(places < size, places, 2 * size - 1 - places)  # (size, 2 radius + 1)
    matrix = torch.zeros(len(sigma), size, size, device=sigma.device)
    return matrix.scatter_add_(2, places.expand(len(sigma), -1, -1), weights[:, None].expand(-1, size, -1))


class ContrastReductionAttack(PathAttack):
    """Mix images with grey (0.5) until they fool the model. Foolbox 3's bisection takes for granted that grey does.

    Args:
        steps, bisections: shares of grey, and halvings of the step to the first hit.
    """

    def __init__(self, steps: int = 1000, bisections: int = 0) -> None:
        super().__init__(steps, bisections)

    def improve(self, search: Search) -> None:
        """Walk from the image to grey."""
        self.walk(search, lambda rows, t: torch.lerp(x := search.images[rows], x.new_tensor(0.5), spread(t, x)))
