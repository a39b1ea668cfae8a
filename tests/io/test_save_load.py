"""Files: what is loaded computes what was saved, and they name the call that builds a model where it does."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import FlatResNet, convert_baseline, unit
from torch import nn

import bu2td
from bu2td.errors import CopyError, FileError, MissingPackageError, NotAModelError, OptionError
from bu2td.io import rebuild
from bu2td.models import baselines, create_model

timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")
safetensors = pytest.importorskip("safetensors")

USER = """
from torch import nn

print("this code runs")


def net(num_classes=4):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes),
    )
"""

SIZES = {"in_channels": 3, "num_classes": 1000}

#: (how the model is made, the word and the arguments that its file names); these are loaded in a new process.
MADE: dict[str, tuple[Callable[[], nn.Module], str, dict[str, Any]]] = {
    "timm": (
        lambda: timm.create_model("resnet10t", num_classes=10, in_chans=1, drop_path_rate=0.1, drop_rate=0.2),
        "resnet10t",
        {"in_channels": 1, "num_classes": 10, "drop_rate": 0.2, "drop_path_rate": 0.1},
    ),
    "baseline": (lambda: baselines.lenet_fc(num_classes=3), "bu2td:lenet_fc", {"in_channels": 1, "num_classes": 3}),
    "word": (lambda: create_model("bu2td:nin_light", num_classes=3), "bu2td:nin_light", {"num_classes": 3}),
}
MORE: dict[str, tuple[Callable[[], nn.Module], str, dict[str, Any]]] = {
    "plain": (lambda: timm.create_model("resnet10t"), "resnet10t", {}),
    "classes": (lambda: timm.create_model("resnet10t", num_classes=9), "resnet10t", {**SIZES, "num_classes": 9}),
    "schedule": (
        lambda: timm.create_model("efficientnet_lite0", drop_path_rate=0.2, num_classes=5),
        "efficientnet_lite0",
        {**SIZES, "num_classes": 5, "drop_path_rate": 0.2},
    ),
    "pool": (
        lambda: timm.create_model("resnet10t", global_pool="max"),
        "resnet10t",
        {**SIZES, "global_pool": "max"},
    ),
    "dilated": (
        lambda: timm.create_model("resnet10t", output_stride=16),
        "resnet10t",
        {**SIZES, "output_stride": 16},
    ),
    "activation": (
        lambda: timm.create_model("resnet10t", act_layer=nn.SiLU),
        "resnet10t",
        {**SIZES, "act_layer": "silu"},
    ),
    "new head": (
        lambda: _with(timm.create_model("resnet10t"), "fc", nn.Linear(512, 6)),
        "resnet10t",
        {**SIZES, "num_classes": 6},
    ),
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=10), "torchvision:resnet18", {"num_classes": 10}),
    "stochastic depth": (
        lambda: torchvision.models.efficientnet_b0(num_classes=4, stochastic_depth_prob=0.3),
        "torchvision:efficientnet_b0",
        {"num_classes": 4, "stochastic_depth_prob": 0.3},
    ),
}


def _with(model: nn.Module, path: str, module: nn.Module) -> nn.Module:
    model.set_submodule(path, module)
    return model


def _recipe(file: Path) -> Any:
    with safetensors.safe_open(file, "pt") as content:
        return json.loads(content.metadata()["bu2td"])


def _logits(network: Any) -> torch.Tensor:
    images = torch.rand(1, network.plan.image_shape[1], 40, 40, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return network.eval()(images)


def _same_weights(found: Any, expected: Any) -> bool:
    weights = found.state_dict()
    return all(torch.equal(weights[key], value) for key, value in expected.state_dict().items())


@pytest.fixture
def lenet() -> Any:
    return convert_baseline("lenet_fc", "td", seed=0).eval()


# --- how the model is built ---------------------------------------------------------------------------


def _saved(make: Callable[[], nn.Module], file: Path) -> Any:
    """A file of a model's network, and the logits that it has."""
    analysis = bu2td.analyze(make())
    network = bu2td.convert(analysis, finest_reduction=analysis.ladder[1])
    bu2td.save(network, file)
    return _logits(network)


