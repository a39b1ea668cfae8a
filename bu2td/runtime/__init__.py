"""Converted networks as they run."""

from bu2td.runtime.heads import (
    DENSE_HEADS,
    FeatureNetwork,
    PixelNetwork,
    check_classes,
    check_head,
    feature_network,
    pixel_network,
)
from bu2td.runtime.network import TopDownNetwork
from bu2td.runtime.patches import PatchNetwork
from bu2td.runtime.record import FORMAT, Recipe, Record

__all__ = [
    "DENSE_HEADS",
    "PixelNetwork",
    "FORMAT",
    "FeatureNetwork",
    "PatchNetwork",
    "Recipe",
    "Record",
    "TopDownNetwork",
    "check_classes",
    "check_head",
    "pixel_network",
    "feature_network",
]
