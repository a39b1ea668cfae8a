"""Whether the cost model of `bu2td.optimize` chooses well: its choices beside measured times, over shapes.

    python bench/choices.py [--rows 60] [--repeat 5] [--match winograd] [--threads 2 --out FILE]
    python bench/choices.py --fit        # fits bu2td/optimization/rates.py to the rows that are not held out

A row is a place (`bu2td.optimization.places`) in inference (fused, weights laid out once) or in a training step
(forward and backward, weights laid out as the maps, summed or transformed in every step): a convolution of 8 to
1,024 channels, dense, in 2 to 64 groups or depthwise (3x3 to 7x7), at batches of 1 to 64; a third are wide ones
over small maps (of minimal filtering: large ones), and of the format in training there are some more of which the
weights are most of the work, and of one image. ``old_ms`` and ``new_ms`` are medians of both forms,
``measured`` is the median over rounds of their ratio in the same round; of ``channels_last`` the old form has
contiguous maps. ``held_out`` rows, a third, are not fitted. ``chosen`` is what the model does, and ``lost`` the
share of the better form's time that this costs. Times are CPU seconds on one thread, else wall-clock. Writes
bench/results/choices.csv and .json after every row, and goes on where it was stopped; rows of two threads are in
a file of their own (--out bench/results/choices_two_threads).
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import _results
import numpy as np
import speed
import torch
from scipy.optimize import nnls

from bu2td.files import write_text
from bu2td.ir import format_table
from bu2td.optimization.cost_model import Chooser, fitted_mode
from bu2td.optimization.places import KINDS, Place
from bu2td.optimization.trials import trial

RULES = ("upsample_conv", "merge", "winograd", "channels_last")
MODES = ("inference", "training")
COLUMNS = ("rule", "mode", "inputs", "outputs", "kernel", "groups", "side", "factor", "batch", "threads")
#: Of a trial: a step takes at most so many multiply-accumulates.
_MOST = 8e8
_FOOT = """
#: By type of device: rule, mode and kind of convolution -> what was fitted.
FITTED: Mapping[str, Mapping[tuple[str, str, str], Fitted]] = {"cpu": _CPU}
"""
_RATES = Path(__file__).parents[1] / "bu2td/optimization/rates.py"


# --- shapes -------------------------------------------------------------------------------------------


def shapes(rule: str, mode: str, count: int) -> Iterator[tuple[int, ...]]:
    """(inputs, outputs, kernel, groups, side, factor, batch), drawn at random.

    The first ``count`` of one endless row, and half as many of another one: wide convolutions over small maps in
    small batches, where weights take the time, and for minimal filtering wide ones over large maps, where it gains.
    Of the format in training there are two rows more: dense ones that are heavy in weights, and those of one image.
    """
    rows = [(count, ""), (count // 2, " wide" if rule == "winograd" else " small")]
    if (rule, mode) == ("channels_last", "training"):
        rows += [(count // 2, " heavy"), (count, " single")]
    for more, name in rows:
        most = 3 * _MOST if name == " wide" else _MOST
        draw = random.Random(f"{rule} {mode}{name}")
        kinds = KINDS[:1] if name == " heavy" else KINDS[:3]
        found: set[tuple[int, ...]] = set()
        while len(found) < more:
            numbers = _drawn(rule, draw, kinds, *DRAWS[name])
            place = _place(rule, *numbers[:-1])
            work = place.forms(mode == "training")[0].macs * numbers[-1] * (3 if mode == "training" else 1)
            if 2e5 < work < most and numbers not in found:
                found.add(numbers)
                yield numbers


#: Channels, sides of maps, and batches of a row of shapes.
Draws = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
_WIDTHS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
DRAWS: dict[str, Draws] = {
    "": (_WIDTHS, (7, 8, 14, 16, 28, 56, 112), tuple(2**n for n in range(7))),
    " small": (_WIDTHS[5:], (2, 4, 7, 8, 14), (1, 2, 4, 8)),
    " heavy": ((192, *_WIDTHS[9:], 1280), (1, 2, 4, 7), tuple(2**n for n in range(6))),
    " single": (_WIDTHS, (2, 4, 7, 8, 14, 28, 56, 112), (1,)),
    " wide": ((128, 192, 256, 384, 512), (7, 14, 28, 56), (1, 2, 4, 8, 16)),
}


def _drawn(
    rule: str,
    draw: random.Random,
    kinds: Sequence[str],
    widths: Sequence[int],
    sides: Sequence[int],
    batches: Sequence[int],
) -> tuple[int, ...]:
    outputs, side, batch = draw.choice(widths), draw.choice(sides), draw.choice(batches)
    if rule == "merge":
        return 2 * outputs, outputs, draw.choice((1, 3, 3, 3)), 1, side, draw.choice((1, 2, 2)), batch
    inputs, kernel, groups = draw.choice((outputs, outputs, *widths)), 3, 1
    if rule != "winograd":
        kind = draw.choice(kinds)
        if kind == "depthwise":
            inputs = groups = outputs
            kernel = draw.choice((3, 3, 5, 7))
        elif kind == "grouped":
            groups = draw.choice(
                [2**n for n in range(1, 7) if outputs % 2**n == inputs % 2**n == 0 and 2**n < inputs]
            )
        kernel = draw.choice((1, 3, 3, 5)) if kind == "dense" else kernel
    return inputs, outputs, kernel, groups, side, 2 if rule == "upsample_conv" else 1, batch


def _place(rule: str, *numbers: int) -> Place:
    inputs, outputs, kernel, groups, side, factor = numbers
    join = "add_concat" if rule == "merge" else ""
    return Place(rule, inputs, outputs, (kernel, kernel), (side, side), groups, factor=factor, join=join)


# --- rows ---------------------------------------------------------------------------------------------


def run(rule: str, mode: str, *words: str, settings: speed.Settings) -> list[dict[str, Any]]:
    """Measure one place."""
    *numbers, batch, _ = map(int, words)
    place = _place(rule, *numbers)
    torch.manual_seed(0)
    old, new = trial(place, mode == "training", batch)
    times = speed.compare({"old": old, "new": new}, settings)
    measured = statistics.median(a / b for a, b in zip(times["old"], times["new"], strict=True))
    return [
        {
            **dict(zip(COLUMNS, (rule, mode, *words), strict=True)),
            "old_ms": round(1e3 * statistics.median(times["old"]), 4),
            "new_ms": round(1e3 * statistics.median(times["new"]), 4),
            "measured": round(measured, 3),
        }
    ]


def judged(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with the model's word, and with every third of each rule and mode held out."""
    seen: dict[tuple[str, str], int] = {}
    found = []
    for row in rows:
        key = (row["rule"], row["mode"])
        seen[key] = seen.get(key, 0) + 1
        place = _place(row["rule"], *(int(row[name]) for name in COLUMNS[2:8]))
        choose = Chooser(row["mode"], "cpu", int(row["batch"]))
        chosen, measured = choose(row["rule"], "conv", place=place), row["measured"]
        found.append(
            {
                **row,
                "held_out": seen[key] % 3 == 0,
                "model": round(choose.made[0].gain or 1.0, 3),
                "chosen": chosen,
                "lost": round(max(0.0, (1 / measured if chosen else measured) - 1), 3),
            }
        )
    return found


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """For each rule, mode, and whether it was fitted: what the model decided, and how often it was right."""
    groups: dict[tuple[str, str, bool], list[dict[str, Any]]] = {}
    for row in judged(rows):
        groups.setdefault((row["rule"], row["mode"], row["held_out"]), []).append(row)
    return {
        "choices": [
            {
                **dict(zip(("rule", "mode", "held_out"), key, strict=True)),
                "shapes": len(found),
                "gains": sum(row["measured"] > 1 for row in found),
                "decided": sum(row["chosen"] for row in found),
                "right": sum(row["chosen"] and row["measured"] > 1 for row in found),
                "most_lost": max((row["lost"] for row in found if row["chosen"]), default=0.0),
                "geometric_mean": round(
                    statistics.geometric_mean(row["measured"] if row["chosen"] else 1.0 for row in found), 3
                ),
                "best": round(statistics.geometric_mean(max(row["measured"], 1.0) for row in found), 3),
            }
            for key, found in groups.items()
        ]
    }


