"""Training: the schedule, seeds, resumption after a kill, several processes, and losses that are no numbers."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("lightning_fabric")

from bu2td.errors import FileError, ModelOutputError, NonFiniteError, NotAModelError, OptionError, RunFolderError
from bu2td.evaluate.checks import logits_of
from bu2td.evaluate.data.augment import augment, mix
from bu2td.evaluate.data.sets import TensorImages, load_data
from bu2td.evaluate.settings import Settings
from bu2td.evaluate.train.checkpoint import CHECKPOINT, read_checkpoint
from bu2td.evaluate.train.engine import start
from bu2td.evaluate.train.loop import Batches, fit, learning_rate, measure
from bu2td.evaluate.train.model import Classifier, build_classifier, initialise, normalisation_of

SETTINGS = Settings(epochs=4, batch_size=8, lr=0.05, device="cpu")


def _images(count: int = 40, channels: int = 1, side: int = 8) -> TensorImages:
    """Two classes that a small network can tell apart: bright above, bright below."""
    random = torch.Generator().manual_seed(1)
    labels = torch.arange(count) % 2
    images = torch.rand(count, channels, side, side, generator=random) * 0.5
    images[labels == 1, :, side // 2 :] += 0.5
    images[labels == 0, :, : side // 2] += 0.5
    return TensorImages(images, labels)


class _Net(nn.Module):
    def __init__(self, dropout: float = 0.0, norm: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        second = nn.BatchNorm2d(4) if norm else nn.Identity()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), second, nn.ReLU(), nn.Dropout(dropout))
        self.head = nn.Linear(4 * 8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean(3).flatten(1))


def _fit(model: nn.Module, folder: Path, settings: Settings = SETTINGS, identity: Any = None) -> list[Any]:
    data, held_out = _images(), _images(16)
    engine = start(settings)
    return fit(model, data, held_out, settings, folder, engine=engine, seed=5, identity=identity or {"a": 1})


def _numbers(log: list[Any]) -> list[dict[str, Any]]:
    return [{k: v for k, v in asdict(row).items() if k != "seconds"} for row in log]


# --- the schedule -------------------------------------------------------------------------------------


def test_the_learning_rate_falls_at_half_and_at_four_fifths() -> None:
    settings = Settings(epochs=50, lr=0.1)
    rates = [learning_rate(settings, epoch) for epoch in range(50)]
    assert rates == pytest.approx([0.1] * 25 + [0.01] * 15 + [0.001] * 10)
    assert [learning_rate(Settings(epochs=1), 0)] == [0.1]


def test_it_learns_and_its_log_is_kept(tmp_path: Path) -> None:
    log = _fit(_Net(), tmp_path)
    assert log[-1].train_loss < log[0].train_loss
    assert log[-1].train_accuracy > 0.8
    lines = (tmp_path / "log.csv").read_text().splitlines()
    assert lines[0] == "epoch,lr,train_loss,train_accuracy,validation_loss,validation_accuracy,seconds"
    assert len(lines) == 1 + SETTINGS.epochs
    assert list((tmp_path / "tensorboard").iterdir())


def test_one_epoch_is_plain_sgd(tmp_path: Path) -> None:
    settings = replace(SETTINGS, epochs=1, weight_decay=1e-2)
    net, twin = _Net(), _Net()
    _fit(net, tmp_path, settings)
    images = _images()
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-2)
    for batch in Batches(40, 8, mix(5, 0)):
        optimizer.zero_grad()
        nn.functional.cross_entropy(twin(images.images[batch]), images.labels[batch]).backward()
        optimizer.step()
    for mine, other in zip(net.state_dict().values(), twin.state_dict().values(), strict=True):
        assert torch.allclose(mine, other, atol=1e-7)


# --- seeds and resumption -----------------------------------------------------------------------------


class _KilledError(Exception):
    pass


@pytest.mark.parametrize("dies_in_step", [0, 4, 5, 12, 19])
def test_a_resumed_run_ends_with_the_same_numbers(tmp_path: Path, dies_in_step: int) -> None:
    settings = replace(SETTINGS, hflip=0.5, hshift=0.2)
    whole = _Net(dropout=0.3)
    expected = _fit(whole, tmp_path / "whole", settings)
    killed = _Net(dropout=0.3)
    steps = []

    def count(module: nn.Module, args: Any) -> None:
        if module.training:
            steps.append(1)
            if len(steps) > dies_in_step:
                raise _KilledError

    hook = killed.register_forward_pre_hook(count)
    with pytest.raises(_KilledError):
        _fit(killed, tmp_path / "killed", settings)
    hook.remove()
    fresh = _Net(dropout=0.3)
    nn.init.zeros_(fresh.head.weight)  # whatever it starts from, the checkpoint counts; without one, the same start
    if dies_in_step < 5:
        fresh = _Net(dropout=0.3)
    found = _fit(fresh, tmp_path / "killed", settings)
    assert _numbers(found) == _numbers(expected)
    for mine, other in zip(fresh.state_dict().values(), whole.state_dict().values(), strict=True):
        assert torch.equal(mine, other)


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first = _fit(_Net(), tmp_path)
    stamp = (tmp_path / CHECKPOINT).stat().st_mtime_ns
    assert _fit(_Net(), tmp_path) == first
    assert (tmp_path / CHECKPOINT).stat().st_mtime_ns == stamp


def test_the_callers_seed_does_not_matter(tmp_path: Path) -> None:
    logs = []
    for seed in (1, 2):
        net = _Net(dropout=0.3)
        torch.manual_seed(seed)
        logs.append(_numbers(_fit(net, tmp_path / str(seed))))
    assert logs[0] == logs[1]


def _cut(content: bytes) -> bytes:
    return content[:200]


@pytest.mark.parametrize("damage", [lambda c: b"", lambda c: b"half", _cut])
def test_a_damaged_checkpoint_is_trained_again(
    tmp_path: Path, damage: Callable[[bytes], bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    first = _fit(_Net(), tmp_path)
    file = tmp_path / CHECKPOINT
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(FileError, match="is damaged"):
        read_checkpoint(file)
    assert _numbers(_fit(_Net(), tmp_path)) == _numbers(first)
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert str(file) in said[0]
    assert "trained again from the start" in said[0]
    assert len(read_checkpoint(file)["log"]) == SETTINGS.epochs


def test_every_flipped_weight_is_noticed(tmp_path: Path) -> None:
    net = _Net()
    _fit(net, tmp_path)
    file = tmp_path / CHECKPOINT
    content = file.read_bytes()
    for value in net.state_dict().values():
        if value.numel() > 1:
            place = content.index(value.contiguous().numpy().tobytes())
            file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            with pytest.raises(FileError, match="not what was written"):
                read_checkpoint(file)


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    """The temporary file of the checkpoint is a device that is always full."""
    (tmp_path / f".checkpoint.{os.getpid()}.pt").symlink_to("/dev/full")
    with pytest.raises(FileError, match=r"checkpoint\.pt cannot be written: No space left on device"):
        _fit(_Net(), tmp_path)


def test_the_checkpoint_of_another_run(tmp_path: Path) -> None:
    _fit(_Net(), tmp_path)
    with pytest.raises(RunFolderError, match="a was 1, is 2"):
        _fit(_Net(), tmp_path, identity={"a": 2})


def test_a_loss_that_is_no_number_keeps_the_checkpoint(tmp_path: Path) -> None:
    log = _fit(_Net(), tmp_path, replace(SETTINGS, epochs=2))
    state = read_checkpoint(tmp_path / CHECKPOINT)
    net = _Net()
    net.body[0].register_forward_hook(lambda m, a, y: y * float("nan") if m.training else y)
    with pytest.raises(NonFiniteError, match=r"epoch 3, step 1, .* the checkpoint of epoch 2 is kept"):
        _fit(net, tmp_path, SETTINGS)
    kept = read_checkpoint(tmp_path / CHECKPOINT)
    assert kept["log"] == state["log"] == [asdict(row) for row in log]


# --- batches and processes ----------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "batch", "world"), [(40, 8, 2), (43, 8, 4), (5, 8, 1), (64, 16, 8)])
def test_processes_share_the_batches_of_one(size: int, batch: int, world: int) -> None:
    whole = list(Batches(size, batch, seed=3))
    parts = [list(Batches(size, batch, 3, rank, world)) for rank in range(world)]
    for index, indices in enumerate(whole):
        assert sorted(i for part in parts for i in part[index]) == sorted(indices)
    assert all(len(part) == len(whole) for part in parts)
    everything = [i for indices in whole for i in indices]
    assert len(set(everything)) == len(everything) == (size // batch * batch or size)
    assert list(Batches(size, batch, seed=4)) != whole


_WORKER = """
import json, os, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
import test_loop as t
engine = t.start(t.SETTINGS)
folder = Path(sys.argv[2])
found = {kind: t._found(folder / kind, engine, kind) for kind in ("plain", "norm")}
(folder / f"{engine.global_rank}.json").write_text(json.dumps(found))
"""


def _found(folder: Path, engine: Any, kind: str) -> list[Any]:
    """What a process finds: how many there are, the log, sums of weights and buffers."""
    settings = replace(SETTINGS, epochs=2, hflip=0.5)
    net = _Net(norm=kind == "norm")
    log = fit(net, _images(), _images(17), settings, folder, engine=engine, seed=5, identity={})
    return [engine.world_size, _numbers(log), [v.double().sum().item() for v in net.state_dict().values()]]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What each of two processes finds, by kind of network."""
    folder = tmp_path_factory.mktemp("two")
    script = folder / "worker.py"
    script.write_text(_WORKER)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, str(Path(__file__).parent), str(folder)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_two_processes_give_the_metrics_of_one_without_batch_statistics(tmp_path: Path, two: list[Any]) -> None:
    """Batches, augmentation, gradients and sums are shared; nothing in this network looks at a whole batch."""
    one, log, weights = _found(tmp_path, start(SETTINGS), "plain")
    for processes, shared_log, shared_weights in (each["plain"] for each in two):
        assert (one, processes) == (1, 2)
        assert shared_weights == pytest.approx(weights, rel=1e-4, abs=1e-4)
        for mine, other in zip(log, shared_log, strict=True):
            assert mine == pytest.approx(other, rel=1e-4, abs=1e-5)


