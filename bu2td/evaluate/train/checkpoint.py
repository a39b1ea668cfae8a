"""The checkpoint of a training: written whole or not at all, and sealed with a hash of all that it holds."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bu2td.errors import FileError, RunFolderError
from bu2td.evaluate.schema import Epoch
from bu2td.files import replacing
from bu2td.io.seal import digest

CHECKPOINT = "checkpoint.pt"
_PARTS = {"model", "optimizer", "log", "identity", "sha256"}
_SHOWN = 4
#: What hashes in an identity (`bu2td.evaluate.train.identity`) stand for, and what to do where one differs.
_HASHES = {
    "source": "the file that the model is written in has changed; put it back as it was",
    "architecture": "the model has other modules or shapes of weights now; build it as it was",
    "checkpoint": "the file that the weights were taken from has changed; put it back as it was",
}


def write_checkpoint(
    path: Path, model: nn.Module, optimizer: Mapping[str, Any], log: Sequence[Epoch], identity: Mapping[str, Any]
) -> None:
    """Write the weights of a model and the state of its training.

    It is put together in memory first: torch.save names no cause where a disk is full.

    Raises:
        FileError: it cannot be written.
    """
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer,
        "log": [asdict(row) for row in log],
        "identity": dict(identity),
    }
    content = io.BytesIO()
    torch.save(state | {"sha256": _seal(state)}, content)
    with replacing(path) as temporary:
        temporary.write_bytes(content.getbuffer())


def read_checkpoint(path: Path, identity: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Read a checkpoint: "model", "optimizer", "log", "identity".

    Args:
        path: of the file.
        identity: what makes the training this one; None takes any.

    Raises:
        FileError: missing, damaged, or not a checkpoint.
        RunFolderError: it is that of another training.
    """
    if not path.is_file():
        raise FileError(f"there is no checkpoint {path}; train first")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        is_whole = set(state) >= _PARTS and state["sha256"] == _seal(state)
    except Exception as error:  # what torch.load raises on garbage depends on the garbage
        raise FileError(f"{path} is damaged ({type(error).__name__})") from error
    if not is_whole:
        raise FileError(f"{path} is damaged (its content is not what was written)")
    check_identity(path, state["identity"], identity)
    return dict(state)


def check_identity(path: Path, own: Mapping[str, Any], wanted: Mapping[str, Any] | None) -> None:
    """Refuse the file of another training.

    Raises:
        RunFolderError: says what differs, and what to do.
    """
    if wanted is None or own == wanted:
        return
    odd = sorted(key for key in {*own, *wanted} if own.get(key) != wanted.get(key))
    changes = [_HASHES.get(key, f"{key} was {own.get(key)!r}, is {wanted.get(key)!r}") for key in odd[:_SHOWN]]
    raise RunFolderError(
        f"{path} belongs to another training ({'; '.join(changes)}), or choose another folder with -o, or move "
        f"this one aside with --overwrite"
    )


def _seal(state: Mapping[str, Any]) -> str:
    """A hash of everything in a checkpoint, but for the hash itself."""
    leaves = [leaf for key, part in state.items() if key != "sha256" for leaf in _leaves(part, key)]
    words = "\n".join(f"{name} {'tensor' if isinstance(v, Tensor) else repr(v)}" for name, v in leaves)
    return digest([value for _, value in leaves if isinstance(value, Tensor)], words)


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _leaves(part, f"{name}/{key}")
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            yield from _leaves(part, f"{name}/{index}")
    else:
        yield name, value
