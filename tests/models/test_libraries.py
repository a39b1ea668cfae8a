"""Libraries of models: their words, what they refuse, and that one more is one more entry.

Small packages stand in for pytorchcv, transformers and MONAI, so that nothing of these needs to be installed; the
last tests meet the real ones where they are.
"""

import importlib.util
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import nn

import bu2td
from bu2td.errors import MissingPackageError, UnknownModelError
from bu2td.models import is_library_word, libraries, list_models
from bu2td.models.libraries import LIBRARIES, library_of
from bu2td.models.library import Library
from bu2td.models.words import create_model

STAND_INS = {
    "pytorchcv/__init__.py": "__version__ = '0.0'\n",
    "pytorchcv/model_provider.py": """
        from pytorchcv.models.plainnet import plainnet10_cifar10, plainnet10_svhn, plainnet8_w2
        from pytorchcv.models.segnet import segnet

        _models = dict(plainnet10_svhn=plainnet10_svhn, plainnet10_cifar10=plainnet10_cifar10)
        _models |= dict(plainnet8_w2=plainnet8_w2, segnet=segnet)
    """,
    "pytorchcv/models/__init__.py": "",
    "pytorchcv/models/plainnet.py": """
        from torch import nn

        def net(width, in_channels=3, num_classes=10, pretrained=True):
            assert not pretrained, "a download"
            convs = [nn.Conv2d(in_channels, width, 3, 2, 1), nn.Conv2d(width, 2 * width, 3, 2, 1)]
            body = [convs[0], nn.ReLU(), convs[1], nn.ReLU()]
            return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, num_classes))

        def plainnet10_cifar10(**kwargs):
            return net(10, **kwargs)

        def plainnet10_svhn(**kwargs):
            return net(10, **kwargs)

        def plainnet8_w2(**kwargs):
            return net(16, **kwargs)
    """,
    "pytorchcv/models/segnet.py": """
        def segnet(**kwargs):
            raise RuntimeError("it does not build")
    """,
    "transformers/__init__.py": """
        from torch import nn

        __version__ = "0.0"

        class Config:
            def __init__(self, num_labels=2, **kwargs):
                self.num_labels, self.options = num_labels, kwargs

        class ColourConfig(Config):
            def __init__(self, num_channels=3, **kwargs):
                super().__init__(**kwargs)
                self.num_channels = num_channels

        class ToyForImageClassification(nn.Module):
            config_class = ColourConfig

            def __init__(self, config):
                super().__init__()
                self.config = config
                self.conv = nn.Conv2d(config.num_channels, config.num_labels, 4, 4)

            def forward(self, x):
                return self.conv(x).mean((2, 3))

        class GreyForImageClassification(ToyForImageClassification):
            config_class = Config

            def __init__(self, config):
                assert not config.options
                super().__init__(ColourConfig(1, num_labels=config.num_labels))

        class ToyModel(ToyForImageClassification):
            pass

        class AutoModelForImageClassification:
            pass
    """,
    "monai/__init__.py": "__version__ = '0.0'\n",
    "monai/networks/__init__.py": "",
    "monai/networks/nets.py": """
        from torch import nn

        class Net(nn.Module):
            def __init__(self, channels, classes):
                super().__init__()
                self.conv, self.classes = nn.Conv2d(channels, 4, 3, 2), classes

        class DenseNet121(Net):
            def __init__(self, spatial_dims, in_channels, out_channels):
                assert spatial_dims == 2
                super().__init__(in_channels, out_channels)

        class EfficientNetBN(Net):
            def __init__(self, model_name, spatial_dims, in_channels, num_classes, pretrained=True):
                assert not pretrained, "a download"
                self.model_name = model_name
                super().__init__(in_channels, num_classes)

        class Regressor(Net):
            def __init__(self, in_shape, out_shape, channels, strides):
                super().__init__(in_shape[0], out_shape[0])

        class Critic(Net):
            def __init__(self, in_shape, channels, strides):
                super().__init__(in_shape[0], 1)
    """,
}
GUESTS = ("pytorchcv", "transformers", "monai")


