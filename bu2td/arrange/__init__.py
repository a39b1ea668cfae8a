"""Stage 4, arrange: an analysis and options -> the plan of the top-down network."""

from bu2td.arrange.levels import arrange

__all__ = ["arrange"]
