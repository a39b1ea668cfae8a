"""Converted networks as they run."""

from bu2td.runtime.heads import (
    DENSE_HEADS,
    DenseNetwork,
    FeatureNetwork,
    check_classes,
    check_head,
    dense_network,
    feature_network,
)
from bu2td.runtime.network import TopDownNetwork
from bu2td.runtime.patches import PatchNetwork
from bu2td.runtime.record import FORMAT, Recipe, Record

__all__ = [
    "DENSE_HEADS",
    "DenseNetwork",
    "FORMAT",
    "FeatureNetwork",
    "PatchNetwork",
    "Recipe",
    "Record",
    "TopDownNetwork",
    "check_classes",
    "check_head",
    "dense_network",
    "feature_network",
]
