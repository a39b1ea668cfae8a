"""Receptive fields of the zoo: theory against the support of a positive copy's gradient, pixel by pixel.

    python bench/erf.py                     # resumes where it was interrupted
    python bench/erf.py --match resnet --fresh

The smallest model of every family of timm and torchvision, the models of real_models.txt and the paper's
baselines, bottom-up and top-down (td). A row per level: the field's sides without borders, whether its box on the
canvas is that of the gradient, and the seconds that both took for the network. The canvas is large enough for the
largest field, up to --side, or the model's own image where it is bound to that; "whole" says whether it holds the
level's field. A status is one of

    equal, different    the two boxes
    no positive copy    attention, which no positive copy has (the cause names it)
    no rule             behind an operation without an interval rule, which theory calls unknown
    refused             of a model that cannot be turned upside down; it is compared bottom-up alone
    skipped             more than --memory GiB are needed
    failed              anything else

Writes bench/results/erf.csv and .json, whose "about" counts models.
"""

import resource
import sys
import time
import warnings
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import _results
import torch

import bu2td
from bu2td.erf.subject import subject
from bu2td.erf.theory import theory
from bu2td.errors import Bu2tdError, ConverterError, ExampleInputError, VerificationError
from bu2td.models.baselines import INPUT_SIZES
from bu2td.models.words import create_model

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from erf.positive import compare_support
from families import SMALLEST

REAL = (Path(__file__).parent / "real_models.txt").read_text().split()
MODELS = list(dict.fromkeys([*(f"bu2td:{name}" for name in INPUT_SIZES), *SMALLEST.values(), *REAL]))

#: Canvases are multiples of this, and no smaller than ten times it.
STEP = 64

BOTH = ("bottom-up", "top-down")


def compare(network: Any, images: torch.Tensor | None, sides: list[int]) -> tuple[list[_results.Row], int]:
    """The levels of one network, on the first canvas that it runs on, and that canvas."""
    for side in sides[:-1]:
        try:
            return compare_support(network, side, example_inputs=images), side
        except (ExampleInputError, MemoryError):
            pass
    return compare_support(network, sides[-1], example_inputs=images), sides[-1]


def canvases(network: Any, images: torch.Tensor | None, largest: int, limit: int) -> list[int]:
    """Sides to try: one that holds the largest field, smaller ones for want of memory, the model's own image."""
    own = subject(network, images).image_shape[-1]
    fit = min(max((largest // STEP + 2) * STEP, 10 * STEP), max(limit, 10 * STEP))
    return list(dict.fromkeys([fit, (fit + 10 * STEP) // (2 * STEP) * STEP, 10 * STEP, own]))


def levels(word: str, kind: str, network: Any, images: torch.Tensor | None, limit: int) -> list[_results.Row]:
    """The rows of one network."""
    start = time.perf_counter()
    fields = {row["name"]: row for row in theory(network, example_inputs=images).rows}
    theory_s = time.perf_counter() - start
    largest = max((max(row["size"]) for row in fields.values() if row["size"]), default=0)
    sides = canvases(network, images, largest, limit)
    start = time.perf_counter()
    found, canvas = compare(network, images, sides)
    compare_s = time.perf_counter() - start
    rows = []
    for row in found:
        field = fields[row["name"]]
        status = "equal" if row["theory"] == row["support"] else "different"
        if row["theory"] is None or row["support"] is None:
            status = "no rule" if row["theory"] is None else "no positive copy"
        rows.append(
            {
                "model": word,
                "network": kind,
                "level": row["name"],
                "size": "" if field["size"] is None else "x".join(map(str, field["size"])),
                "canvas": canvas,
                "whole": row["whole"],
                "status": status,
                "cause": field["unknown"] or row["cause"].partition(" at ")[0],
                "theory_s": round(theory_s, 2),
                "compare_s": round(compare_s, 2),
            }
        )
    return rows


def check(word: str, limit: int) -> list[_results.Row]:
    """The rows of one model."""
    size = INPUT_SIZES.get(word.removeprefix("bu2td:"))
    images = None if size is None else torch.empty(1, *size, device="meta")
    model = create_model(word, device="meta")
    rows: list[_results.Row] = []
    for kind in BOTH:
        try:
            network, given = model, images
            if kind == "top-down":
                network = bu2td.convert(model, device="meta", example_inputs=images, max_macs_ratio=None)
                given = None
            rows += levels(word, kind, network, given, limit)
        except Exception as error:  # a sweep reports what fails and goes on
            rows.append(
                {"model": word, "network": kind, "status": status_of(error), "cause": _results.cause(error)}
            )
    return rows


def status_of(error: Exception) -> str:
    if isinstance(error, MemoryError) or "allocate memory" in str(error):
        return "skipped"
    refused = isinstance(error, Bu2tdError) and not isinstance(
        error, VerificationError | ConverterError | ExampleInputError
    )
    return "refused" if refused else "failed"


def summary(rows: list[_results.Row]) -> _results.Row:
    """Models by what became of them: a model agrees in a direction if all its levels are equal there."""
    found: dict[str, dict[str, set[str]]] = {}
    for row in rows:
        found.setdefault(row["model"], {}).setdefault(row["network"], set()).add(row["status"])
    agree = {kind: [m for m, own in found.items() if own.get(kind) == {"equal"}] for kind in BOTH}
    both = set(agree["bottom-up"]) & set(agree["top-down"])
    other = {m: "; ".join(f"{k}: {', '.join(sorted(s))}" for k, s in own.items()) for m, own in found.items()}
    return {
        "models": len(found),
        "equal_both_ways": len(both),
        "equal_bottom_up": len(agree["bottom-up"]),
        "equal_top_down": len(agree["top-down"]),
        "levels": dict(Counter(row["status"] for row in rows if row.get("level"))),
        "levels_whole": sum(row["status"] == "equal" and row["whole"] for row in rows),
        "others": {m: text for m, text in other.items() if m not in both},
    }


def main() -> None:
    parser = _results.parser(__doc__, "erf")
    parser.add_argument("--side", type=int, default=2240, help="largest canvas; default: %(default)s")
    parser.add_argument("--memory", type=int, default=6, help="GiB that may be used; default: %(default)s")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_DATA, (args.memory << 30,) * 2)
    about = {"device": "cpu", "side": args.side, "memory_gib": args.memory, "dtype": "float64"}
    about |= _results.versions("timm", "torchvision")
    jobs = [(word,) for word in MODELS if args.match in word]
    rows = _results.sweep(args, ("model",), jobs, partial(check, limit=args.side), summary, **about)
    for name, value in summary(rows).items():
        print(f"{name}: {value}")
    for row in rows:
        if row["status"] in ("different", "failed"):
            print(f"  {row['model']} {row['network']} {row.get('level', '')}: {row['status']} {row['cause']}")


if __name__ == "__main__":
    main()
