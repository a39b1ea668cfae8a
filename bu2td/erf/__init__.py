"""Receptive fields of bottom-up and top-down networks: in theory, exact to the pixel, and by gradients."""

from bu2td.erf.gradient import Gradients, gradient
from bu2td.erf.theory import Fields, theory

__all__ = ["Fields", "Gradients", "gradient", "theory"]
