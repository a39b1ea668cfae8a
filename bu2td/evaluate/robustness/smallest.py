"""Run attacks: the smallest perturbation per image over several runs, batch by batch."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bu2td.evaluate.checks import Checked, check_count, check_images, check_labels, frozen
from bu2td.evaluate.robustness.curves import Perturbations, join
from bu2td.evaluate.robustness.registry import Attack, find_attack

#: A claim that a second look does not confirm gets these factors on its perturbation before it is dropped: the
#: search has stopped right at the boundary, where the size of a batch decides how logits are rounded.
_NUDGES = (1.0, 1.001, 1.01)


def smallest_perturbations(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    attack: str | Attack,
    *,
    repeats: int = 3,
    budget: str = "full",
    seed: int = 0,
    batch_size: int = 128,
    device: str | torch.device | None = None,
    start_batch: int = 0,
) -> Perturbations:
    """Attack every image several times and keep the smallest perturbation that fools the model.

    Args:
        model: maps images (N, C, H, W) in [0, 1] to logits (N, K). It is measured in eval mode and left as it was.
        images: (N, C, H, W), floating point, in [0, 1].
        labels: (N,), integers from 0 to K - 1.
        attack: name or `Attack`.
        repeats: runs of an attack that draws random numbers; others run once.
        budget: "quick" or "full" (`bu2td.evaluate.robustness.registry`).
        seed: of the random numbers. Those of a batch depend on the seed, the attack, the run and the number of the
            batch alone; the caller's generators are left as they were.
        batch_size: images per batch.
        device: where to run; None: where the model is.
        start_batch: number of the first batch.

    Returns:
        Arrays with one entry per image. Every perturbed image has been judged once more in a batch of the same
        size as the clean ones.

    Raises:
        ExampleInputError: bad images.
        OptionError: bad labels, attack, budget or numbers, or a device that is not there.
        DataError: labels that the model has no logit for.
        ModelOutputError, NonFiniteError: the model does not return finite logits (N, K).
        MissingPackageError: Foolbox is not installed.
    """
    check_images(images)
    labels = check_labels(labels, len(images), None)
    attack = find_attack(attack)
    check_count("repeats", repeats)
    check_count("batch_size", batch_size)
    check_count("start_batch", start_batch, 0)
    check_count("seed", seed, 0)
    runner = attack.build(budget)
    parts = []
    with frozen(model, device) as place:
        counted = _Counted(model)
        target = _foolbox_model(counted, place)
        for offset in range(0, len(images), batch_size):
            part = slice(offset, offset + batch_size)
            pair = images[part].to(place, torch.float32), labels[part].to(place, torch.int64)
            batch = _Batch(target, *pair, counted, attack.norm)
            for run in range(attack.runs(repeats)):
                with _seeded(seed, attack.name, run, start_batch + offset // batch_size):
                    batch.attack(runner)
            parts.append(batch.result())
    return join(parts)


class _Counted(Checked):
    """Counts for how many images the model is asked, for a class or for a gradient."""

    count = 0

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) -> logits (N, K)."""
        logits = super().forward(images)
        self.count += len(images)
        if logits.requires_grad:
            logits.register_hook(lambda _: self._gradient(len(images)))
        return logits

    def _gradient(self, images: int) -> None:
        self.count += images


def _foolbox_model(model: nn.Module, device: torch.device) -> Any:
    from bu2td.evaluate.robustness.base import PyTorchModel  # says what to install where Foolbox is missing

    return PyTorchModel(model.eval(), bounds=(0, 1), device=device)


class _Batch:
    """One batch of images: which are right, and the smallest perturbation of each so far."""

    def __init__(self, model: Any, images: Tensor, labels: Tensor, counted: _Counted, norm: str) -> None:
        self.model, self.images, self.labels, self.counted = model, images, labels, counted
        self.order = {"l2": 2.0, "linf": torch.inf}[norm]
        with torch.no_grad():
            logits = model(images)
        check_labels(labels, len(labels), logits.shape[1])
        self.clean = logits.argmax(-1) == labels
        self.best = images.clone()
        self.distance = torch.where(self.clean, torch.inf, 0.0).double()
        self.dropped = torch.zeros_like(labels)
        self.queries = torch.zeros_like(self.distance)
        self.converged = torch.ones_like(self.clean)

    def attack(self, runner: Any) -> None:
        """Run an attack once on the images that are classified correctly."""
        rows = self.clean.nonzero()[:, 0]
        if not len(rows):
            return
        before = self.counted.count
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(foolbox|eagerpy|pyautoattack)\b")
            found, _, claims = runner(self.model, self.images[rows], self.labels[rows], epsilons=None)
        self.queries[rows] += (self.counted.count - before) / len(rows)
        proposed = self.images.clone()
        proposed[rows] = found.detach().to(self.images.dtype)
        claimed = torch.zeros_like(self.clean)
        claimed[rows] = claims
        converged = torch.ones_like(self.clean)
        converged[rows] = getattr(runner, "converged", converged[rows])  # Foolbox's own take no walk
        nearer = self._keep(proposed, claimed)
        self.converged[nearer] = converged[nearer]

    @torch.no_grad()
    def _keep(self, proposed: Tensor, claimed: Tensor) -> Tensor:
        """Look again at what is claimed to be adversarial, in the batch as a whole; keep what is nearer.

        Returns:
            (N,) of bool, what was kept.
        """
        sound = proposed.flatten(1).isfinite().all(1)
        pending = claimed & sound
        change = torch.where(_column(pending), proposed - self.images, 0)
        kept = torch.zeros_like(claimed)
        for factor in _NUDGES:
            trial = torch.where(_column(pending), (self.images + factor * change).clamp(0, 1), self.images)
            holds = pending & (self.model(trial).argmax(-1) != self.labels)
            distance = (trial.double() - self.images.double()).flatten(1).norm(self.order, dim=1)
            nearer = holds & (distance < self.distance)
            self.best[nearer], self.distance[nearer] = trial[nearer], distance[nearer]
            kept |= nearer
            pending = pending & ~holds
            if not bool(pending.any()):
                break
        self.dropped += pending | (claimed & ~sound)
        return kept

    def result(self) -> Perturbations:
        """What was found, as arrays."""
        arrays = {
            "distance": self.distance,
            "clean": self.clean,
            "images": self.best,
            "dropped": self.dropped,
            "queries": self.queries,
            "converged": self.converged,
        }
        return Perturbations(**{name: array.cpu().numpy() for name, array in arrays.items()})


def _column(mask: Tensor) -> Tensor:
    return mask[:, None, None, None]


@contextmanager
def _seeded(seed: int, name: str, run: int, batch: int) -> Iterator[None]:
    """Random numbers of torch, numpy and Python that depend on these four alone; the caller's come back."""
    words = np.random.SeedSequence([seed, run, batch, *name.encode()]).generate_state(3)
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    kept = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=devices):
        try:
            torch.manual_seed(int(words[0]))
            np.random.seed(int(words[1]))
            random.seed(int(words[2]))
            yield
        finally:
            np.random.set_state(kept[0])
            random.setstate(kept[1])
