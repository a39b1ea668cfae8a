"""Converted networks as they run."""

from bu2td.runtime.backbone import Backbone
from bu2td.runtime.network import TopDownNetwork
from bu2td.runtime.patches import PatchNetwork
from bu2td.runtime.record import FORMAT, Recipe, Record
from bu2td.runtime.sharing import register_shelf
from bu2td.runtime.surface import described

__all__ = ["Backbone", "PatchNetwork", "Recipe", "Record", "TopDownNetwork", "FORMAT", "described", "register_shelf"]
