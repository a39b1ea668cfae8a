"""torchvision's habits: top-down networks by name.

Importing this module registers ``td_NAME``, ``tduni_NAME`` and ``tdrev_NAME`` for every convolutional classifier
NAME of torchvision. Nothing is built or converted before a name is asked for::

    import bu2td.torchvision, torchvision
    td = torchvision.models.get_model("td_resnet18", weights=None, num_classes=10)

What the bottom-up network takes goes to it, and the options of `bu2td.convert` to that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from bu2td.conversion import convert
from bu2td.models.libraries import LIBRARIES
from bu2td.names import PREFIXES, explained, inheriting, is_name, parted, taken, tell_inherited, unknown
from bu2td.packages import imported
from bu2td.runtime import TopDownNetwork

models = imported("torchvision.models", why="bu2td.torchvision registers names there.")
_api = imported("torchvision.models._api")
_library: Any = LIBRARIES["torchvision"]
#: torchvision's own, which finds no name by likeness.
_builder_of = models.get_model_builder


def build(name: str, *, weights: Any = None, **options: Any) -> TopDownNetwork:
    """Build the network that a name means, as ``torchvision.models.get_model`` does.

    Args:
        name: such as "td_resnet18".
        weights: of the bottom-up network, as torchvision takes them; they are inherited as far as they fit.
        options: of the bottom-up network (``num_classes``, ``progress``, ..) and of `bu2td.convert`.

    Raises:
        UnknownModelError: no such name.
        OptionError: an option is wrong.
        TypeError: an option that neither the bottom-up network nor `bu2td.convert` takes.
        Bu2tdError: the bottom-up network cannot be converted.
    """
    if not is_name(name) or name not in _api.BUILTIN_MODELS:
        raise unknown(name, _sources(), _is_model, "torchvision")
    arrangement, source = parted(name)
    chosen = taken(options)
    if weights is not None:
        inheriting(chosen, "weights=..")
    device = torch.get_default_device()
    defaults = _library.constructor(source, {}).keywords
    place = torch.device("meta" if device.type == "meta" else "cpu")
    with explained(name, ("num_classes", "weights", "progress")), place:
        model = _builder_of(source)(**{**defaults, **options, "weights": weights})
    with torch.device("cpu"):  # what is built is moved, also where all that is made shall be elsewhere
        network = convert(model, arrangement, device=device, **chosen)
    if weights is not None:
        tell_inherited(name, f"{source} ({weights})", network)
    return network


def _sources() -> Sequence[str]:
    """The convolutional classifiers of torchvision."""
    return [str(name) for name, _ in _library.families()]


def _is_model(name: str) -> bool:
    return name in _api.BUILTIN_MODELS


def _entry(name: str) -> Callable[..., nn.Module]:
    """What torchvision calls for a name; it asks the bottom-up network's builder which weights there are."""

    def entry(**options: Any) -> nn.Module:
        return build(name, **options)

    entry.__name__ = entry.__qualname__ = name
    entry.__doc__ = f"The top-down network {name} (see `bu2td.torchvision.build`)."
    entry.__wrapped__ = _builder_of(parted(name)[1])  # type: ignore[attr-defined]
    return entry


def register() -> None:
    """Register the names of all convolutional classifiers that torchvision has now; those that are known stay."""
    for source in _sources():
        for prefix in PREFIXES:
            if not _is_model(prefix + source):
                _api.register_model(prefix + source)(_entry(prefix + source))
    _api.get_model_builder = _get_model_builder


def _get_model_builder(name: str) -> Callable[..., nn.Module]:
    """What ``torchvision.models.get_model`` asks for a name: a mistyped one of ours is told what was meant.

    Raises:
        UnknownModelError: it begins as our names do, and is none.
    """
    if is_name(name.lower()) and not _is_model(name.lower()):
        raise unknown(name.lower(), _sources(), _is_model, "torchvision")
    return _builder_of(name)


register()
