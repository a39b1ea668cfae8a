"""MODEL words: how the command line names a bottom-up model, and the live module that a word means.

==============================  ===================================================================================
word                            model
==============================  ===================================================================================
``resnet18``                    timm's model of that name (``timm.create_model``)
``torchvision:resnet18``        torchvision's (``torchvision.models.get_model``)
``bu2td:lenet_fc``              a baseline of the paper (`baselines`); ``lenet_fc`` alone means the same
``pytorchcv:resnet18``          pytorchcv's (``pytorchcv.model_provider.get_model``)
``transformers:CLASS``          ``ResNetForImageClassification``, say, built from the defaults of its configuration
``monai:DenseNet121``           MONAI's, for a flat image of three channels
``package.module:factory``      what ``factory()`` of an importable module returns
``path/to/file.py:factory``     what ``factory()`` of a Python file returns
==============================  ===================================================================================

Weights are random, and nothing is downloaded, unless ``pretrained`` is asked for. `bu2td.models.libraries` has the
libraries.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bu2td.errors import OptionError, UnknownModelError
from bu2td.models.building import build
from bu2td.models.factories import from_file, from_module
from bu2td.models.libraries import LIBRARIES, library_of
from bu2td.models.library import FORMS, describe, is_installed
from bu2td.models.origin import Call
from bu2td.options import as_device

__all__ = ["create_model", "list_models"]

#: The largest number that a file may hand on to a model: nobody's network has more of anything.
_MOST = 2**20


def create_model(
    word: str,
    *,
    device: str | None = None,
    num_classes: int | None = None,
    in_channels: int | None = None,
    pretrained: bool = False,
) -> nn.Module:
    """Build the model that a MODEL word names, with random weights.

    Args:
        word: ``NAME`` (timm), ``LIBRARY:NAME`` (torchvision, bu2td, pytorchcv, transformers, monai),
            ``package.module:factory`` or ``file.py:factory``; or a baseline's bare name. A factory is called
            without arguments, but for the two below.
        device: Where the parameters are: None leaves them where the constructor puts them, 'meta'
            allocates nothing (shapes only), any other device moves the finished model there.
        num_classes, in_channels: handed on to a constructor that takes arguments of these names (``in_chans``
            in timm, ``num_labels`` and ``num_channels`` in transformers); one that does not builds what it always
            builds.
        pretrained: with the library's weights, which it may download (timm, torchvision; a factory needs an
            argument of this name).

    Returns:
        The live model, in the mode (train or eval) that its constructor leaves it in. Its attribute
        ``bu2td_factory`` is the word, and ``bu2td_arguments`` what it was called with: from these `bu2td.load` can
        build it again.

    Raises:
        UnknownModelError: No such name, module, file or factory; or the factory raises, or does not
            return an `nn.Module`.
        MissingPackageError: The word needs a library that is not installed.
        OptionError: The device does not exist on this machine, or nothing has weights for this word.
    """
    if not isinstance(word, str):
        raise UnknownModelError(f"Expected a model's name, got {describe(word)}. {FORMS}")
    target = as_device(device)
    wishes = {"num_classes": num_classes, "in_channels": in_channels, "pretrained": pretrained or None}
    return _made(word, {k: v for k, v in wishes.items() if v is not None}, target)


def create_again(call: Call, *, device: str | None = None) -> nn.Module:
    """Build the model of a call that a file names, with random weights.

    Raises:
        UnknownModelError, MissingPackageError, OptionError: as `create_model`; or the call has arguments that no
            file may hand on.
    """
    given, found = call.given, library_of(call.word)
    known = set(found[0].accepts(found[1])) if found else {"num_classes", "in_channels"}
    odd = [name for name, value in given.items() if name not in known or not _is_harmless(value)]
    if odd:
        raise UnknownModelError(f"{call.word!r} is not called with {', '.join(map(repr, odd))} from a file")
    return _made(call.word, given, as_device(device))


def _is_harmless(value: Any, depth: int = 3) -> bool:
    """Whether a value is plain, and of a size that a network may have."""
    if isinstance(value, list | dict):
        parts = [*value, *value.values()] if isinstance(value, dict) else value
        return depth > 0 and len(parts) <= _MOST and all(_is_harmless(part, depth - 1) for part in parts)
    if isinstance(value, str):
        return len(value) <= 200
    return value is None or isinstance(value, bool) or (isinstance(value, int | float) and abs(value) <= _MOST)


def _made(word: str, given: Mapping[str, Any], device: torch.device | None) -> nn.Module:
    """The model, which knows the call that has built it, but for where its weights came from."""
    model = build(_constructor(word, given), device)
    vars(model)["bu2td_factory"] = _lasting(word)
    vars(model)["bu2td_arguments"] = {name: value for name, value in given.items() if name != "pretrained"}
    return model


def _lasting(word: str) -> str:
    """The word, such that it means the same in another folder."""
    source, colon, name = word.rpartition(":")
    is_file = colon and source.endswith(".py") and library_of(word) is None
    return f"{Path(source).expanduser().resolve()}:{name}" if is_file else word


def list_models() -> list[str]:
    """Return every known MODEL word of the installed libraries."""
    installed = [library for library in LIBRARIES.values() if is_installed(library.package)]
    return [library.word(name) for library in installed for name in library.names()]


def _constructor(word: str, given: Mapping[str, Any]) -> Callable[[], nn.Module]:
    """Return the function that builds the model; everything but the model's own code is checked."""
    source, colon, name = word.rpartition(":")
    if not colon and word.endswith(".py"):
        raise UnknownModelError(f"{word!r} names a file but no factory in it: write {word}:FACTORY.")
    if colon and not (source and name):
        raise UnknownModelError(f"{word!r} is not a model: nothing stands before or after ':'. {FORMS}")
    found = library_of(word)
    if found is not None:
        library, name = found
        if "pretrained" in given and not library.has_weights:
            raise OptionError(f"{library.title} has no weights for {word!r}; timm, torchvision and a factory do")
        return library.checked(name, given)
    return (from_file if source.endswith(".py") else from_module)(source, name, given)


def is_library_word(word: Any) -> bool:
    """Whether a word builds a model of a library: a file must not name a user's code, which `load` would run."""
    return isinstance(word, str) and library_of(word) is not None