@pytest.fixture
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Packages of the libraries' names; what is imported of them is forgotten afterwards."""
    for name, text in STAND_INS.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    here = {n: m for n, m in sys.modules.items() if n.partition(".")[0] in GUESTS}
    for name in here:
        del sys.modules[name]
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in [n for n in sys.modules if n.partition(".")[0] in GUESTS]:
        del sys.modules[name]
    sys.modules.update(here)


# --- words --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", [None, "meta"])
@pytest.mark.parametrize(
    ("word", "outputs"),
    [
        ("pytorchcv:plainnet10_cifar10", 10),
        ("transformers:ToyForImageClassification", 2),
        ("transformers:ToyModel", 2),
        ("monai:DenseNet121", 1000),
        ("monai:efficientnet-b3", 1000),
        ("monai:Critic", 1),
    ],
)
def test_words(stand_ins: Path, word: str, outputs: int, device: str | None) -> None:
    model = create_model(word, device=device)
    assert model.bu2td_factory == word
    assert {p.device.type for p in model.parameters()} == {device or "cpu"}
    if not word.startswith("monai"):
        assert model(torch.zeros(1, 3, 32, 32, device=device)).shape == (1, outputs)
    else:
        assert model.classes == outputs
        assert getattr(model, "model_name", "efficientnet-b3") == "efficientnet-b3"


@pytest.mark.parametrize(
    ("word", "channels", "classes"),
    [
        ("pytorchcv:plainnet8_w2", 1, 7),
        ("transformers:ToyForImageClassification", 1, 7),
        ("transformers:GreyForImageClassification", 1, 7),  # its configuration has no channels to set
        ("monai:DenseNet121", 1, 7),
        ("monai:Regressor", 1, 7),
        ("monai:Critic", 1, 1),  # it has one output
    ],
)
def test_wishes(stand_ins: Path, word: str, channels: int, classes: int) -> None:
    model = create_model(word, in_channels=channels, num_classes=7)
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert convs[0].in_channels == channels
    if not word.startswith("monai"):
        assert model(torch.zeros(1, channels, 32, 32)).shape == (1, classes)
    else:
        assert model.classes == classes
    assert (model.bu2td_factory, model.bu2td_arguments) == (word, {"in_channels": channels, "num_classes": 7})


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (
            "pytorchcv:plainnet10_cifar",
            "pytorchcv 0.0 has no model 'plainnet10_cifar'. Did you mean 'pytorchcv:plainnet",
        ),
        ("pytorchcv:zzzz", "pytorchcv 0.0 has no model 'zzzz'. A model is written"),
        ("pytorchcv:", "before or after ':'"),
        ("pytorchcv:segnet", "Building 'pytorchcv:segnet' failed: RuntimeError: it does not build"),
        ("transformers:ToyForImageClasification", "Did you mean 'transformers:ToyForImageClassification'"),
        ("transformers:AutoModelForImageClassification", "has no model 'AutoModelForImageClassification'"),
        ("transformers:Config", "has no model 'Config'"),
        ("transformers:nn.Linear", "has no model 'nn.Linear'"),
        ("monai:DenseNet12", "Did you mean 'monai:DenseNet121'"),
        ("pytorchv:plainnet8_w2", "no module 'pytorchv'. Did you mean 'pytorchcv'"),
    ],
)
def test_bad_words(stand_ins: Path, word: str, message: str) -> None:
    with pytest.raises(UnknownModelError) as caught:
        create_model(word)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("word", "pip"),
    [
        ("pytorchcv:resnet10", "pytorchcv --no-deps"),
        ("transformers:ResNetForImageClassification", "transformers"),
        ("monai:DenseNet121", "monai --no-deps"),
    ],
)
def test_missing_packages(monkeypatch: pytest.MonkeyPatch, word: str, pip: str) -> None:
    monkeypatch.setitem(sys.modules, word.partition(":")[0], None)
    with pytest.raises(MissingPackageError, match=f"Run: pip install {pip}$"):
        create_model(word)
    assert not any(known.startswith(word.partition(":")[0]) for known in list_models())


