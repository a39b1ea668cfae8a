"""Experiment 1: bottom-up against top-down test accuracy (Lelekas et al., 2020, section 4.2, figure 4)."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import bu2td
from bu2td.errors import Bu2tdError, FileError
from bu2td.evaluate.arrays import read_arrays, write_arrays
from bu2td.evaluate.checks import check_logits, evaluating
from bu2td.evaluate.data.sets import Data, Images, split
from bu2td.evaluate.folder import RunFolder
from bu2td.evaluate.locks import turn
from bu2td.evaluate.parts import as_row
from bu2td.evaluate.schema import Epoch, Prediction, Training, write_table
from bu2td.evaluate.settings import Settings
from bu2td.evaluate.train.calibration import calibration_error, top_k_accuracy
from bu2td.evaluate.train.checkpoint import CHECKPOINT, check_identity, read_checkpoint, write_checkpoint
from bu2td.evaluate.train.identity import identity_of, is_given, networks_of
from bu2td.evaluate.train.loop import fit, loaded
from bu2td.evaluate.train.memory import cuda_peak, step_memory
from bu2td.evaluate.train.model import Classifier, build_classifier, normalisation_of
from bu2td.evaluate.train.weights import given_classifier
from bu2td.files import loads, write_json

RESULT = "result.json"
PREDICTIONS = "predictions.npz"
_TOP = 5  # counts where there are more than twice as many classes
_BATCH = 256

Norms = tuple[Tensor | None, Tensor | None]
#: The columns of `Prediction` that `PREDICTIONS` holds, as arrays (N,).
Columns = dict[str, np.ndarray]


def run_accuracy(
    folder: RunFolder, data: Data, engine: Any, only: Collection[tuple[str, int]] | None = None
) -> list[Training]:
    """Train every network as often as asked for, and measure it on the test images.

    What is finished is read, what was begun goes on from its checkpoint, what is damaged is made again.

    Args:
        folder: the evaluation's.
        data: what is learned.
        engine: from `bu2td.evaluate.train.engine.start`.
        only: the networks (arrangement, repeat) to make; None: all.

    Returns:
        A row per network that is finished, which accuracy.csv holds too; predictions.csv has those of every image.

    Raises:
        Bu2tdError: as `bu2td.evaluate.train.loop.fit` and `bu2td.evaluate.train.model.build_classifier`.
    """
    identities = _identities(folder, data)
    maker = _Maker(folder.settings, data, engine, {}, {})
    for arrangement, repeat in (n for n in identities if only is None or n in only):
        path, identity = folder.run(arrangement, repeat), identities[arrangement, repeat]
        with naming(arrangement, repeat):
            if not _is_finished(path, identity, engine):
                maker.make(path, identity, arrangement, repeat)
        if engine.is_global_zero:
            with turn(folder.path):
                write_table(Training, _finished(folder, identities), folder.path)
        engine.barrier()
    rows = _finished(folder, identities)
    if engine.is_global_zero:
        with turn(folder.path):
            write_table(Training, rows, folder.path)
            write_table(Prediction, _predictions(folder, rows), folder.path)
    engine.barrier()
    return rows


def _identities(folder: RunFolder, data: Data) -> dict[tuple[str, int], dict[str, Any]]:
    """The identities of all networks; so each can be built, before the first is trained."""
    settings, found, built = folder.settings, {}, {}
    for arrangement, repeat in networks_of(settings):
        with naming(arrangement, repeat):
            if arrangement not in built:
                own = settings.for_arrangement(arrangement)
                built[arrangement] = build_classifier(own, data, arrangement, settings.seed, (None, None)).network
            stored = (read_result(folder.run(arrangement, repeat)) or {}).get("identity")
            found[arrangement, repeat] = identity_of(settings, arrangement, repeat, built[arrangement], stored)
    return found


@contextmanager
def naming(arrangement: str, repeat: int) -> Iterator[None]:
    """Put a network's name in front of what goes wrong with it."""
    try:
        yield
    except Bu2tdError as error:
        raise type(error)(f"{arrangement}, repeat {repeat}: {error}") from error


