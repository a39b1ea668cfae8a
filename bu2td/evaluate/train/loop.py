"""Training one network: SGD with Nesterov momentum and a learning rate in steps, resumable after every epoch.

Source: Lelekas et al. (2020), section 4.1. Everything random in an epoch is drawn from (seed, epoch), the
augmentation of an image from (seed, epoch, image); so a run that was killed and resumed draws what it would have
drawn, and several processes share the batches that one process would have had. (Dropout masks are drawn by every
process for itself, and on the CPU batch normalisation sees the share of one process.)
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from bu2td.errors import FileError, NonFiniteError
from bu2td.evaluate.data.augment import Augmented, mix
from bu2td.evaluate.data.sets import Images, batch_of
from bu2td.evaluate.schema import Epoch, write_table
from bu2td.evaluate.settings import Settings
from bu2td.evaluate.train.checkpoint import CHECKPOINT, read_checkpoint, write_checkpoint
from bu2td.evaluate.train.trainee import Trainee

_LOOK_EVERY = 20  # steps between two looks at the loss, which make a GPU wait


def fit(
    classifier: nn.Module,
    train: Images,
    validation: Images,
    settings: Settings,
    folder: Path,
    *,
    engine: Any,
    seed: int,
    identity: dict[str, Any],
    title: str = "training",
) -> list[Epoch]:
    """Train a classifier in place, from its checkpoint where there is one.

    Args:
        classifier: images (N, C, H, W) in [0, 1] -> logits (N, K).
        train, validation: what to learn from, and what to measure after every epoch.
        settings: the hyper-parameters of this network.
        folder: of checkpoint.pt, log.csv and TensorBoard's events.
        engine: from `bu2td.evaluate.train.engine.start`.
        seed: of batches, augmentation and dropout.
        identity: what makes this training this one; a checkpoint of another is refused.
        title: in front of the progress bar.

    Returns:
        One row per epoch, those before a resumption included.

    Raises:
        NonFiniteError: the loss is not finite; the checkpoint of the epoch before is kept.
        RunFolderError: the checkpoint belongs to another training.
        FileError: a file cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"{folder} cannot be made: {error.strerror}") from error
    state = _begun(folder / CHECKPOINT, identity, title, engine)
    history = [Epoch(**row) for row in state["log"]] if state else []
    if state is not None:
        classifier.load_state_dict(state["model"])
    classifier.to(engine.device)
    if len(history) >= settings.epochs:
        return history
    shape = tuple(train[0][0].shape)
    trainee = Trainee(classifier, settings, engine, shape, state["optimizer"] if state else None)
    loop = _Loop(trainee, settings, seed)
    with _Board(folder, engine, len(history)) as board:
        for epoch in range(len(history), settings.epochs):
            row = loop.run(epoch, train, validation, title)
            history.append(row)
            board.add(row)
            if engine.is_global_zero:
                write_checkpoint(folder / CHECKPOINT, classifier, trainee.optimizer.state_dict(), history, identity)
                write_table(Epoch, history, folder)
            engine.barrier()
    return history


def _begun(path: Path, identity: dict[str, Any], title: str, engine: Any) -> dict[str, Any] | None:
    """The checkpoint of a training that was begun; a damaged one is none, and that is said in one line.

    Raises:
        RunFolderError: it is that of another training.
    """
    if not path.is_file():
        return None
    try:
        return read_checkpoint(path, identity)
    except FileError as error:
        if engine.is_global_zero:
            print(f"{title}: {error}; this network is trained again from the start", file=sys.stderr)
        return None


def learning_rate(settings: Settings, epoch: int) -> float:
    """lr decay_rate^m in an epoch (from 0), where m milestones have been passed."""
    passed = sum(epoch >= math.ceil(share * settings.epochs - 1e-9) for share in settings.decay_milestones)
    return settings.lr * settings.decay_rate**passed


