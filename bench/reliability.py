"""How reliable bu2td is: damaged files, options of every kind, many conversions in one process, numbers.

    python bench/reliability.py                # all parts, and goes on where it was stopped
    python bench/reliability.py files options  # some of them

files: 1,000 damaged files of networks and 200 of every other kind, each of a seed (tests/damage.py and
tests/mutations.py): none may raise anything but its own error, run code, write a file or take memory for what it
does not hold.
options: calls of public functions with options that are right, on the border or of another kind (tests/fuzz.py).
load: 200 conversions in one process, 8 threads at once, and what the process shares with its other code.
numbers: logits of the same network in every form, number type and process.

Writes bench/results/reliability.csv and .json after every job; a row with faults names them.
"""

import json
import random
import resource
import subprocess
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import _results
import torch

TESTS = Path(__file__).parents[1] / "tests"
sys.path.insert(0, str(TESTS))

import damage  # noqa: E402
import fuzz  # noqa: E402
import numerics  # noqa: E402

#: Files of networks; those of every other kind; seeds of one job.
NETWORKS, OTHERS, BATCH = 1000, 200, 100
#: Calls of every function, of which each hundredth success is verified in full.
CALLS, FULL = 500, 100
MODELS, WARM = 200, 20
COLUMNS = ("part", "what", "first")


def jobs(parts: list[str]) -> list[tuple[str, str, str]]:
    """What there is to do: part, what, and the first seed."""
    networks = list(damage.NETWORKS)
    each = -(-NETWORKS // len(networks))
    counts = {name: each if name in networks else OTHERS for name in damage.SUBJECTS}
    found = [("files", name, str(first)) for name, count in counts.items() for first in range(0, count, BATCH)]
    found += [("options", name, str(first)) for name in fuzz.CALLS for first in range(0, CALLS, BATCH)]
    found += [("load", what, "0") for what in ("memory", "threads", "state")]
    found += [("numbers", what, "0") for what in (*numerics.FORMS, "processes")]
    return [job for job in found if job[0] in parts]


def run(part: str, what: str, first: str) -> list[_results.Row]:
    """The rows of a job: one."""
    found = {"files": files, "options": options, "load": load, "numbers": numbers}[part](what, int(first))
    return [{"part": part, "what": what, "first": first, **found}]


def files(what: str, first: int) -> _results.Row:
    rows = damage.run([f"{what}:{first}:{BATCH}"])
    faults = [f"{row['seed']} {row['way']}: {fault}" for row in rows for fault in damage.faults(row)]
    counts = Counter(row["outcome"] for row in rows)
    peaks = {"seconds": max(row["seconds"] for row in rows), "MiB": max(row["mib"] for row in rows)}
    return {
        "cases": len(rows),
        **{name: counts[name] for name in ("refused", "equal", "read")},
        **peaks,
        **_told(faults),
    }


def options(what: str, first: int) -> _results.Row:
    counts: Counter[str] = Counter()
    faults = []
    for seed in range(first, first + BATCH):
        drawn = fuzz.drawn(what, random.Random(f"{what} {seed}"))
        try:
            counts[fuzz.outcome(what, drawn, full=seed % FULL == 0)] += 1
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            faults.append(f"{seed}: {type(error).__name__} at {Path(place.filename).name}:{place.lineno}")
    accepted = counts.pop("accepted", 0)
    return {"cases": BATCH, "refused": counts.total(), "accepted": accepted, **_told(faults)}


def load(what: str, first: int) -> _results.Row:
    script = f"import burden; burden.report({what!r}, {MODELS}, {WARM})"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], cwd=TESTS, capture_output=True, text=True, check=True
    )
    found: _results.Row = json.loads(done.stdout.splitlines()[-1])
    return {**found, **_told(found.pop("faults"))}


def numbers(what: str, first: int) -> _results.Row:
    found = numerics.processes() if what == "processes" else numerics.compare(what)
    limits = {key: numerics.TOLERANCE.get(key[0], numerics.TOLERANCE[torch.float32]) for key in found}
    faults = [f"{key}: {value:.1e}" for key, value in found.items() if not value <= limits[key]]
    return {"cases": len(found), "largest difference": max(found.values()), **_told(faults)}


def _told(faults: list[str]) -> _results.Row:
    return {"faults": len(faults), "first faults": "; ".join(faults[:5])}


def report(rows: list[_results.Row]) -> None:
    """A line for each part and thing."""
    for row in rows:
        print(" ".join(f"{name} {value}" for name, value in row.items() if value not in ("", None)))
    print(f"faults: {sum(row.get('faults') or 0 for row in rows)}")


def main() -> None:
    parser = _results.parser(__doc__, "reliability")
    parser.add_argument("parts", nargs="*", default=["files", "options", "load", "numbers"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    resource.setrlimit(
        resource.RLIMIT_AS, (2**34, resource.RLIM_INFINITY)
    )  # the options may ask for what is not there
    wanted = [job for job in jobs(args.parts) if args.match in " ".join(job)]
    work: Callable[..., list[_results.Row]] = run
    report(_results.sweep(args, COLUMNS, wanted, work))


if __name__ == "__main__":
    main()
