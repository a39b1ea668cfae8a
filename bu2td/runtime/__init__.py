"""Converted networks as they run."""

from bu2td.runtime.network import TopDownNetwork
from bu2td.runtime.patches import PatchNetwork
from bu2td.runtime.pixels import (
    DENSE_HEADS,
    FeatureNetwork,
    PixelNetwork,
    check_classes,
    check_head,
    feature_network,
    pixel_network,
)
from bu2td.runtime.record import FORMAT, Recipe, Record

__all__ = [
    "DENSE_HEADS",
    "FORMAT",
    "FeatureNetwork",
    "PatchNetwork",
    "PixelNetwork",
    "Recipe",
    "Record",
    "TopDownNetwork",
    "check_classes",
    "check_head",
    "feature_network",
    "pixel_network",
]
