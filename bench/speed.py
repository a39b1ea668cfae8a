"""Speed of optimised top-down networks against the same networks written by hand (`bench/rivals.py`).

    python bench/speed.py                        # everything, one core; goes on where it was stopped
    python bench/speed.py --match lenet_fc --repeat 3 --out /tmp/speed
    python bench/speed.py --tasks inference --kinds eager roofline
    python bench/speed.py --rates                # the rates of the cost model, one minute
    python bench/speed.py --families --repeat 7  # 24 networks against themselves, see bench/networks.py
    python bench/speed.py --families --quick     # three of them, eager
    python bench/speed.py --families --others --repeat 7  # 20 networks that no rule was made for

Per network, inference and a training step (forward, cross-entropy, backward, SGD with momentum), in one process:

eager     the rival as written, the rival under channels_last, and the converted network as it is, each against
          ``bu2td.optimize(network, mode)``
compiled  the rival as written and under channels_last, against the optimised network, all under torch.compile
roofline  where the time of the optimised network goes (inference only): per level the multiply-accumulates of one
          image that remain, the time that plain convolutions of the same shapes take alone, and the share of the
          level's time that this is. A level with minimal filtering can be above 1: its bound is the direct form

Every arm runs once in a round, in an order that turns from round to round; a speed-up is the median over rounds of
the rival's time over ours in the same round. Before anything is timed, the logits of all arms must agree (in a
training step: the losses, where the network has no dropout). On one CPU thread times are CPU seconds of the
process, which other processes lengthen least; else wall-clock. Writes bench/results/speed.csv and .json after every
job; rows of other settings, or of another device, are not mixed.
"""

from __future__ import annotations

import argparse
import copy
import fcntl
import math
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import _results
import rivals
import roofline
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bu2td
from bu2td.ir import format_table

TASKS = ("inference", "training")
KINDS = ("eager", "compiled", "roofline")
#: Of the families, on a GPU.
GPU_KINDS = ("bfloat16", "graphs")
COLUMNS = ("network", "task", "kind")
OURS = "optimised"
#: A round of an arm takes at least this long, on a CPU and elsewhere.
ROUND_SECONDS = {"cpu": 0.1}
_SHORT_SECONDS = 0.03
#: Of logits; of the loss of a training step, which sums in another order.
TOLERANCES = {"inference": 1e-4, "training": 1e-3}

Step = Callable[[], Tensor]


# --- arms ---------------------------------------------------------------------------------------------


def arms(name: str, task: str, kind: str, batch: int, device: torch.device) -> dict[str, tuple[nn.Module, bool]]:
    """Arm -> its network in the task's mode, and whether it takes channels_last images; ours is the first."""
    network, rival = rivals.build(name)
    network, rival = network.to(device), rival.to(device)
    ours = bu2td.optimize(network, task, batch_size=batch)
    made: dict[str, tuple[nn.Module, bool]] = {
        OURS: (ours, False),
        "as written": (rival, False),
        "channels_last": (copy.deepcopy(rival).to(memory_format=torch.channels_last), True),
    }
    if kind == "eager":
        made["converted"] = (network, False)
    for arm, (model, _) in made.items():
        if not (arm == OURS and task == "inference"):
            model.train(task == "training")
    if kind == "compiled":
        torch._dynamo.reset()
        made = {arm: (torch.compile(model), last) for arm, (model, last) in made.items()}  # type: ignore[misc]
    return made


def inference(model: nn.Module, images: Tensor) -> Step:
    """A forward pass; the step returns the logits."""

    def step() -> Tensor:
        with torch.inference_mode():
            return model(images)

    return step


def training(model: nn.Module, images: Tensor) -> Step:
    """A training step; the step returns the loss."""
    labels = torch.zeros(len(images), dtype=torch.long, device=images.device)
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)

    def step() -> Tensor:
        optimiser.zero_grad(set_to_none=True)
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimiser.step()
        return loss.detach()

    return step


