"""Networks as files: recipe and weights, never a pickled graph; and folders of a hub."""

from bu2td.io.load import load
from bu2td.io.save import save

__all__ = ["load", "save"]
