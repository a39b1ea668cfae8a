"""A hash of all that a file holds, by which damage shows that no reader notices."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

#: The entry of a recipe that holds the hash; files of old versions have none.
SEAL = "sha256"


def seal(recipe: Mapping[str, Any], weights: Mapping[str, Tensor]) -> str:
    """The hash of a recipe, its own entry aside, and of weights by name."""
    names = sorted(weights)
    plain = {name: value for name, value in recipe.items() if name != SEAL}
    return digest([weights[name] for name in names], json.dumps([plain, names], sort_keys=True))


def digest(tensors: Sequence[Tensor], words: str = "") -> str:
    """A hash of tensors: their types, shapes and values."""
    found = hashlib.sha256(words.encode())
    for tensor in tensors:
        plain = tensor.detach().cpu().contiguous().reshape(-1)
        found.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        content: Any = plain.view(torch.uint8).numpy() if plain.numel() else b""
        found.update(content)
    return found.hexdigest()
