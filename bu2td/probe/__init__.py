"""Stage 2, probe: a captured graph -> the kind, size and stride of every dimension of every value."""

from bu2td.probe.measure import probe
from bu2td.probe.pooled import covers_all, pooled_maps

__all__ = ["covers_all", "pooled_maps", "probe"]
