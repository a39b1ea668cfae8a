"""The libraries that bu2td builds models of, each with all that bu2td knows about it.

Whatever is asked of a library - its names, how a model is built from random weights and without a download,
what its classifiers are - is asked of its entry in `LIBRARIES`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from torch import nn

from bu2td.errors import MissingPackageError, UnknownModelError
from bu2td.models import baselines
from bu2td.models.guests import Monai, Pytorchcv, Transformers
from bu2td.models.library import FORMS, Library, Wishes, is_installed, nearest_words, renamed
from bu2td.packages import imported

__all__ = ["LIBRARIES", "library_of"]


class Timm(Library):
    """timm, whose models are named alone."""

    package = pip = "timm"
    quick = has_weights = True
    #: Modules of convolutional classifiers (timm 1.0).
    modules = (
        "byoanet", "byobnet", "convmixer", "convnext", "cspnet", "cspnext", "csatv2", "densenet", "dla", "dpn",
        "edgenext", "efficientnet", "fasternet", "focalnet", "ghostnet", "hardcorenas", "hgnet", "hrnet",
        "inception_next", "inception_resnet_v2", "inception_v3", "inception_v4", "lcnetv2", "mambaout",
        "metaformer", "mobilenetv3", "mobilenetv5", "nasnet", "nfnet", "pnasnet", "rdnet", "regnet", "repghost",
        "repvit", "res2net", "resnest", "resnet", "resnetv2", "rexnet", "selecsls", "senet", "sknet", "starnet",
        "tresnet", "vgg", "vovnet", "xception", "xception_aligned",
    )  # fmt: skip

    def names(self) -> Sequence[str]:
        timm = self.load()
        others = set(timm.list_models(module="timm"))  # what bu2td.timm has registered
        return [str(name) for name in timm.list_models() if name not in others]

    def families(self) -> Sequence[tuple[str, str]]:
        timm = self.load()
        return [(name, family) for family in self.modules for name in timm.list_models(module=family)]

    def checked(self, name: str, wishes: Wishes) -> Callable[[], nn.Module]:
        if not name.strip():
            raise UnknownModelError(f"The model's name is empty. {FORMS}")
        if "/" in name or "\\" in name:
            raise UnknownModelError(f"{name!r} looks like a path, but not of a model. {FORMS}")
        others = [library for library in LIBRARIES.values() if library.quick and library is not self]
        words = [repr(other.word(name)) for other in others if is_installed(other.package) and other.knows(name)]
        also = f" Did you mean {' or '.join(words)}?" if words else ""
        timm = self.load(f"Model {name!r} is timm's to build.{also}")
        plain, dot, tag = name.partition(".")
        if not timm.is_model(plain):
            hint = also or nearest_words(plain, [word for library in (self, *others) for word in _words(library)])
            raise UnknownModelError(f"timm {timm.__version__} has no model {plain!r}.{hint or ' ' + FORMS}")
        if dot and tag not in [known.partition(".")[2] for known in timm.list_pretrained(f"{plain}.*")]:
            raise UnknownModelError(
                f"timm's {plain!r} has no weights tagged {tag!r}: write {plain!r} alone (no weights are loaded)."
            )
        return super().checked(name, wishes)

    def knows(self, name: str) -> bool:
        return bool(self.load().is_model(name.partition(".")[0]))

    def constructor(self, name: str, wishes: Wishes) -> Callable[[], nn.Module]:
        options = {"pretrained": False, **renamed(wishes, in_channels="in_chans")}
        return functools.partial(self.load().create_model, name, **options)


class Torchvision(Library):
    """torchvision; its classifiers are listed, its other models are built too."""

    prefix = package = pip = "torchvision"
    quick = has_weights = True
    excluded = MappingProxyType(
        dict.fromkeys(("vision_transformer", "swin_transformer", "maxvit"), "a transformer, no CNN")
    )

    def names(self) -> Sequence[str]:
        models = self._models()
        return [str(name) for name in models.list_models(module=models)]

    def families(self) -> Sequence[tuple[str, str]]:
        builders = {name: self._models().get_model_builder(name) for name in self.names()}
        found = [(name, builder.__module__.rpartition(".")[2]) for name, builder in builders.items()]
        return [(name, f"torchvision:{family}") for name, family in found if family not in self.excluded]

    def knows(self, name: str) -> bool:
        return name in self._models().list_models()

    def constructor(self, name: str, wishes: Wishes) -> Callable[[], nn.Module]:
        models = self._models()
        options: dict[str, Any] = {
            "weights": "DEFAULT" if "pretrained" in wishes else None,
            **{k: v for k, v in wishes.items() if k == "num_classes"},
        }
        if "weights_backbone" in inspect.signature(models.get_model_builder(name)).parameters:
            options["weights_backbone"] = None  # segmentation and detection: a download by default
        if name.removeprefix("quantized_") in ("googlenet", "inception_v3"):
            options["init_weights"] = False  # their own initialisation is slow, and warns
        return functools.partial(models.get_model, name, **options)

    def _models(self) -> Any:
        return imported("torchvision.models", self.pip)


class Baselines(Library):
    """The paper's baselines, bu2td's own."""

    prefix = "bu2td"
    quick = True

    def names(self) -> Sequence[str]:
        return list(baselines.INPUT_SIZES)

    def families(self) -> Sequence[tuple[str, str]]:
        return [(name, f"bu2td:{name}") for name in self.names()]

    def checked(self, name: str, wishes: Wishes) -> Callable[[], nn.Module]:
        if not self.knows(name):
            words = {known: self.word(known) for known in self.names()}
            raise UnknownModelError(
                f"bu2td has no baseline {name!r}.{nearest_words(name, words)} "
                f"The baselines are {', '.join(words.values())}."
            )
        return self.constructor(name, wishes)

    def constructor(self, name: str, wishes: Wishes) -> Callable[[], nn.Module]:
        return functools.partial(getattr(baselines, name), **wishes)


#: prefix -> library, in the order of lists.
LIBRARIES: Mapping[str, Library] = MappingProxyType(
    {
        library.prefix: library
        for library in (Torchvision(), Timm(), Baselines(), Pytorchcv(), Transformers(), Monai())
    }
)


def library_of(word: str) -> tuple[Library, str] | None:
    """The library that a word belongs to, and the name of the model there; None for a user's own factory."""
    prefix, colon, name = word.rpartition(":")
    if colon and not (prefix and name):
        return None
    if not colon and word in baselines.INPUT_SIZES:
        prefix = Baselines.prefix
    return (LIBRARIES[prefix], name) if prefix in LIBRARIES else None


def _words(library: Library) -> Sequence[str]:
    """The words of a library; none where it is not installed, or broken."""
    try:
        return [library.word(name) for name in library.names()] if is_installed(library.package) else []
    except MissingPackageError:
        return []
