"""Activations that torch has no module for."""

import torch
import torch.nn.functional as F

from bu2td.nn import ScaledSiLU

X = torch.linspace(-6, 6, 241)


def test_the_scaled_silu_is_a_silu_and_nearly_a_gelu() -> None:
    """Hendrycks and Gimpel (2016): x * sigmoid(1.702 x) for GELU, whose error is at most 0.0203."""
    torch.testing.assert_close(ScaledSiLU(1.0)(X), F.silu(X))
    error = (ScaledSiLU(1.702)(X) - F.gelu(X)).abs()
    assert 0.02 < float(error.max()) < 0.0204