def test_library_words() -> None:
    for word in ("resnet18", "lenet_fc", *(f"{prefix}:a" for prefix in LIBRARIES if prefix)):
        assert is_library_word(word)
    for word in ("file.py:a", "package.module:a", "timm:resnet18", "pytorchcv:", ":a", None, 3):
        assert not is_library_word(word)


def test_list_models(stand_ins: Path) -> None:
    words = list_models()
    assert len(set(words)) == len(words)
    assert {"pytorchcv:segnet", "monai:DenseNet121", "transformers:GreyForImageClassification"} <= set(words)
    assert "transformers:ToyModel" not in words
    assert all(library_of(word) is not None for word in words)


def test_a_converted_network_is_rebuilt_from_its_word(stand_ins: Path, tmp_path: Path) -> None:
    td = bu2td.convert(create_model("pytorchcv:plainnet8_w2"), seed=0).eval()
    bu2td.save(td, tmp_path / "td.pt")
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(bu2td.load(tmp_path / "td.pt").eval()(images), td(images))


def test_a_new_library_is_one_entry(stand_ins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Toys(Library):
        prefix = "toys"

        def names(self) -> list[str]:
            return ["small"]

        def constructor(self, name: str, wishes: Any) -> Any:
            return lambda: nn.Conv2d(3, 4, 3)

        def load(self, why: str = "") -> None:
            return None

    known = MappingProxyType({**LIBRARIES, "toys": Toys()})
    for module in (libraries, sys.modules["bu2td.models.words"]):
        monkeypatch.setattr(module, "LIBRARIES", known)
    assert "toys:small" in list_models()
    assert is_library_word("toys:small")
    assert isinstance(create_model("toys:small"), nn.Conv2d)
    with pytest.raises(UnknownModelError, match="Did you mean 'toys:small'"):
        create_model("toys:smal")


# --- families and variants ----------------------------------------------------------------------------


def test_families(stand_ins: Path) -> None:
    assert LIBRARIES["pytorchcv"].families() == [
        (name, "pytorchcv:plainnet") for name in ("plainnet10_svhn", "plainnet10_cifar10", "plainnet8_w2")
    ]  # segnet is a segmenter
    assert ("ToyForImageClassification", "transformers") in LIBRARIES["transformers"].families()
    assert ("SENet154", "monai:senet") in LIBRARIES["monai"].families()


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("resnet18", "resnet50", True),
        ("resnet18_wd2", "resnet18", True),
        ("resnet18", "resnet50b", False),
        ("mobilenet_w1", "mobilenet_w3d4", True),
        ("efficientnet_b0b", "efficientnet_b0c", False),
        ("densenet40_k12_cifar10", "densenet100_k24_svhn", True),
        ("densenet40_k12_cifar10", "densenet40_k12_bc_cifar100", False),
        ("tresnet_m", "tresnet_l", False),
    ],
)
def test_variants(one: str, other: str, same: bool) -> None:
    library = LIBRARIES["pytorchcv"]
    assert (library.variant(one) == library.variant(other)) == same


def test_sizes() -> None:
    assert LIBRARIES["torchvision"].size("resnext50_32x4d") == (50, 32, 4)
    assert LIBRARIES["pytorchcv"].size("resnet20_cifar100") == (20,)


# --- the real ones ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("title", GUESTS)
def test_every_classifier_builds_on_meta(title: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of every family; nothing is downloaded."""
    if importlib.util.find_spec(title) is None:
        pytest.skip(f"no {title}")

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a download")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    library = LIBRARIES[title]
    names = {(family, library.variant(name)): name for name, family in reversed(library.families())}
    assert len(names) > 5
    for name in names.values():
        model = create_model(library.word(name), device="meta")
        assert all(p.is_meta for p in model.parameters()), name
