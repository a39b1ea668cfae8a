"""Attacks that blur the image, or take its contrast."""

from __future__ import annotations

import torch

from bu2td.evaluate.blur import gaussian_blur
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