def test_files_stand_alone_in_a_new_process(tmp_path: Path) -> None:
    logits = {}
    for name, (make, word, arguments) in MADE.items():
        logits[name] = _saved(make, tmp_path / f"{name}.safetensors")
        recipe = _recipe(tmp_path / f"{name}.safetensors")
        assert (recipe["factory"], recipe["arguments"]) == (word, arguments)
    code = f"""
import torch, bu2td
torch.set_num_threads(1)
found = {{}}
for name in {list(MADE)!r}:
    network = bu2td.load(f"{{name}}.safetensors").eval()
    images = torch.rand(1, network.plan.image_shape[1], 40, 40, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found[name] = network(images)
torch.save(found, "found")
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, cwd=tmp_path)
    found = torch.load(tmp_path / "found", weights_only=True)
    assert {name for name in MADE if torch.equal(found[name], logits[name])} == set(MADE)


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_a_file_names_the_call_that_builds_its_model(tmp_path: Path, name: str) -> None:
    make, word, arguments = MORE[name]
    logits = _saved(make, tmp_path / "td.pt")
    recipe = torch.load(tmp_path / "td.pt", weights_only=True)["recipe"]
    assert (recipe["factory"], recipe["arguments"]) == (word, arguments)
    assert torch.equal(_logits(bu2td.load(tmp_path / "td.pt")), logits)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: _with(m, "unit1.2", nn.SiLU()),
        lambda m: _with(m, "unit1.1", nn.BatchNorm2d(6, eps=1e-2, momentum=0.01)),
        lambda m: _with(m, "unit3.0", nn.Sequential(nn.Conv2d(16, 32, 3, padding=1))),
        lambda m: _with(m, "unit3.0", nn.Conv2d(16, 32, 3, padding=2, dilation=2)),
    ],
)
def test_a_model_that_was_changed_by_hand_must_be_passed(tmp_path: Path, change: Any) -> None:
    model = change(create_model("bu2td:lenet_fc"))
    network = bu2td.convert(model)
    bu2td.save(network, tmp_path / "td.safetensors")
    assert _recipe(tmp_path / "td.safetensors")["factory"] is None
    why = r"made from a LeNetFC whose factory is not known \(.*: it was changed since, or .*pass .*model="
    with pytest.raises(FileError, match=why):
        bu2td.load(tmp_path / "td.safetensors")
    assert torch.equal(_logits(bu2td.load(tmp_path / "td.safetensors", model)), _logits(network))
    with pytest.raises(FileError, match="another bottom-up model"):
        bu2td.load(tmp_path / "td.safetensors", create_model("bu2td:lenet_fc"))


def test_a_model_of_ones_own_must_be_passed(tmp_path: Path) -> None:
    network = bu2td.convert(FlatResNet(), [24, 20, 12], upsample="transpose", merge="add", sigma=0.7)
    network.reset_classifier(4)
    bu2td.save(network, tmp_path / "td.pt")
    assert torch.equal(_logits(bu2td.load(tmp_path / "td.pt", model=FlatResNet())), _logits(network))
    with pytest.raises(FileError, match=r"made from a FlatResNet whose factory is not known; pass.*model="):
        bu2td.load(tmp_path / "td.pt")
    with pytest.raises(FileError, match="another bottom-up model"):
        bu2td.load(tmp_path / "td.pt", model=baselines.nin())


def test_settings_are_compared_too(tmp_path: Path) -> None:
    """Two models of the same shapes: a file of the one is not filled with the other's paddings or slopes."""

    def model(slope: float) -> nn.Module:
        return nn.Sequential(
            *(unit(3, 8), nn.MaxPool2d(2), unit(8, 16), nn.LeakyReLU(slope), nn.AdaptiveAvgPool2d(1)),
            *(nn.Flatten(), nn.Linear(16, 2)),
        )

    bu2td.save(bu2td.convert(model(0.1)), tmp_path / "td.pt")
    assert bu2td.load(tmp_path / "td.pt", model=model(0.1)).num_classes == 2
    with pytest.raises(FileError, match=r"another bottom-up model.*of the same shapes; names or settings"):
        bu2td.load(tmp_path / "td.pt", model=model(0.2))


