"""Networks as files, recipe and weights, never a pickled graph; and as folders of a hub."""

from bu2td.io import hub
from bu2td.io.content import is_safetensors, read_safetensors
from bu2td.io.load import load
from bu2td.io.save import save
from bu2td.runtime import register_shelf

__all__ = ["is_safetensors", "load", "read_safetensors", "save"]

register_shelf(hub)
