"""Memory and time of a training step of ResNet18 at 224: every way to save memory, in every combination.

    python bench/memory.py [--batch 32] [--repeat 3] [--match optimised]

A row is a network (bottom-up, top-down as converted, top-down optimised for training), a way of recomputing (none,
whole levels, the finest level in pieces, and that without the coarse levels r32 and r16; see
``set_grad_checkpointing``) and a precision (float32, bfloat16 by autocast). Each runs in a process of its own,
which measures

peak_mib      the process's largest resident memory in the training steps, less that just before the first one
predicted_mib what `bu2td.measure.memory.training_memory` says (float32 only), and its ratio to the measured peak
step_s        median time of a step (CPU seconds on one thread)

Ratios are to the top-down network of the same kind and precision that recomputes nothing, and to the bottom-up
network of that precision. Resident memory also holds what oneDNN and the allocator keep. A batch of 32
needs 6 GiB; the measure is that of Linux (/proc). Writes bench/results/memory.csv and .json after every row, and
goes on where it was stopped.

    python bench/memory.py --paired 8

compares times only, all ways of a network in turns in one process at that batch size: medians of the ratio within a
round, which the machine's moods disturb less. Writes bench/results/memory_paired.csv and .json.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import _results
import speed
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

import bu2td
from bu2td.ir import format_table
from bu2td.measure.memory import training_memory
from bu2td.models.words import create_model

COLUMNS = ("network", "recomputed", "precision")
WAYS: dict[str, dict[str, Any] | None] = {
    "nothing": None,
    "levels": {},
    "inside": {"inside": True},
    "inside, r8 to r1": {"levels": [8, 4, 2, 1], "inside": True},
}
NETWORKS = ("bottom-up", "converted", "optimised")
PRECISIONS = ("float32", "bfloat16")
MODEL, SIZE = "resnet18", 224
MIB = 2**20


def build(network: str, way: str, batch: int) -> nn.Module:
    """A network in train mode."""
    model = create_model(MODEL)
    if network == "bottom-up":
        return model.train()
    td = bu2td.convert(model, "td", seed=0)
    if network == "optimised":
        td = bu2td.optimize(td, "training", batch_size=batch)
    options = WAYS[way]
    td.set_grad_checkpointing(options is not None, **(options or {}))
    return td.train()


def resident(field: str) -> float:
    """Resident memory of this process in MiB: VmRSS now, VmHWM the most since `forget_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


def forget_peak() -> None:
    """Give freed memory back, and let the kernel count the largest resident memory from now on."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def child(network: str, way: str, precision: str, batch: int, repeat: int) -> dict[str, Any]:
    """Measure in this process, which must be a fresh one."""
    torch.set_num_threads(1)
    model = build(network, way, batch)
    warm = torch.rand(2, 3, 32, 32)
    step(model, warm, precision)  # libraries are loaded, weights have gradients of their size
    model.zero_grad(set_to_none=True)
    images = torch.rand(batch, 3, SIZE, SIZE)
    forget_peak()
    before = resident("VmRSS")
    seconds = [step(model, images, precision) for _ in range(repeat)]
    peak = resident("VmHWM") - before
    row: dict[str, Any] = {"peak_mib": round(peak, 1), "step_s": round(statistics.median(seconds), 3)}
    if precision == "float32":
        predicted = training_memory(model, images.shape).peak / MIB
        row |= {"predicted_mib": round(predicted, 1), "predicted_to_peak": round(predicted / peak, 3)}
    return row


def step(model: nn.Module, images: torch.Tensor, precision: str) -> float:
    """CPU seconds of forward, loss and backward."""
    start = time.process_time()
    model.zero_grad(set_to_none=True)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16"):
        logits = model(images)
    F.cross_entropy(logits.float(), torch.zeros(len(images), dtype=torch.long)).backward()
    return time.process_time() - start


def run(network: str, way: str, precision: str, batch: int, repeat: int) -> list[dict[str, Any]]:
    """One row, from a process of its own."""
    words = [network, way, precision, str(batch), str(repeat)]
    command = [sys.executable, __file__, "--child", *words]
    # Large maps go back to the system at once, so that resident memory is what is in use.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(MIB // 16)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} ended with status {done.returncode}:\n{done.stderr[-2000:]}")
    measured = json.loads(done.stdout.splitlines()[-1])
    return [{**dict(zip(COLUMNS, (network, way, precision), strict=True)), **measured}]


def paired(batch: int, repeat: int) -> list[dict[str, Any]]:
    """Times of every way of recomputing beside recomputing nothing, float32."""
    torch.set_num_threads(1)
    images = torch.rand(batch, 3, SIZE, SIZE)
    rows = []
    for network in tqdm(NETWORKS[1:]):
        steps = {way: partial(step, build(network, way, batch), images, "float32") for way in WAYS}
        times = speed.compare(steps, speed.Settings(repeat, torch.device("cpu"), 1))
        for way, found in times.items():
            compared = sorted(a / b for a, b in zip(found, times["nothing"], strict=True))
            row: dict[str, Any] = {"network": network, "recomputed": way, "batch": batch}
            row |= {"step_s": round(statistics.median(found), 3), "time": round(statistics.median(compared), 3)}
            rows.append({**row, "least": round(compared[0], 3), "most": round(compared[-1], 3)})
    return rows


def ratios(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Memory and time of every row beside what it is compared with, where that is measured."""
    known = {tuple(row[column] for column in COLUMNS): row for row in rows}
    found = []
    for (network, way, precision), row in known.items():
        beside: dict[str, Any] = dict(zip(COLUMNS, (network, way, precision), strict=True))
        for name, other in {
            "same network": (network, "nothing", precision),
            "converted": ("converted", "nothing", "float32"),
            "bottom-up": ("bottom-up", "nothing", precision),
        }.items():
            if other in known:
                beside[f"memory to {name}"] = round(row["peak_mib"] / known[other]["peak_mib"], 3)
                beside[f"time to {name}"] = round(row["step_s"] / known[other]["step_s"], 3)
        found.append(beside)
    return {"ratios": found}


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        warnings.simplefilter("ignore")
        network, way, precision, batch, repeat = sys.argv[2:]
        print(json.dumps(child(network, way, precision, int(batch), int(repeat))))
        return
    parser = _results.parser(__doc__, "memory")
    parser.add_argument("--batch", type=int, default=32, metavar="N", help="default: %(default)s")
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="steps; default: %(default)s")
    parser.add_argument("--paired", type=int, metavar="N", help="compare times only, at batch size N")
    args = parser.parse_args()
    if args.paired:
        rows = paired(args.paired, args.repeat)
        print(format_table(rows))
        about = {"device": _results.processor(), "threads": 1, "repeat": args.repeat}
        return _results.write(args.out.with_name(f"{args.out.name}_paired"), rows, **about)
    rows = measure(args)
    print(format_table(rows))
    print(format_table(ratios(rows)["ratios"]))


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    jobs = [
        (network, way, precision)
        for precision in PRECISIONS
        for network in NETWORKS
        for way in (WAYS if network != "bottom-up" else ["nothing"])
        if args.match in f"{network} {way} {precision}"
    ]
    about = {
        "device": _results.processor(),
        "threads": 1,
        "batch": args.batch,
        "size": SIZE,
        "model": MODEL,
        "repeat": args.repeat,
        "packages": _results.versions("torch", "timm", "bu2td"),
    }
    one = partial(run, batch=args.batch, repeat=args.repeat)
    return _results.sweep(args, COLUMNS, jobs, one, ratios, **about)


if __name__ == "__main__":
    main()
