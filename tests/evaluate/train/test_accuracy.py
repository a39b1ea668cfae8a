"""The stage that trains: what it leaves, what of it is damaged or changed, and weights that are given."""

import json
import math
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

pytest.importorskip("lightning_fabric")

import bu2td
from bu2td.errors import Bu2tdError, FileError, ModelOutputError, OptionError, RunFolderError
from bu2td.evaluate.checks import logits_of
from bu2td.evaluate.data.sets import Data, first_images, load_data
from bu2td.evaluate.data.sets import Part as Some
from bu2td.evaluate.folder import RunFolder, create, make_folder
from bu2td.evaluate.schema import Training
from bu2td.evaluate.settings import Settings, read_settings
from bu2td.evaluate.train.accuracy import PREDICTIONS, RESULT, load_classifier, run_accuracy
from bu2td.evaluate.train.checkpoint import CHECKPOINT
from bu2td.evaluate.train.engine import start
from bu2td.evaluate.train.identity import architecture_hash
from bu2td.models.baselines import LeNetFC

SETTINGS = Settings(
    epochs=1, batch_size=16, lr=0.05, device="cpu", arrangements=("bu", "td"), repeats=1, measure_memory=False
)
FACTORY = """
from torch import nn

def make(num_classes=10, in_channels=1, pretrained=False):
    net = nn.Sequential(
        nn.Conv2d(in_channels, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 1000 if pretrained == "all" else num_classes),
    )
    if pretrained:
        for parameter in net.parameters():
            nn.init.constant_(parameter, 0.125)
    return net
"""


@pytest.fixture(scope="module")
def data() -> Data:
    whole = load_data("digits")
    return replace(whole, train=Some(whole.train, range(200)), test=Some(whole.test, range(60)))


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "net.py").write_text(FACTORY)
    return f"{tmp_path / 'net.py'}:make"


def _run(
    path: Path, data: Data, settings: Settings, only: Collection[tuple[str, int]] | None = None
) -> tuple[RunFolder, list[Training]]:
    make_folder(path)
    run = create(path, settings, "train")
    return run, run_accuracy(run, data, start(settings), only)


def _stamps(run: RunFolder, file: str) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in run.path.glob(f"runs/*/{file}")}


# --- what it leaves -----------------------------------------------------------------------------------


def test_predictions_are_those_of_the_kept_network(tmp_path: Path, data: Data) -> None:
    run, results = _run(tmp_path / "run", data, replace(SETTINGS, repeats=2, arrangements=("bu",)))
    table = pd.read_csv(run.path / "predictions.csv")
    assert list(table) == ["arrangement", "repeat", "image", "label", "predicted", "rank", "confidence"]
    assert [r.repeat for r in results] == [0, 1]
    for result in results:
        own = table[table.repeat == result.repeat]
        images, labels = first_images(data.test)
        logits = logits_of(load_classifier(run, data, "bu", result.repeat), images).double()
        assert own.image.tolist() == list(range(60))
        assert own.label.tolist() == labels.tolist()
        assert own.predicted.tolist() == logits.argmax(1).tolist()
        above = (logits > logits.gather(1, labels[:, None])).sum(1)
        assert (own["rank"].to_numpy() >= above.numpy() + 1).all()
        assert ((own["rank"] == 1) == (own.predicted == own.label)).all()
        assert own.confidence.tolist() == pytest.approx(logits.softmax(1).amax(1).tolist(), abs=1e-5)
        assert result.test_accuracy == pytest.approx((own.label == own.predicted).mean())
        assert math.isnan(result.top5_accuracy)
        assert 0 <= result.calibration_error <= 1
    accuracy = pd.read_csv(run.path / "accuracy.csv")
    assert accuracy.test_accuracy.tolist() == pytest.approx([r.test_accuracy for r in results], rel=1e-5)


def test_equal_logits_have_one_order(tmp_path: Path, data: Data) -> None:
    from bu2td.evaluate.train.accuracy import predict

    class _Same(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(x), 10)

    found = predict(_Same(), data.test, SETTINGS, start(SETTINGS))
    assert (found["predicted"] == 0).all()
    assert (found["rank"] == found["label"] + 1).all()
    assert found["confidence"] == pytest.approx(0.1)


