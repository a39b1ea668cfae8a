"""Faster networks with the same function."""

from bu2td.optimization.cost_model import RULES
from bu2td.optimization.optimizer import optimize
from bu2td.optimization.record import Optimization, retransform

__all__ = ["Optimization", "RULES", "optimize", "retransform"]
