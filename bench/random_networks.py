"""Convert random networks of the grammar of the tests in td, uni and rev; count what becomes of them.

    python bench/random_networks.py --count 2000 --seed 0 --jobs 2
    python bench/random_networks.py --count 2000 --resume

Network number n is the one of seed ``--seed`` + n, so that it can be built again from its seed alone. Every
conversion verifies itself on meta tensors; every ``--real``-th network also runs forward and backward on
real ones. An outcome is "ok", "refused" (a cause that the errors list) or "failed" (a fault of the compiler).
Writes bench/results/random_networks.csv and .json, whole, every few seconds.
"""

import argparse
import hashlib
import multiprocessing
import re
import sys
import time
import warnings
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any

import _results
import torch
from tqdm import tqdm

import bu2td
from bu2td.options import ARRANGEMENTS

TESTS = Path(__file__).parents[1] / "tests"
sys.path.insert(0, str(TESTS))

from grammar import REFUSALS, build, ladder, spec_of  # noqa: E402

#: Seconds between two writings of the results.
PERIOD = 20


def run(network: bu2td.TopDownNetwork, image: list[int]) -> None:
    """Forward and backward on real tensors."""
    logits = network(torch.rand(2, *image))
    (logits * torch.linspace(-1, 1, logits.shape[1])).sum().backward()
    gradients = [p.grad for p in network.parameters()]
    if not all(g is not None and bool(torch.isfinite(g).all()) for g in (*gradients, logits)):
        raise AssertionError("logits or gradients are not finite")


def outcome(analyse: Any) -> tuple[Any, str]:
    """What a call returns and "ok", or None and the cause why not."""
    try:
        return analyse(), "ok"
    except Exception as error:  # a sweep reports what fails and goes on
        kind = "refused" if isinstance(error, REFUSALS) else "failed"
        message = str(error).splitlines()[0].replace(f"{TESTS.parent}/", "")  # files from the repository on
        return None, f"{kind}: {type(error).__name__}: {message}"


def check(seed: int, real: int) -> dict[str, Any]:
    """Convert one network three times; returns its row."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    start, spec = time.perf_counter(), spec_of(seed)
    row: dict[str, Any] = {"seed": seed, "ladder": " ".join(map(str, ladder(spec)))}
    images = torch.empty(2, *spec["image"], device="meta")
    analysis, row["analysis"] = outcome(lambda: bu2td.analyze(build(spec), example_inputs=images))
    if analysis is not None and analysis.ladder != ladder(spec):
        row["analysis"] = f"failed: ladder: found {analysis.ladder}"
    device = "cpu" if real and seed % real == 0 else "meta"
    for arrangement in ARRANGEMENTS:
        if analysis is None:
            row[arrangement] = row["analysis"]
            continue
        convert = partial(bu2td.convert, analysis, arrangement, device=device, seed=0, max_macs_ratio=None)
        network, row[arrangement] = outcome(convert)
        row[f"relaxed_{arrangement}"] = len(network.plan.relaxations) if network is not None else ""
        if network is not None and device == "cpu":
            _, row[arrangement] = outcome(partial(run, network, spec["image"]))
    row["seconds"] = round(time.perf_counter() - start, 2)
    return row


def version() -> str:
    """A fingerprint of the grammar: networks of another one have other seeds."""
    sources = [(TESTS / f"{name}.py").read_bytes() for name in ("grammar", "blocks", "kit")]
    return hashlib.sha256(b"".join(sources)).hexdigest()[:12]


def report(rows: list[dict[str, Any]]) -> None:
    """Counts by status and cause, and every failure with its spec."""
    causes: Counter[str] = Counter()
    for row in rows:
        causes.update(re.sub(r"[\w./]*\d[\w.]*", "#", row[a]) for a in ARRANGEMENTS)
    for cause, count in causes.most_common():
        print(f"{count:6}  {100 * count / causes.total():5.1f} %  {cause}")
    relaxed = sum(bool(row.get(f"relaxed_{a}")) for row in rows for a in ARRANGEMENTS)
    print(f"{relaxed} of {causes.total()} conversions needed a relaxation")
    for row in rows:
        failed: dict[str, list[str]] = {}
        for where in ("analysis", *ARRANGEMENTS):
            if row[where].startswith("failed"):
                failed.setdefault(row[where], []).append(where)
        for cause, places in failed.items():
            print(f"\nseed {row['seed']} {' '.join(places)}: {cause}\n  {spec_of(row['seed'])}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000, help="number of networks")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first network")
    parser.add_argument(
        "--real", type=int, default=10, help="run every this many networks on real tensors; 0: none"
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--resume", action="store_true", help="go on where an earlier run was interrupted")
    parser.add_argument("--out", type=Path, default=_results.FOLDER / "random_networks")
    args = parser.parse_args()
    about = {"grammar": version(), "real": args.real, "device": "cpu"}
    seeds = range(args.seed, args.seed + args.count)
    before = _results.earlier(args.out, "run without --resume", **about) if args.resume else []
    rows = [row for row in before if row["seed"] in seeds]
    done = {row["seed"] for row in rows}
    todo = [seed for seed in seeds if seed not in done]
    written = time.monotonic()
    with ProcessPoolExecutor(args.jobs, multiprocessing.get_context("spawn")) as pool:
        jobs = [pool.submit(check, seed, args.real) for seed in todo]
        for job in tqdm(as_completed(jobs), total=len(jobs)):
            rows.append(job.result())
            if time.monotonic() - written > PERIOD:
                _results.write(args.out, sorted(rows, key=lambda r: r["seed"]), **about)
                written = time.monotonic()
    rows.sort(key=lambda r: r["seed"])
    _results.write(args.out, rows, **about)
    report(rows)


if __name__ == "__main__":
    main()
