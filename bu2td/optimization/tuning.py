"""Measured choices: every place alone, then the network as a whole against what went in.

A form that is faster alone may be slower where it stands: its neighbours read another format, or the caches are
full of something else. So the rewritten network takes turns with the network that went in; rules without which it
is faster are taken back, one after the other, and all of them where that does not help.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from bu2td.errors import MissingPackageError, OptimizeError, first_line
from bu2td.ops import meta_copy
from bu2td.optimization.cost_model import Chooser
from bu2td.optimization.memory import Memory, place_key
from bu2td.optimization.places import Place
from bu2td.optimization.rules import BY_MACHINE, RULES
from bu2td.optimization.stopwatch import Budget, Stopwatch, ratio
from bu2td.optimization.transform import transform
from bu2td.optimization.trials import infer, trial
from bu2td.packages import imported
from bu2td.runtime import TopDownNetwork
from bu2td.version import __version__

#: Seconds that measuring may take.
SECONDS = 45.0
#: Of these, the share that is kept for the network as a whole.
WHOLE = 0.6
#: A rule is taken back where the network is so many times faster without it.
BETTER = 1.02
#: Multiply-accumulates that a step of a place takes at most; larger batches are a multiple of what was measured.
MOST = 1.5e9
#: Rounds of two networks.
_ROUNDS = (3, 7)

Build = Callable[[Sequence[str]], tuple[TopDownNetwork, Chooser]]


@dataclass(frozen=True)
class Finding:
    """What was found for a network as a whole.

    Attributes:
        declined: rules that are not used.
        seconds: of the network that went in and of the result, None where there was no time to measure.
        batch: images that these were measured with.
    """

    declined: tuple[str, ...] = ()
    seconds: tuple[float, float] | None = None
    batch: int = 0


@dataclass(frozen=True)
class Task:
    """What is to be made faster.

    Attributes:
        network: as it went in; never changed.
        mode: "training" or "inference".
        images: (N, C, H, W) that it will see.
        rules, force: as `bu2td.optimize` takes them.
    """

    network: TopDownNetwork
    mode: str
    images: Tensor
    rules: Mapping[str, str]
    force: Mapping[str, bool]

    @property
    def training(self) -> bool:
        """Whether a step is a forward and a backward pass."""
        return self.mode == "training"

    def key(self) -> str:
        """Of all that a finding depends on, but for the machine; weights are no part of it."""
        parts: list[Any] = [__version__, self.mode, list(self.images.shape), dict(self.rules), dict(self.force)]
        parts += [self.network.code, list(RULES)]
        for path, module in self.network.named_modules():
            tensors = [(n, [*t.shape], [*t.stride()]) for n, t in module.named_parameters(recurse=False)]
            text = module.code if isinstance(module, fx.GraphModule) else module.extra_repr()
            parts.append((path, type(module).__qualname__, text, tensors, str(self.images.dtype)))
        return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()

    def copied(self) -> TopDownNetwork:
        """A copy in the mode of the task."""
        twin = copy.deepcopy(self.network)
        twin.set_grad_checkpointing(False)
        return twin.train(self.training)

    def build(self, clock: Any, declined: Sequence[str], given: Any = None) -> tuple[TopDownNetwork, Chooser]:
        """The network with what measuring chooses, but for some rules."""
        network = self.copied() if given is None else given
        size, kind = len(self.images), self.images.device.type
        choose = Chooser(
            self.mode, kind, size, self.rules, self.force, tune="measure", clock=clock, declined=declined
        )
        transform(network, choose, tuple(self.images.shape))
        return network, choose


def tuned(
    task: Task, watch: Stopwatch | None = None, budget: Budget | None = None
) -> tuple[TopDownNetwork, Chooser, Finding]:
    """The network of a task, rewritten where that is faster on this machine.

    Args:
        task: what is to be made faster.
        watch: measures; by default on the images' device.
        budget: of measuring.

    Returns:
        The network, what chose its rewrites, and what was found as a whole.

    Raises:
        OptimizeError: the network does not run on the images in the mode.
    """
    device = task.images.device
    watch, budget = watch or Stopwatch(device), budget or Budget(SECONDS)
    memory, key = Memory(device), task.key()
    clock = PlaceClock(task, memory, watch, budget)
    known = memory.networks.get(key)
    if known is not None:
        seconds = known["seconds"]
        found = Finding(tuple(known["declined"]), None if seconds is None else tuple(seconds), known["batch"])
        clock.frozen = True
    else:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            found = _measured(task, clock, watch, budget)
        clock.frozen = True
        memory.networks[key] = {
            "declined": [*found.declined],
            "seconds": None if found.seconds is None else [*found.seconds],
            "batch": found.batch,
        }
        memory.write()
    network, choose = task.build(clock, found.declined)
    return network, choose, found


class PlaceClock:
    """Seconds of the forms of places: those that are known, and those that there is time to measure.

    Attributes:
        frozen: measure nothing more.
    """

    def __init__(self, task: Task, memory: Memory, watch: Stopwatch, budget: Budget) -> None:
        self.task, self.memory, self.watch, self.budget = task, memory, watch, budget
        self.frozen = False

    def __call__(self, place: Place) -> tuple[float, float] | None:
        """Seconds of the form as it is and of the new one; None where they are not known."""
        images, training = self.task.images, self.task.training
        batch = len(images)
        key = place_key(place, self.task.mode, batch, images.dtype)
        known = self.memory.times.get(key)
        if known is not None or self.frozen or self.budget.share_left() < WHOLE:
            return known
        work = place.forms(training)[0].macs * (3 if training else 1)
        count = min(batch, max(1, math.ceil(MOST / max(work, 1.0))))
        try:
            old, new = trial(place, training, count, place.last, images)
            pair = self.watch.pair(old, new)
        except RuntimeError:  # no memory for it, or no such operation on the device
            return None
        self.memory.times[key] = (pair[0] * batch / count, pair[1] * batch / count)
        return self.memory.times[key]


def _measured(task: Task, clock: PlaceClock, watch: Stopwatch, budget: Budget) -> Finding:
    """Measure all places, then the network as a whole."""
    asked: list[Place] = []
    made = task.build(lambda place: asked.append(place), (), given=meta_copy(task.network))[1].made
    places = list(dict.fromkeys(asked))
    groups = [rule for rule in _tried() if any(r.rule == rule for r in made)]
    bar: Any = _bar(len(places) + len(groups) + 2)
    try:
        for place in places:
            clock(place)
            bar.update()
        return _whole(task, clock, Contest(task, watch, budget), bar)
    finally:
        bar.close()


def _tried() -> list[str]:
    """Rules that a network is tried without."""
    return [name for name, rule in RULES.items() if not rule.free]


def _whole(task: Task, clock: PlaceClock, contest: Contest, bar: Any) -> Finding:
    before = contest.prepared(task.copied())
    start = contest.budget.clock()
    network, choose = task.build(clock, ())
    contest.build_seconds = contest.budget.clock() - start
    groups = [rule for rule in _tried() if any(r.rule == rule for r in choose.made if r.chosen)]
    built: dict[Sequence[str] | None, TopDownNetwork] = {None: before, (): network}

    def gain(old: Sequence[str] | None, new: Sequence[str]) -> float | None:
        bar.update()
        if contest.rounds() < _ROUNDS[0]:
            return None
        for declined in (old, new):
            if declined is not None and declined not in built:
                built[declined] = task.build(clock, declined)[0]
        found = contest.gain(built[old], built[new])
        for declined in set(built) - {None, old, new}:
            del built[declined]
        return found

    declined, seconds = settle(groups, gain, lambda: contest.seconds)
    return Finding(declined, seconds, contest.batch)


def settle(
    groups: Sequence[str],
    gain: Callable[[Sequence[str] | None, Sequence[str]], float | None],
    seconds: Callable[[], tuple[float, float] | None] = lambda: None,
) -> tuple[tuple[str, ...], tuple[float, float] | None]:
    """Take back what does not pay.

    Args:
        groups: rules that are used, in the order in which they are tried without.
        gain: how many times faster the network without the rules ``new`` is than without those of ``old``, or than
            the network that went in (None); None where there is no time left.
        seconds: of the two that were last compared.

    Returns:
        The rules to decline, all where nothing is faster than the network that went in, and the seconds of that and
        of the result, where they were measured.
    """
    whole = gain(None, ())
    if whole is None:
        return (), None
    times = seconds()
    declined: tuple[str, ...] = ()
    for group in groups:
        found = gain(declined, (*declined, group))
        if found is not None and found > BETTER:
            declined = (*declined, group)
    plain = tuple(rule for rule in BY_MACHINE if rule in groups)
    if whole < BETTER and not set(plain) <= set(declined):
        found = gain(declined, tuple(dict.fromkeys((*declined, *plain))))
        declined = tuple(dict.fromkeys((*declined, *plain))) if found is not None and found > 1 else declined
    if declined:
        again = gain(None, declined)
        whole, times = (whole, times) if again is None else (again, seconds())
        if again is None and whole < 1:
            return tuple(RULES), None
    return (tuple(RULES), None) if whole < 1 else (declined, times)


class Contest:
    """Two networks in turns, at the images of a task or as many of them as there is time for.

    Attributes:
        batch: images of a step.
        seconds: of the two networks that were last compared.
    """

    def __init__(self, task: Task, watch: Stopwatch, budget: Budget) -> None:
        self.task, self.watch, self.budget = task, watch, budget
        self.images, self.batch = task.images, len(task.images)
        self.seconds: tuple[float, float] | None = None
        self.step_seconds = self.build_seconds = 0.0

    def prepared(self, network: TopDownNetwork) -> TopDownNetwork:
        """The network that went in, once it has run: what that takes decides on the batch.

        Raises:
            OptimizeError: it does not run.
        """
        few = min(2, self.batch)
        try:
            step = self._step(network, self.images[:few])
            step()
            took = self._wall(step) / few
        except (RuntimeError, ValueError, IndexError) as error:
            shape = (few, *self.images.shape[1:])
            raise OptimizeError(
                f"the network does not run a step of {self.task.mode} on images of shape {shape}: "
                f"{first_line(error)}. Pass example_inputs of the batch and size that it is for"
            ) from error
        steps = 2 * (_ROUNDS[0] + 1)
        room = int(max(self.budget.left, 0.0) / 3 / steps / max(took, 1e-9))
        self.batch = max(few, min(self.batch, room))
        self.images = self.images[: self.batch]
        self.step_seconds = took * self.batch
        return network

    def rounds(self) -> int:
        """Rounds of two networks that there is time for, one of them still to be built."""
        left = max(self.budget.left - 2 * self.build_seconds, 0.0)
        return min(int(left / 2 / max(self.step_seconds, 1e-9)) - 2, _ROUNDS[1])

    def gain(self, old: TopDownNetwork, new: TopDownNetwork) -> float:
        """How many times faster the new network is."""
        rounds = max(self.rounds(), _ROUNDS[0])
        steps = {"old": self._step(old, self.images), "new": self._step(new, self.images)}
        times = self.watch.rounds(steps, rounds, sample=0.01)
        found = ratio(times["old"], times["new"])
        before = sorted(times["old"])[len(times["old"]) // 2]
        self.seconds = (before, before / found)
        return found

    def _wall(self, step: Callable[[], Any]) -> float:
        start = self.budget.clock()
        self.watch.seconds(step)
        return self.budget.clock() - start

    def _step(self, network: TopDownNetwork, images: Tensor) -> Callable[[], Any]:
        return partial(_train if self.task.training else infer, network.train(self.task.training), images)


def _train(network: TopDownNetwork, images: Tensor) -> None:
    for parameter in network.parameters():
        parameter.grad = None
    network(images).float().square().mean().backward()


class _NoBar:
    def update(self) -> None:
        """Show nothing."""

    close = update


def _bar(total: int) -> Any:
    """A bar on stderr where that is a terminal and tqdm is installed."""
    with suppress(MissingPackageError):
        return imported("tqdm").tqdm(total=total, desc="optimize", unit="place", leave=False, disable=None)
    return _NoBar()
