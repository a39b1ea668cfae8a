"""The plots of docs/performance.md, from the results of the benches.

    python bench/plots.py [--results bench/results] [--out docs]

Reads speed.json, memory.json, convert.json and cost.json, and writes speed.png, roofline.png, memory.png,
conversion.png and cost.png;
the plot of a result that is not there is left out, and named.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rivals import PAIRS

from bu2td.evaluate.report.figures import new_figure, save_figure, styled

Row = dict[str, Any]
PAGE = 6.9
DARK, LIGHT, LINE, FAINT = "#0072B2", "#D55E00", "#666666", "#D9D9D9"
RIVALS = {"as written": (DARK, "s"), "channels_last": (LIGHT, "o")}
NETWORKS = {"bottom-up": "#000000", "converted": DARK, "optimised": LIGHT}
FORMS = {"converted": (DARK, "o"), "optimised": (LIGHT, "s"), "recomputing": ("#009E73", "D")}
WAYS = {"nothing": "o", "levels": "^", "inside": "s", "inside, r8 to r1": "D"}


def networks(rows: list[Row]) -> list[str]:
    """The networks of rows, in the order of the bench."""
    found = {row["network"] for row in rows}
    return [name for name in PAIRS if name in found]


@styled
def speed(rows: list[Row]) -> Any:
    """Speed-up over the rival per network: median, with the slowest and fastest round as a line."""
    panels = [(task, kind) for kind in ("eager", "compiled") for task in ("inference", "training")]
    panels = [p for p in panels if any((r["task"], r["kind"]) == p for r in rows)]
    names = networks(rows)
    figure = new_figure(PAGE, 0.2 + 1.8 * -(-len(panels) // 2))
    grid = figure.subplots(-(-len(panels) // 2), 2, sharex=True, sharey=True, squeeze=False)
    for axes, (task, kind) in zip(grid.flat, panels, strict=False):
        means = []
        for shift, (rival, (color, marker)) in zip((-0.15, 0.15), RIVALS.items(), strict=True):
            found = {r["network"]: r for r in rows if (r["task"], r["kind"], r["rival"]) == (task, kind, rival)}
            places = [names.index(name) + shift for name in found]
            values = np.array([[r["slowest"], r["speedup"], r["fastest"]] for r in found.values()])
            axes.hlines(places, values[:, 0], values[:, 2], color=color, linewidth=0.8)
            axes.plot(values[:, 1], places, marker, color=color, markersize=3.5, label=rival)
            means.append(f"{statistics.geometric_mean(values[:, 1]):.2f}")
        axes.axvline(1, color=LINE, linewidth=0.7)
        axes.set_title(f"{task}, {kind}: geometric means {' and '.join(means)}", loc="left")
        axes.set_yticks(range(len(names)), names)
    grid[0][0].invert_yaxis()
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    for axes in grid[-1]:
        axes.set_xlabel("times the speed of the hand-written network")
    return figure


@styled
def roofline(rows: list[Row]) -> Any:
    """Where the time of the optimised network goes: per level, and the part that its convolutions need."""
    names = networks(rows)
    figure = new_figure(PAGE, 1.5 * -(-len(names) // 4))
    grid = figure.subplots(-(-len(names) // 4), 4, squeeze=False)
    for axes, name in zip(grid.flat, names, strict=False):
        found = [r for r in rows if r["network"] == name and r["level"].startswith("r")]
        places = range(len(found))
        times = [r["level_ms"] for r in found]
        bounds = [min(r["plain_convs_ms"], r["level_ms"]) for r in found]
        axes.barh(places, times, color=FAINT, label="time of the level")
        axes.barh(places, bounds, color=DARK, height=0.45, label="plain convolutions alone")
        for place, row in zip(places, found, strict=True):
            axes.text(row["level_ms"], place, f" {row['share']:.2f}", va="center", fontsize=6)
        axes.set_yticks(places, [r["level"] for r in found])
        axes.invert_yaxis()
        axes.set_xlim(0, 1.22 * max(times))
        axes.set_title(f"{name}, ms", loc="left")
    for axes in list(grid.flat)[len(names) :]:
        axes.set_axis_off()
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


@styled
def memory(rows: list[Row]) -> Any:
    """Peak memory and time of a training step: networks by colour, ways of recomputing by marker."""
    precisions = list(dict.fromkeys(row["precision"] for row in rows))
    figure = new_figure(PAGE, 2.5)
    grid = figure.subplots(1, len(precisions), sharey=True, squeeze=False)
    for axes, precision in zip(grid.flat, precisions, strict=True):
        for network, color in NETWORKS.items():
            found = [r for r in rows if (r["network"], r["precision"]) == (network, precision)]
            axes.plot([r["step_s"] for r in found], [r["peak_mib"] / 1024 for r in found], "-", color=color)
            for row in found:
                label = f"{network}, {row['recomputed']} recomputed"
                place = row["step_s"], row["peak_mib"] / 1024
                axes.plot(*place, WAYS[row["recomputed"]], color=color, markersize=5, label=label)
        axes.set_title(precision, loc="left")
        axes.set_xlabel("seconds of a step")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
    grid[0][0].set_ylabel("peak memory, GiB")
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside right center")
    return figure


@styled
def conversion(rows: list[Row]) -> Any:
    """Time of a conversion against the nodes of the bottom-up network, with a line of slope one."""
    figure = new_figure(PAGE / 2, 2.3)
    axes = figure.subplots()
    nodes = np.array([row["nodes"] for row in rows])
    seconds = np.array([row["convert_s"] for row in rows])
    axes.loglog(nodes, seconds, "o", color=DARK, markersize=4)
    ends = np.array([nodes.min(), nodes.max()])
    axes.loglog(ends, np.median(seconds / nodes) * ends, "-", color=FAINT, zorder=0)
    for row in rows:
        name = row["model"].removeprefix("bu2td:").replace(" a stage", "")
        above = row["convert_s"] / row["nodes"] > 0.9 * statistics.median(seconds / nodes)
        right = row["nodes"] > 900 or (above and row["nodes"] > nodes.min())
        style: Any = {"textcoords": "offset points", "va": "center", "fontsize": 5.5}
        place, shift, side = (row["nodes"], row["convert_s"]), (-5 if right else 5), "right" if right else "left"
        axes.annotate(name, place, xytext=(shift, 0), ha=side, **style)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
    axes.set_xlabel("nodes of the bottom-up graph")
    axes.set_ylabel("seconds of convert")
    return figure


@styled
def cost(rows: list[Row]) -> Any:
    """Time and memory over the bottom-up network's, per network and form."""
    names = sorted(
        {row["network"] for row in rows if row["task"] == "training"},
        key=lambda name: next(r["converted_time"] for r in rows if (r["network"], r["task"]) == (name, "training")),
    )
    figure = new_figure(PAGE, 1.2 + 0.3 * len(names))
    grid = figure.subplots(2, 2, sharey=True, squeeze=False)
    for row_of_axes, task in zip(grid, ("training", "inference"), strict=True):
        for axes, what in zip(row_of_axes, ("time", "memory"), strict=True):
            for form, (color, marker) in FORMS.items():
                key = f"{form}_{what}"
                found = {r["network"]: r[key] for r in rows if r["task"] == task and key in r}
                places = [names.index(name) for name in found if name in names]
                values = [value for name, value in found.items() if name in names]
                axes.plot(values, places, marker, color=color, markersize=3.5, label=form)
            axes.axvline(1, color=LINE, linewidth=0.7)
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter("{x:g}")
            axes.set_title(f"{task}: {what} over bottom-up", loc="left")
            axes.set_yticks(range(len(names)), names)
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


