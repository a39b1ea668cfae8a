"""How a live model was made: the calls that may make it again, as far as it shows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from bu2td.models.libraries import LIBRARIES

__all__ = ["Call", "Origin", "origin_of", "shapes_of_weights"]


@dataclass(frozen=True)
class Call:
    """A call that builds a model.

    Attributes:
        word: the MODEL word of what is called.
        arguments: what it is called with, as JSON.
    """

    word: str
    arguments: str = "{}"

    @staticmethod
    def of(word: str, arguments: Mapping[str, Any]) -> Call:
        """The call of a word."""
        return Call(word, json.dumps(dict(arguments), sort_keys=True))

    @property
    def given(self) -> dict[str, Any]:
        """The arguments by name."""
        given: dict[str, Any] = json.loads(self.arguments)
        return given

    def __str__(self) -> str:
        return f"{self.word}({', '.join(f'{name}={value!r}' for name, value in self.given.items())})"


@dataclass(frozen=True)
class Origin:
    """What a live model shows of how it was made.

    Attributes:
        calls: that may build it again, the likeliest first; none where nothing is known.
        shapes: names and shapes of its weights, in short: what tells most models apart without a look inside.
    """

    calls: tuple[Call, ...] = ()
    shapes: str = ""


def origin_of(model: nn.Module, sizes: Mapping[str, int]) -> Origin:
    """What a model shows of how it was made.

    Args:
        model: the live model.
        sizes: the ``num_classes`` and ``in_channels`` that it has.
    """
    calls: list[Call] = []
    word = vars(model).get("bu2td_factory")
    if isinstance(word, str):
        calls.append(Call.of(word, vars(model).get("bu2td_arguments", {})))
    for library in LIBRARIES.values():
        for name in library.likely(model):
            calls += [Call.of(library.word(name), given) for given in library.arguments(name, model, sizes)]
    return Origin(tuple(dict.fromkeys(calls)), shapes_of_weights(model))


def shapes_of_weights(model: nn.Module) -> str:
    """Names and shapes of a model's weights, in short."""
    shapes = sorted((name, tuple(tensor.shape)) for name, tensor in model.state_dict(keep_vars=True).items())
    return hashlib.sha256(repr(shapes).encode()).hexdigest()[:16]
