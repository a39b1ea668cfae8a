"""Stage 5, rewrite: a plan -> the graph of the top-down network, and its weights."""

from bu2td.rewrite.initialise import fill_buffers, inherit_matching, initialise, matching_share
from bu2td.rewrite.top import Emitted, MapLimit, rewrite

__all__ = ["Emitted", "MapLimit", "fill_buffers", "inherit_matching", "initialise", "matching_share", "rewrite"]
