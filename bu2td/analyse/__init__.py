"""Stage 3, analyse: a probed graph -> levels, stem and head of the bottom-up network."""

from bu2td.analyse.blocks import whole_reduction
from bu2td.analyse.levels import analyse

__all__ = ["analyse", "whole_reduction"]