def steps(name: str, task: str, kind: str, batch: int, device: torch.device) -> dict[str, Step]:
    """The step of every arm; each has run, and their results agree."""
    shape = (batch, *rivals.PAIRS[name].shape)
    images = torch.rand(shape, generator=torch.Generator().manual_seed(1)).to(device)
    make = inference if task == "inference" else training
    found: dict[str, Step] = {}
    results: dict[str, Tensor] = {}
    for arm, (model, last) in arms(name, task, kind, batch, device).items():
        given = images.contiguous(memory_format=torch.channels_last) if last else images
        found[arm] = make(model, given)
        results[arm] = found[arm]().float()
    dropout = any(isinstance(m, nn.Dropout) and m.p > 0 for m in rivals.PAIRS[name].rival().modules())
    if task == "inference" or not dropout:
        _agree(results, TOLERANCES[task], f"{name}, {task}, {kind}")
    return found


def _agree(results: dict[str, Tensor], tolerance: float, where: str) -> None:
    expected = results["as written"]
    for arm, found in results.items():
        difference = float((found - expected).abs().max() / expected.abs().max())
        if not difference <= tolerance:
            raise SystemExit(f"{where}: {arm} differs from the rival by {difference:.1e} relative")


# --- timing -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """How to time: rounds, the device, its clock, and a file that is locked meanwhile."""

    repeat: int
    device: torch.device
    threads: int
    lock: Path | None = None

    def seconds(self, step: Callable[[], Any], count: int) -> float:
        """Seconds of one step, of ``count`` in a row."""
        cpu = self.device.type == "cpu"
        clock = time.process_time if cpu and self.threads == 1 else time.perf_counter
        self._wait()
        start = clock()
        for _ in range(count):
            step()
        self._wait()
        return (clock() - start) / count

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the lock, where there is one."""
        if self.lock is None:
            yield
            return
        with self.lock.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def turns(names: list[str], rounds: int) -> Iterator[list[str]]:
    """The arms in an order that turns, forwards and backwards in turn."""
    for index in range(rounds):
        shift = index % len(names)
        order = names[shift:] + names[:shift]
        yield order[::-1] if index % 2 else order


def compare(found: Mapping[str, Callable[[], Any]], settings: Settings) -> dict[str, list[float]]:
    """Seconds of every arm in every round."""
    least = ROUND_SECONDS.get(settings.device.type, _SHORT_SECONDS)
    counts = {}
    times: dict[str, list[float]] = {arm: [] for arm in found}
    with settings.alone():
        for arm, step in found.items():
            settings.seconds(step, 2)
            counts[arm] = max(1, math.ceil(least / settings.seconds(step, 1)))
        for order in turns(list(found), settings.repeat):
            for arm in order:
                times[arm].append(settings.seconds(found[arm], counts[arm]))
    return times


def speed_rows(name: str, task: str, kind: str, settings: Settings) -> list[dict[str, Any]]:
    """A row for each rival of the optimised network."""
    batch = rivals.PAIRS[name].batches[TASKS.index(task)]
    times = compare(steps(name, task, kind, batch, settings.device), settings)
    ours = times.pop(OURS)
    rows = []
    for arm, theirs in times.items():
        ratios = sorted(b / a for a, b in zip(ours, theirs, strict=True))
        rows.append(
            {
                **dict(zip(COLUMNS, (name, task, kind), strict=True)),
                "rival": arm,
                "batch": batch,
                "rival_ms": round(1e3 * statistics.median(theirs), 3),
                "ours_ms": round(1e3 * statistics.median(ours), 3),
                "speedup": round(statistics.median(ratios), 3),
                "slowest": round(ratios[0], 3),
                "fastest": round(ratios[-1], 3),
            }
        )
    return rows


def roofline_rows(name: str, settings: Settings) -> list[dict[str, Any]]:
    """A row for each level of the network optimised for inference."""
    pair = rivals.PAIRS[name]
    network = pair.convert().to(settings.device)
    batch = pair.batches[0]
    ours = bu2td.optimize(network, "inference", batch_size=batch)
    images = torch.rand((batch, *pair.shape), generator=torch.Generator().manual_seed(1)).to(settings.device)
    rows = roofline.levels(network, ours, images, settings.seconds, settings.repeat)
    return [
        {**dict(zip(COLUMNS, (name, "inference", "roofline"), strict=True)), "batch": batch, **row} for row in rows
    ]


# --- the whole ----------------------------------------------------------------------------------------


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Geometric mean and smallest speed-up for each task, kind and rival."""
    groups: dict[tuple[str, ...], list[tuple[float, str]]] = {}
    for row in rows:
        if row["kind"] != "roofline":
            key = (row["task"], row["kind"], row["rival"])
            groups.setdefault(key, []).append((row["speedup"], row["network"]))
    return {
        "speedups": [
            {
                **dict(zip(("task", "kind", "rival"), key, strict=True)),
                "networks": len(found),
                "geometric_mean": round(statistics.geometric_mean(speedup for speedup, _ in found), 3),
                "smallest": min(found)[0],
                "of": min(found)[1],
            }
            for key, found in groups.items()
        ]
    }


