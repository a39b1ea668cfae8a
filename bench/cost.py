"""What a top-down network costs beside its bottom-up network: time and memory, over the 24 of `bench/networks.py`.

    OMP_NUM_THREADS=1 python bench/cost.py [--batch 8] [--repeat 7] [--match regnet] [--quick]

A row is a network and a task (a training step: forward, cross-entropy, backward, SGD with momentum; or inference).
Its columns are of the top-down network as converted, optimised (`bu2td.optimize` for the task) and, in training,
recomputing (optimised, ``set_grad_checkpointing(inside=True)``):

..._time    median over rounds of its time over the bottom-up network's in the same round
..._memory  its peak over the bottom-up network's, counted on meta tensors (`bu2td.measure.memory`): in training
            maps, gradients of maps and of weights; in inference maps alone. Weights and images come on top

Writes bench/results/cost.csv and .json after every row and goes on where it was stopped; `bench/plots.py` draws
docs/cost.png.
"""

from __future__ import annotations

import copy
import os
import statistics
import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any

import _results
import networks
import speed
import torch
from torch import nn

import bu2td
from bu2td.ir import format_table
from bu2td.measure.memory import measured, on_meta

COLUMNS = ("network", "task")
BOTTOM_UP = "bottom-up"
MIB = 2**20


def forms(family: networks.Family, task: str, batch: int) -> dict[str, nn.Module]:
    """The networks by their name, in the task's mode."""
    converted = family.top_down()
    ours = bu2td.optimize(converted, task, batch_size=batch, image_size=family.size)
    found: dict[str, nn.Module] = {BOTTOM_UP: family.bottom_up(), "converted": converted, "optimised": ours}
    if task == "training":
        recomputing = copy.deepcopy(ours)
        recomputing.set_grad_checkpointing(inside=True)
        found["recomputing"] = recomputing
    for name, network in found.items():
        if task == "training":
            network.train()
        elif name != "optimised":
            network.eval()
    return found


def peak(network: nn.Module, task: str, shape: tuple[int, ...]) -> int:
    """Most bytes at once in a pass beside weights and images."""
    if task == "training":
        twin, images, tracker = on_meta(network, shape, "cpu")
        return measured(twin, images, tracker).peak
    twin, images, tracker = on_meta(network, shape, "meta")
    twin.eval()
    with torch.no_grad(), tracker:
        twin(images)
    return tracker.peak


def run(name: str, task: str, settings: speed.Settings, batch: int) -> list[dict[str, Any]]:
    """The row of a network and a task."""
    family = networks.FAMILIES[name]
    found, images = forms(family, task, batch), family.images(batch)
    steps: dict[str, Any] = {}
    for arm, network in found.items():
        steps[arm] = (speed.training if task == "training" else speed.inference)(network, images)
        steps[arm]()
    times = speed.compare(steps, settings)
    peaks = {arm: peak(network, task, tuple(images.shape)) for arm, network in found.items()}
    row: dict[str, Any] = {"network": name, "task": task, "size": family.size, "batch": batch}
    row |= {
        f"{BOTTOM_UP}_ms": round(1e3 * statistics.median(times[BOTTOM_UP]), 2),
        f"{BOTTOM_UP}_mib": round(peaks[BOTTOM_UP] / MIB, 2),
    }
    for arm in list(found)[1:]:
        ratios = [own / before for own, before in zip(times[arm], times[BOTTOM_UP], strict=True)]
        row[f"{arm}_time"] = round(statistics.median(ratios), 3)
        row[f"{arm}_memory"] = round(peaks[arm] / peaks[BOTTOM_UP], 3)
    return [row]


def summary(rows: list[dict[str, Any]]) -> Mapping[str, Any]:
    """Geometric means of the ratios for each task."""
    means = []
    for task in speed.TASKS:
        own = [row for row in rows if row["task"] == task]
        columns = dict.fromkeys(c for row in own for c in row if c.endswith(("_time", "_memory")))
        found = {c: [row[c] for row in own if c in row] for c in columns}
        if own:
            made = {c: round(statistics.geometric_mean(values), 2) for c, values in found.items()}
            means.append({"task": task, "networks": len(own), **made})
    return {"means": means}


def main() -> None:
    parser = _results.parser(__doc__, "cost")
    parser.add_argument("--repeat", type=int, default=7, metavar="N", help="rounds; default: %(default)s")
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="images at once; default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="three networks")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(args.threads)
    settings = speed.Settings(args.repeat, torch.device("cpu"), args.threads)
    about = {
        "device": _results.processor(), "threads": args.threads, "repeat": args.repeat, "batch": args.batch,
        "dtype": "float32", "packages": _results.versions("torch", "timm", "bu2td"), "cores": os.cpu_count(),
    }  # fmt: skip
    chosen = [n for n in networks.FAMILIES if args.match in n and (n in networks.QUICK or not args.quick)]
    jobs = [(name, task) for name in chosen for task in speed.TASKS]
    work = partial(run, settings=settings, batch=args.batch)
    rows = _results.sweep(args, COLUMNS, jobs, work, lambda r: dict(summary(r)), **about)
    print(format_table(rows))
    print(format_table(summary(rows)["means"]))


if __name__ == "__main__":
    main()
