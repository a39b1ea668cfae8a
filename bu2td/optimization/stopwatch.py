"""Times steps in turns, within a budget."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

#: A sample of a step lasts at least so many seconds.
SAMPLE = 0.004
#: Rounds of a place.
ROUNDS = 5


class Budget:
    """Seconds that may be spent, by the clock on the wall.

    Args:
        seconds: all of them.
        clock: tells the time.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock, self.seconds = clock, seconds
        self.end = clock() + seconds

    @property
    def left(self) -> float:
        """Seconds that are left; negative where more was spent."""
        return self.end - self.clock()

    def share_left(self) -> float:
        """The share that is left."""
        return self.left / self.seconds


class Stopwatch:
    """Seconds of steps on one device.

    On one thread of the CPU it is the process' own time, which other processes lengthen least; on more threads the
    time on the wall; on a GPU the time between two events of its stream.

    Args:
        device: where the steps run.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def seconds(self, step: Callable[[], Any], count: int = 1) -> float:
        """Seconds of one of ``count`` steps in a row."""
        if self.device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            for _ in range(count):
                step()
            end.record()
            end.synchronize()
            return float(begin.elapsed_time(end)) / 1e3 / count
        alone = self.device.type == "cpu" and torch.get_num_threads() == 1
        clock = time.process_time if alone else time.perf_counter
        start = clock()
        for _ in range(count):
            step()
        if self.device.type in ("xpu", "mps"):
            getattr(torch, self.device.type).synchronize()
        return (clock() - start) / count

    def pair(self, old: Callable[[], Any], new: Callable[[], Any], rounds: int = ROUNDS) -> tuple[float, float]:
        """Seconds of two steps: the old one's median, and that over the median of their ratio within a round."""
        times = self.rounds({"old": old, "new": new}, rounds, SAMPLE)
        before = statistics.median(times["old"])
        return before, before / ratio(times["old"], times["new"])

    def rounds(
        self, steps: Mapping[str, Callable[[], Any]], rounds: int, sample: float = 0.0
    ) -> dict[str, list[float]]:
        """Seconds of every step in every round; each has run once before, and their order turns."""
        counts = {}
        for name, step in steps.items():
            first = self.seconds(step)
            if self.device.type == "cuda" or first < sample:  # the first was slower than those that follow
                first = self.seconds(step)
            counts[name] = max(1, min(1000, math.ceil(sample / max(first, 1e-7))))
        names = list(steps)
        times: dict[str, list[float]] = {name: [] for name in names}
        for index in range(rounds):
            shift = index % len(names)
            order = names[shift:] + names[:shift]
            for name in order[::-1] if index % 2 else order:
                times[name].append(max(self.seconds(steps[name], counts[name]), 1e-9))
        return times


def ratio(slower: list[float], faster: list[float]) -> float:
    """How many times faster one step is than the other: the median of their ratios within the rounds."""
    return statistics.median(a / b for a, b in zip(slower, faster, strict=True))