def test_top_5_counts_where_there_are_many_classes(tmp_path: Path, data: Data) -> None:
    many = replace(data, classes=tuple(map(str, range(12))))
    run, (result,) = _run(tmp_path / "run", many, replace(SETTINGS, arrangements=("bu",)))
    table = pd.read_csv(run.path / "predictions.csv")
    assert result.top5_accuracy == pytest.approx((table["rank"] <= 5).mean())


def test_some_networks_are_made_and_all_that_are_finished_are_listed(tmp_path: Path, data: Data) -> None:
    settings = replace(SETTINGS, repeats=2, arrangements=("bu",))
    run, first = _run(tmp_path / "run", data, settings, [("bu", 0)])
    assert [(r.arrangement, r.repeat) for r in first] == [("bu", 0)]
    before = _stamps(run, RESULT)
    _, both = _run(tmp_path / "run", data, settings, [("bu", 1)])
    assert [(r.arrangement, r.repeat) for r in both] == [("bu", 0), ("bu", 1)]
    assert before.items() <= _stamps(run, RESULT).items()


# --- damage -------------------------------------------------------------------------------------------


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def _flip(path: Path) -> None:
    content = path.read_bytes()
    place = len(content) // 3
    path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])


@pytest.mark.parametrize(
    ("file", "damage", "is_trained"),
    [
        (CHECKPOINT, _cut, True),
        (CHECKPOINT, _flip, True),
        (CHECKPOINT, Path.unlink, True),
        (RESULT, _cut, False),
        (PREDICTIONS, _cut, False),
        (PREDICTIONS, Path.unlink, False),
    ],
)
def test_what_is_damaged_is_made_again_and_said_once(
    tmp_path: Path,
    data: Data,
    file: str,
    damage: Callable[[Path], None],
    is_trained: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, before = _run(tmp_path / "run", data, SETTINGS)
    stamps = _stamps(run, CHECKPOINT)
    place = run.run("td", 0) / file
    damage(place)
    if file == CHECKPOINT:
        with pytest.raises(FileError, match=rf"^td, repeat 0: .*bu2td evaluate train -o {run.path} --resume"):
            load_classifier(run, data, "td", 0)
    capsys.readouterr()
    _, after = _run(tmp_path / "run", data, SETTINGS)
    said = capsys.readouterr().err.strip().splitlines()
    if not (file == CHECKPOINT and damage is Path.unlink):
        assert len(said) == 1
        assert str(place) in said[0]
    measures = ("arrangement", "train_loss", "test_accuracy", "calibration_error", "epochs")
    for mine, other in zip(before, after, strict=True):
        assert [getattr(mine, m) for m in measures] == [getattr(other, m) for m in measures]
    renewed = _stamps(run, CHECKPOINT)
    assert (renewed["td-0"] != stamps["td-0"]) == is_trained
    assert renewed["bu-0"] == stamps["bu-0"]
    load_classifier(run, data, "td", 0)


def test_a_full_disk_names_the_network(tmp_path: Path, data: Data) -> None:

    folder = tmp_path / "run" / "runs" / "td-0"
    make_folder(tmp_path / "run")
    create(tmp_path / "run", SETTINGS, "train")
    folder.mkdir(parents=True)
    (folder / f".checkpoint.{os.getpid()}.pt").symlink_to("/dev/full")
    with pytest.raises(FileError, match=r"^td, repeat 0: .*checkpoint\.pt cannot be written: No space left"):
        _run(tmp_path / "run", data, SETTINGS)


# --- changes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("make", "make ", None),
        ("def make", "# another\ndef make", "the file that the model is written in has changed"),
        ("nn.Conv2d(4, 8, 3", "nn.Conv2d(4, 8, 1", "other modules or shapes of weights"),
        (
            "nn.ReLU(), nn.AdaptiveAvgPool2d",
            "nn.GELU(), nn.AdaptiveAvgPool2d",
            "other modules or shapes of weights",
        ),
    ],
)
def test_a_changed_model_is_noticed(
    tmp_path: Path, data: Data, model: str, old: str, new: str, message: str | None
) -> None:
    settings = replace(SETTINGS, model=model, arrangements=("bu",))
    run, _ = _run(tmp_path / "run", data, settings)
    file = tmp_path / "net.py"
    if message is not None:
        file.write_text(FACTORY.replace(old, new).replace("padding=1), nn.ReLU", "padding='same'), nn.ReLU"))
        file.touch()
        for again in (lambda: load_classifier(run, data, "bu", 0), lambda: _run(tmp_path / "run", data, settings)):
            with pytest.raises(RunFolderError, match=rf"^bu, repeat 0: .*{message}.*put it back|{message}"):
                again()
        file.write_text(FACTORY)
    load_classifier(run, data, "bu", 0)
    _run(tmp_path / "run", data, settings)


