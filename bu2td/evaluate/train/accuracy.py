"""Experiment 1: bottom-up against top-down test accuracy (Lelekas et al., 2020, section 4.2, figure 4)."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

import bu2td
from bu2td.errors import FileError
from bu2td.evaluate.data.sets import Data, split
from bu2td.evaluate.folder import RunFolder
from bu2td.evaluate.locks import turn
from bu2td.evaluate.schema import Training, write_table
from bu2td.evaluate.settings import Settings
from bu2td.evaluate.train.engine import peak_memory
from bu2td.evaluate.train.loop import CHECKPOINT, fit, measure, read_checkpoint
from bu2td.evaluate.train.model import Classifier, build_classifier, normalisation_of
from bu2td.files import write_json

RESULT = "result.json"


def run_accuracy(
    folder: RunFolder, data: Data, engine: Any, only: Collection[tuple[str, int]] | None = None
) -> list[Training]:
    """Train every network as often as asked for, and measure it on the test images.

    What is finished is read, what was begun goes on from its checkpoint.

    Args:
        folder: the evaluation's.
        data: what is learned.
        engine: from `bu2td.evaluate.train.engine.start`.
        only: the trainings (arrangement, repeat) to do; None: all.

    Returns:
        A row per training that is finished, which accuracy.csv holds too.

    Raises:
        Bu2tdError: as `bu2td.evaluate.train.loop.fit` and `bu2td.evaluate.train.model.build_classifier`.
    """
    settings = folder.settings
    for repeat in range(settings.repeats):
        normalisation: tuple[Tensor | None, Tensor | None] | None = None
        for arrangement in settings.arrangements:
            path = folder.run(arrangement, repeat)
            identity = identity_of(settings, arrangement, repeat)
            if only is not None and (arrangement, repeat) not in only:
                continue
            if _finished(path, identity) is None:
                if normalisation is None:
                    normalisation = normalisation_of(_parts(settings, data, repeat)[0], settings.normalise)
                _train(path, identity, data, arrangement, repeat, normalisation, settings, engine)
            if engine.is_global_zero:
                with turn(folder.path):
                    write_table(Training, _all_finished(folder), folder.path)
    if engine.is_global_zero:
        with turn(folder.path):
            write_table(Training, _all_finished(folder), folder.path)
    return _all_finished(folder)


def _all_finished(folder: RunFolder) -> list[Training]:
    settings = folder.settings
    networks = [(a, k) for k in range(settings.repeats) for a in settings.arrangements]
    found = [_finished(folder.run(*network), identity_of(settings, *network)) for network in networks]
    return [row for row in found if row is not None]


def identity_of(settings: Settings, arrangement: str, repeat: int) -> dict[str, Any]:
    """What makes a training this one."""
    own = settings.for_arrangement(arrangement).identity("data", "training")
    left_out = ("repeats", "arrangements", "top_down")  # more of them change nothing of this one
    return {k: v for k, v in own.items() if k not in left_out} | {"arrangement": arrangement, "repeat": repeat}


def load_classifier(folder: RunFolder, data: Data, arrangement: str, repeat: int) -> Classifier:
    """A trained network of an evaluation, in eval mode on the CPU.

    Raises:
        FileError: it has not been trained to its end, or its checkpoint is damaged.
    """
    settings, path = folder.settings.for_arrangement(arrangement), folder.run(arrangement, repeat)
    if not (path / RESULT).is_file():
        raise FileError(
            f"{path} holds no finished training of {arrangement!r}, repeat {repeat}; bu2td evaluate train -o "
            f"{folder.path} --resume trains it"
        )
    state = read_checkpoint(path / CHECKPOINT, identity_of(folder.settings, arrangement, repeat))
    shape = [state["model"].get(name) for name in ("mean", "std")]
    classifier = build_classifier(settings, data, arrangement, settings.seed + repeat, (shape[0], shape[1]))
    classifier.load_state_dict(state["model"])
    return classifier.eval()


def _parts(settings: Settings, data: Data, repeat: int) -> Any:
    return split(data.train, settings.seed + repeat, settings.validation_share)


def _train(
    path: Path,
    identity: dict[str, Any],
    data: Data,
    arrangement: str,
    repeat: int,
    normalisation: tuple[Tensor | None, Tensor | None],
    settings: Settings,
    engine: Any,
) -> Training:
    seed, own = settings.seed + repeat, settings.for_arrangement(arrangement)
    train, validation = _parts(settings, data, repeat)
    classifier = build_classifier(own, data, arrangement, seed, normalisation)
    macs = _macs(classifier, data)
    begin = time.perf_counter()
    with peak_memory(engine.device) as memory:
        title = f"{arrangement} {repeat + 1}/{settings.repeats}"
        log = fit(
            classifier, train, validation, own, path, engine=engine, seed=seed, identity=identity, title=title
        )
    seconds = time.perf_counter() - begin
    result = Training(
        arrangement,
        repeat,
        seed,
        sum(p.numel() for p in classifier.parameters() if p.requires_grad),
        macs,
        own.epochs,
        log[-1].train_loss,
        log[-1].validation_accuracy,
        measure(classifier, data.test, own, engine)[1],
        math.nan,
        math.nan,
        round(max(sum(row.seconds for row in log), seconds), 2),
        sum(row.seconds for row in log) / len(log),
        round(memory[0], 1),
    )
    if engine.is_global_zero:
        write_json({"identity": identity, "result": asdict(result)}, path / RESULT)
    engine.barrier()
    return result


def _macs(classifier: Classifier, data: Data) -> int:
    """Multiply-accumulates for one image."""
    network = classifier.network
    if isinstance(network, bu2td.TopDownNetwork):
        return network.plan.cost.macs
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    was_training = classifier.training
    classifier.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        classifier(torch.zeros(1, *data.shape))
    classifier.train(was_training)
    return counter.get_total_flops() // 2


def _finished(path: Path, identity: dict[str, Any]) -> Training | None:
    file = path / RESULT
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        result = Training(**content["result"])
        own = content["identity"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FileError(
            f"{file} is damaged ({type(error).__name__}); delete it to train this network again"
        ) from error
    return result if own == json.loads(json.dumps(identity)) else None
