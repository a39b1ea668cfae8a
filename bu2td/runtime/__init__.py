"""Converted networks as they run."""

from bu2td.runtime.network import TopDownNetwork
from bu2td.runtime.patches import PatchNetwork
from bu2td.runtime.pixels import (
    DENSE_HEADS,
    FeatureNames,
    FeatureNetwork,
    PixelNetwork,
    check_head,
    feature_network,
    pixel_network,
)
from bu2td.runtime.record import FORMAT, Recipe, Record
from bu2td.runtime.sharing import Shelf, register_shelf
from bu2td.runtime.surface import described, taken_indices

__all__ = [
    "DENSE_HEADS",
    "FORMAT",
    "FeatureNames",
    "FeatureNetwork",
    "PatchNetwork",
    "PixelNetwork",
    "Recipe",
    "Record",
    "Shelf",
    "TopDownNetwork",
    "check_head",
    "described",
    "feature_network",
    "pixel_network",
    "register_shelf",
    "taken_indices",
]
