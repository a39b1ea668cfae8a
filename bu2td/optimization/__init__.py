"""Faster networks with the same function."""

from bu2td.ir import Optimization, Rewrite
from bu2td.optimization.memory import cache_folder
from bu2td.optimization.optimizer import optimize
from bu2td.optimization.rules import RULES
from bu2td.optimization.transform import retransform

__all__ = ["Optimization", "RULES", "Rewrite", "cache_folder", "optimize", "retransform"]
