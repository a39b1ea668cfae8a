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

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from bu2td.errors import OptionError, UnknownModelError
from bu2td.models.factories import from_file, from_module
from bu2td.models.libraries import LIBRARIES, library_of
from bu2td.models.library import FORMS, describe, is_installed
from bu2td.options import as_device

__all__ = ["create_model", "list_models"]


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
        ``bu2td_factory`` is the word, from which `bu2td.load` can build it again.

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
    model = _build(_constructor(word, wishes), target)
    if num_classes is None and in_channels is None:
        vars(model)["bu2td_factory"] = word
    return model


def list_models() -> list[str]:
    """Return every known MODEL word of the installed libraries."""
    installed = [library for library in LIBRARIES.values() if is_installed(library.package)]
    return [library.word(name) for library in installed for name in library.names()]


def _build(constructor: Callable[[], nn.Module], device: torch.device | None) -> nn.Module:
    if device is None:
        return constructor()
    if device.type == "meta":
        try:
            with _ParametersOnMeta():
                return constructor().to(device)
        except UnknownModelError:
            pass  # a constructor that calculates with its parameters: build them, then drop them
    return constructor().to(device)


class _ParametersOnMeta(TorchFunctionMode):
    """Allocate parameters on the meta device, but compute with real numbers.

    Under ``torch.device("meta")`` constructors that calculate with tensors fail (torchvision's
    regnets call ``arange(...).tolist()``); so only the factories of parameters are redirected.
    """

    _FACTORIES = frozenset((torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn))

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in self._FACTORIES and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def _constructor(word: str, wishes: dict[str, int | None]) -> Callable[[], nn.Module]:
    """Return the function that builds the model; everything but the model's own code is checked."""
    given = {name: value for name, value in wishes.items() if value is not None}
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


def word_of(model: nn.Module) -> str | None:
    """The word that builds a model of a library again; None where it is not known, or builds a user's own."""
    config: Any = getattr(model, "pretrained_cfg", None)
    known = getattr(model, "bu2td_factory", None) or (
        config.get("architecture") if hasattr(config, "get") else None
    )
    return known if is_library_word(known) else None


def is_library_word(word: Any) -> bool:
    """Whether a word builds a model of a library: a file must not name a user's code, which `load` would run."""
    return isinstance(word, str) and library_of(word) is not None
