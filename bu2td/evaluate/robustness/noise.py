"""Attacks with noise."""

from __future__ import annotations

from typing import Any

import torch

from bu2td.evaluate.robustness.base import PathAttack, SmallestEpsilon, draw_until_adversarial, ep, fa
from bu2td.evaluate.robustness.candidates import Search, spread


class BlendedUniformNoiseAttack(PathAttack):
    """Mix images with uniform noise until they fool the model.

    Args:
        steps, bisections: shares of noise, and halvings of the step to the first hit.
        directions: how many noise images are drawn at most until one fools the model by itself.
    """

    def __init__(self, steps: int = 1000, bisections: int = 0, directions: int = 1000) -> None:
        super().__init__(steps, bisections)
        self.directions = directions

    def improve(self, search: Search) -> None:
        """Draw noise, then walk from the image to the noise."""
        noise = torch.rand_like(search.images)
        draw_until_adversarial(search, noise, self.directions)
        self.walk(search, lambda rows, t: torch.lerp(x := search.images[rows], noise[rows], spread(t, x)))


class _NoisePerImage:
    """Sizes of Foolbox's repeated noise, one per image."""

    def get_epsilons(self, x: Any, p: Any, epsilon: Any, min_: float, max_: float) -> Any:
        return ep.astensor(spread((epsilon / p.flatten(1).norms.l2(axis=-1)).raw, p.raw))


class _GaussianNoise(_NoisePerImage, fa.L2RepeatedAdditiveGaussianNoiseAttack):
    pass


class _UniformNoise(_NoisePerImage, fa.L2RepeatedAdditiveUniformNoiseAttack):
    pass


class AdditiveGaussianNoiseAttack(SmallestEpsilon):
    """Gaussian noise of growing size, clipped to [0, 1].

    Args:
        draws: noise images per size; the rest as `SmallestEpsilon`.
    """

    noise: Any = _GaussianNoise

    def __init__(
        self, smallest: float = 0.02, largest: float = 1.0, steps: int = 40, bisections: int = 8, draws: int = 20
    ) -> None:
        super().__init__(self.noise(repeats=draws, check_trivial=False), smallest, largest, steps, bisections)


class AdditiveUniformNoiseAttack(AdditiveGaussianNoiseAttack):
    """Uniform noise of growing size, clipped to [0, 1]; arguments as `AdditiveGaussianNoiseAttack`."""

    noise = _UniformNoise
