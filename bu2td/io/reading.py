"""`bu2td.load`: a file -> the network."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import nn

from bu2td.graph import undisturbed
from bu2td.io.content import read
from bu2td.io.rebuild import bottom_up, network_of
from bu2td.options import as_device
from bu2td.runtime import PatchNetwork, TopDownNetwork


@undisturbed()
def load(
    file: str | os.PathLike[str],
    model: nn.Module | None = None,
    *,
    device: str | torch.device | None = None,
    trust: bool = False,
) -> TopDownNetwork | PatchNetwork:
    """Rebuild a network from a file that `save` wrote.

    Args:
        file: the file, of either format.
        model: the bottom-up model (its weights do not matter); by default it is built as the recipe says.
        device: where to put the network; by default the CPU.
        trust: run code of a user's own if the recipe names it (``my.py:net``). Models of libraries are built
            without.

    Returns:
        What was saved: a `TopDownNetwork` or a `PatchNetwork`, in train mode unless it is optimised for inference;
        its floats are of the file's types.

    Raises:
        FileError: the file is missing, damaged, not one of ours, made from another bottom-up model, or does not
            tell how that is built.
        MissingPackageError: the recipe's model is of a library that is not installed.
        OptionError: the device is not there.
    """
    target = as_device(device) or torch.device("cpu")
    saved = read(Path(file))
    return network_of(saved, bottom_up(saved, model, trust), target)
