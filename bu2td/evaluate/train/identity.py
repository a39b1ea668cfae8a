"""What makes a training this one: settings, and hashes of the model's source, architecture, given weights."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from bu2td.errors import FileError
from bu2td.evaluate.settings import Settings
from bu2td.models.libraries import library_of

_LEFT_OUT = ("repeats", "arrangements", "top_down", "checkpoint", "pretrained")  # change nothing of one training


def networks_of(settings: Settings) -> list[tuple[str, int]]:
    """The networks (arrangement, repeat) of an evaluation, in the order in which they are made.

    A network whose weights are given is there once.
    """
    return [
        (arrangement, repeat)
        for repeat in range(settings.repeats)
        for arrangement in settings.arrangements
        if repeat == 0 or not is_given(settings, arrangement)
    ]


def is_given(settings: Settings, arrangement: str) -> bool:
    """Whether a network's weights are given, so that it is measured and not trained."""
    return arrangement in settings.checkpoint or (arrangement == "bu" and settings.pretrained)


def identity_of(
    settings: Settings, arrangement: str, repeat: int, network: nn.Module, stored: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What makes a training this one, as JSON has it.

    Args:
        settings: of the evaluation.
        arrangement: "bu", "td", "uni" or "rev".
        repeat: from 0.
        network: as it is built; its weights do not matter.
        stored: the identity that is there; it speaks for a file of given weights that has gone since.

    Raises:
        FileError: the file that its weights are taken from is not there.
    """
    given = is_given(settings, arrangement)
    groups = ("data",) if given else ("data", "training")
    own = settings.for_arrangement(arrangement).identity(*groups)
    found = {k: v for k, v in own.items() if k not in _LEFT_OUT} | {"arrangement": arrangement, "repeat": repeat}
    found |= {"source": source_hash(settings.model), "architecture": architecture_hash(network)}
    if arrangement in settings.checkpoint:
        file = Path(settings.checkpoint[arrangement])
        taken = (stored or {}).get("checkpoint")
        found["checkpoint"] = taken if taken and not file.exists() else file_hash(file)
    elif given:
        found["pretrained"] = True
    return dict(json.loads(json.dumps(found)))


def source_hash(word: str) -> str:
    """A hash of the file that a user's factory is written in; empty for a library's model."""
    if library_of(word) is not None:
        return ""
    source = word.rpartition(":")[0]
    if source.endswith(".py"):
        return file_hash(Path(source).expanduser())
    try:
        spec = importlib.util.find_spec(source)
    except (ImportError, ValueError):
        return ""
    origin = spec.origin if spec is not None else None
    return file_hash(Path(origin)) if origin is not None and Path(origin).is_file() else ""


def architecture_hash(network: nn.Module) -> str:
    """A hash of what a network computes with: its layers, and what its weights are called and shaped like.

    A layer is a module that holds no others, or weights of its own. What only holds others (a container, a graph)
    may be written another way in the next version, and the training is still the same one.
    """
    layers = [
        f"{path} {type(module).__name__} {_settings(module)}"
        for path, module in network.named_modules()
        if next(module.children(), None) is None or next(module.parameters(recurse=False), None) is not None
    ]
    found = re.sub(r" at 0x[0-9a-f]+", "", "\n".join(layers))  # addresses of functions differ in every process
    shapes = [f"{name} {tuple(value.shape)} {value.dtype}" for name, value in network.state_dict().items()]
    return hashlib.sha256("\n".join([found, *shapes]).encode()).hexdigest()


def _settings(module: nn.Module) -> str:
    """What a module was made with.

    PyTorch describes its own modules otherwise from version to version; of those the settings are taken that differ
    from what the constructor takes by default, so that one that a version adds changes nothing.
    """
    if not type(module).__module__.startswith("torch."):
        return module.extra_repr()
    found = []
    for name, parameter in inspect.signature(type(module)).parameters.items():
        value = getattr(module, name, None)
        plain = isinstance(value, (bool, int, float, str, tuple, list))
        if plain and value is not parameter.default and value != parameter.default:
            found.append(f"{name}={value}")
    return ", ".join(found)


def file_hash(path: Path) -> str:
    """A hash of a file's content.

    Raises:
        FileError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            found = hashlib.sha256()
            while block := file.read(2**20):
                found.update(block)
            return found.hexdigest()
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror}") from error
