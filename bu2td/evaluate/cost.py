"""What a run will cost on this machine, from a short probe, and on machines whose rates were measured.

Trainings and most experiments are probed: a few steps and images, with random weights. How often an attack asks
depends on how sure the network is, so that is not probed: the registry has what each asks of a trained network, and
a question is what is timed. A rough number, good to a factor of two or three. What is there already is not counted,
nor is the report.
"""

from __future__ import annotations

import dataclasses
import math
import random
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bu2td.evaluate.checks import logits_of
from bu2td.evaluate.data.sets import Data, first_images
from bu2td.evaluate.data.sets import Part as Some
from bu2td.evaluate.folder import RunFolder
from bu2td.evaluate.parts import Part, path_of
from bu2td.evaluate.rates import Rate, measured_rates, multiply_accumulates, predict
from bu2td.evaluate.robustness.branches import SCALES
from bu2td.evaluate.robustness.gather import MORE
from bu2td.evaluate.robustness.masking import FACTOR
from bu2td.evaluate.robustness.registry import BUDGETS, find_attack
from bu2td.evaluate.settings import FIELDS, Settings
from bu2td.evaluate.stages import Context, Network, Stage
from bu2td.evaluate.train.accuracy import RESULT
from bu2td.evaluate.train.engine import device_name, start
from bu2td.evaluate.train.loop import fit
from bu2td.evaluate.train.model import Classifier, build_classifier, normalisation_of
from bu2td.runtime import TopDownNetwork

_LOOKED_AT = 8  # images of a probe of an experiment, where each takes less than _QUICK seconds to classify
_QUICK = 0.01
_STEPS = 3  # of a probe of a training, where the first one took less than _SHORT seconds
_SHORT = 1.0
_STEP = 5.0  # seconds of a step beyond which a smaller batch is probed
_RANGE = re.compile(r"[-/](\d{6})-(\d{6})$")  # of the images of a part
_NUMBERS = re.compile(r"([-/][\d.]+)+$")


@dataclass(frozen=True)
class Piece:
    """Work of one kind on one network: so many units, and seconds for each."""

    stage: str
    network: str
    what: str
    units: float
    unit: str
    each: float

    @property
    def seconds(self) -> float:
        """Of all units."""
        return self.units * self.each


