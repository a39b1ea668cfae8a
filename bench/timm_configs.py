"""Convert random configurations of timm's generators in td, uni and rev; count what becomes of them.

    python bench/timm_configs.py --count 200 --seed 0 --jobs 2
    python bench/timm_configs.py --count 200 --resume

timm builds families of networks from configurations: blocks of one's own (ByobNet), RegNets, strings of blocks
(EfficientNet, MobileNet), and the options of ResNet, ConvNeXt, DenseNet and others. Network number n is the one of
seed ``--seed`` + n, so that it can be built again from its seed alone. A status is that of `bu2td zoo`, "verified",
"refused" or "failed"; or "invalid" where timm itself cannot build the configuration or run it at 224 pixels (those
do not count: others take their places). Writes bench/results/timm_configs.csv and .json, whole, every few seconds.
"""

import argparse
import multiprocessing
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from itertools import count, islice
from pathlib import Path
from typing import Any

import _results
import torch
from _timm_generators import SIZE, built, drawn, told
from tqdm import tqdm

from bu2td.options import ARRANGEMENTS
from bu2td.zoo import ZooModel, convert_built

#: Seconds between two writings of the results.
PERIOD = 20
INVALID = "invalid"


def check(seed: int, real: int, timeout: float) -> list[dict[str, Any]]:
    """Convert one network three times; returns its rows."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    family, config = drawn(seed)
    about = {"seed": seed, "config": told(config)}
    start = time.perf_counter()
    try:
        logits = built(config).eval()(torch.empty(2, 3, SIZE, SIZE, device="meta"))
        built(config).train()(torch.empty(2, 3, SIZE, SIZE, device="meta"))
        assert logits.shape == (2, 1000)
    except Exception as error:
        seconds = round(time.perf_counter() - start, 2)
        row = {"model": f"seed{seed}", "family": family, "status": INVALID, "cause": type(error).__name__}
        return [{**about, **row, "message": " ".join(str(error).split())[:200], "seconds": seconds}]
    model = ZooModel(f"seed{seed}", family)
    rows = convert_built(lambda: built(config), model, ARRANGEMENTS, bool(real) and seed % real == 0, timeout)
    return [{**about, **asdict(row)} for row in rows]


# --- the sweep ----------------------------------------------------------------------------------------


def report(rows: list[dict[str, Any]]) -> None:
    """Counts by status and cause, and every failure with its configuration."""
    counts = Counter((row.get("arrangement", ""), row["status"], row["cause"]) for row in rows)
    for (arrangement, status, cause), number in sorted(counts.items()):
        print(f"{number:6}  {arrangement:5} {status:9} {cause}")
    for row in rows:
        if row["status"] == "failed":
            print(f"\nseed {row['seed']} {row['arrangement']}: {row['cause']}: {row['message']}\n  {row['config']}")


def written(rows: list[dict[str, Any]], args: argparse.Namespace) -> None:
    rows.sort(key=lambda row: row["seed"])  # stable: arrangements keep their order
    summary = Counter(f"{row.get('arrangement', '')} {row['status']}".strip() for row in rows)
    _results.write(args.out, rows, **_about(args), summary=dict(sorted(summary.items())))


def _about(args: argparse.Namespace) -> dict[str, Any]:
    return {"seed": args.seed, "real": args.real, **_results.versions("timm", "bu2td")}


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="number of networks that timm can run")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first network")
    parser.add_argument("--real", type=int, default=10, help="run every this many on real tensors; 0: none")
    parser.add_argument("--timeout", type=float, default=300, help="seconds for one conversion")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--resume", action="store_true", help="go on where an earlier run was interrupted")
    parser.add_argument("--out", type=Path, default=_results.FOLDER / "timm_configs")
    return parser.parse_args(words)


def worked(seeds: list[int], args: argparse.Namespace) -> Iterator[list[dict[str, Any]]]:
    """The rows of every seed, as they come; one job works in this process."""
    if args.jobs == 1:
        yield from (check(seed, args.real, args.timeout) for seed in seeds)
        return
    with ProcessPoolExecutor(args.jobs, multiprocessing.get_context("spawn")) as pool:
        jobs = [pool.submit(check, seed, args.real, args.timeout) for seed in seeds]
        yield from (job.result() for job in as_completed(jobs))


def sweep(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Check seeds until as many networks as are asked for are no invalid ones; goes on with rows that are there."""
    rows = _results.earlier(args.out, "run without --resume", **_about(args)) if args.resume else []
    last, seed = time.monotonic(), args.seed
    with tqdm(total=args.count) as bar:
        while missing := max(0, args.count - len({row["seed"] for row in rows if row["status"] != INVALID})):
            bar.update(args.count - missing - bar.n)
            done = {row["seed"] for row in rows}
            todo = list(islice((one for one in count(seed) if one not in done), missing))
            seed = todo[-1] + 1
            for new in worked(todo, args):
                rows += new
                bar.update(new[0]["status"] != INVALID)
                if time.monotonic() - last > PERIOD:
                    written(rows, args)
                    last = time.monotonic()
    written(rows, args)
    return rows


if __name__ == "__main__":
    report(sweep(arguments()))