def test_two_processes_agree_on_one_network_with_batch_statistics(two: list[Any]) -> None:
    """Every process normalises its own share, which is another training than one process'; but weights, running
    statistics and metrics are the same in both, so that the network that is measured is the one that is kept.
    """
    first, second = (each["norm"] for each in two)
    assert first == second
    assert first[0] == 2


def test_a_batch_that_processes_cannot_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(OptionError, match="cannot be shared evenly by 3 processes"):
        start(SETTINGS)


@pytest.mark.parametrize("settings", [{"amp": True}, {"channels_last": True}, {"workers": 2}])
def test_other_ways_to_run(tmp_path: Path, settings: dict[str, Any]) -> None:
    plain = _fit(_Net(), tmp_path / "plain")
    other = _fit(_Net(), tmp_path / "other", replace(SETTINGS, **settings))
    loose = 0.05 if "amp" in settings else 1e-4
    assert [r.train_loss for r in other] == pytest.approx([r.train_loss for r in plain], rel=loose, abs=loose)


@pytest.mark.slow
def test_compiled(tmp_path: Path) -> None:
    plain = _fit(_Net(), tmp_path / "plain")
    other = _fit(_Net(), tmp_path / "other", replace(SETTINGS, torchcompile=True))
    assert [r.train_loss for r in other] == pytest.approx([r.train_loss for r in plain], rel=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu(tmp_path: Path) -> None:
    plain = _fit(_Net(), tmp_path / "plain")
    other = _fit(_Net(), tmp_path / "other", replace(SETTINGS, device="cuda"))
    assert [r.train_loss for r in other] == pytest.approx([r.train_loss for r in plain], rel=1e-3)


@pytest.mark.parametrize(("word", "message"), [("cuda:7", "cuda"), ("tpu", "tpu"), ("meta", "computes nothing")])
def test_devices_that_are_not_there(word: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        start(replace(SETTINGS, device=word))


def test_float16_needs_a_gpu() -> None:
    with pytest.raises(OptionError, match="bfloat16"):
        start(replace(SETTINGS, amp=True, amp_dtype="float16"))


# --- augmentation -------------------------------------------------------------------------------------


def test_augmentation_moves_and_turns() -> None:
    image = torch.arange(64.0).view(1, 8, 8) / 64
    settings = replace(SETTINGS, hshift=0.25, vshift=0.125, hflip=0.5)
    seen = set()
    for seed in range(200):
        found = augment(image, settings, torch.Generator().manual_seed(seed))
        matches = []
        for down in (-1, 0, 1):
            for right in (-2, -1, 0, 1, 2):
                moved = torch.zeros_like(image)
                rows, columns = range(8), range(8)
                for y in rows:
                    for x in columns:
                        if 0 <= y - down < 8 and 0 <= x - right < 8:
                            moved[0, y, x] = image[0, y - down, x - right]
                matches += [(down, right, False)] * torch.equal(found, moved)
                matches += [(down, right, True)] * torch.equal(found, moved.flip(-1))
        assert len(matches) == 1
        seen.add(matches[0])
    assert len(seen) > 25  # of 3 x 5 x 2
    assert augment(image, SETTINGS, torch.Generator()) is image


def test_the_edge_fills_what_moves_in() -> None:
    image = torch.rand(3, 6, 9, generator=torch.Generator().manual_seed(0))
    settings = replace(SETTINGS, hshift=0.4, vshift=0.5, shift_fill="edge")
    seen = set()
    for seed in range(100):
        found = augment(image, settings, torch.Generator().manual_seed(seed))
        black = augment(image, replace(settings, shift_fill="black"), torch.Generator().manual_seed(seed))
        matches = [
            (down, right)
            for down in range(-3, 4)
            for right in range(-3, 4)
            if all(
                torch.equal(found[:, y, x], image[:, min(max(y - down, 0), 5), min(max(x - right, 0), 8)])
                for y in range(6)
                for x in range(9)
            )
        ]
        assert len(matches) == 1
        seen.add(matches[0])
        inside = black != 0
        assert torch.equal(found[inside], black[inside])  # the same shift, another filling
    assert len(seen) > 30  # of 7 x 7


def test_colours_change_all_pixels_alike() -> None:
    image = torch.full((3, 4, 4), 0.5)
    found = augment(image, replace(SETTINGS, pca_color=1.0), torch.Generator().manual_seed(0))
    assert (found - image).std((1, 2)).abs().max() < 1e-6
    assert not torch.equal(found, image)


def test_seeds_are_mixed() -> None:
    assert len({mix(a, b) for a in range(40) for b in range(40)}) == 1600
    assert mix(1, 2) != mix(2, 1)


# --- classifiers --------------------------------------------------------------------------------------


def test_normalisation_is_inside() -> None:
    images = _images(20)
    mean, std = normalisation_of(images, "pixel-mean")
    assert std is None
    assert mean is not None
    assert torch.allclose(mean, images.images.mean(0), atol=1e-6)
    mean, std = normalisation_of(images, "mean-std")
    assert mean is not None
    assert std is not None
    prepared = Classifier(_Net(), mean, std).prepare(images.images)
    assert prepared.mean().item() == pytest.approx(0, abs=1e-5)
    assert prepared.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    assert normalisation_of(images, "none") == (None, None)


def test_grey_images_for_a_model_of_colours() -> None:
    data = load_data("digits", input_size=(1, 64, 64))
    classifier = build_classifier(Settings(model="torchvision:squeezenet1_1"), data, "bu", 0, (None, None))
    assert classifier.channels == 3
    assert logits_of(classifier, torch.rand(2, 1, 64, 64)).shape == (2, 10)


def test_branches_need_a_top_down_network() -> None:
    data = load_data("digits")
    bottom_up, top_down = (build_classifier(Settings(), data, a, 0, (None, None)) for a in ("bu", "td"))
    x = torch.rand(2, 1, 32, 32)
    with pytest.raises(NotAModelError, match="bottom-up LeNetFC"):
        bottom_up.forward_branches([x, x, x])
    logits = logits_of(top_down, x)
    branches = top_down.eval().forward_branches(dict.fromkeys(top_down.network.plan.ladder, x))  # type: ignore[union-attr]
    assert torch.allclose(branches, logits, atol=1e-6)


def test_the_same_seed_gives_the_same_weights() -> None:
    data = load_data("digits")
    for init in ("default", "he_normal"):
        a, b, c = (
            build_classifier(Settings(init=init), data, "td", seed, (None, None)).state_dict() for seed in (0, 0, 1)
        )
        assert all(torch.equal(a[k], b[k]) for k in a)
        assert any(not torch.equal(a[k], c[k]) for k in a)


@pytest.mark.parametrize(("kind", "spread"), [("he_normal", (2 / 90) ** 0.5), ("glorot_uniform", (2 / 270) ** 0.5)])
def test_initial_weights(kind: str, spread: float) -> None:
    conv = nn.Conv2d(10, 20, 3)
    initialise(conv, kind, seed=0)
    assert conv.weight.std().item() == pytest.approx(spread, rel=0.05)
    assert conv.bias is not None
    assert conv.bias.abs().sum() == 0


def _wrong_classes() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 7))


def _wrong_channels() -> nn.Module:
    return nn.Sequential(nn.Conv2d(5, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("_wrong_classes", r"returns \(2, 7\) .* expected \(2, 10\)"),
        ("_wrong_channels", "does not run on images of 1x32x32"),
    ],
)
def test_models_that_do_not_fit_the_data(factory: str, message: str) -> None:
    settings = Settings(model=f"{__file__}:{factory}")
    with pytest.raises(ModelOutputError, match=message):
        build_classifier(settings, load_data("digits"), "bu", 0, (None, None))


def test_measure_counts_all_images() -> None:
    data = _images(21)
    net = _Net()
    loss, accuracy = measure(net, data, SETTINGS, start(SETTINGS))
    logits = logits_of(net, data.images)
    assert accuracy == pytest.approx((logits.argmax(1) == data.labels).float().mean().item())
    assert loss == pytest.approx(nn.functional.cross_entropy(logits, data.labels).item(), rel=1e-5)
