"""Run attacks: the smallest perturbation per image over several runs, batch by batch, resumable and sharded."""

from __future__ import annotations

import hashlib
import json
import random
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bu2td.errors import FileError, MissingPackageError, OptionError
from bu2td.evaluate.checks import Checked, check_count, check_images, check_labels, frozen
from bu2td.evaluate.robustness.curves import (
    Perturbations,
    accuracy_curve,
    join,
    robustness_rows,
    summarise,
    write_robustness,
)
from bu2td.evaluate.robustness.registry import Attack, find_attack
from bu2td.files import replacing

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
        OptionError: bad images, labels, attack, budget or numbers, or a device that is not there.
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
    runs = 1 if attack.deterministic else repeats
    parts = []
    with frozen(model, device) as place:
        target = _foolbox_model(model, place)
        for offset in range(0, len(images), batch_size):
            part = slice(offset, offset + batch_size)
            batch = _Batch(target, images[part].to(place, torch.float32), labels[part].to(place, torch.int64))
            for run in range(runs):
                with _seeded(seed, attack.name, run, start_batch + offset // batch_size):
                    batch.attack(runner)
            parts.append(batch.result())
    return join(parts)


def _foolbox_model(model: nn.Module, device: torch.device) -> Any:
    from bu2td.evaluate.robustness.foolbox_attacks import (
        PyTorchModel,  # says what to install where Foolbox is missing
    )

    return PyTorchModel(Checked(model).eval(), bounds=(0, 1), device=device)


class _Batch:
    """One batch of images: which are right, and the smallest perturbation of each so far."""

    def __init__(self, model: Any, images: Tensor, labels: Tensor) -> None:
        self.model, self.images, self.labels = model, images, labels
        with torch.no_grad():
            logits = model(images)
        check_labels(labels, len(labels), logits.shape[1])
        self.clean = logits.argmax(-1) == labels
        self.best = images.clone()
        self.distance = torch.where(self.clean, torch.inf, 0.0).double()
        self.dropped = torch.zeros_like(labels)

    def attack(self, runner: Any) -> None:
        """Run an attack once on the images that are classified correctly."""
        rows = self.clean.nonzero()[:, 0]
        if not len(rows):
            return
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(foolbox|eagerpy)\b")
            found, _, claims = runner(self.model, self.images[rows], self.labels[rows], epsilons=None)
        proposed = self.images.clone()
        proposed[rows] = found.detach().to(self.images.dtype)
        claimed = torch.zeros_like(self.clean)
        claimed[rows] = claims
        self._keep(proposed, claimed)

    @torch.no_grad()
    def _keep(self, proposed: Tensor, claimed: Tensor) -> None:
        """Look again at what is claimed to be adversarial, in the batch as a whole, and keep what is nearer."""
        sound = proposed.flatten(1).isfinite().all(1)
        pending = claimed & sound
        change = torch.where(_column(pending), proposed - self.images, 0)
        for factor in _NUDGES:
            trial = torch.where(_column(pending), (self.images + factor * change).clamp(0, 1), self.images)
            holds = pending & (self.model(trial).argmax(-1) != self.labels)
            distance = (trial.double() - self.images.double()).flatten(1).norm(dim=1)
            nearer = holds & (distance < self.distance)
            self.best[nearer], self.distance[nearer] = trial[nearer], distance[nearer]
            pending = pending & ~holds
            if not bool(pending.any()):
                break
        self.dropped += pending | (claimed & ~sound)

    def result(self) -> Perturbations:
        """What was found, as arrays."""
        arrays = (self.distance, self.clean, self.best, self.dropped)
        return Perturbations(*(array.cpu().numpy() for array in arrays))


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


# --- files --------------------------------------------------------------------------------------------


def attack_images(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    attacks: Sequence[str | Attack],
    folder: str | Path,
    *,
    repeats: int = 3,
    budget: str = "full",
    seed: int = 0,
    batch_size: int = 128,
    shard: tuple[int, int] = (0, 1),
    device: str | torch.device | None = None,
    progress: bool = True,
) -> None:
    """Attack images batch by batch, one file ATTACK-BATCH.npz each; what is there already is not done again.

    Args:
        attacks: names or `Attack`s.
        folder: where the files go; made if it is not there.
        shard: (i, n): this process takes the batches i, i + n, i + 2n, ...; files do not depend on n.
        progress: show a bar.
        model, images, labels, repeats, budget, seed, batch_size, device: as `smallest_perturbations`.

    Raises:
        FileError: a file there belongs to other settings, weights or images, or one cannot be written.
        OptionError, ModelOutputError, NonFiniteError, MissingPackageError: as `smallest_perturbations`.
    """
    check_images(images)
    labels = check_labels(labels, len(images), None)
    found = [find_attack(attack) for attack in ([attacks] if isinstance(attacks, str | Attack) else attacks)]
    for name, value in (("repeats", repeats), ("batch_size", batch_size)):
        check_count(name, value)
    check_count("seed", seed, 0)
    index, count = _check_shard(shard)
    place = Path(folder)
    _make(place)
    batches = -(-len(images) // batch_size)
    common = {
        "weights": _digest_model(model),
        "images": _digest([images, labels]),
        "samples": len(images),
        "batch_size": batch_size,
    }
    jobs = [(attack, batch) for attack in found for batch in range(index, batches, count)]
    for attack, batch in _bar(jobs, progress):
        path = place / f"{attack.name}-{batch:05d}.npz"
        mark = {
            **common,
            "attack": attack.describe(budget),
            "repeats": 1 if attack.deterministic else repeats,
            "seed": seed,
        }
        if _is_done(path, mark):
            continue
        part = slice(batch * batch_size, (batch + 1) * batch_size)
        options: dict[str, Any] = {"repeats": repeats, "budget": budget, "seed": seed, "batch_size": batch_size}
        result = smallest_perturbations(
            model, images[part], labels[part], attack, **options, device=device, start_batch=batch
        )
        _save(path, result, mark)


def collect(folder: str | Path, attacks: Sequence[str | Attack]) -> dict[str, Perturbations]:
    """Put the batches of every attack together again.

    Args:
        folder: as given to `attack_images`.
        attacks: names or `Attack`s.

    Returns:
        By attack, perturbations of all images in their order.

    Raises:
        FileError: batches are missing (the message says which, and which shard writes them), files are damaged, or
            they belong to different runs.
        OptionError: an attack is unknown.
    """
    names = [find_attack(attack).name for attack in ([attacks] if isinstance(attacks, str | Attack) else attacks)]
    return {name: _collect(Path(folder), name) for name in names}


def _collect(folder: Path, name: str) -> Perturbations:
    pattern = re.compile(re.escape(name) + r"-(\d{5,})\.npz")
    files = {int(m[1]): p for p in folder.glob(f"{name}-*.npz") if (m := pattern.fullmatch(p.name))}
    again = "Run attack_images (bu2td evaluate robustness) once more with the same options"
    if not files:
        raise FileError(f"{folder} has no results of the attack {name!r}. {again}")
    parts, marks = [], {}
    for batch, path in sorted(files.items()):
        try:
            part, marks[batch] = _load(path)
        except _DAMAGED as error:
            raise FileError(f"{path} is damaged ({error}). {again}: it is done anew") from error
        parts.append(part)
    first = next(iter(marks.values()))
    for batch, mark in marks.items():
        if mark != first:
            raise FileError(
                f"{files[batch]} and {files[min(files)]} come from different runs: they differ in "
                f"{_differences(mark, first)}. Use a folder of its own for every run, or delete one of the two runs"
            )
    missing = sorted(set(range(-(-first["samples"] // first["batch_size"]))) - set(files))
    if missing:
        listed = ", ".join(map(str, missing[:20])) + (", ..." if len(missing) > 20 else "")
        raise FileError(
            f"{folder}: the attack {name!r} lacks {len(missing)} of its batches ({listed}). {again}; of n shards, "
            f"shard i writes the batches i, i + n, i + 2n, ..."
        )
    return join(parts)


_DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)


def _save(path: Path, result: Perturbations, mark: dict[str, Any]) -> None:
    with replacing(path) as temporary:
        np.savez_compressed(temporary, mark=json.dumps(mark), **vars(result))


def _load(path: Path) -> tuple[Perturbations, dict[str, Any]]:
    with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:  # np.load alone leaves a bad file open
        mark = json.loads(str(file["mark"]))
        found = Perturbations(*(file[name] for name in ("distance", "clean", "images", "dropped")))
    if not len(found.distance) == len(found.clean) == len(found.images) == len(found.dropped):
        raise ValueError("arrays of different lengths")
    return found, mark


def _is_done(path: Path, mark: dict[str, Any]) -> bool:
    """Whether a file holds this very result; one that is cut off is none."""
    if not path.exists():
        return False
    try:
        _, found = _load(path)
    except _DAMAGED:
        return False
    if found != mark:
        raise FileError(
            f"{path} belongs to another run: it differs in {_differences(found, mark)}. Use another folder, or "
            f"delete this one's files"
        )
    return True


def _differences(first: dict[str, Any], second: dict[str, Any]) -> str:
    words = {"weights": "the model's weights", "images": "the images", "attack": "the attack's settings"}
    return ", ".join(words.get(k, k) for k in {**first, **second} if first.get(k) != second.get(k))


def _digest(tensors: Sequence[Tensor], words: str = "") -> str:
    digest = hashlib.sha256(words.encode())
    for tensor in tensors:
        plain = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(plain.view(torch.uint8).numpy().tobytes() if plain.numel() else b"")
    return digest.hexdigest()


def _digest_model(model: nn.Module) -> str:
    named = dict((*model.named_parameters(), *model.named_buffers()))
    return _digest(list(named.values()), f"{model!r} {list(named)}")


def _check_shard(shard: tuple[int, int]) -> tuple[int, int]:
    try:
        index, count = shard
    except (TypeError, ValueError):
        raise OptionError(f"shard must be a pair (i, n), found {shard!r}") from None
    check_count("the number of shards", count)
    check_count("the shard", index, 0)
    if index >= count:
        raise OptionError(f"shard {index} of {count}: shards are numbered from 0 to {count - 1}")
    return index, count


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"{folder} cannot be made: {error.strerror}") from error


def _bar(jobs: list[tuple[Attack, int]], progress: bool) -> Any:
    if not progress:
        return jobs
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise MissingPackageError(
            "a progress bar needs tqdm. Run: pip install tqdm, or use progress=False"
        ) from error
    return tqdm(jobs, desc="attacks", unit="batch")


__all__ = [
    "Perturbations",
    "accuracy_curve",
    "attack_images",
    "collect",
    "robustness_rows",
    "smallest_perturbations",
    "summarise",
    "write_robustness",
]
