"""Networks by timm's names, and what timm itself does with them."""

import copy
import json
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bu2td.errors import Bu2tdError, OptionError, UnknownModelError
from bu2td.models.libraries import LIBRARIES

timm = pytest.importorskip("timm")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from timm.models import _builder, _hub

    import bu2td.timm

SCRIPT = Path(__file__).parent / "scripts" / "train_like_timm.py"
IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def made(name: str = "td_test_resnet", **options: Any) -> Any:
    return timm.create_model(name, **options).eval()


# --- names --------------------------------------------------------------------------------------------


def test_names_are_registered_for_every_convolutional_classifier() -> None:
    library: Any = LIBRARIES[""]
    sources = [name for name, _ in library.families()]
    assert len(sources) > 600
    for prefix in ("td_", "tduni_", "tdrev_"):
        assert set(timm.list_models(f"{prefix}*")) == {prefix + name for name in sources}
    assert timm.list_pretrained("td_*") == []
    assert timm.is_model("td_resnet18.a1_in1k")
    assert "td_resnet18.a1_in1k" in timm.list_models("td_resnet18*", include_tags=True)
    assert "td_resnet18" not in library.names()
    assert timm.list_models(module="resnet") == [n for n in timm.list_models(module="resnet") if n[:2] != "td"]
    assert bu2td.timm.td_resnet18 is timm.models.model_entrypoint("td_resnet18")
    with pytest.raises(AttributeError, match="td_resnet19"):
        getattr(bu2td.timm, "td_resnet" + "19")


def test_registering_again_changes_nothing() -> None:
    entry = timm.models.model_entrypoint("td_resnet18")
    bu2td.timm.register()
    assert timm.models.model_entrypoint("td_resnet18") is entry


def test_a_mistyped_name_says_what_was_meant() -> None:
    with pytest.raises(UnknownModelError, match="Did you mean 'td_resnet18'"):
        timm.create_model("td_resnt18")
    with pytest.raises(UnknownModelError, match="vit_base_patch16_224 is no convolutional classifier"):
        timm.create_model("tduni_vit_base_patch16_224")
    assert not timm.is_model("td_resnt18")
    with pytest.raises(RuntimeError, match="Unknown model"):
        timm.create_model("resnt18")  # timm's own message for its own names
    with pytest.raises(RuntimeError, match="Invalid pretrained tag"):
        timm.create_model("td_resnet18.nothing")


def test_registering_builds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[type] = []
    monkeypatch.delitem(timm.models._registry._model_entrypoints, "td_resnet18")
    monkeypatch.setattr(nn.Module, "__init__", lambda self, *args, **kwargs: built.append(type(self)))
    bu2td.timm.register()
    assert timm.is_model("td_resnet18")
    assert built == []


# --- building -----------------------------------------------------------------------------------------


def test_options_go_where_they_belong() -> None:
    network = made(num_classes=10, drop_path_rate=0.1, in_chans=1, finest_reduction=2, merge="add", seed=3)
    assert network(torch.rand(2, 1, 64, 64)).shape == (2, 10)
    assert (
        network.plan.options
        == bu2td.convert(
            timm.create_model("test_resnet"), finest_reduction=2, merge="add", seed=3, device="meta"
        ).plan.options
    )
    assert (network.in_chans, network.num_classes, network.plan.ladder[-1]) == (1, 10, 2)
    assert any(getattr(module, "drop_prob", 0) == pytest.approx(0.1) for module in network.modules())
    for name, arrangement in (("td_", "td"), ("tduni_", "uni"), ("tdrev_", "rev")):
        assert made(f"{name}test_resnet", device="meta").plan.options.arrangement == arrangement


def test_a_name_is_the_conversion() -> None:
    expected = bu2td.convert(timm.create_model("test_resnet", num_classes=5), "uni", seed=1).eval()
    found = made("tduni_test_resnet", num_classes=5, seed=1)
    with torch.no_grad():
        assert torch.equal(found(IMAGES), expected(IMAGES))
    torch.manual_seed(5)
    first = made()
    torch.manual_seed(5)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), made().parameters(), strict=True))