# --- weights that are given ---------------------------------------------------------------------------


def _own(model: str, seed: int = 7) -> nn.Module:
    from bu2td.models.words import create_model

    torch.manual_seed(seed)
    return create_model(model, device="cpu", num_classes=10, in_channels=1).eval()


def _wrapped(kind: str, state: dict[str, Any]) -> Any:
    return {
        "plain": state,
        "model": {"model": state, "epoch": 3},
        "lightning": {"state_dict": {f"model.{k}": v for k, v in state.items()}, "hyper": {"lr": 1}},
        "parallel": {f"module._orig_mod.{k}": v for k, v in state.items()},
    }[kind]


@pytest.mark.parametrize("kind", ["plain", "model", "lightning", "parallel"])
def test_own_weights_are_measured_and_the_other_network_is_trained(
    tmp_path: Path, data: Data, model: str, kind: str
) -> None:
    mine = _own(model)
    torch.save(_wrapped(kind, mine.state_dict()), tmp_path / "mine.pt")
    settings = replace(SETTINGS, model=model, checkpoint={"bu": str(tmp_path / "mine.pt")}, repeats=2)
    run, results = _run(tmp_path / "run", data, settings)
    assert [(r.arrangement, r.repeat, r.epochs) for r in results] == [("bu", 0, 0), ("td", 0, 1), ("td", 1, 1)]
    images, labels = first_images(data.test)
    expected = logits_of(mine, images)
    assert torch.equal(logits_of(load_classifier(run, data, "bu", 0), images), expected)
    assert results[0].test_accuracy == pytest.approx((expected.argmax(1) == labels).float().mean().item())
    assert math.isnan(results[0].seconds)
    # the folder keeps the weights: the file may go, but it may not change
    (tmp_path / "mine.pt").rename(tmp_path / "moved.pt")
    assert _run(tmp_path / "run", data, settings)[1][0].test_accuracy == results[0].test_accuracy
    load_classifier(run, data, "bu", 0)
    torch.save(_own(model, 8).state_dict(), tmp_path / "mine.pt")
    with pytest.raises(RunFolderError, match="the file that the weights were taken from has changed"):
        _run(tmp_path / "run", data, settings)


def test_a_top_down_network_of_bu2td_save(tmp_path: Path, data: Data, model: str) -> None:
    example = torch.zeros(2, 1, 32, 32)
    mine = bu2td.convert(_own(model), "td", example_inputs=example, upsample="bilinear").eval()
    bu2td.save(mine, tmp_path / "td.pt")
    settings = replace(SETTINGS, model=model, checkpoint={"td": str(tmp_path / "td.pt")})
    with pytest.raises(FileError, match=r"^td, repeat 0: .*upsample is 'bilinear' there, 'nearest' here"):
        _run(tmp_path / "other", data, settings)
    run, results = _run(tmp_path / "run", data, replace(settings, convert={"upsample": "bilinear"}))
    images, _ = first_images(data.test)
    assert torch.allclose(
        logits_of(load_classifier(run, data, "td", 0), images), logits_of(mine, images), atol=1e-6
    )
    assert [(r.arrangement, r.epochs) for r in results] == [("bu", 1), ("td", 0)]
    (tmp_path / "mean.pt").write_bytes((run.run("bu", 0) / CHECKPOINT).read_bytes())
    with pytest.raises(FileError, match="holds a top-down network"):
        _run(tmp_path / "third", data, replace(settings, checkpoint={"bu": str(tmp_path / "td.pt")}))


