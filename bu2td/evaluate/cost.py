"""What a run will cost on this machine, from a short probe of every kind of its work.

Networks have random weights while they are probed, so that attacks take other paths than they will: a rough number,
good to a factor of two or three. What is there already is not counted, nor is the report.
"""

from __future__ import annotations

import dataclasses
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
from bu2td.evaluate.robustness.registry import ATTACKS
from bu2td.evaluate.settings import FIELDS, Settings
from bu2td.evaluate.stages import Context, Network, Stage
from bu2td.evaluate.train.accuracy import RESULT
from bu2td.evaluate.train.engine import device_name, start
from bu2td.evaluate.train.loop import fit
from bu2td.evaluate.train.model import Classifier, build_classifier, normalisation_of

_ATTACKED, _LOOKED_AT = 2, 8  # images of a probe: of an attack, and of other experiments
_STEPS = 3  # of a probe of a training, where the first one took less than _SHORT seconds
_SHORT = 1.0
_PATIENCE = 1.5  # seconds for one piece of work
_FULL = 15.0  # the full budget of an attack against the quick one, measured over all attacks on LeNetFC
_RANGE = re.compile(r"-(\d{6})-(\d{6})$")  # of the images of a part
_NUMBERS = re.compile(r"(-[\d.]+)+$")


class _Enough(BaseException):
    """A probe takes too long."""


@dataclass(frozen=True)
class Piece:
    """Work of one kind on one network: so many units, and seconds for each."""

    stage: str
    network: str
    what: str
    units: float
    unit: str
    each: float


