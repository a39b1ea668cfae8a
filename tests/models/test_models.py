"""MODEL words: every kind of word, and every bad one."""

import importlib.util
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import bu2td
from bu2td.errors import MissingPackageError, OptionError, UnknownModelError
from bu2td.models import baselines
from bu2td.models import words as models
from bu2td.models.words import create_model, list_models

needs_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="no timm")
needs_torchvision = pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="no torchvision")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with a few files of a user; what they import is forgotten afterwards."""
    files = {
        "user_nets.py": """
            from dataclasses import dataclass
            from torch import nn
            from user_layers import conv

            RUNS = []
            WIDTH = 8
            live = nn.Linear(1, 1)

            @dataclass
            class Settings:
                width: "int" = WIDTH

            class Net(nn.Sequential):
                def __init__(self, width=WIDTH):
                    super().__init__(conv(width), nn.ReLU())

            class Builders:
                @staticmethod
                def small():
                    return Net(2)

            def net():
                return Net(Settings().width)

            def late():
                from user_layers import conv
                return nn.Sequential(conv(3))

            def needs_width(width):
                return Net(width)

            def broken():
                return 1 / 0

            def silent():
                raise ValueError

            def leaves():
                raise SystemExit(3)

            def forgets():
                Net()

            def pair():
                return Net(), Net()

            def returns_class():
                return Net

            def enormous():
                return nn.Sequential(nn.Linear(10 ** 7, 10 ** 8), nn.LayerNorm(10 ** 8))

            def counts():
                import torch
                offsets = torch.ones(3).tolist()
                return Net(len(offsets))
        """,
        "user_layers.py": """
            from torch import nn

            def conv(width):
                return nn.Conv2d(3, width, 3)
        """,
        "syntax.py": "def net(:\n",
        "needs_other.py": "import surely_not_installed\n",
        "stops.py": "import sys\nsys.exit('usage: stops')\n",
        "empty.py": "",
        "inner/__init__.py": "",
        "inner/model.py": "from torch import nn\n\ndef build():\n    return nn.Conv2d(3, 4, 1)\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(text))
    monkeypatch.chdir(tmp_path)
    before, search_path = set(sys.modules), list(sys.path)
    yield tmp_path
    assert sys.path == search_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


# ------------------------------------------------------------------------------- good words


@needs_timm
@pytest.mark.parametrize("word", ["resnet18", "resnet18.a1_in1k"])
def test_timm(word: str) -> None:
    model = create_model(word, device="meta")
    assert type(model).__name__ == "ResNet"
    assert type(model).__module__.startswith("timm.")
    assert sum(p.numel() for p in model.parameters()) == 11_689_512


@needs_torchvision
def test_torchvision() -> None:
    model = create_model("torchvision:resnet18", device="meta")
    assert type(model).__module__.startswith("torchvision.")


@needs_torchvision
@pytest.mark.parametrize("name", ["googlenet", "inception_v3", "quantized_googlenet"])
def test_torchvision_models_that_initialise_slowly(name: str) -> None:
    # pytest turns torchvision's FutureWarning into an error
    assert isinstance(create_model(f"torchvision:{name}", device="meta"), nn.Module)


@needs_torchvision
def test_torchvision_downloads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a download")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr("torchvision._internally_replaced_utils.load_state_dict_from_url", refuse)
    assert isinstance(create_model("torchvision:fcn_resnet50", device="meta"), nn.Module)


@pytest.mark.parametrize("name", list(baselines.INPUT_SIZES))
def test_baselines(name: str) -> None:
    model = create_model(f"bu2td:{name}").eval()
    assert model(torch.rand(1, *baselines.INPUT_SIZES[name])).shape == (1, 10)


@pytest.mark.parametrize("name", baselines.INPUT_SIZES)
def test_a_baseline_needs_no_prefix(name: str) -> None:
    assert type(create_model(name)) is type(create_model(f"bu2td:{name}"))


@pytest.mark.parametrize(
    ("word", "channels", "classes"),
    [
        ("bu2td:nin_light", 2, 7),
        pytest.param("resnet18", 2, 7, marks=needs_timm),
        pytest.param("torchvision:resnet18", 3, 7, marks=needs_torchvision),  # takes no other channels
        ("bu2td.models.baselines:lenet_fc", 2, 7),
    ],
)
def test_classes_and_channels_go_to_those_who_take_them(word: str, channels: int, classes: int) -> None:
    model = create_model(word, device="meta", num_classes=7, in_channels=2)
    images = torch.empty(2, channels, 64, 64, device="meta")
    assert model(images).shape == (2, classes)
    assert model.bu2td_arguments == {"num_classes": 7, "in_channels": 2}  # its word alone would build another


def test_a_model_knows_its_word() -> None:
    for device in (None, "cpu", "meta"):
        assert create_model("bu2td:lenet_fc", device=device).bu2td_factory == "bu2td:lenet_fc"


def test_a_saved_network_is_rebuilt_from_its_word(folder: Path) -> None:
    td = bu2td.convert(create_model("bu2td:nin_light"), seed=0).eval()
    bu2td.save(td, folder / "td.pt")
    images = torch.rand(2, 1, 28, 28)
    assert torch.equal(bu2td.load(folder / "td.pt").eval()(images), td(images))


def test_every_call_is_a_new_model() -> None:
    assert create_model("bu2td:lenet_fc") is not create_model("bu2td:lenet_fc")


@pytest.mark.parametrize("factory", ["net", "Net", "late", "Builders.small", "counts"])
@pytest.mark.parametrize(
    "form", ["user_nets.py:{}", "{folder}/user_nets.py:{}", "./user_nets.py:{}", "user_nets:{}"]
)
def test_factories(folder: Path, factory: str, form: str) -> None:
    assert isinstance(create_model(form.format(factory, folder=folder)), nn.Sequential)


def test_factory_of_a_package(folder: Path) -> None:
    assert isinstance(create_model("inner.model:build"), nn.Conv2d)
    assert isinstance(create_model("inner/model.py:build"), nn.Conv2d)


def test_a_file_hides_no_module(folder: Path) -> None:
    (folder / "timm.py").write_text("from torch import nn\n\ndef net():\n    return nn.ReLU()\n")
    assert isinstance(create_model("timm.py:net"), nn.ReLU)
    assert "timm.py" not in str(getattr(sys.modules.get("timm"), "__file__", ""))


def test_a_file_runs_once_until_it_changes(folder: Path) -> None:
    path = folder / "once.py"
    path.write_text("from torch import nn\n\nclass Net(nn.Module):\n    pass\n")
    first, second = create_model("once.py:Net"), create_model(f"{path}:Net")
    assert type(first) is type(second)
    path.write_text("from torch import nn\n\nclass Net(nn.Module):\n    changed = True\n")
    assert create_model("once.py:Net").changed


# ---------------------------------------------------------------------------------- devices


@pytest.mark.parametrize(
    "word",
    [
        "bu2td:resnet32",
        pytest.param("mobilenetv3_small_050", marks=needs_timm),
        pytest.param("torchvision:regnet_y_400mf", marks=needs_torchvision),  # arange().tolist()
    ],
)
def test_meta_holds_nothing(word: str) -> None:
    model = create_model(word, device="meta")
    tensors = [*model.parameters(), *model.buffers()]
    assert {t.device.type for t in tensors} == {"meta"}
    real = create_model(word, device="cpu")
    assert {t.device.type for t in real.parameters()} == {"cpu"}
    assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in real.state_dict().items()}


def test_meta_of_a_constructor_that_calculates_with_parameters(folder: Path) -> None:
    model = create_model("user_nets.py:counts", device="meta")
    assert model[0].weight.is_meta
    assert model[0].weight.shape[0] == 3


def test_a_model_larger_than_any_memory_is_looked_at(folder: Path) -> None:
    model = create_model("user_nets.py:enormous", device="meta")
    assert sum(p.numel() for p in model.parameters()) > 10**15


def test_no_mode_is_left_behind() -> None:
    create_model("bu2td:lenet_fc", device="meta")
    assert torch.zeros(1).device.type == "cpu"


@pytest.mark.parametrize("device", ["tpu9", "cuda:99", "", object()])
def test_bad_devices(device: str) -> None:
    with pytest.raises(OptionError, match="cannot be used") as caught:
        create_model("bu2td:lenet_fc", device=device)
    assert "\n" not in str(caught.value)


# -------------------------------------------------------------------------------- bad words

BAD_NAMES = [
    ("", "empty"),
    ("  ", "empty"),
    ("torchvision:resnet19", "Did you mean 'torchvision:resnet"),
    ("torchvision:zzzzzzzzzz", "no model 'zzzzzzzzzz'. A model is written"),
    ("torchvision:", "before or after ':'"),
    (":net", "before or after ':'"),
    ("bu2td:lenetfc", "Did you mean 'bu2td:lenet_fc'"),
    ("bu2td:zzzz", "The baselines are bu2td:lenet_fc, "),
    ("hf-hub:timm/resnet18", "'hf-hub' is neither a known source"),
    ("some/folder", "looks like a path"),
    ("user_nets.py", "write user_nets.py:FACTORY"),
    ("torchvison:resnet18", "Did you mean 'torchvision'"),
    ("bu2td.models.baselins:nin", "no module 'bu2td.models.baselins'. Did you mean 'bu2td.models.baselines'?"),
    ("bu2td.models.baselines:lenetfc", "Did you mean 'lenet_fc'"),
    ("bu2td.models.baselines:NIN", "missing 2 required positional arguments"),
    ("bu2td.models.baselines:NIN.widths", "no 'NIN.widths' in module 'bu2td.models.baselines'"),
    ("math:pi", "'pi' in module 'math' is an object of type float"),
    ("collections:OrderedDict", "returned an object of type OrderedDict (OrderedDict())"),
    ("surely_not_installed.user_nets:net", "no module 'surely_not_installed'"),
    ("user_nett.py:net", "'user_nett.py' does not exist"),
    ("user_nett.py:net", "Did you mean 'user_nets.py'"),
    ("nowhere/user_nets.py:net", "'nowhere/user_nets.py' does not exist"),
    ("user_nets.py:nte", "no 'nte' in file 'user_nets.py'. Did you mean 'net'"),
    ("user_nets.py:zzzzz", "It has 'Settings', 'Net', 'Builders', "),
    ("empty.py:net", "It defines no function or class."),
    ("user_nets.py:live", "is a model (Linear), not a factory"),
    ("user_nets.py:WIDTH", "is an object of type int (8), not a factory"),
    ("user_nets.py:needs_width", "A factory is called without arguments: give each a default."),
    ("user_nets.py:broken", "Building 'user_nets.py:broken' failed: ZeroDivisionError: division by zero"),
    ("user_nets.py:silent", "failed: ValueError ("),
    ("user_nets.py:leaves", "failed: SystemExit: 3"),
    ("user_nets.py:forgets", "'user_nets.py:forgets' returned None; expected an nn.Module."),
    ("user_nets.py:pair", "returned an object of type tuple"),
    ("user_nets.py:returns_class", "returned the class Net; expected an nn.Module."),
    ("user_nets:broken", "Building 'user_nets:broken' failed: ZeroDivisionError"),
    ("syntax.py:net", "Running 'syntax.py' failed: SyntaxError"),
    ("syntax:net", "Importing 'syntax' failed: SyntaxError"),
    ("needs_other.py:net", "No module named 'surely_not_installed'"),
    ("needs_other:net", "Importing 'needs_other' failed: ModuleNotFoundError"),
    ("stops.py:net", "Running 'stops.py' failed: SystemExit: usage: stops"),
    ("stops:net", "Importing 'stops' failed: SystemExit"),
    ("inner.modle:build", "no module 'inner.modle'. Did you mean 'inner.model'"),
    ("inner.py:build", "'inner.py' does not exist"),
]


@needs_torchvision
@pytest.mark.parametrize(("word", "message"), BAD_NAMES)
@pytest.mark.parametrize("device", [None, "meta"])
def test_bad_words(folder: Path, word: str, message: str, device: str | None) -> None:
    with pytest.raises(UnknownModelError) as caught:
        create_model(word, device=device)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    # what happened inside is told in the message, not as a second stack trace
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__


@needs_timm
@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("resnet17", "has no model 'resnet17'. Did you mean 'resnet"),
        ("zzzzzzzzzz", "has no model 'zzzzzzzzzz'. A model is written NAME (timm), LIBRARY:NAME"),
        ("resnet18.no_such_tag", "write 'resnet18' alone"),
        ("timm:resnet18", "written without 'timm:'"),
        ("lenet_fd", "has no model 'lenet_fd'. Did you mean"),
        pytest.param("alexnet", "Did you mean 'torchvision:alexnet'?", marks=needs_torchvision),
    ],
)
def test_bad_timm_words(word: str, message: str) -> None:
    with pytest.raises(UnknownModelError) as caught:
        create_model(word)
    assert message in str(caught.value)


@pytest.mark.parametrize("word", [None, 3, nn.ReLU(), b"resnet18", Path("user_nets.py")])
def test_words_that_are_no_words(word: str) -> None:
    with pytest.raises(UnknownModelError, match="Expected a model's name, got"):
        create_model(word)


def test_where_a_factory_failed(folder: Path) -> None:
    line = (folder / "user_nets.py").read_text().splitlines().index("    return 1 / 0") + 1
    with pytest.raises(UnknownModelError, match=rf"user_nets\.py, line {line}\)"):
        create_model("user_nets.py:broken")


def test_a_folder_is_no_file(folder: Path) -> None:
    (folder / "folder.py").mkdir()
    with pytest.raises(UnknownModelError, match="is a folder"):
        create_model("folder.py:net")


def test_a_repaired_file_runs_again(folder: Path) -> None:
    path = folder / "again.py"
    path.write_text("raise RuntimeError('not yet')\n")
    with pytest.raises(UnknownModelError, match="RuntimeError: not yet"):
        create_model("again.py:net")
    path.write_text("from torch import nn\n\ndef net():\n    return nn.ReLU()\n")
    assert isinstance(create_model("again.py:net"), nn.ReLU)


# ------------------------------------------------------------------------- optional packages


@pytest.mark.parametrize(("word", "package"), [("resnet18", "timm"), ("torchvision:resnet18", "torchvision")])
def test_missing_packages(monkeypatch: pytest.MonkeyPatch, word: str, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with pytest.raises(MissingPackageError, match=f"Run: pip install {package}$") as caught:
        create_model(word)
    assert "\n" not in str(caught.value)
    assert caught.value.__context__ is None
    assert not any(w.startswith(f"{package}:") for w in list_models())
    assert "bu2td:lenet_fc" in list_models()


def test_a_package_that_cannot_be_imported(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "timm.py").write_text("import surely_not_installed\n")
    for name in [n for n in sys.modules if n.partition(".")[0] == "timm"]:
        monkeypatch.delitem(sys.modules, name)
    with monkeypatch.context() as patch:
        patch.syspath_prepend(folder)
        with pytest.raises(MissingPackageError, match="installed but cannot be imported") as caught:
            create_model("resnet18")
    assert "No module named 'surely_not_installed'" in str(caught.value)


def test_importing_models_imports_no_optional_package() -> None:
    code = "import sys, bu2td.models; print({'timm', 'torchvision'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# ------------------------------------------------------------------------------------ listing


def test_list_models() -> None:
    words = list_models()
    assert len(set(words)) == len(words)
    assert {f"bu2td:{name}" for name in baselines.INPUT_SIZES} <= set(words)
    assert models.__all__ == ["create_model", "list_models"]


@needs_timm
@needs_torchvision
def test_listed_words_are_models() -> None:
    words = list_models()
    assert "resnet18" in words
    assert "torchvision:resnet18" in words
    for word in ("resnet18", "torchvision:squeezenet1_0", "bu2td:nin"):
        assert word in words
        assert isinstance(create_model(word, device="meta"), nn.Module)


@pytest.mark.slow
@needs_timm
@needs_torchvision
def test_every_torchvision_model_builds_on_meta() -> None:
    for word in [w for w in list_models() if w.startswith("torchvision:")]:
        assert all(p.is_meta for p in create_model(word, device="meta").parameters()), word