def test_device_and_dtype() -> None:
    network = made(device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in network.parameters()} == {("meta", torch.bfloat16)}
    with torch.device("meta"):
        network = made(num_classes=3)
    assert {p.device.type for p in network.parameters()} == {"meta"}
    assert network(torch.empty(2, 3, 64, 64, device="meta")).shape == (2, 3)


def test_without_classifier_or_pool() -> None:
    with torch.no_grad():
        assert made(num_classes=0)(IMAGES).shape == (2, made().head_hidden_size)
        network = made(num_classes=0, global_pool="", finest_reduction=4)
        assert network(IMAGES).shape == (2, network.num_features, 16, 16)
        assert made(global_pool="catavgmax", num_classes=4).global_pool == "catavgmax"


def test_wrong_options_are_named() -> None:
    with pytest.raises(TypeError, match=r"no option 'finest_reductin'.*Did you mean 'finest_reduction'"):
        made(finest_reductin=2)
    with pytest.raises(TypeError, match=r"no option 'num_clases'.*'num_classes'"):
        made(num_clases=2)
    with pytest.raises(OptionError, match="merge='conat'"):
        made(merge="conat")
    with pytest.raises(Bu2tdError):
        made("td_hrnet_w18_small")


# --- features -----------------------------------------------------------------------------------------


def test_features_only_takes_the_place_of_the_bottom_up_features() -> None:
    images = IMAGES.to("meta")
    for source in ("test_resnet", "test_convnext", "selecsls42b"):
        expected = timm.create_model(source, features_only=True, device="meta")
        network = made(f"td_{source}", features_only=True, device="meta")
        assert network.feature_info.reduction() == expected.feature_info.reduction()
        found = network(images)
        for value, other, channels in zip(found, expected(images), network.feature_info.channels(), strict=True):
            assert value.shape == (2, channels, *other.shape[2:])


