"""Stage 2, probe: a captured graph -> the kind, size and stride of every dimension of every value."""

from bu2td.probe.measure import probe
from bu2td.probe.pooled import pooled_maps

__all__ = ["pooled_maps", "probe"]