def test_a_checkpoint_of_another_evaluation_brings_its_mean(tmp_path: Path, data: Data, model: str) -> None:
    settings = replace(SETTINGS, model=model, normalise="pixel-mean", arrangements=("bu",))
    run, (first,) = _run(tmp_path / "run", data, settings)
    file = run.run("bu", 0) / CHECKPOINT
    again = replace(settings, normalise="none", checkpoint={"bu": str(file)})
    other, (second,) = _run(tmp_path / "again", data, again)
    assert second.test_accuracy == first.test_accuracy
    mean = load_classifier(other, data, "bu", 0).mean
    assert mean is not None
    assert torch.equal(mean, load_classifier(run, data, "bu", 0).mean)  # type: ignore[arg-type]


def _less(state: dict[str, Any]) -> Any:
    return {k: v for k, v in state.items() if k != "0.bias"}


def _more(state: dict[str, Any]) -> Any:
    return {**state, "extra.weight": torch.zeros(3)}


def _odd(state: dict[str, Any]) -> Any:
    return {**state, "8.weight": torch.zeros(7, 8)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_less, r"1 missing \(0\.bias\)"),
        (_more, r"1 unexpected \(extra\.weight\)"),
        (_odd, r"1 of another shape \(8\.weight \(7, 8\) instead of \(10, 8\)\)"),
        (lambda state: {"epoch": 3}, "holds no state_dict: found epoch"),
        (lambda state: [1, 2], "holds list, expected a state_dict"),
        (lambda state: nn.Linear(2, 2), "whole modules are not loaded"),
        (None, "there is no file .* with weights|cannot be read: No such file"),
    ],
)
def test_weights_that_do_not_fit(
    tmp_path: Path, data: Data, model: str, change: Callable[..., Any] | None, message: str
) -> None:
    if change is not None:
        torch.save(change(_own(model).state_dict()), tmp_path / "mine.pt")
    settings = replace(SETTINGS, model=model, checkpoint={"bu": str(tmp_path / "mine.pt")})
    with pytest.raises(FileError, match=rf"^bu, repeat 0: .*({message})"):
        _run(tmp_path / "run", data, settings)


def test_pretrained_weights_are_the_factorys(tmp_path: Path, data: Data, model: str) -> None:
    run, results = _run(tmp_path / "run", data, replace(SETTINGS, model=model, pretrained=True))
    weights = load_classifier(run, data, "bu", 0).network
    assert all(torch.equal(p, torch.full_like(p, 0.125)) for p in weights.parameters())
    assert [(r.arrangement, r.epochs) for r in results] == [("bu", 0), ("td", 1)]


def test_pretrained_weights_that_nobody_has(tmp_path: Path, data: Data) -> None:
    with pytest.raises(OptionError, match=r"^bu, repeat 0: bu2td has no weights for 'bu2td:lenet_fc'"):
        _run(tmp_path / "run", data, replace(SETTINGS, pretrained=True))
    file = tmp_path / "bare.py"
    file.write_text(FACTORY.replace(", pretrained=False", "").replace("if pretrained", "if False"))
    bare = replace(SETTINGS, pretrained=True, model=f"{file}:make")
    with pytest.raises(Bu2tdError, match="make takes no argument 'pretrained'"):
        _run(tmp_path / "other", data, bare)
    file.write_text(FACTORY.replace("num_classes=10", "num_classes=7"))
    with pytest.raises(ModelOutputError, match=r"returns \(2, 7\).*Pretrained weights know their own classes"):
        _run(tmp_path / "third", data, bare)


