"""Networks as files, recipe and weights, never a pickled graph; and as folders of a hub."""

from bu2td.io import hub
from bu2td.io.content import is_safetensors, read_safetensors
from bu2td.io.reading import load
from bu2td.io.writing import save
from bu2td.runtime import Shelf, register_shelf

__all__ = ["is_safetensors", "load", "read_safetensors", "save"]

register_shelf(Shelf(hub.write, hub.push, hub.read))
