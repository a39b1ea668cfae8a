"""Converted networks as they run."""

from bu2td.runtime.network import TopDownNetwork
from bu2td.runtime.patches import PatchNetwork
from bu2td.runtime.record import FORMAT, Recipe, Record
from bu2td.runtime.sharing import Shelf, register_shelf

__all__ = ["PatchNetwork", "Recipe", "Record", "Shelf", "TopDownNetwork", "FORMAT", "register_shelf"]
