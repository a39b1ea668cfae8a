"""Converted networks as they run."""

from bu2td.runtime.network import TopDownNetwork
from bu2td.runtime.patches import PatchNetwork

__all__ = ["PatchNetwork", "TopDownNetwork"]
