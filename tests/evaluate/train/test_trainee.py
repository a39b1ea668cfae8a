"""A network in the form that trains fastest: the same losses, the same names, the plain network's weights."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("lightning_fabric")

from bu2td.errors import VerificationError
from bu2td.evaluate.data.sets import Part, first_images, load_data, split
from bu2td.evaluate.settings import Settings
from bu2td.evaluate.train import loop, trainee
from bu2td.evaluate.train.checkpoint import CHECKPOINT, read_checkpoint, write_checkpoint
from bu2td.evaluate.train.engine import start
from bu2td.evaluate.train.loop import fit
from bu2td.evaluate.train.model import Classifier, build_classifier
from bu2td.evaluate.train.trainee import Trainee
from bu2td.models.baselines import lenet_fc

#: A small learning rate: at larger ones training multiplies a difference of 1e-7 by a thousand in one epoch.
SETTINGS = Settings(epochs=1, batch_size=32, lr=0.01, device="cpu")
PLAIN = replace(SETTINGS, optimize=False, channels_last=False)


def _trained(settings: Settings, folder: Path, arrangement: str = "td", count: int = 640) -> tuple[Any, Classifier]:
    data = load_data("digits")
    train, validation = split(Part(data.train, range(count)), 0)
    classifier = build_classifier(settings, data, arrangement, 0, (None, None))
    for module in classifier.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # masks are drawn in the order of memory
    log = fit(classifier, train, validation, settings, folder, engine=start(settings), seed=0, identity={})
    return log, classifier


@pytest.mark.parametrize(
    ("model", "lr"), [("bu2td:lenet_fc", 0.01), pytest.param("bu2td:nin_light", 0.001, marks=pytest.mark.slow)]
)
def test_the_losses_are_those_of_the_plain_network(tmp_path: Path, model: str, lr: float) -> None:
    settings = [replace(s, model=model, lr=lr) for s in (PLAIN, SETTINGS)]
    (plain, _), (fast, classifier) = (_trained(s, tmp_path / str(i)) for i, s in enumerate(settings))
    assert fast[0].train_loss == pytest.approx(plain[0].train_loss, rel=1e-4)
    assert fast[0].validation_loss == pytest.approx(plain[0].validation_loss, rel=1e-3)
    # what is left is the plain network, with the weights that were trained, and so is the checkpoint
    assert classifier.network.optimization is None  # type: ignore[union-attr]
    kept = read_checkpoint(tmp_path / "1" / CHECKPOINT)["model"]
    fresh = build_classifier(settings[1], load_data("digits"), "td", 1, (None, None))
    assert list(kept) == list(fresh.state_dict())
    fresh.load_state_dict(kept)
    images = torch.rand(4, 1, 32, 32)
    assert torch.equal(fresh.eval()(images), classifier.eval()(images))


def test_in_double_precision_nothing_is_left_of_the_difference() -> None:
    data, settings = load_data("digits"), replace(SETTINGS, lr=0.05)
    losses = []
    for form in (replace(settings, optimize=False, channels_last=False), settings):
        classifier = build_classifier(form, data, "td", 0, (None, None)).double()
        net = Trainee(classifier, form, start(form), (1, 32, 32)).twin.double().train()
        images, labels = first_images(data.train, 256)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, nesterov=True)
        own = []
        for batch, targets in zip(images.double().split(32), labels.split(32), strict=True):
            loss = nn.functional.cross_entropy(net(batch), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            own.append(loss.item())
        losses.append(own)
    assert losses[1] == pytest.approx(losses[0], rel=1e-9)


def test_a_training_goes_on_in_another_form(tmp_path: Path) -> None:
    """One epoch as bu2td.optimize makes it, the second without: the momentum finds its weights."""
    both = replace(PLAIN, epochs=2)
    expected, _ = _trained(both, tmp_path / "plain")
    _trained(replace(SETTINGS, epochs=1), tmp_path / "mixed")
    found, _ = _trained(both, tmp_path / "mixed")
    assert [r.train_loss for r in found] == pytest.approx([r.train_loss for r in expected], rel=1e-3)


def test_an_optimised_training_that_was_killed_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(SETTINGS, model="bu2td:nin_light", epochs=2, hflip=0.5, batch_size=16)
    expected, whole = _trained(settings, tmp_path / "whole", count=80)

    def dies(*args: Any) -> None:
        write_checkpoint(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "write_checkpoint", dies)
    with pytest.raises(KeyboardInterrupt):
        _trained(settings, tmp_path / "killed", count=80)
    monkeypatch.undo()
    found, resumed = _trained(settings, tmp_path / "killed", count=80)
    assert [replace(r, seconds=0) for r in found] == [replace(r, seconds=0) for r in expected]
    assert all(
        torch.equal(a, b) for a, b in zip(resumed.state_dict().values(), whole.state_dict().values(), strict=True)
    )


def test_what_is_trained_is_optimised() -> None:
    data = load_data("digits")
    engine = start(SETTINGS)
    for arrangement, is_optimised in (("bu", False), ("td", True)):
        classifier = build_classifier(SETTINGS, data, arrangement, 0, (None, torch.ones(1, 1, 1)))
        made = Trainee(classifier, SETTINGS, engine, (1, 32, 32))
        assert (made.twin is not classifier) == is_optimised == made.channels_last
        assert list(made.twin.state_dict()) == list(classifier.state_dict())
        if is_optimised:
            assert made.twin.network.optimization.made  # type: ignore[union-attr]
        for parameter in made.twin.parameters():
            nn.init.constant_(parameter, 0.25)
        made.write_back()
        assert all(torch.equal(p, torch.full_like(p, 0.25)) for p in classifier.parameters())


def test_a_network_that_cannot_be_optimised_trains_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuses(*args: Any, **options: Any) -> Any:
        raise VerificationError("differs by 1")

    monkeypatch.setattr(trainee.bu2td, "optimize", refuses)
    log, _ = _trained(SETTINGS, tmp_path, count=64)
    assert len(log) == 1
    assert capsys.readouterr().err.strip() == "trained without bu2td.optimize: differs by 1"


def test_weight_decay_of_kernels_leaves_biases_and_norms_alone() -> None:
    """Keras' l2(decay) adds decay x sum of squares to the loss: a gradient of 2 decay w, on kernels only."""
    decay, lr = 0.125, 0.5
    settings = replace(SETTINGS, weight_decay=2 * decay, weight_decay_of="kernels", lr=lr, momentum=0)
    net = lenet_fc()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    made = Trainee(net, settings, start(settings), (1, 28, 28))
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    made.optimizer.step()
    for name, parameter in net.named_parameters():
        penalty = before[name].clone().requires_grad_()
        (decay * penalty.square().sum()).backward()
        assert penalty.grad is not None
        is_kernel = parameter.ndim == 4
        assert torch.allclose(parameter, before[name] - lr * penalty.grad * is_kernel)
