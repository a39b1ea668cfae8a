"""Three starts of a top-down network after equal steps: scratch, inherited weights, distillation.

    python bench/starts.py [--steps 200] [--seeds 3] [--out bench/results/distil/distil]

Images are reduced to 16 x 16 pixels. A row is a seed, a start and a number of steps: the accuracy on the first
5,000 test images of Fashion-MNIST at the end, and on 500 of them on the way. All three starts of a seed have one
teacher (the bottom-up network, trained for three times as many steps), one learning rate and schedule, and see the
same batches. Differences are those to scratch of the same seed; intervals are Student's t, 95 %. Needs
dataset-fashion-mnist (Debian) or --data digits; goes on where it was stopped, and writes .csv, .json, .md and .png.
"""

import functools
import statistics
import sys
from pathlib import Path
from typing import Any

import _results
import torch
from scipy import stats

from bu2td.evaluate.data.sets import first_images, load_data
from bu2td.evaluate.report.figures import new_figure, percent_axis, save_figure, styled
from bu2td.files import write_text

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from distil import STARTS, accuracy, batches, small_resnet, start_network, train

SHOWN, TESTED = 500, 5000  # test images on the way, and at the end
LOOKS = 5
SIDE = 16  # pixels, so that a core is done in minutes
BATCH = 64
TEACHING = 3  # times the steps of a student
COLORS = {"scratch": "#666666", "inherited": "#0072B2", "distilled": "#D55E00"}


def run(seed: str, start: str, args: Any, teachers: dict[str, Any]) -> list[_results.Row]:
    """Train once, and look at it on the way."""
    number = int(seed)
    if start == "bottom-up" or seed not in teachers:
        torch.manual_seed(number)
        teachers[seed] = small_resnet()
        rows = _trained(seed, "bottom-up", teachers[seed], args, number, {})
        if start == "bottom-up":
            return rows
    td, loss, beside = start_network(start, teachers[seed], sets(args.data)[0][0], number)
    copied, total = td.plan.inherited or (0, 1)
    extra = {"loss": loss, "beside": beside}
    rows = _trained(seed, start, td, args, number + 1000, extra)
    return [{**row, "inherited": round(copied / total, 4)} for row in rows]


def _trained(seed: str, start: str, model: Any, args: Any, order: int, extra: Any) -> list[_results.Row]:
    train_set, test_set = sets(args.data)
    part = tuple(t[:SHOWN] for t in test_set)
    looks: list[tuple[int, float]] = []
    steps = args.steps * (TEACHING if start == "bottom-up" else 1)
    every = max(args.steps // LOOKS, 1)
    data = batches(*train_set, BATCH, order)
    seconds = train(
        model, data, steps, every=every, look=lambda n: looks.append((n, accuracy(model, *part))), **extra
    )
    common = {"seed": seed, "start": start}
    rows = [{**common, "step": step, "part": round(found, 4)} for step, found in looks]
    rows[-1] |= {"accuracy": accuracy(model, *(t[:TESTED] for t in test_set))}
    rows[-1] |= {"ms_per_step": round(1e3 * seconds, 1)}
    return rows


@functools.cache
def sets(name: str) -> tuple[Any, Any]:
    data = load_data(name, input_size=(1, SIDE, SIDE))
    return first_images(data.train), first_images(data.test)


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half the 95 % interval of Student's t (nan of one value)."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return mean, float("nan")
    return mean, float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))


def summary(rows: list[_results.Row]) -> _results.Row:
    """Means and paired differences of the accuracies at the end, in percent and points."""
    ends = {(r["start"], r["seed"]): 100 * r["accuracy"] for r in rows if "accuracy" in r}
    found: _results.Row = {}
    for start in ("bottom-up", *STARTS):
        own = {seed: value for (s, seed), value in ends.items() if s == start}
        if not own:
            continue
        mean, half = interval(list(own.values()))
        paired = [value - ends["scratch", seed] for seed, value in own.items() if ("scratch", seed) in ends]
        difference = interval(paired) if paired and start not in ("scratch", "bottom-up") else (None, None)
        speed = statistics.mean(r["ms_per_step"] for r in rows if r["start"] == start and "accuracy" in r)
        found[start] = {
            "n": len(own),
            "accuracy": round(mean, 2),
            "half": round(half, 2),
            "difference": None if difference[0] is None else round(difference[0], 2),
            "difference_half": None if difference[1] is None else round(difference[1], 2),
            "ms_per_step": round(speed, 1),
        }
    return {"summary": found}


def table(found: _results.Row, steps: int) -> str:
    lines = [
        f"| network | test accuracy after {steps:,} steps, % | difference to scratch, points | CPU ms a step |",
        "|---|---|---|---|",
    ]
    for start, row in found["summary"].items():
        gap = row["difference"]
        words = "" if gap is None else f"{gap:+.2f} ± {row['difference_half']:.2f}"
        teacher = f"bottom-up, the teacher ({TEACHING * steps:,} steps)"
        name = teacher if start == "bottom-up" else f"top-down, {start}"
        lines.append(f"| {name} | {row['accuracy']:.2f} ± {row['half']:.2f} | {words} | {row['ms_per_step']:.0f} |")
    return "\n".join(lines)


@styled
def figure(rows: list[_results.Row]) -> Any:
    """Accuracy on the way: every seed thin, the mean thick."""
    made = new_figure(3.6, 2.6)
    axes = made.subplots()
    teachers = [r["part"] for r in rows if r["start"] == "bottom-up" and "accuracy" in r]
    if teachers:
        axes.axhline(statistics.mean(teachers), color="black", linestyle="--", label="bottom-up, the teacher")
    for start, color in COLORS.items():
        own = [r for r in rows if r["start"] == start]
        steps = sorted({r["step"] for r in own})
        lines = [[r["part"] for r in own if r["seed"] == seed] for seed in sorted({r["seed"] for r in own})]
        for line in lines:
            axes.plot(steps, line, color=color, linewidth=0.5, alpha=0.6)
        if lines:
            mean = [statistics.mean(values) for values in zip(*lines, strict=True)]
            axes.plot(steps, mean, color=color, label=f"top-down, {start}")
    axes.set(xlabel="step", ylabel=f"accuracy on {SHOWN:,} test images")
    shown = [r["part"] for r in rows if r["step"] > min(r["step"] for r in rows)] or [0.0, 1.0]
    axes.set_ylim(min(shown) - 0.02, max(shown) + 0.01)
    percent_axis(axes.yaxis, max(shown) - min(shown))
    axes.grid(color="#D9D9D9", linewidth=0.6)
    axes.legend(loc="lower right")
    return made


def main() -> None:
    parser = _results.parser(__doc__, "distil/distil")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", default="fashion-mnist")
    args = parser.parse_args()
    torch.set_num_threads(1)
    jobs = [(str(seed), start) for seed in range(args.seeds) for start in ("bottom-up", *STARTS)]
    about = {
        "data": args.data,
        "steps": args.steps,
        "batch_size": BATCH,
        "side": SIDE,
        "teaching": TEACHING,
        "processor": _results.processor(),
    }
    run_one = functools.partial(run, args=args, teachers={})
    rows = _results.sweep(args, ("seed", "start"), jobs, run_one, summary, **about)
    text = table(summary(rows), args.steps)
    write_text(text + "\n", args.out.with_suffix(".md"))
    save_figure(figure(rows), args.out.with_suffix(".png"))
    print(text)


if __name__ == "__main__":
    main()