@dataclass(frozen=True)
class Estimate:
    """What a run will cost."""

    pieces: tuple[Piece, ...]
    device: str
    cut: int

    @property
    def seconds(self) -> float:
        """Of all pieces."""
        return sum(piece.units * piece.each for piece in self.pieces)

    @property
    def title(self) -> str:
        """Over the table."""
        return f"estimated cost, by a short probe on {self.device}"

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A row per piece, and the sum."""
        made = [
            {"stage": p.stage, "network": p.network, "what": p.what, "units": f"{p.units:,.0f} {p.unit}",
             "s each": f"{p.each:.3g}", "time": _time(p.units * p.each)}
            for p in self.pieces
        ]  # fmt: skip
        blank = dict.fromkeys(("network", "what", "units", "s each"), "")
        return [*made, {"stage": "total", **blank, "time": _time(self.seconds)}]

    @property
    def notes(self) -> list[str]:
        """How far it is to be trusted."""
        found = [
            "rough (a factor of 2 to 3): experiments were timed on a few images and networks with random weights"
        ]
        if self.cut:
            found.append(
                f"{self.cut} attacks were stopped after {_PATIENCE:g} s: 15 times their quick budget is taken"
            )
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
    cut = 0
    with _undisturbed(), tempfile.TemporaryDirectory() as temporary:
        probe = _Prober(settings, data, engine, folder, Path(temporary))
        for stage in stages.values():
            pieces += probe.trainings() if stage is None else probe.experiment(stage)
        cut = probe.cut
    return Estimate(tuple(pieces), device_name(engine.device), cut)


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
        self.cut = 0

    def model(self, arrangement: str) -> Classifier:
        """A network with random weights, in eval mode, on the engine's device."""
        if arrangement not in self.models:
            own = self.settings.for_arrangement(arrangement)
            few = Some(self.data.train, range(min(64, len(self.data.train))))
            norm = normalisation_of(few, own.normalise)
            made = build_classifier(own, self.data, arrangement, self.settings.seed, norm)
            self.models[arrangement] = made.to(self.engine.device).eval()
        return self.models[arrangement]

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
        step = self._steps(arrangement, own, size, 1)
        if step < _SHORT:
            step = self._steps(arrangement, own, size, _STEPS)
        steps = max((len(self.data.train) - held_out) // own.batch_size, 1)
        return steps * step + held_out * self._forward(arrangement)

    def _steps(self, arrangement: str, own: Settings, size: int, steps: int) -> float:
        """Seconds of a step, in the second of two epochs: the first one warms up."""
        own = dataclasses.replace(own, epochs=2, top_down={})
        train = Some(self.data.train, range(min(steps * size, len(self.data.train))))
        held_out = Some(self.data.train, range(min(8, len(self.data.train))))
        model = build_classifier(own, self.data, arrangement, own.seed, (self.model(arrangement).mean, None))
        place = self.place / f"{arrangement}-{steps}"
        log = fit(model, train, held_out, own, place, engine=self.engine, seed=0, identity={}, title="probe")
        return min(row.seconds for row in log) / max(len(train) // size, 1)

    def _forward(self, arrangement: str, count: int = 32) -> float:
        """Seconds of an image in a batch."""
        images, _ = first_images(self.data.test, count)
        return _seconds(lambda: logits_of(self.model(arrangement), images)) / len(images)

    # --- experiments ----------------------------------------------------------------------------------

    def experiment(self, stage: Stage) -> list[Piece]:
        """What is to be done of a stage, by network and kind of work."""
        pieces: list[Piece] = []
        first: dict[str, float] = {}
        reference = ""
        for arrangement in self.settings.arrangements:
            all_parts = [
                part
                for part in stage.plan(self._context(arrangement, self.settings))
                if not path_of(part.name, self.folder / "parts" / stage.name).exists()
            ]
            if not all_parts:
                continue
            if first and stage.name == "robustness":  # the same attacks: as much slower as the network is
                ratio = self._both(arrangement, _ATTACKED) / self._both(reference, _ATTACKED)
                each = {kind: seconds * ratio for kind, seconds in first.items()}
            else:
                each, reference = self._probed(stage, arrangement), arrangement
                first = first or each
            for kind, units in _units(all_parts, self._count(stage)).items():
                gain = self._gain(arrangement, _few(stage))
                pieces.append(Piece(stage.name, arrangement, kind, units, "images", each.get(kind, 0) * gain))
        return pieces

    def _count(self, stage: Stage) -> int:
        """Images of a part whose name does not say it."""
        names = [n for n, f in FIELDS.items() if f.metadata["group"] == stage.name and n.endswith("_samples")]
        asked = getattr(self.settings, names[0]) if names else 0
        return min(asked or len(self.data.test), len(self.data.test))

    def _probed(self, stage: Stage, arrangement: str) -> dict[str, float]:
        """Seconds per image by kind of work."""
        samples: dict[str, Any] = {n: _few(stage) for n in FIELDS if n.endswith("_samples")}
        few = dataclasses.replace(self.settings, attack_repeats=1, repeats=1, attack_runs=1, **samples)
        parts = stage.plan(self._context(arrangement, few))
        quick = {p.name: p for p in self._quick(stage, arrangement, few)}
        found: dict[str, float] = {}
        for part in parts:
            kind = _kind(part)
            if kind in found:
                continue
            seconds = self._timed(part.make, arrangement)
            if seconds is None:
                self.cut += 1
                again = quick.get(part.name)
                short = self._timed(again.make, arrangement) if again else None
                seconds = max(_FULL * (short or 0), _PATIENCE)
            else:  # the first time may have imported something
                seconds = min(seconds, self._timed(part.make, arrangement) or seconds)
            found[kind] = seconds / (_images_of(part) or _few(stage)) * self._repeats(kind)
        return found

    def _quick(self, stage: Stage, arrangement: str, few: Settings) -> list[Part]:
        if stage.name != "robustness" or few.attack_budget == "quick":
            return []
        return stage.plan(self._context(arrangement, dataclasses.replace(few, attack_budget="quick")))

    def _repeats(self, kind: str) -> int:
        attack = ATTACKS.get(kind.rpartition(":")[2])
        return self.settings.attack_repeats if attack is not None and not attack.deterministic else 1

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

    def _timed(self, work: Callable[[], object], arrangement: str) -> float | None:
        """Seconds of a piece of work; None: it was stopped."""
        end = time.perf_counter() + _PATIENCE

        def look(*_: object) -> None:
            if time.perf_counter() > end:
                raise _Enough

        hook = self.model(arrangement).network.register_forward_pre_hook(look)
        begin = time.perf_counter()
        try:
            work()
        except _Enough:
            return None
        finally:
            hook.remove()
        return time.perf_counter() - begin

    def _both(self, arrangement: str, count: int) -> float:
        """Seconds of an image forwards and backwards, in a batch of so many."""
        model = self.model(arrangement)
        images = first_images(self.data.test, count)[0].to(self.engine.device).requires_grad_()

        def step() -> None:
            float(torch.autograd.grad(model(images).sum(), images)[0].sum())

        return _seconds(step) / len(images)

    def _gain(self, arrangement: str, few: int) -> float:
        """What an image costs in a batch of the real size, against one of the probe."""
        size = min(self.settings.attack_batch_size, 50, len(self.data.test))
        return min(self._both(arrangement, size) / self._both(arrangement, few), 1.0)


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


def _few(stage: Stage) -> int:
    return _ATTACKED if stage.name == "robustness" else _LOOKED_AT


def _kind(part: Part) -> str:
    return _NUMBERS.sub("", part.name.rpartition("/")[2]).strip("0123456789") or "all"


def _images_of(part: Part) -> int:
    found = _RANGE.search(part.name)
    return int(found[2]) - int(found[1]) if found else 0


def _units(parts: Sequence[Part], count: int) -> dict[str, float]:
    """Images by kind of work."""
    found: dict[str, float] = {}
    for part in parts:
        found[_kind(part)] = found.get(_kind(part), 0) + (_images_of(part) or count)
    return found


def _seconds(work: Callable[[], object]) -> float:
    """The shorter of two times, after a first one that does not count."""
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return min(times[1:])
