"""Activations that people write by hand and torch has no module for."""

import torch
from torch import Tensor, nn


class ScaledSiLU(nn.Module):
    """x * sigmoid(scale * x); the scale 1.702 approximates GELU.

    Args:
        scale: steepness of the sigmoid.
    """

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation of x, in its shape."""
        return x * torch.sigmoid(self.scale * x)

    def extra_repr(self) -> str:
        """The scale, for printing."""
        return f"scale={self.scale}"
