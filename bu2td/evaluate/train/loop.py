"""Training one network: SGD with Nesterov momentum and a learning rate in steps, resumable after every epoch.

Source: Lelekas et al. (2020), section 4.1. Everything random in an epoch is drawn from (seed, epoch), the
augmentation of an image from (seed, epoch, image); so a run that was killed and resumed draws what it would have
drawn, and several processes share the batches that one process would have had. (Dropout masks are drawn by every
process for itself.)
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from bu2td.errors import FileError, NonFiniteError, RunFolderError
from bu2td.evaluate.data.augment import Augmented, mix
from bu2td.evaluate.data.sets import Images
from bu2td.evaluate.schema import Epoch, write_table
from bu2td.evaluate.settings import Settings
from bu2td.evaluate.train.engine import synchronise_norms, training_context
from bu2td.files import replacing

CHECKPOINT = "checkpoint.pt"
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
        FileError: the checkpoint is damaged, or a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / CHECKPOINT
    state = read_checkpoint(path, identity) if path.is_file() else None
    if state is not None:
        classifier.load_state_dict(state["model"])
    if settings.channels_last:
        classifier.to(memory_format=torch.channels_last)
    classifier = synchronise_norms(classifier, engine)
    model: Any = torch.compile(classifier) if settings.torchcompile else classifier
    optimizer: Any = torch.optim.SGD(
        classifier.parameters(),
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=settings.momentum > 0,
    )
    model, optimizer = engine.setup(model, optimizer)
    history = []
    if state is not None:
        optimizer.load_state_dict(state["optimizer"])
        history = [Epoch(**row) for row in state["log"]]
    loop = _Loop(classifier, model, optimizer, settings, engine, seed)
    with _Board(folder, engine, len(history)) as board:
        for epoch in range(len(history), settings.epochs):
            row = loop.run(epoch, train, validation, title)
            history.append(row)
            board.add(row)
            _save(folder, classifier, optimizer, history, identity, engine)
    return history


def learning_rate(settings: Settings, epoch: int) -> float:
    """lr decay_rate^m in an epoch (from 0), where m milestones have been passed."""
    passed = sum(epoch >= math.ceil(share * settings.epochs - 1e-9) for share in settings.decay_milestones)
    return settings.lr * settings.decay_rate**passed


class _Loop:
    def __init__(
        self, classifier: nn.Module, model: Any, optimizer: Any, settings: Settings, engine: Any, seed: int
    ) -> None:
        self.classifier, self.model, self.optimizer = classifier, model, optimizer
        self.settings, self.engine, self.seed = settings, engine, seed

    def run(self, epoch: int, train: Images, validation: Images, title: str) -> Epoch:
        """One epoch of training, then a look at the validation images."""
        begin = time.perf_counter()
        lr = learning_rate(self.settings, epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        torch.manual_seed(mix(self.seed, epoch, self.engine.global_rank))
        loss, accuracy = self._train(epoch, train, title)
        held_out = measure(self.classifier, validation, self.settings, self.engine)
        return Epoch(epoch + 1, lr, loss, accuracy, *held_out, time.perf_counter() - begin)

    def _train(self, epoch: int, train: Images, title: str) -> tuple[float, float]:
        settings, engine = self.settings, self.engine
        batches = Batches(
            len(train), settings.batch_size, mix(self.seed, epoch), engine.global_rank, engine.world_size
        )
        images = Augmented(train, settings, mix(self.seed, epoch))
        self.model.train()
        sums = torch.zeros(3, device=engine.device)
        bar = _bar(batches, engine, f"{title}, epoch {epoch + 1}/{settings.epochs}")
        for step, (batch, labels) in enumerate(_loader(images, bar, settings, engine)):
            if settings.channels_last:
                batch = batch.contiguous(memory_format=torch.channels_last)
            with training_context(engine):
                logits = self.model(batch)
                loss = F.cross_entropy(logits.float(), labels)
            self.optimizer.zero_grad()
            engine.backward(loss)
            self.optimizer.step()
            hits = (logits.detach().argmax(1) == labels).sum()
            sums += torch.stack([loss.detach() * len(labels), hits, torch.full_like(hits, len(labels))])
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
    for batch, labels in _loader(images, batches, settings, engine):
        with engine.autocast():
            logits = classifier(batch)
        loss = F.cross_entropy(logits.float(), labels, reduction="sum")
        sums += torch.stack([loss.double(), (logits.argmax(1) == labels).sum().double()])
    loss_sum, hits = engine.all_reduce(sums, reduce_op="sum").tolist()
    return loss_sum / len(images), hits / len(images)


def _loader(images: Any, batches: Any, settings: Settings, engine: Any) -> Iterator[tuple[Tensor, Tensor]]:
    source: Dataset[Any] = images
    loader = DataLoader(source, batch_sampler=batches, num_workers=settings.workers, collate_fn=_collate)
    for batch, labels in loader:
        yield batch.to(engine.device, non_blocking=True), labels.to(engine.device, non_blocking=True)


def _collate(pairs: Sequence[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    return torch.stack([image for image, _ in pairs]), torch.tensor([label for _, label in pairs])


def _bar(batches: Batches, engine: Any, title: str) -> Any:
    from tqdm import tqdm

    return tqdm(batches, desc=title, unit="step", leave=False, disable=None if engine.is_global_zero else True)


# --- files --------------------------------------------------------------------------------------------


def read_checkpoint(path: Path, identity: dict[str, Any] | None = None) -> dict[str, Any]:
    """Read what `fit` wrote: model, optimizer, log, identity.

    Raises:
        FileError: missing, damaged, or not a checkpoint.
        RunFolderError: it is that of another training.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        own = state["identity"]
        assert {"model", "optimizer", "log"} <= set(state)
    except FileNotFoundError as error:
        raise FileError(f"there is no checkpoint {path}; train first") from error
    except Exception as error:  # what torch.load raises on garbage depends on the garbage
        raise FileError(
            f"{path} is not a checkpoint of a training ({type(error).__name__}); it may be truncated: delete it to "
            f"train this network again"
        ) from error
    if identity is not None and own != identity:
        odd = sorted(key for key in {*own, *identity} if own.get(key) != identity.get(key))
        changes = ", ".join(f"{key} was {own.get(key)!r}, is {identity.get(key)!r}" for key in odd[:4])
        raise RunFolderError(
            f"{path} belongs to another training ({changes}); choose another folder, or --overwrite"
        )
    return state


def _save(
    folder: Path, classifier: nn.Module, optimizer: Any, log: list[Epoch], identity: dict[str, Any], engine: Any
) -> None:
    if engine.is_global_zero:
        state = {
            "model": classifier.state_dict(),
            "optimizer": optimizer.state_dict(),
            "log": [asdict(row) for row in log],
            "identity": identity,
        }
        with replacing(folder / CHECKPOINT) as temporary:
            torch.save(state, temporary)
        write_table(Epoch, log, folder)
    engine.barrier()


class _Board:
    """TensorBoard's events, where TensorBoard is installed; those after a resumption replace lost ones."""

    def __init__(self, folder: Path, engine: Any, done: int) -> None:
        self.writer: Any = None
        if engine.is_global_zero:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                return
            self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1)

    def __enter__(self) -> _Board:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.writer is not None:
            self.writer.close()

    def add(self, row: Epoch) -> None:
        """Write one epoch."""
        for name, value in asdict(row).items():
            if self.writer is not None and name != "epoch":
                self.writer.add_scalar(name, value, row.epoch)