# --- the fit ------------------------------------------------------------------------------------------


def fit(rows: list[dict[str, Any]]) -> str:
    """The text of `bu2td.optimization.rates`: seconds of each form's terms, by non-negative least squares of
    relative errors, and how far the logarithm of a gain is off on the rows that were fitted."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in judged(rows):
        if not row["held_out"] and row["threads"] in (1, "1"):
            place = _place(row["rule"], *(int(row[name]) for name in COLUMNS[2:8]))
            key = (row["rule"], fitted_mode(row["rule"], row["mode"], int(row["batch"])), place.kind)
            groups.setdefault(key, []).append({**row, "place": place})
    lines = []
    for key, found in sorted(groups.items()):
        if key[0] == "merge" and key[2] == "pointwise":  # too few, and the model is wrong in half of them
            continue
        forms = [row["place"].forms(key[1] != "inference") for row in found]
        given = [
            [form[at].terms(int(row["batch"])) for form, row in zip(forms, found, strict=True)] for at in (0, 1)
        ]
        times = [[row[name] / 1e3 for row in found] for name in ("old_ms", "new_ms")]
        rates = [_rates(np.array(x), np.array(t)) for x, t in zip(given, times, strict=True)]
        gains = [np.array(x) @ np.array(r) for x, r in zip(given, rates, strict=True)]
        off = np.log(gains[0] / gains[1]) - np.log([row["measured"] for row in found])
        numbers = ", ".join(f"({', '.join(f'{value:.3g}' for value in r)})" for r in rates)
        lines.append(f"    {key}: ({numbers}, {float(np.sqrt(np.mean(off**2))):.3f}),\n".replace("'", '"'))
    head = _RATES.read_text(encoding="utf-8").partition("_CPU")[0]
    return f"{head}_CPU: Mapping[tuple[str, str, str], Fitted] = {{\n{''.join(lines)}}}\n{_FOOT}"


def _rates(x: np.ndarray, seconds: np.ndarray) -> list[float]:
    """Non-negative x such that terms times x is near the seconds, relative to them."""
    scaled = x / seconds[:, None]
    size = np.maximum(scaled.max(axis=0), 1e-300)
    found, _ = nnls(scaled / size, np.ones(len(seconds)))
    return [float(value) for value in found / size]


def main() -> None:
    parser = _results.parser(__doc__, "choices")
    parser.add_argument("--repeat", type=int, default=5, metavar="N", help="rounds; default: %(default)s")
    parser.add_argument("--rows", type=int, default=60, metavar="N", help="per rule and mode; default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="default: %(default)s")
    parser.add_argument("--fit", action="store_true", help="fit the model to the rows that are there")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    speed.ROUND_SECONDS = {"cpu": 0.008}
    rows = [] if args.fit else measured(args)
    if args.fit:
        rows = _results.earlier(args.out, "measure first")
        write_text(fit(rows), _RATES)
    print(format_table(judged(rows)))
    print(format_table(summary(rows)["choices"]))


def measured(args: argparse.Namespace) -> list[dict[str, Any]]:
    """All rows, those that were missing measured; rules and modes take turns, so that a part is a table, too."""
    settings = speed.Settings(args.repeat, torch.device("cpu"), args.threads)
    rows = [
        [(rule, mode, *map(str, (*numbers, args.threads))) for numbers in shapes(rule, mode, args.rows)]
        for rule in RULES
        if args.match in rule
        for mode in MODES
    ]
    jobs = [job for turn in zip_longest(*rows) for job in turn if job is not None]
    about = {"device": _results.processor(), "repeat": args.repeat, "packages": _results.versions("torch", "bu2td")}
    return _results.sweep(args, COLUMNS, jobs, partial(run, settings=settings), summary, **about)


if __name__ == "__main__":
    main()
