"""Arithmetic of sizes that stays right where sizes are symbols of an exported graph."""

from typing import Any


def reduced(size: Any, factor: int) -> Any:
    """``ceil(size / factor)``, the size of a level of the pyramid.

    Numerator and denominator are never negative: the division of other programs (ONNX's, for one) rounds towards
    zero, so that ``-(-size // factor)`` would be the floor there.

    Args:
        size: a whole number, not negative, or a symbol for one.
        factor: at least 1.
    """
    return (size + (factor - 1)) // factor