class _Loop:
    def __init__(self, trainee: Trainee, settings: Settings, seed: int) -> None:
        self.trainee, self.settings, self.engine, self.seed = trainee, settings, trainee.engine, seed

    def run(self, epoch: int, train: Images, validation: Images, title: str) -> Epoch:
        """One epoch of training, then a look at the validation images."""
        begin = time.perf_counter()
        lr = learning_rate(self.settings, epoch)
        for group in self.trainee.optimizer.param_groups:
            group["lr"] = lr
        torch.manual_seed(mix(self.seed, epoch, self.engine.global_rank))
        loss, accuracy = self._train(epoch, train, title)
        self.trainee.write_back()
        held_out = measure(self.trainee.twin, validation, self.settings, self.engine)
        return Epoch(epoch + 1, lr, loss, accuracy, *held_out, time.perf_counter() - begin)

    def _train(self, epoch: int, train: Images, title: str) -> tuple[float, float]:
        settings, engine = self.settings, self.engine
        batches = Batches(
            len(train), settings.batch_size, mix(self.seed, epoch), engine.global_rank, engine.world_size
        )
        images = Augmented(train, settings, mix(self.seed, epoch))
        self.trainee.module.train()
        sums = torch.zeros(3, device=engine.device)
        bar = _bar(batches, engine, f"{title}, epoch {epoch + 1}/{settings.epochs}")
        for step, (batch, labels) in enumerate(loaded(images, bar, settings, engine)):
            loss, logits = self.trainee.step(batch, labels)
            hits = (logits.argmax(1) == labels).sum()
            sums += torch.stack([loss * len(labels), hits, torch.full_like(hits, len(labels))])
            if step % _LOOK_EVERY == 0 or step == len(batches) - 1:
                self._look(sums, epoch, step)
        loss_sum, hit_sum, count = engine.all_reduce(sums, reduce_op="sum").tolist()
        return loss_sum / count, hit_sum / count

    def _look(self, sums: Tensor, epoch: int, step: int) -> None:
        if not math.isfinite(sums[0].item()):
            raise NonFiniteError(
                f"the loss is not finite in epoch {epoch + 1}, step {step + 1}, at a learning rate of "
                f"{learning_rate(self.settings, epoch):g}; "
                + (f"the checkpoint of epoch {epoch} is kept: " if epoch else "")
                + "try a smaller --lr"
                + (", or --amp-dtype bfloat16" if self.settings.amp else "")
            )


class Batches:
    """One process's share of every batch of an epoch: indices, the same batches whatever the number of processes.

    Args:
        size: number of images.
        batch_size: of all processes together; an incomplete last batch is left out, unless it is the only one.
        seed: of the order.
        rank, world: which process of how many.
    """

    def __init__(self, size: int, batch_size: int, seed: int, rank: int = 0, world: int = 1) -> None:
        order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
        count = max(size // batch_size, 1)
        self.batches = [part[rank::world].tolist() for part in order.split(batch_size)[:count]]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)


@torch.no_grad()
def measure(classifier: nn.Module, images: Images, settings: Settings, engine: Any) -> tuple[float, float]:
    """Mean cross-entropy and accuracy over images, by all processes together."""
    rank, world = engine.global_rank, engine.world_size
    own = list(range(rank, len(images), world))
    batches = [own[i : i + 256] for i in range(0, len(own), 256)]
    classifier.eval()
    sums = torch.zeros(2, device=engine.device, dtype=torch.float64)
    for batch, labels in loaded(images, batches, settings, engine):
        with engine.autocast():
            logits = classifier(batch)
        loss = F.cross_entropy(logits.float(), labels, reduction="sum")
        sums += torch.stack([loss.double(), (logits.argmax(1) == labels).sum().double()])
    loss_sum, hits = engine.all_reduce(sums, reduce_op="sum").tolist()
    return loss_sum / len(images), hits / len(images)


def loaded(images: Any, batches: Any, settings: Settings, engine: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of images and labels on the engine's device; `batches` holds lists of indices."""
    source: Dataset[Any] = _Whole(images)
    loader = DataLoader(source, sampler=batches, batch_size=None, num_workers=settings.workers, collate_fn=tuple)
    for batch, labels in loader:
        yield batch.to(engine.device, non_blocking=True), labels.to(engine.device, non_blocking=True)


class _Whole(Dataset[Any]):
    """Images by lists of indices."""

    def __init__(self, images: Images) -> None:
        self.images = images

    def __getitem__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        return batch_of(self.images, indices)


def _bar(batches: Batches, engine: Any, title: str) -> Any:
    from tqdm import tqdm

    return tqdm(batches, desc=title, unit="step", leave=False, disable=None if engine.is_global_zero else True)


class _Board:
    """TensorBoard's events, where TensorBoard is installed; those after a resumption replace lost ones.

    They are a convenience: where they cannot be written, the training goes on.
    """

    def __init__(self, folder: Path, engine: Any, done: int) -> None:
        self.writer: Any = None
        if engine.is_global_zero:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                return
            with suppress(OSError):
                self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1)

    def __enter__(self) -> _Board:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.writer is not None:
            with suppress(OSError):
                self.writer.close()

    def add(self, row: Epoch) -> None:
        """Write one epoch."""
        for name, value in asdict(row).items():
            if self.writer is not None and name != "epoch":
                with suppress(OSError):
                    self.writer.add_scalar(name, value, row.epoch)