def load_classifier(folder: RunFolder, data: Data, arrangement: str, repeat: int) -> Classifier:
    """A trained network of an evaluation, in eval mode on the CPU.

    Raises:
        FileError: it has not been trained to its end, or its checkpoint is damaged.
        RunFolderError: the model is not what it was when it was trained.
    """
    settings, path = folder.settings.for_arrangement(arrangement), folder.run(arrangement, repeat)
    again = f"bu2td evaluate train -o {folder.path} --resume trains it"
    if not (path / RESULT).is_file():
        raise FileError(f"{path} holds no finished training of {arrangement!r}, repeat {repeat}; {again}")
    with naming(arrangement, repeat):
        try:
            state = read_checkpoint(path / CHECKPOINT)
        except FileError as error:
            raise FileError(f"{error}; {again} again") from error
        mean, std = (state["model"].get(name) for name in ("mean", "std"))
        classifier = build_classifier(settings, data, arrangement, settings.seed + repeat, (mean, std))
        own = state["identity"]
        identity = identity_of(folder.settings, arrangement, repeat, classifier.network, own)
        check_identity(path / CHECKPOINT, own, identity)
        classifier.load_state_dict(state["model"])
    return classifier.eval()


# --- making -------------------------------------------------------------------------------------------


@dataclass
class _Maker:
    """Trains and measures; what networks share is made once: normalisation by repeat, memory by arrangement."""

    settings: Settings
    data: Data
    engine: Any
    norms: dict[int, Norms]
    memory: dict[str, float]

    def make(self, path: Path, identity: dict[str, Any], arrangement: str, repeat: int) -> None:
        """Train one network, or take its given weights, and write what it says of the test images."""
        given = is_given(self.settings, arrangement)
        classifier, log, seconds = (self._given if given else self._trained)(path, identity, arrangement, repeat)
        own = self.settings.for_arrangement(arrangement)
        found = predict(classifier.to(self.engine.device), self.data.test, own, self.engine)
        if not self.engine.is_global_zero:
            return
        last = log[-1] if log else None
        result = Training(
            arrangement=arrangement,
            repeat=repeat,
            seed=self.settings.seed + repeat,
            parameters=sum(p.numel() for p in classifier.parameters() if p.requires_grad),
            macs=_macs(classifier, self.data),
            epochs=len(log),
            train_loss=last.train_loss if last else math.nan,
            validation_accuracy=last.validation_accuracy if last else math.nan,
            **_measures(found, len(self.data.classes)),
            seconds=seconds,
            seconds_per_epoch=sum(row.seconds for row in log) / len(log) if log else math.nan,
            peak_memory_mib=self.memory.get(arrangement, math.nan),
        )
        _write_arrays(found, path / PREDICTIONS)
        write_json({"identity": identity, "result": asdict(result)}, path / RESULT)

    def _trained(
        self, path: Path, identity: dict[str, Any], arrangement: str, repeat: int
    ) -> tuple[Classifier, list[Epoch], float]:
        settings, seed = self.settings, self.settings.seed + repeat
        own = settings.for_arrangement(arrangement)
        train, validation = self._images(repeat)
        classifier = build_classifier(own, self.data, arrangement, seed, self._norms(repeat))
        title = f"{arrangement} {repeat + 1}/{settings.repeats}"
        begin = time.perf_counter()
        with cuda_peak(self.engine.device) as peak:
            log = fit(
                *(classifier, train, validation, own, path),
                engine=self.engine,
                seed=seed,
                identity=identity,
                title=title,
            )
        seconds = round(max(sum(row.seconds for row in log), time.perf_counter() - begin), 2)
        if peak:
            self.memory[arrangement] = round(peak[0], 1)
        elif arrangement not in self.memory and settings.measure_memory and self.engine.is_global_zero:
            self.memory[arrangement] = step_memory(own, arrangement, self.data, self.engine.world_size)
        return classifier, log, seconds

    def _given(
        self, path: Path, identity: dict[str, Any], arrangement: str, repeat: int
    ) -> tuple[Classifier, list[Epoch], float]:
        """The weights go into the run's folder as if they had been trained there, for all that comes after."""
        classifier = given_classifier(self.settings, self.data, arrangement, self._norms(repeat))
        if self.engine.is_global_zero:
            _make_folder(path)
            write_checkpoint(path / CHECKPOINT, classifier, {}, [], identity)
        return classifier, [], math.nan

    def _images(self, repeat: int) -> tuple[Images, Images]:
        return split(self.data.train, self.settings.seed + repeat, self.settings.validation_share)

    def _norms(self, repeat: int) -> Norms:
        if repeat not in self.norms:
            self.norms[repeat] = normalisation_of(self._images(repeat)[0], self.settings.normalise)
        return self.norms[repeat]


