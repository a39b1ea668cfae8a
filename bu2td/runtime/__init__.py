"""Converted networks as they run."""

from bu2td.runtime.network import TopDownNetwork
from bu2td.runtime.patches import PatchNetwork
from bu2td.runtime.record import FORMAT, Recipe, Record

__all__ = ["PatchNetwork", "Recipe", "Record", "TopDownNetwork", "FORMAT"]