#: Plot -> its result, which of its rows, how it is drawn.
PLOTS: dict[str, tuple[str, Callable[[Row], bool], Callable[[list[Row]], Any]]] = {
    "speed": ("speed", lambda r: r["kind"] != "roofline" and r["rival"] in RIVALS, speed),
    "roofline": ("speed", lambda r: r["kind"] == "roofline", roofline),
    "memory": ("memory", lambda r: True, memory),
    "conversion": ("convert", lambda r: True, conversion),
    "cost": ("cost", lambda r: True, cost),
}


def draw(results: Path, out: Path) -> list[Path]:
    """Draw every plot that there are results for; returns the files."""
    made = []
    for name, (result, wanted, function) in PLOTS.items():
        file = results / f"{result}.json"
        rows = json.loads(file.read_text())["rows"] if file.exists() else []
        rows = [row for row in rows if wanted(row)]
        if not rows:
            print(f"{file} has no rows for {name}")
            continue
        made.append(out / f"{name}.png")
        save_figure(function(rows), made[-1])
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = Path(__file__).parent
    parser.add_argument("--results", type=Path, default=here / "results")
    parser.add_argument("--out", type=Path, default=here.parent / "docs")
    args = parser.parse_args()
    for path in draw(args.results, args.out):
        print(path)


if __name__ == "__main__":
    main()