@torch.no_grad()
def predict(classifier: nn.Module, images: Images, settings: Settings, engine: Any) -> Columns:
    """What a classifier says of images, by all processes together.

    Returns:
        "label", "predicted", "rank", "confidence" (N,), as in `Prediction`; of equal logits the first class wins.

    Raises:
        NonFiniteError: logits are not finite.
    """
    own = list(range(engine.global_rank, len(images), engine.world_size))
    batches = [own[i : i + _BATCH] for i in range(0, len(own), _BATCH)]
    table = torch.zeros(len(images), 4, dtype=torch.float64, device=engine.device)
    with evaluating(classifier):
        for indices, (batch, labels) in zip(batches, loaded(images, batches, settings, engine), strict=True):
            logits = check_logits(classifier(batch), len(batch)).double()
            order = logits.argsort(dim=1, descending=True, stable=True)
            rank = (order == labels[:, None]).double().argmax(1) + 1
            confidence = logits.softmax(1).amax(1)
            table[indices] = torch.stack([labels.double(), order[:, 0].double(), rank.double(), confidence], 1)
    found = engine.all_reduce(table, reduce_op="sum").cpu().numpy()
    names = ("label", "predicted", "rank")
    return {name: found[:, i].astype(np.int64) for i, name in enumerate(names)} | {"confidence": found[:, 3]}


def _measures(found: Columns, classes: int) -> dict[str, float]:
    return {
        "test_accuracy": top_k_accuracy(found["rank"], 1),
        "top5_accuracy": top_k_accuracy(found["rank"], _TOP) if classes > 2 * _TOP else math.nan,
        "calibration_error": calibration_error(found["confidence"], found["rank"] == 1),
    }


def _macs(classifier: Classifier, data: Data) -> int:
    """Multiply-accumulates for one image."""
    network = classifier.network
    if isinstance(network, bu2td.TopDownNetwork):
        return network.plan.cost.macs
    image = torch.zeros(1, *data.shape, device=next(classifier.parameters()).device)
    with evaluating(classifier), FlopCounterMode(display=False) as counter, torch.no_grad():
        classifier(image)
    return counter.get_total_flops() // 2


# --- files --------------------------------------------------------------------------------------------


def _is_finished(path: Path, identity: Mapping[str, Any], engine: Any) -> bool:
    """Whether a network is trained and measured, and nothing of it is damaged; what is damaged is said in a line.

    Raises:
        RunFolderError: the folder holds another training.
    """
    stored = read_result(path)
    if stored is None:
        if (path / RESULT).is_file():
            _say(engine, f"{path / RESULT} is damaged; this network is measured again")
        return False
    check_identity(path / RESULT, stored["identity"], identity)
    try:
        read_checkpoint(path / CHECKPOINT)
    except FileError:
        return False  # `fit` says so
    try:
        _read_arrays(path / PREDICTIONS)
    except FileError as error:
        _say(engine, f"{error}; this network is measured again")
        return False
    return True


def _say(engine: Any, line: str) -> None:
    if engine.is_global_zero:
        print(line, file=sys.stderr)


def read_result(path: Path) -> dict[str, Any] | None:
    """What result.json holds; None where it is missing or damaged."""
    try:
        content = loads((path / RESULT).read_text(encoding="utf-8"))
        return {"identity": dict(content["identity"]), "result": as_row(Training, content["result"])}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _finished(folder: RunFolder, identities: Mapping[tuple[str, int], Mapping[str, Any]]) -> list[Training]:
    """The networks that are finished, whoever trained them, in order of arrangement and repeat."""
    order = {name: place for place, name in enumerate(folder.settings.arrangements)}
    rows = []
    for arrangement, repeat in sorted(identities, key=lambda pair: (order[pair[0]], pair[1])):
        stored = read_result(folder.run(arrangement, repeat))
        if stored is not None and stored["identity"] == identities[arrangement, repeat]:
            rows.append(stored["result"])
    return rows


def _predictions(folder: RunFolder, networks: Sequence[Training]) -> Iterator[Prediction]:
    for network in networks:
        found = _read_arrays(folder.run(network.arrangement, network.repeat) / PREDICTIONS)
        columns = [found[name].tolist() for name in ("label", "predicted", "rank", "confidence")]
        for image, cells in enumerate(zip(*columns, strict=True)):
            yield Prediction(network.arrangement, network.repeat, image, *cells)


def _write_arrays(found: Columns, path: Path) -> None:
    write_arrays(found, path)


def _read_arrays(path: Path) -> Columns:
    arrays = read_arrays(path)
    found: Columns = {name: arrays[name] for name in ("label", "predicted", "rank", "confidence") if name in arrays}
    if (
        len(found) < 4
        or len({a.shape for a in found.values()}) > 1
        or any(a.ndim != 1 or a.dtype.kind not in "if" for a in found.values())
    ):
        raise FileError(f"{path} is damaged: expected four columns of numbers, one for every image")
    return found


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"{path} cannot be made: {error.strerror}") from error
