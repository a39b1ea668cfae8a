"""What the sweeps have in common: arguments, going on where one was stopped, and writing results whole."""

import argparse
import importlib.metadata
import json
import math
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from bu2td.files import write_csv, write_json
from bu2td.optimization.memory import processor as processor

FOLDER = Path(__file__).parent / "results"

Row = dict[str, Any]


def parser(text: str | None, name: str) -> argparse.ArgumentParser:
    """Arguments of every sweep over models: --match, --fresh, --out."""
    made = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--match", default="", help="only models whose name contains this")
    made.add_argument("--fresh", action="store_true", help="forget earlier results")
    made.add_argument("--out", type=Path, default=FOLDER / name)
    return made


def sweep(
    args: argparse.Namespace,
    columns: Sequence[str],
    jobs: Sequence[tuple[str, ...]],
    run: Callable[..., list[Row]],
    summary: Callable[[list[Row]], Row] = lambda rows: {},
    **about: Any,
) -> list[Row]:
    """Run the jobs that have no rows yet, and write after each.

    Args:
        args: of `parser`.
        columns: that hold a job's words in its rows.
        run: a job's words -> its rows.
        summary: what else is written beside the rows.
        about: settings; rows of an earlier run with others are not gone on with.
    """
    rows = [] if args.fresh else earlier(args.out, "run with --fresh, or with another --out", **about)
    done = {tuple(row[column] for column in columns) for row in rows}
    for job in (bar := tqdm([job for job in jobs if job not in done])):
        bar.set_description(" ".join(job))
        rows += run(*job)
        write(args.out, rows, **about, **summary(rows))
    return rows


def earlier(stem: Path, remedy: str, **about: Any) -> list[Row]:
    """The rows of ``stem.json``, none where it is not there; rows of other settings are not gone on with."""
    file = stem.with_suffix(".json")
    if not file.exists():
        return []
    before = json.loads(file.read_text())
    if any(before["about"].get(name) != value for name, value in about.items()):
        raise SystemExit(f"{file} is of other settings; {remedy}")
    rows: list[Row] = before["rows"]
    return rows


def cause(error: BaseException) -> str:
    """An exception in one line."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Exponent of the growth of time with size (1 is linear), by least squares on logarithms."""
    xs, ys = [math.log(size) for size in sizes], [math.log(second) for second in seconds]
    mx, my = statistics.mean(xs), statistics.mean(ys)
    return sum((x - mx) * (y - my) for x, y in zip(xs, ys, strict=True)) / sum((x - mx) ** 2 for x in xs)


def seconds(call: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call: of the clock on a GPU, and of the processor on one thread, which others take none of."""

    def clock() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.process_time() if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter()

    begin = clock()
    call()
    return clock() - begin


def stored(call: Callable[[], Any]) -> int:
    """Bytes that a call keeps for its backward pass, each memory once; weights are not counted."""
    seen: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            memory = tensor.untyped_storage()
            seen[memory.data_ptr()] = memory.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        call()
    return sum(seen.values())


def versions(*packages: str) -> dict[str, str]:
    """Installed versions; "none" for a package that is not installed."""
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "none"
    return found


def write(stem: Path, rows: list[Row], **about: Any) -> None:
    """Write ``stem.csv`` and ``stem.json``; the columns are those of all rows in order of appearance."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    about |= {"torch": str(torch.__version__), "python": platform.python_version(), "machine": platform.machine()}
    write_csv(rows, stem.with_suffix(".csv"))
    write_json({"about": about, "rows": rows}, stem.with_suffix(".json"))
