"""Libraries beside timm and torchvision: pytorchcv, transformers and MONAI."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from torch import nn

from bu2td.models.library import Library, Wishes, is_of, renamed
from bu2td.packages import imported

__all__ = ["Monai", "Pytorchcv", "Transformers"]

_PURPOSES = {
    "a segmenter": (
        "bisenet", "cgnet", "contextnet", "dabnet", "danet", "deeplabv3", "edanet", "enet", "erfnet", "esnet",
        "espcnet", "fastscnn", "fcn8sd", "fpenet", "icnet", "lednet", "linknet", "pspnet", "segnet", "sinet",
        "sqnet", "unet",
    ),
    "a detector": ("centernet", "lffd"),
    "finds points of a body or a face": (
        "alphapose_coco", "ibppose_coco", "lwopenpose_cmupan", "pfpcnet", "prnet", "simplepose_coco",
        "simpleposemobile_coco", "superpointnet",
    ),
    "reads sound": ("jasper", "jasperdr", "nvpattexp", "quartznet", "visemenet", "voca"),
    "reads a film": ("propainter", "propainter_ip", "propainter_rfc", "raft"),
}  # fmt: skip

#: module -> why it is left out of the zoo.
_OTHERS: Mapping[str, str] = MappingProxyType(
    {module: what for what, modules in _PURPOSES.items() for module in modules}
)


class Pytorchcv(Library):
    """pytorchcv: functions by name, in a module per family."""

    prefix = package = "pytorchcv"
    pip = "pytorchcv --no-deps"
    excluded = _OTHERS

    def names(self) -> Sequence[str]:
        return list(self._functions())

    def families(self) -> Sequence[tuple[str, str]]:
        found = [(name, function.__module__.rpartition(".")[2]) for name, function in self._functions().items()]
        return [(name, f"pytorchcv:{family}") for name, family in found if family not in self.excluded]

    def variant(self, name: str) -> str:
        return super().variant(self._network(name))

    def size(self, name: str) -> tuple[int, ...]:
        return super().size(self._network(name))

    def likely(self, model: nn.Module) -> Sequence[str]:
        if not is_of(model, self.package):
            return []
        return [name for name, made in self._functions().items() if made.__module__ == type(model).__module__]

    def constructor(self, name: str, wishes: Wishes) -> Callable[[], nn.Module]:
        return functools.partial(self._functions()[name], pretrained=False, **wishes)

    def _network(self, name: str) -> str:
        """The name of the network, whatever the data set, which sets the classes alone."""
        return re.sub(r"_(svhn|cub|cifar\d+)", "", name)

    def _functions(self) -> Mapping[str, Callable[..., Any]]:
        provider = imported("pytorchcv.model_provider", self.pip)
        found: Mapping[str, Callable[..., Any]] = provider._models
        return found


#: Of a configuration: what names other files, or says nothing of the network.
_ASIDE = ("auto_map", "name_or_path", "quantization_config", "transformers_version", "label2id")


class Transformers(Library):
    """transformers: a class is built from the defaults of its own configuration."""

    prefix = package = pip = "transformers"
    excluded = MappingProxyType(
        {
            "AutoModelForImageClassification": "stands for the other classes",
            "DinatForImageClassification": "needs natten, which has no wheels",
            "ImageGPTForImageClassification": "reads tokens, not an image",
            "ShieldGemma2ForImageClassification": "a language model that looks at an image",
            "TimmWrapperForImageClassification": "stands for timm's models",
        }
    )

    def names(self) -> Sequence[str]:
        listed = [name for name in dir(self.load()) if name.endswith("ForImageClassification")]
        return [name for name in listed if self.knows(name)]

    def families(self) -> Sequence[tuple[str, str]]:
        return [(name, "transformers") for name in self.names() if name not in self.excluded]

    def knows(self, name: str) -> bool:
        return isinstance(getattr(self._class(name), "config_class", None), type)

    def likely(self, model: nn.Module) -> Sequence[str]:
        name = type(model).__name__
        return [name] if is_of(model, self.package) and self._class(name) is type(model) else []

    def arguments(self, name: str, model: nn.Module, sizes: Wishes) -> Sequence[Wishes]:
        config: Any = model.config
        changed = json.loads(json.dumps(config.to_diff_dict(), default=str))
        known = self.accepts(name)
        return [{}, sizes, {key: value for key, value in changed.items() if key in known}]

    def accepts(self, name: str) -> Collection[str]:
        """All that the configuration has, but what names another model to load."""
        settings = (key for key in vars(self._class(name).config_class()) if not key.startswith("_"))
        return {*super().accepts(name), "num_labels"}.union(k for k in settings if not self._reaches_out(k))

    def _reaches_out(self, key: str) -> bool:
        return "backbone" in key or "pretrained" in key or key in _ASIDE

    def constructor(self, name: str, wishes: Wishes) -> Callable[[], nn.Module]:
        made: Any = self._class(name)

        def build() -> nn.Module:
            options = renamed(wishes, num_classes="num_labels", in_channels="num_channels")
            if not hasattr(made.config_class(), "num_channels"):
                options.pop("num_channels", None)
            model: nn.Module = made(made.config_class(**options))
            return model

        return build

    def _class(self, name: str) -> Any:
        found = getattr(self.load(), name, None)
        return found if isinstance(found, type) and issubclass(found, nn.Module) else None


_CHANNELS, _CLASSES, _SIZE = 3, 1000, 224


@dataclass(frozen=True)
class _Net:
    """A network of MONAI.

    Attributes:
        made_by: the class or function of ``monai.networks.nets``.
        family: the module that defines it.
        channels, classes: its arguments for the image's channels and the classes; a shape's first entry where the
            argument is one; empty where it has none.
        others: further arguments.
    """

    made_by: str
    family: str
    channels: str
    classes: str
    others: tuple[tuple[str, Any], ...] = ()

    def arguments(self, wishes: Wishes) -> dict[str, Any]:
        """What it is called with."""
        made = dict(self.others)
        channels = wishes.get("in_channels", _CHANNELS)
        classes = wishes.get("num_classes", _CLASSES)
        made[self.channels] = (channels, _SIZE, _SIZE) if self.channels == "in_shape" else channels
        if self.classes:
            made[self.classes] = (classes,) if self.classes == "out_shape" else classes
        return made


_FLAT = (("spatial_dims", 2),)
_STRIDES = (("channels", (16, 32, 64, 128)), ("strides", (2, 2, 2, 2)))

#: name -> network. They have no defaults for a flat image.
_MONAI: Mapping[str, _Net] = MappingProxyType(
    {
        **{
            name: _Net(name, "densenet", "in_channels", "out_channels", _FLAT)
            for name in ("DenseNet121", "DenseNet169", "DenseNet201", "DenseNet264")
        },
        **{
            name: _Net(name, "senet", "in_channels", "num_classes", _FLAT)
            for name in ("SEResNet50", "SEResNet101", "SEResNet152", "SEResNext50", "SEResNext101", "SENet154")
        },
        **{
            f"resnet{depth}": _Net(f"resnet{depth}", "resnet", "n_input_channels", "num_classes", _FLAT)
            for depth in (10, 18, 34, 50, 101, 152, 200)
        },
        **{
            f"efficientnet-b{n}": _Net(
                "EfficientNetBN", "efficientnet", "in_channels", "num_classes",
                (*_FLAT, ("model_name", f"efficientnet-b{n}"), ("pretrained", False)),
            )
            for n in range(9)
        },
        "Classifier": _Net("Classifier", "classifier", "in_shape", "classes", _STRIDES),
        "Discriminator": _Net("Discriminator", "classifier", "in_shape", "", _STRIDES),
        "Critic": _Net("Critic", "classifier", "in_shape", "", _STRIDES),
        "Regressor": _Net("Regressor", "regressor", "in_shape", "out_shape", _STRIDES),
    }
)  # fmt: skip


class Monai(Library):
    """MONAI: the classes of ``monai.networks.nets`` whose arguments `_MONAI` has, in two dimensions."""

    prefix = package = "monai"
    pip = "monai --no-deps"

    def names(self) -> Sequence[str]:
        return list(_MONAI)

    def families(self) -> Sequence[tuple[str, str]]:
        return [(name, f"monai:{_MONAI[name].family}") for name in self.names()]

    def likely(self, model: nn.Module) -> Sequence[str]:
        kind = type(model)
        if not is_of(model, "monai.networks.nets"):
            return []
        near = [name for name, net in _MONAI.items() if f"monai.networks.nets.{net.family}" == kind.__module__]
        return sorted(near, key=lambda name: _MONAI[name].made_by != kind.__name__)

    def constructor(self, name: str, wishes: Wishes) -> Callable[[], nn.Module]:
        net = _MONAI[name]
        made = getattr(imported("monai.networks.nets", self.pip), net.made_by)
        return functools.partial(made, **net.arguments(wishes))