def run(name: str, task: str, kind: str, settings: Settings) -> list[dict[str, Any]]:
    return roofline_rows(name, settings) if kind == "roofline" else speed_rows(name, task, kind, settings)


def main() -> None:
    parser = _results.parser(__doc__, "speed")
    parser.add_argument("--repeat", type=int, default=11, metavar="N", help="rounds; default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="default: %(default)s")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--kinds", nargs="+", choices=KINDS + GPU_KINDS, default=KINDS + GPU_KINDS)
    parser.add_argument("--rates", action="store_true", help="measure the rates of the cost model instead")
    parser.add_argument("--families", action="store_true", help="24 families against themselves as converted")
    parser.add_argument("--others", action="store_true", help="20 other networks, in batches of 4")
    parser.add_argument("--quick", action="store_true", help="three of the families, not compiled")
    parser.add_argument("--lock", type=Path, metavar="FILE", help="time only while no other process holds FILE")
    parser.add_argument("--tune", metavar="WAY", help="of the families: the `tune` of bu2td.optimize")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)  # gradients of untrained networks without norms; they take 100 times as long
    settings = Settings(args.repeat, torch.device(args.device), args.threads, args.lock)
    cuda = settings.device.type == "cuda"
    about = {
        "device": torch.cuda.get_device_name(settings.device) if cuda else _results.processor(),
        "threads": args.threads,
        "repeat": args.repeat,
        "dtype": "float32",
        "packages": _results.versions("torch", "timm", "bu2td"),
        "cores": os.cpu_count(),
    }
    if args.rates:
        return rates(args, settings, about)
    if args.families:
        import networks

        return networks.main(args, settings, about)
    jobs = [
        (name, task, kind)
        for name in rivals.PAIRS
        if args.match in name
        for kind in args.kinds
        for task in args.tasks
        if kind in KINDS and (kind != "roofline" or task == "inference")
    ]
    rows = _results.sweep(args, COLUMNS, jobs, partial(run, settings=settings), summary, **about)
    for kinds in (("eager", "compiled"), ("roofline",)):
        chosen = [row for row in rows if row["kind"] in kinds]
        print(format_table(chosen) if chosen else "")
    print(format_table(summary(rows)["speedups"]))


def rates(args: argparse.Namespace, settings: Settings, about: dict[str, Any]) -> None:
    """Measure and print what `bu2td.optimization.cost_model.RATES` holds."""
    rows = roofline.rates(settings.device, settings.seconds, settings.repeat)
    medians = {
        what: statistics.median(row["giga_per_second"] for row in rows if row["what"] == what)
        for what in ("macs", "bytes")
    }
    print(format_table(rows))
    print(f"Rates(macs={medians['macs']:.0f}e9, bandwidth={medians['bytes']:.1f}e9)")
    _results.write(args.out.with_name(f"{args.out.name}_rates"), rows, **about, medians=medians)


if __name__ == "__main__":
    main()