@dataclass(frozen=True)
class Estimate:
    """What a run will cost: here, and where rates were measured (device, seconds)."""

    pieces: tuple[Piece, ...]
    device: str
    others: tuple[tuple[str, float], ...]

    @property
    def seconds(self) -> float:
        """Of all pieces."""
        return sum(piece.seconds for piece in self.pieces)

    @property
    def title(self) -> str:
        """Over the table."""
        return f"estimated cost, by a short probe on {self.device}"

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A row per piece, and the sum."""
        made = [
            {"stage": p.stage, "network": p.network, "what": p.what, "units": f"{p.units:,.0f} {p.unit}",
             "s each": f"{p.each:.3g}", "time": _time(p.seconds)}
            for p in self.pieces
        ]  # fmt: skip
        blank = dict.fromkeys(("network", "what", "units", "s each"), "")
        return [*made, {"stage": "total", **blank, "time": _time(self.seconds)}]

    @property
    def notes(self) -> list[str]:
        """How far it is to be trusted, and what it would be elsewhere."""
        found = [
            "rough (a factor of 2 to 3): experiments were timed on a few images and networks with random weights; "
            "attacks ask as often as they asked LeNetFC on Fashion-MNIST"
        ]
        found += [f"on {device}, by rates measured there: {_time(seconds)}" for device, seconds in self.others]
        if not any(device.startswith("cuda") for device, _ in self.others):
            found.append("on a GPU: no rates are known (python bench/rates.py measures them where there is one)")
        return found


def _time(seconds: float) -> str:
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.1f} s"


def estimated(settings: Settings, data: Data, stages: Mapping[str, Stage | None], folder: Path) -> Estimate:
    """Probe every kind of work; nothing is written into the folder, random numbers stay as they are.

    Args:
        settings: of the call.
        data: of the run.
        stages: what will run by name; "train" is None.
        folder: of the run, to see what is done already.
    """
    engine = start(settings)
    pieces: list[Piece] = []
    with _undisturbed(), tempfile.TemporaryDirectory() as temporary:
        probe = _Prober(settings, data, engine, folder, Path(temporary))
        for stage in stages.values():
            pieces += probe.trainings() if stage is None else probe.experiment(stage)
        here = device_name(engine.device)
        others = [
            (device, sum(piece.seconds * probe.slower(piece, rates) for piece in pieces))
            for device, rates in measured_rates().items()
            if device != here
        ]
    return Estimate(tuple(pieces), here, tuple(others))


@contextmanager
def _undisturbed() -> Iterator[None]:
    kept = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        np.random.set_state(kept[0])
        random.setstate(kept[1])


class _Prober:
    def __init__(self, settings: Settings, data: Data, engine: Any, folder: Path, place: Path) -> None:
        self.settings, self.data, self.engine, self.folder, self.place = settings, data, engine, folder, place
        self.models: dict[str, Classifier] = {}
        self.forward: dict[str, float] = {}
        self.both: dict[tuple[str, int], float] = {}

    def model(self, arrangement: str) -> Classifier:
        """A network with random weights, in eval mode, on the engine's device."""
        if arrangement not in self.models:
            own = self.settings.for_arrangement(arrangement)
            few = Some(self.data.train, range(min(64, len(self.data.train))))
            norm = normalisation_of(few, own.normalise)
            made = build_classifier(own, self.data, arrangement, self.settings.seed, norm)
            self.models[arrangement] = made.to(self.engine.device).eval()
        return self.models[arrangement]

    def slower(self, piece: Piece, rates: Sequence[Rate]) -> float:
        """By what factor a device of these rates is slower than this one."""
        model = self.model(piece.network)
        macs = multiply_accumulates(model, first_images(self.data.test, 1)[0].to(self.engine.device))
        if piece.stage != "train":
            return predict(rates, "inference", macs) / self._forward(piece.network)
        held_out = round(len(self.data.train) * self.settings.validation_share)
        epoch = (len(self.data.train) - held_out) * predict(rates, "training", macs)
        return (epoch + held_out * predict(rates, "inference", macs)) / piece.each

    # --- training -------------------------------------------------------------------------------------

    def trainings(self) -> list[Piece]:
        """The epochs that are to be done."""
        pieces = []
        for arrangement in self.settings.arrangements:
            runs = [f"{arrangement}-{k}" for k in range(self.settings.repeats)]
            missing = sum(not (self.folder / "runs" / run / RESULT).is_file() for run in runs)
            if missing:
                own = self.settings.for_arrangement(arrangement)
                pieces.append(Piece("train", arrangement, "training and validation", missing * own.epochs, "epochs",
                                    self._epoch(arrangement, own)))  # fmt: skip
        return pieces

    def _epoch(self, arrangement: str, own: Settings) -> float:
        """Seconds of an epoch: its steps, and a look at the validation images."""
        held_out = round(len(self.data.train) * own.validation_share)
        size = min(own.batch_size, len(self.data.train) - held_out)
        probed = max(1, min(size, int(_STEP / self._both(arrangement, 1))))
        step = self._steps(arrangement, own, probed, 1)
        if step < _SHORT:
            step = self._steps(arrangement, own, probed, _STEPS)
        steps = max((len(self.data.train) - held_out) // own.batch_size, 1)
        return steps * step * size / probed + held_out * self._forward(arrangement)

    def _steps(self, arrangement: str, own: Settings, size: int, steps: int) -> float:
        """Seconds of a step, in the second of two epochs: the first one warms up."""
        own = dataclasses.replace(own, epochs=2, batch_size=size, top_down={})
        train = Some(self.data.train, range(min(steps * size, len(self.data.train))))
        held_out = Some(self.data.train, range(min(8, len(self.data.train))))
        model = build_classifier(own, self.data, arrangement, own.seed, (self.model(arrangement).mean, None))
        place = self.place / f"{arrangement}-{steps}"
        log = fit(model, train, held_out, own, place, engine=self.engine, seed=0, identity={}, title="probe")
        return min(row.seconds for row in log) / max(len(train) // size, 1)

    def _forward(self, arrangement: str) -> float:
        """Seconds of an image in a batch."""
        if arrangement not in self.forward:
            images, _ = first_images(self.data.test, self._batch(arrangement))
            seconds = _seconds(lambda: logits_of(self.model(arrangement), images))
            self.forward[arrangement] = seconds / len(images)
        return self.forward[arrangement]

    def _both(self, arrangement: str, count: int) -> float:
        """Seconds of an image forwards and backwards, in a batch of so many."""
        model = self.model(arrangement)
        images = first_images(self.data.test, count)[0].to(self.engine.device).requires_grad_()

        def step() -> None:
            float(torch.autograd.grad(model(images).sum(), images)[0].sum())

        if (arrangement, count) not in self.both:
            self.both[arrangement, count] = _seconds(step) / len(images)
        return self.both[arrangement, count]

    def _batch(self, arrangement: str) -> int:
        """Images of a batch that takes a second at most."""
        return max(1, min(self.settings.attack_batch_size, 50, int(1 / self._both(arrangement, 1))))

    # --- experiments ----------------------------------------------------------------------------------

    def experiment(self, stage: Stage) -> list[Piece]:
        """What is to be done of a stage, by network and kind of work."""
        pieces: list[Piece] = []
        for arrangement in self.settings.arrangements:
            parts = [
                part
                for part in stage.plan(self._context(arrangement, self.settings))
                if not path_of(part.name, self.folder / "parts" / stage.name).exists()
            ]
            if not parts:
                continue
            units = _units(parts)
            if stage.name == "robustness":
                each = {kind: self._attack(arrangement, kind) for kind in units}
            else:
                each = self._probed(stage, arrangement)
            pieces += [Piece(stage.name, arrangement, kind, n, "images", each[kind]) for kind, n in units.items()]
            if stage.name == "robustness":
                pieces += self._branches(arrangement, units)
        return pieces

    def _attack(self, arrangement: str, kind: str) -> float:
        """Seconds per image of an attack, all its runs: as often as it asks, a question or a gradient."""
        attack = find_attack(kind.removeprefix(MORE))
        longer = FACTOR if kind.startswith(MORE) else 1
        asked = attack.asks[BUDGETS.index(self.settings.attack_budget)] * longer
        asked *= attack.runs(self.settings.attack_repeats)
        if attack.group == "white-box":  # a gradient is two of its questions: forwards and backwards
            return asked * self._both(arrangement, self._batch(arrangement)) / 2
        return asked * self._forward(arrangement)

    def _branches(self, arrangement: str, units: Mapping[str, float]) -> list[Piece]:
        """Perturbations in L2 in one, two, all inputs of a pyramid, scaled."""
        network = self.model(arrangement).network
        images = sum(n for kind, n in units.items() if not kind.startswith(MORE) and find_attack(kind).norm == "l2")
        if not isinstance(network, TopDownNetwork) or not images:
            return []
        inputs = len(network.plan.levels)
        chosen = inputs + math.comb(inputs, 2) + (inputs > 2)  # ways to choose one, two, all
        each = (1 + len(SCALES) * chosen) * self._forward(arrangement)
        return [Piece("robustness", arrangement, "branches", images, "images", each)]

    def _probed(self, stage: Stage, arrangement: str) -> dict[str, float]:
        """Seconds per image by kind of work."""
        count = _LOOKED_AT if self._forward(arrangement) < _QUICK else 1
        samples: dict[str, Any] = {n: count for n in FIELDS if n.endswith("_samples")}
        few = dataclasses.replace(self.settings, repeats=1, **samples)
        found: dict[str, float] = {}
        for part in stage.plan(self._context(arrangement, few)):
            kind = _kind(part)
            if kind not in found:  # the first time may have imported something
                found[kind] = min(_timed(part.make), _timed(part.make)) / _images_of(part)
        return found

    def _context(self, arrangement: str, settings: Settings) -> _Probe:
        wanted = arrangement in settings.attack_arrangements
        settings = dataclasses.replace(
            settings,
            arrangements=(arrangement,),
            attack_arrangements=(arrangement,) if wanted else ("bu",),
            top_down={},
        )
        run = RunFolder(self.place, settings, {})
        return _Probe(run, self.data, self.engine, None, self.model(arrangement))


@dataclass(frozen=True)
class _Probe(Context):
    """A run whose networks are all one, with random weights, and right about every image."""

    model: Classifier | None = None

    def networks(self, arrangements: Sequence[str], repeats: int) -> list[Network]:
        own = self.settings.arrangements[0]
        return [(own, k) for k in range(min(repeats, self.settings.repeats)) if own in arrangements]

    def repeats(self, arrangements: Sequence[str]) -> list[int]:
        return [k for _, k in self.networks(self.settings.arrangements, self.settings.repeats)]

    def classifier(self, arrangement: str, repeat: int) -> Classifier:
        assert self.model is not None
        return self.model

    def sample(self, count: int) -> tuple[list[int], Tensor, Tensor]:
        positions = self.drawn(count)
        images, _ = first_images(Some(self.data.test, positions))
        return positions, images, logits_of(self.classifier("", 0), images).argmax(1)


def _kind(part: Part) -> str:
    return _NUMBERS.sub("", part.name[part.name.index("/") :]).removeprefix("/") or "all"


def _images_of(part: Part) -> int:
    found = _RANGE.search(part.name)
    assert found is not None, part.name  # all stages name their parts so
    return int(found[2]) - int(found[1])


def _units(parts: Sequence[Part]) -> dict[str, float]:
    """Images by kind of work."""
    found: dict[str, float] = {}
    for part in parts:
        found[_kind(part)] = found.get(_kind(part), 0) + _images_of(part)
    return found


def _timed(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def _seconds(work: Callable[[], object]) -> float:
    """The shorter of two times, after a first one that does not count."""
    _timed(work)
    return min(_timed(work), _timed(work))