@pytest.mark.parametrize(("indices", "reductions"), [((0, 2), [1, 4]), ((-1,), [32]), (2, [16, 32]), (None, None)])
def test_out_indices(indices: Any, reductions: Any) -> None:
    network = made(features_only=True, out_indices=indices, finest_reduction=1)
    assert network.feature_info.reduction() == (reductions or [1, 2, 4, 8, 16, 32])
    with torch.no_grad():
        sizes = [feature.shape[1:3] for feature in network(IMAGES)]
    info = network.feature_info
    assert sizes == [(c, 64 // r) for c, r in zip(info.channels(), info.reduction(), strict=True)]
    twin = copy.deepcopy(network)
    assert twin.feature_info.reduction() == info.reduction()
    assert twin.pretrained_cfg == network.pretrained_cfg


def test_features_as_a_dict() -> None:
    network = made(features_only=True, feature_cls="dict", out_indices=(1, 2))
    with torch.no_grad():
        assert list(network(IMAGES)) == network.feature_info.module_name()


# --- weights ------------------------------------------------------------------------------------------


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Callable[[nn.Module], None]:
    """Let timm find the weights of a model, whatever it is asked for."""

    def serve(model: nn.Module) -> None:
        state = model.state_dict()
        monkeypatch.setattr(_builder, "_resolve_pretrained_source", lambda config: ("state_dict", dict(state)))

    return serve


def test_pretrained_inherits_and_says_so(served: Callable[[nn.Module], None]) -> None:
    source = timm.create_model("test_resnet", num_classes=1000)
    for parameter in source.parameters():
        nn.init.normal_(parameter)
    known = {value for parameter in source.parameters() for value in parameter.flatten().tolist()}
    served(source)
    for name in ("td_test_resnet", "td_test_resnet.r160_in1k"):
        with pytest.warns(UserWarning, match=r"no weights of this top-down network.*%.*test_resnet\.r160_in1k"):
            network = made(name, pretrained=True)
        copied, total = network.plan.inherited
        values = [value for parameter in network.parameters() for value in parameter.flatten().tolist()]
        assert total == len(values)
        found = sum(value in known for value in values)  # a few of the others are the same by chance
        assert 0 < copied < total
        assert found == pytest.approx(copied, rel=0.01)


def test_pretrained_without_weights_is_refused() -> None:
    without = next(n for n in timm.list_models(module="resnet") if not timm.models.is_model_pretrained(n))
    with pytest.raises(OptionError, match=f"timm has none of {without}"):
        made(f"td_{without}", pretrained=True)


def test_own_weights_from_a_file(tmp_path: Path) -> None:
    network = made(num_classes=4)
    torch.save(network.state_dict(), tmp_path / "own.pth")
    for options in (
        {"checkpoint_path": tmp_path / "own.pth"},
        {"pretrained": True, "pretrained_cfg_overlay": {"file": str(tmp_path / "own.pth"), "num_classes": 4}},
    ):
        loaded = made(num_classes=4, **options)
        with torch.no_grad():
            assert torch.equal(loaded(IMAGES), network(IMAGES))
    other = made(
        num_classes=7, in_chans=1, pretrained=True,
        pretrained_cfg_overlay={"file": str(tmp_path / "own.pth"), "num_classes": -1},
    )  # fmt: skip
    assert other(IMAGES[:, :1]).shape == (2, 7)
    name = network.stages.levels[0].lateral + ".conv.weight"
    torch.testing.assert_close(other.get_parameter(name), network.get_parameter(name).sum(1, keepdim=True))


@pytest.fixture
def exported(tmp_path: Path) -> Any:
    pytest.importorskip("safetensors")
    network = made("tdrev_test_resnet", num_classes=4, finest_reduction=2, merge="add", drop_path_rate=0.1)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    network.reset_classifier(6, "max")
    _hub.save_for_hf(network, tmp_path, safe_serialization=True)
    return network


def test_a_folder_for_the_hub_round_trips(exported: Any, tmp_path: Path) -> None:
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architecture"] == "tdrev_test_resnet"
    assert (config["num_classes"], config["model_args"]["merge"]) == (6, "add")
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(loaded(IMAGES), exported(IMAGES))
    features = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, features_only=True).eval()
    with torch.no_grad():
        for a, b in zip(features(IMAGES), exported.features(IMAGES)[::-1], strict=True):
            assert torch.equal(a, b)


@pytest.mark.slow
def test_timm_wrapper_round_trips(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.TimmWrapperConfig(
        architecture="td_test_resnet", num_labels=4, model_args={"finest_reduction": 4}
    )
    model = transformers.TimmWrapperForImageClassification(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(tmp_path)
        loaded = transformers.AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        expected, found = model(IMAGES, output_hidden_states=True), loaded(IMAGES)
    assert torch.equal(found.logits, expected.logits)
    assert [state.shape[2] for state in expected.hidden_states] == [16, 8, 4, 2]


# --- scripts ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two colours, 32 images to train on and 8 to look at."""
    from PIL import Image

    root, generator = tmp_path_factory.mktemp("colours"), torch.Generator().manual_seed(0)
    for split, count in (("train", 16), ("validation", 4)):
        for label, colour in (("red", (190, 60, 60)), ("blue", (60, 60, 190))):
            (root / split / label).mkdir(parents=True)
            for i in range(count):
                noise = torch.randint(-40, 40, (3,), generator=generator).tolist()
                image = Image.new("RGB", (64, 64), tuple(a + b for a, b in zip(colour, noise, strict=True)))
                image.save(root / split / label / f"{i}.png")
    return root


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[Callable[..., None]]:
    """Run a script as ``python -m bu2td.timm SCRIPT`` does, in this process."""
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setattr(sys, "path", ["", *sys.path])

    def run(*words: Any) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(SystemExit) as ended:
                bu2td.timm.main([str(SCRIPT), "--data-dir", str(folder), *map(str, words)])
        assert ended.value.code is None

    yield run
    torch.compiler.reset()


def test_a_script_trains_goes_on_and_validates(
    command: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", "td_test_resnet", "--output", tmp_path, "--model-ema", "--layer-decay", 0.7]
    command(*words, "--epochs", 1, "--amp", "--grad-checkpointing")
    first = torch.load(tmp_path / "last.pth.tar", weights_only=False)
    assert first["arch"] == "td_test_resnet"
    assert first["state_dict"].keys() == first["state_dict_ema"].keys() == made().state_dict().keys()
    command(*words, "--epochs", 2, "--resume", tmp_path / "last.pth.tar", "--torchcompile", "eager")
    second = torch.load(tmp_path / "last.pth.tar", weights_only=False)
    assert (first["epoch"], second["epoch"]) == (0, 1)
    assert second["state_dict"].keys() == first["state_dict"].keys()
    command("--model", "td_test_resnet", "--validate", tmp_path / "last.pth.tar", "--model-ema")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["epoch", "epoch", "accuracy"]
    assert lines[2] == f"accuracy {second['metric']:.4f}"
    assert sys.argv[0] == str(SCRIPT)


@pytest.mark.parametrize("words", [[], ["--help"], ["nowhere/train.py"]])
def test_the_launcher_says_how_it_is_called(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["x"])
    with pytest.raises(SystemExit, match=r"python -m bu2td\.timm SCRIPT"):
        bu2td.timm.main(words)


@pytest.mark.slow
def test_the_launcher_as_a_program(folder: Path, tmp_path: Path) -> None:
    """Alone, and under torchrun."""
    words = ["--data-dir", folder, "--model", "td_test_resnet", "--output", tmp_path, "--epochs", "1"]
    one = ["torch.distributed.run", "--standalone", "--nproc-per-node", "1", "-m"]
    for program in ([], one):
        line = [sys.executable, "-m", *program, "bu2td.timm", SCRIPT, *words]
        found = subprocess.run([str(word) for word in line], capture_output=True, text=True)
        assert found.returncode == 0, found.stderr
        assert "epoch 0 loss" in found.stdout


@pytest.mark.slow
def test_timms_own_scripts(folder: Path, tmp_path: Path) -> None:
    """timm's train.py and validate.py, where their folder is named by BU2TD_TIMM_SCRIPTS."""
    import os

    scripts = Path(os.environ.get("BU2TD_TIMM_SCRIPTS", ""))
    if not (scripts / "train.py").is_file():
        pytest.skip("timm's scripts are not part of its package; BU2TD_TIMM_SCRIPTS names no folder with them")

    def run(script: str, *words: Any) -> str:
        line = [sys.executable, "-m", "bu2td.timm", scripts / script, "--data-dir", folder, *words]
        line += ["--model", "td_test_resnet", "--num-classes", 2, "--img-size", 64, "--workers", 0, "-b", 8]
        found = subprocess.run([str(word) for word in line], capture_output=True, text=True)
        assert found.returncode == 0, found.stderr
        return found.stdout + found.stderr

    train = ["--device", "cpu", "--output", tmp_path, "--experiment", "a", "--model-ema", "--no-prefetcher"]
    train += ["--layer-decay", 0.7, "--opt", "adamw", "--lr", 1e-3, "--warmup-epochs", 0, "--cooldown-epochs", 0]
    run("train.py", *train, "--epochs", 1, "--amp", "--amp-dtype", "bfloat16", "--grad-checkpointing")
    last = tmp_path / "a" / "last.pth.tar"
    train[train.index("a")] = "b"
    run("train.py", *train, "--epochs", 2, "--resume", last, "--torchcompile", "eager")
    last = tmp_path / "b" / "last.pth.tar"
    assert torch.load(last, weights_only=False)["epoch"] == 1
    assert "top1" in run("validate.py", "--device", "cpu", "--checkpoint", last, "--split", "validation")


def test_the_page_on_timm_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("safetensors")
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[1] / "docs" / "timm.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) >= 4
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "docs/timm.md", "exec"), names)