def test_code_of_a_users_own_runs_only_with_trust(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "nets_of_mine.py").write_text(USER)
    monkeypatch.chdir(tmp_path / "mine")
    network = bu2td.convert(create_model("nets_of_mine.py:net", num_classes=7), seed=0)
    bu2td.save(network, "td.safetensors")
    recipe = _recipe(Path("td.safetensors"))
    assert recipe["factory"] == f"{tmp_path / 'mine' / 'nets_of_mine.py'}:net"  # in whatever folder load is called
    assert recipe["arguments"] == {"num_classes": 7}
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    for module in [name for name in sys.modules if name.startswith("_bu2td_")]:
        monkeypatch.delitem(sys.modules, module)
    with pytest.raises(FileError, match=r"nets_of_mine.py:net\(num_classes=7\) builds.*only with trust=True"):
        bu2td.load("mine/td.safetensors")
    assert capsys.readouterr().out == ""
    assert torch.equal(_logits(bu2td.load("mine/td.safetensors", trust=True)), _logits(network))
    assert "this code runs" in capsys.readouterr().out
    (tmp_path / "mine").rename(tmp_path / "moved")  # file and code move together
    assert torch.equal(_logits(bu2td.load("moved/td.safetensors", trust=True)), _logits(network))


def test_load_captures_the_model_once(tmp_path: Path, lenet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = rebuild.capture
    bu2td.save(lenet, tmp_path / "td.pt")
    for module in (bu2td.conversion, rebuild):
        monkeypatch.setattr(module, "capture", lambda *args: calls.append(args) or original(*args))
    bu2td.load(tmp_path / "td.pt", model=baselines.lenet_fc())
    assert len(calls) == 1


def test_saving_draws_no_random_number(tmp_path: Path, lenet: Any) -> None:
    state = torch.get_rng_state()
    bu2td.save(lenet, tmp_path / "td.pt")
    bu2td.load(tmp_path / "td.pt")
    assert torch.equal(torch.get_rng_state(), state)


# --- what a file holds --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["td.pt", "td.safetensors", "td"])
def test_a_file_is_recipe_and_weights(tmp_path: Path, lenet: Any, name: str) -> None:
    bu2td.save(lenet, tmp_path / name)
    loaded = bu2td.load(tmp_path / name).eval()
    assert torch.equal(_logits(loaded), _logits(lenet))
    assert str(loaded.plan) == str(lenet.plan)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    if name == "td.safetensors":
        recipe = _recipe(tmp_path / name)
    else:
        content = torch.load(tmp_path / name, weights_only=True)
        assert set(content) == {"recipe", "state_dict"}
        recipe = json.loads(json.dumps(content["recipe"]))
    assert recipe["bu2td"] == loaded.recipe["bu2td"] == bu2td.__version__
    assert len(recipe.pop("sha256")) == 64
    assert recipe == {**loaded.recipe, "training": {}}


def test_devices(tmp_path: Path, lenet: Any) -> None:
    bu2td.save(lenet, tmp_path / "td.safetensors")
    assert all(p.is_meta for p in bu2td.load(tmp_path / "td.safetensors", device="meta").parameters())
    with pytest.raises(OptionError, match="cannot be used"):
        bu2td.load(tmp_path / "td.safetensors", device="nowhere")


@pytest.mark.parametrize("name", ["td.pt", "td.safetensors"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_floats_keep_their_type(tmp_path: Path, lenet: Any, name: str, dtype: torch.dtype) -> None:
    lenet.to(dtype)
    bu2td.save(lenet, tmp_path / name)
    loaded = bu2td.load(tmp_path / name)
    assert _same_weights(loaded, lenet)
    assert {t.dtype for t in loaded.state_dict().values() if t.is_floating_point()} == {dtype}


def test_parts_keep_their_types(tmp_path: Path, lenet: Any) -> None:
    lenet.head.to(torch.bfloat16)
    bu2td.save(lenet, tmp_path / "td.safetensors")
    loaded = bu2td.load(tmp_path / "td.safetensors")
    assert [p.dtype for p in loaded.parameters()] == [p.dtype for p in lenet.parameters()]
    assert all(p.requires_grad for p in loaded.parameters())


@pytest.mark.parametrize("name", ["td.pt", "td.safetensors"])
def test_tied_weights_are_each_written(tmp_path: Path, lenet: Any, name: str) -> None:
    lenet.r2_merge.norm.weight = lenet.r2_merge.norm.bias  # one parameter
    kernels = torch.rand(2, *lenet.r2_lateral.conv.weight.shape)
    lenet.r2_lateral.conv.weight.data = kernels[1]  # a part of a storage
    bu2td.save(lenet, tmp_path / name)
    assert _same_weights(bu2td.load(tmp_path / name), lenet)


def test_channels_last_is_no_matter(tmp_path: Path, lenet: Any) -> None:
    lenet.to(memory_format=torch.channels_last)
    bu2td.save(lenet, tmp_path / "td.safetensors")
    assert _same_weights(bu2td.load(tmp_path / "td.safetensors"), lenet)


@pytest.mark.parametrize("mode", ["training", "inference"])
def test_optimised_networks_and_patches(tmp_path: Path, lenet: Any, mode: str) -> None:
    fast = bu2td.optimize(lenet, mode)
    networks = [fast, bu2td.PatchNetwork(fast if mode == "training" else lenet, share=0.4)]
    for network in networks:
        bu2td.save(network, tmp_path / "td.safetensors")
        loaded: Any = bu2td.load(tmp_path / "td.safetensors")
        assert type(loaded).__mro__[1] is type(network).__mro__[1]
        images = torch.rand(2, 1, 32, 32)
        with torch.no_grad():
            assert torch.equal(loaded.eval()(images), network.eval()(images))
        assert loaded.recipe == json.loads(json.dumps(loaded.recipe))


def test_files_of_before_are_read(tmp_path: Path, lenet: Any) -> None:
    """A recipe without seal, arguments and identity: settings were not compared, the call had no arguments."""
    bu2td.save(lenet, tmp_path / "td.pt")
    content = torch.load(tmp_path / "td.pt", weights_only=True)
    for name in ("sha256", "arguments", "identity"):
        del content["recipe"][name]
    torch.save(content, tmp_path / "td.pt")
    assert torch.equal(_logits(bu2td.load(tmp_path / "td.pt")), _logits(lenet))
    content["recipe"]["factory"] = None
    torch.save(content, tmp_path / "td.pt")
    assert torch.equal(_logits(bu2td.load(tmp_path / "td.pt", baselines.lenet_fc())), _logits(lenet))
    with pytest.raises(FileError, match="whose factory is not known"):
        bu2td.load(tmp_path / "td.pt")


# --- what is not written ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "new"),
    [
        ("r2_merge.act", nn.SiLU()),
        ("r2_merge.norm", nn.GroupNorm(2, 16)),
        ("head.classifier.1", nn.BatchNorm2d(10, eps=0.1)),
        ("r4", nn.Identity()),
    ],
)
def test_a_network_that_was_changed_by_hand_is_not_saved(tmp_path: Path, lenet: Any, path: str, new: Any) -> None:
    lenet.set_submodule(path, new)
    with pytest.raises(CopyError, match=rf"changed since it was converted \({path}.*torch\.save\(td, file\)"):
        bu2td.save(lenet, tmp_path / "td.pt")
    assert not list(tmp_path.iterdir())


def test_what_training_changes_is_saved(tmp_path: Path, lenet: Any) -> None:
    shared = nn.SyncBatchNorm.convert_sync_batchnorm(lenet)
    shared.set_grad_checkpointing(inside=True)
    shared.get_submodule("r2_merge.norm").momentum = 0.5
    bu2td.save(shared, tmp_path / "td.pt")
    loaded = bu2td.load(tmp_path / "td.pt")
    assert loaded.get_submodule("r2_merge.norm").momentum == 0.5
    assert loaded.get_submodule("r1_merge.norm").momentum == 0.01
    assert torch.equal(_logits(loaded), _logits(lenet.eval()))
    recipe = torch.load(tmp_path / "td.pt", weights_only=True)["recipe"]
    assert recipe["training"] == {"r2_merge.norm": {"momentum": 0.5}}


def test_rates_of_dropout_are_saved(tmp_path: Path) -> None:
    network = convert_baseline("nin_light", "td", seed=0)
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.25
    bu2td.save(network, tmp_path / "td.safetensors")
    for model in (None, baselines.nin_light()):
        loaded = bu2td.load(tmp_path / "td.safetensors", model)
        assert {m.p for m in loaded.modules() if isinstance(m, nn.Dropout)} == {0.25}


def test_a_network_without_weights_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(CopyError, match="meta device"):
        bu2td.save(convert_baseline("lenet_fc", "td", device="meta"), tmp_path / "td.pt")
    with pytest.raises(NotAModelError, match="PatchNetwork"):
        bu2td.save(baselines.lenet_fc(), tmp_path / "td.pt")  # type: ignore[arg-type]


def test_safetensors_may_be_missing(tmp_path: Path, lenet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "td.safetensors"
    bu2td.save(lenet, file)
    for name in ("safetensors", "safetensors.torch"):
        monkeypatch.setitem(sys.modules, name, None)
    for call in (lambda: bu2td.save(lenet, file), lambda: bu2td.load(file)):
        with pytest.raises(MissingPackageError, match=r"\.safetensors need it: .*pip install .*safetensors"):
            call()
    bu2td.save(lenet, tmp_path / "td.pt")
    assert bu2td.load(tmp_path / "td.pt").num_classes == 10


def test_a_weight_that_claims_more_than_is_stored_takes_no_memory(tmp_path: Path, lenet: Any) -> None:
    file = tmp_path / "td.pt"
    bu2td.save(lenet, file)
    content = torch.load(file, weights_only=True)
    name = next(iter(content["state_dict"]))
    content["state_dict"][name] = torch.zeros(1).expand(2**40)
    torch.save(content, file)
    with pytest.raises(FileError, match="is damaged: its weights are larger than what it holds"):
        bu2td.load(file)


def test_a_recipe_with_keys_that_are_no_words(tmp_path: Path, lenet: Any) -> None:
    file = tmp_path / "td.pt"
    bu2td.save(lenet, file)
    content = torch.load(file, weights_only=True)
    for key, words in (((1, "a"), "object of type tuple"), (1, "recipe is incomplete")):
        torch.save({**content, "recipe": {**content["recipe"], key: 1}}, file)
        with pytest.raises(FileError, match=words):
            bu2td.load(file)


def test_a_buffer_that_is_expanded_is_written_out(tmp_path: Path) -> None:
    td = convert_baseline("lenet_fc", "td", seed=0)
    mean = next(name for name, _ in td.named_buffers() if name.endswith("running_mean"))
    owner, _, last = mean.rpartition(".")
    td.get_submodule(owner).register_buffer(last, torch.zeros(1).expand_as(td.get_buffer(mean)))
    bu2td.save(td, tmp_path / "td.pt")
    assert torch.equal(bu2td.load(tmp_path / "td.pt").get_buffer(mean), td.get_buffer(mean))


@pytest.mark.parametrize("name", ["td.pt", "td.safetensors"])
def test_a_bit_that_turned_is_noticed(tmp_path: Path, lenet: Any, name: str) -> None:
    """In the middle of the weights, where neither format has a check sum that its reader looks at."""
    bu2td.save(lenet, tmp_path / name)
    content = bytearray((tmp_path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FileError, match=r"is damaged: its content is not what bu2td\.save wrote"):
        bu2td.load(tmp_path / name)
