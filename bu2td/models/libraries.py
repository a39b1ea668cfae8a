"""The libraries that bu2td builds models of, each with all that bu2td knows about it.

Whatever is asked of a library - its names, how a model is built from random weights and without a download,
what its classifiers are - is asked of its entry in `LIBRARIES`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from bu2td.errors import MissingPackageError, UnknownModelError
from bu2td.models import baselines
from bu2td.models.building import build
from bu2td.models.guests import Monai, Pytorchcv, Transformers
from bu2td.models.library import FORMS, Library, Wishes, built, is_installed, is_of, nearest_words, renamed
from bu2td.packages import imported
from bu2td.settings import settings

__all__ = ["LIBRARIES", "library_of"]


class Timm(Library):
    """timm, whose models are named alone."""

    package = pip = "timm"
    quick = has_weights = True
    #: Arguments of most models that say how they are built.
    further = ("drop_rate", "drop_block_rate", "output_stride", "act_layer")
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

    def likely(self, model: nn.Module) -> Sequence[str]:
        config: Any = getattr(model, "pretrained_cfg", None)
        name = config.get("architecture") if hasattr(config, "get") else None
        return [name] if isinstance(name, str) and name else []

    def arguments(self, name: str, model: nn.Module, sizes: Wishes) -> Sequence[Wishes]:
        further = {**drop_rates(model), **{k: v for k, v in settings(model).items() if k in self.further and v}}
        rate = drop_path_rate(model)
        if rate:
            further["drop_path_rate"] = self._of_schedule(name, {**sizes, **further}, rate)
        pool = getattr(getattr(getattr(model, "head", model), "global_pool", None), "pool_type", None)
        rare: list[Wishes] = [{"global_pool": pool}] if isinstance(pool, str) and pool else []
        rare += [{"output_stride": 16}, {"output_stride": 8}, {"act_layer": _activation(model)}]
        return [{}, sizes, *({**sizes, **further, **more} for more in ({}, *rare))]

    def accepts(self, name: str) -> Collection[str]:
        return (*super().accepts(name), *self.further, "drop_path_rate", "global_pool")

    def _of_schedule(self, name: str, given: Wishes, rate: float) -> float:
        """The rate to ask for, so that the largest one that a schedule computes from it is the given one."""
        asked = self.constructor(name, {**given, "drop_path_rate": rate})
        try:
            trial = build(lambda: built(name, asked), torch.device("meta"))
        except UnknownModelError:
            return rate
        return float(f"{rate * rate / (drop_path_rate(trial) or rate):.6g}")

    def constructor(self, name: str, wishes: Wishes) -> Callable[[], nn.Module]:
        options = {"pretrained": False, **renamed(wishes, in_channels="in_chans")}
        return functools.partial(self.load().create_model, name, **options)


class Torchvision(Library):
    """torchvision; its classifiers are listed, its other models are built too."""

    prefix = package = pip = "torchvision"
    quick = has_weights = True
    #: Arguments of single models that they keep under their names.
    further = ("aux_logits", "transform_input", "groups", "drop_rate")
    excluded = MappingProxyType(
        dict.fromkeys(("vision_transformer", "swin_transformer", "maxvit"), "a transformer, no CNN")
    )

    def names(self) -> Sequence[str]:
        models = self._models()
        return [str(name) for name in models.list_models(module=models)]

    def families(self) -> Sequence[tuple[str, str]]:
        found = [(name, self._builder(name).__module__.rpartition(".")[2]) for name in self.names()]
        return [(name, f"torchvision:{family}") for name, family in found if family not in self.excluded]

    def knows(self, name: str) -> bool:
        return name in self._models().list_models()

    def likely(self, model: nn.Module) -> Sequence[str]:
        if not is_of(model, "torchvision.models"):
            return []
        return [name for name in self.names() if self._builder(name).__module__ == type(model).__module__]

    def arguments(self, name: str, model: nn.Module, sizes: Wishes) -> Sequence[Wishes]:
        classes = {k: v for k, v in sizes.items() if k in self.accepts(name)}
        drops = [{}, *({"dropout": rate} for rate in drop_rates(model).values())]
        count, rate = sum(type(m).__name__ == "StochasticDepth" for m in model.modules()), drop_path_rate(model)
        beyond = float(f"{rate * count / max(count - 1, 1):.6g}")  # the schedule may end behind the last block
        rates = [rate, beyond] if rate else []
        paths = [{}, *({"stochastic_depth_prob": rate} for rate in rates)]
        own = {k: v for module in model.modules() for k, v in settings(module).items() if k == "drop_rate"}
        own |= {k: v for k, v in settings(model).items() if k in self.further}
        drawn = [{**classes, **drop, **path} for path in paths for drop in drops]
        found = [{}, classes, {**classes, **own}, *drawn]
        return [given for i, given in enumerate(found) if given not in found[:i]]

    def accepts(self, name: str) -> Collection[str]:
        return ("num_classes", "dropout", "stochastic_depth_prob", *self.further)

    def constructor(self, name: str, wishes: Wishes) -> Callable[[], nn.Module]:
        models = self._models()
        options: dict[str, Any] = {
            "weights": "DEFAULT" if "pretrained" in wishes else None,
            **{k: v for k, v in wishes.items() if k in self.accepts(name)},
        }
        if "weights_backbone" in inspect.signature(self._builder(name)).parameters:
            options["weights_backbone"] = None  # segmentation and detection: a download by default
        if name.removeprefix("quantized_") in ("googlenet", "inception_v3"):
            options["init_weights"] = False  # their own initialisation is slow, and warns
        return functools.partial(models.get_model, name, **options)

    def _builder(self, name: str) -> Callable[..., nn.Module]:
        builder: Callable[..., nn.Module] = self._models().get_model_builder(name)
        return builder

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

    def likely(self, model: nn.Module) -> Sequence[str]:
        return self.names() if is_of(model, baselines.__name__) else []

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


def drop_rates(model: nn.Module) -> dict[str, float]:
    """The rate of a model's last dropout by the name that timm gives it; empty where it drops nothing."""
    rates = [float(module.p) for module in model.modules() if isinstance(module, nn.Dropout) and module.p]
    return {"drop_rate": rates[-1]} if rates else {}


def drop_path_rate(model: nn.Module) -> float:
    """The largest rate at which a model drops a block's path: of timm's modules and of torchvision's."""
    kinds = {"DropPath": "drop_prob", "StochasticDepth": "p"}
    rates = [getattr(m, kinds[type(m).__name__], None) for m in model.modules() if type(m).__name__ in kinds]
    return float(f"{max(map(float, filter(None, rates)), default=0.0):.6g}")


def _activation(model: nn.Module) -> str:
    """A model's most frequent activation by the name that timm gives it, if that is the name of its class."""
    kinds = [type(m).__name__.lower() for m in model.modules() if "activation" in type(m).__module__]
    return max(sorted(set(kinds)), key=kinds.count, default="")
