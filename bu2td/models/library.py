"""What a library of models is to bu2td: a package that builds models by name; and how its faults are told."""

from __future__ import annotations

import difflib
import importlib.util
import re
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from bu2td.errors import UnknownModelError
from bu2td.packages import imported

__all__ = [
    "FORMS",
    "Library",
    "Wishes",
    "built",
    "describe",
    "is_installed",
    "is_of",
    "nearest_words",
    "reason",
    "renamed",
]

FORMS = (
    "A model is written NAME (timm), LIBRARY:NAME (torchvision, bu2td, pytorchcv, transformers or monai), "
    "package.module:factory or file.py:factory."
)

#: What a caller asks of a constructor: ``num_classes``, ``in_channels``, ``pretrained``, as far as they are given,
#: and arguments of its own.
Wishes = Mapping[str, Any]


class Library(ABC):
    """A package of models. A new one is a subclass, and a line in `bu2td.models.libraries.LIBRARIES`.

    Attributes:
        prefix: of its words, ``prefix:NAME``; empty for the library whose models are named alone.
        package: that is imported; empty where nothing is.
        pip: the arguments of ``pip install`` that bring it.
        has_weights: whether it has weights for its models.
        quick: whether its names are listed in little time, so that a mistyped word may be looked for among them.
        excluded: part of the library (as `families` names it) -> why it is no image classifier of its own.
    """

    prefix: str = ""
    package: str = ""
    pip: str = ""
    quick: bool = False
    has_weights: bool = False
    excluded: Mapping[str, str] = {}

    @abstractmethod
    def names(self) -> Sequence[str]:
        """The names of all models that it builds; the package is installed."""

    @abstractmethod
    def constructor(self, name: str, wishes: Wishes) -> Callable[[], nn.Module]:
        """What builds a model, with random weights, and downloads nothing; the name is known."""

    @property
    def title(self) -> str:
        """What the library is called."""
        return self.prefix or self.package

    def families(self) -> Sequence[tuple[str, str]]:
        """(name, family) of the image classifiers that the zoo converts, families together."""
        return [(name, self.title) for name in self.names()]

    def knows(self, name: str) -> bool:
        """Whether a name means a model."""
        return name in self.names()

    def variant(self, name: str) -> str:
        """What a name says of its model apart from its size: the name without its numbers."""
        return re.sub(r"#+", "#", re.sub(r"(_?wd?)?\d+(d\d+)?", "#", name))

    def size(self, name: str) -> tuple[int, ...]:
        """What a name says of its model's size: the numbers in it."""
        return tuple(int(number) for number in re.findall(r"\d+", name))

    def word(self, name: str) -> str:
        """The MODEL word of a name."""
        return f"{self.prefix}:{name}" if self.prefix else name

    def likely(self, model: nn.Module) -> Sequence[str]:
        """The names that may have built a live model, likeliest first; none if it is none of the library's."""
        return ()

    def arguments(self, name: str, model: nn.Module, sizes: Wishes) -> Sequence[Wishes]:
        """What a name may have been called with to build a live model, the likeliest first.

        Args:
            name: one of `likely`.
            model: the live model.
            sizes: the ``num_classes`` and ``in_channels`` that it has.
        """
        return [{}, sizes]

    def accepts(self, name: str) -> Collection[str]:
        """The arguments that may be handed on from a file: none that reads, loads or downloads anything."""
        return ("num_classes", "in_channels")

    def load(self, why: str = "") -> Any:
        """Import the package.

        Raises:
            MissingPackageError: it is not installed, or broken.
        """
        return imported(self.package, self.pip, why)

    def checked(self, name: str, wishes: Wishes) -> Callable[[], nn.Module]:
        """What builds the model of a name, and says what went wrong in one line.

        Raises:
            MissingPackageError: the package is not installed.
            UnknownModelError: the library has no model of this name.
        """
        word = self.word(name)
        package = self.load(f"Model {word!r} is {self.package}'s to build.")
        if not self.knows(name):
            hint = nearest_words(name, {known: self.word(known) for known in self.names()})
            version = getattr(package, "__version__", "")
            who = f"{self.package} {version}".rstrip()
            raise UnknownModelError(f"{who} has no model {name!r}.{hint or ' ' + FORMS}")
        constructor = self.constructor(name, wishes)
        return lambda: built(word, constructor)


def is_installed(package: str) -> bool:
    """Whether a package could be imported; it is not."""
    return not package or importlib.util.find_spec(package) is not None


def built(word: str, factory: Callable[[], Any]) -> nn.Module:
    """Call the model's own code, and turn what it raises or returns wrongly into one line.

    Raises:
        UnknownModelError: the code raises, or does not return a module.
    """
    try:
        model = factory()
    except (Exception, SystemExit) as error:
        message = f"Building {word!r} failed: {reason(error, own=True)}"
        if isinstance(error, TypeError) and "required positional argument" in str(error):
            message += ". A factory is called without arguments: give each a default"
        message += "."
    else:
        if isinstance(model, nn.Module):
            return model
        message = f"{word!r} returned {describe(model)}; expected an nn.Module."
    raise UnknownModelError(message)


def describe(value: object) -> str:
    """What a value is, short enough for a message."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    text = repr(value)
    short = f" ({text})" if len(text) <= 40 and "\n" not in text else ""
    return "None" if value is None else f"an object of type {type(value).__name__}{short}"


def reason(error: BaseException, own: bool = False) -> str:
    """Return an exception on one line; with `own`, also where in the model's code it came from."""
    text = str(error).strip().partition("\n")[0].rstrip(".")
    said = f"{type(error).__name__}: {text}" if text else type(error).__name__
    if isinstance(error, SyntaxError) and error.filename:
        return said
    here = str(Path(__file__).parent)
    frames = traceback.extract_tb(error.__traceback__) if own else []
    frames = [f for f in frames if not f.filename.startswith(here) and "importlib" not in f.filename]
    return f"{said} ({frames[-1].filename}, line {frames[-1].lineno})" if frames else said


def nearest_words(name: str, words: Mapping[str, str] | Iterable[str]) -> str:
    """``' Did you mean 'a' or 'b'?'``: the words (name -> word) of similar names; empty where none is."""
    known = words if isinstance(words, Mapping) else {word: word for word in words}
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(repr(known[match]) for match in close)}?" if close else ""


def is_of(model: nn.Module, package: str) -> bool:
    """Whether a package defines the class of a model."""
    return f"{type(model).__module__}.".startswith(f"{package}.")


def renamed(wishes: Wishes, **names: str) -> dict[str, Any]:
    """The wishes under the names of a library's own arguments."""
    return {names.get(name, name): value for name, value in wishes.items()}