def test_pretrained_images_are_prepared_as_the_library_does() -> None:
    timm = pytest.importorskip("timm")
    from bu2td.evaluate.train.weights import pretrained_norms

    network = timm.create_model("resnet18")
    for word in ("resnet18", "torchvision:resnet18"):
        found = pretrained_norms(word, network)
        assert found is not None
        assert [v.flatten().tolist() for v in found if v is not None] == [
            pytest.approx([0.485, 0.456, 0.406]),
            pytest.approx([0.229, 0.224, 0.225]),
        ]
    assert pretrained_norms("bu2td:lenet_fc", nn.Identity()) is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"checkpoint": {"dt": "x.pt"}}, "checkpoint = 'dt': expected bu, td, uni, rev. Did you mean 'td'"),
        ({"checkpoint": {"uni": "x.pt"}, "arrangements": ["bu", "td"]}, "uni among them, whose weights are given"),
        ({"pretrained": True, "arrangements": ["td"]}, "bu among them"),
        ({"pretrained": True, "checkpoint": {"bu": "x.pt"}}, "checkpoint has the weights of bu"),
        ({"weight_decay_of": "biases"}, "expected all, kernels"),
        ({"shift_fill": "white"}, "expected black, edge"),
    ],
)
def test_settings_that_contradict_each_other(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        read_settings(flags=flags)
    assert message in str(caught.value)


# --- memory -------------------------------------------------------------------------------------------


def test_peak_memory_is_that_of_the_step(tmp_path: Path, data: Data) -> None:
    """At least the activations that the backward pass needs; and nothing of what this process holds."""
    from bu2td.evaluate.train.memory import step_memory

    file = tmp_path / "wide.py"
    file.write_text(
        "from torch import nn\n\ndef make(num_classes=10, in_channels=1):\n"
        "    return nn.Sequential(nn.Conv2d(1, 64, 3, padding=1), nn.Sigmoid(), nn.Conv2d(64, 64, 3, padding=1),\n"
        "        nn.Sigmoid(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, num_classes))\n"
    )
    ballast = np.ones(64 * 2**20, dtype=np.uint8)
    settings = replace(SETTINGS, model=f"{file}:make", batch_size=64)
    found = step_memory(settings, "bu", data)
    kept = 2 * 64 * 64 * 32 * 32 * 4 / 2**20  # two outputs of Sigmoid: 32 MiB
    assert kept < found < 12 * kept
    assert ballast.all()


def test_memory_that_cannot_be_measured_is_nothing(
    tmp_path: Path, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bu2td.evaluate.train import memory

    broken: Sequence[Settings] = [replace(SETTINGS, model=f"{tmp_path / 'none.py'}:make")]
    assert math.isnan(memory.step_memory(broken[0], "bu", data))
    monkeypatch.setattr(memory.os.path, "exists", lambda path: False)
    assert math.isnan(memory.step_memory(SETTINGS, "bu", data))


def test_the_result_of_a_training_is_readable(tmp_path: Path, data: Data) -> None:
    run, (result,) = _run(tmp_path / "run", data, replace(SETTINGS, arrangements=("bu",), measure_memory=True))
    content = json.loads((run.run("bu", 0) / RESULT).read_text())
    if os.path.exists("/proc/self/clear_refs"):
        assert content["result"]["peak_memory_mib"] == result.peak_memory_mib > 0
    assert content["identity"]["architecture"] == content["identity"]["architecture"].lower()
    assert len(content["identity"]["architecture"]) == 64
    assert content["identity"]["source"] == ""


def test_an_architecture_is_the_same_under_every_torch() -> None:
    """The committed trainings go on under any version: what modules say of themselves differs between versions."""
    name = "6f6c02fca0e3354a534b1c89a3d0fdd86502e39c91259889dfa99d93f1680031"
    assert architecture_hash(LeNetFC()) == name


def test_an_architecture_is_its_layers_and_not_what_holds_them() -> None:
    def network(held_by: Callable[..., nn.Module], **options: Any) -> nn.Module:
        block = held_by(nn.Conv2d(1, 4, 3, **options), nn.BatchNorm2d(4))
        return nn.Sequential(block, nn.ReLU())

    class Block(nn.Sequential):
        """Holds layers as a container of the next version might, under another name."""

    own = architecture_hash(network(nn.Sequential))
    assert architecture_hash(network(Block)) == own
    with torch.no_grad():
        same = network(nn.Sequential)
        same[0][0].weight.zero_()  # type: ignore[index,operator,union-attr]
    assert architecture_hash(same) == own
    others = [network(nn.Sequential, padding=1), network(nn.Sequential, bias=False), nn.Sequential(same, nn.ReLU())]
    assert own not in {architecture_hash(other) for other in others}
    assert own != architecture_hash(
        nn.Sequential(nn.Sequential(same[0][0], nn.BatchNorm2d(4, eps=1e-3)), nn.ReLU())
    )  # type: ignore[index]
    x = torch.zeros(1, 1, 28, 28)
    assert architecture_hash(bu2td.convert(LeNetFC(), example_inputs=x)) != architecture_hash(
        bu2td.convert(LeNetFC(), example_inputs=x, merge="add")
    )
