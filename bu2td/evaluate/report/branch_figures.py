"""Which input of the pyramid is vulnerable (the paper's figure 5): accuracy against the size of a perturbation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from bu2td.evaluate.means import aggregate
from bu2td.evaluate.report.compare import strongest_first
from bu2td.evaluate.report.figures import FAINT, INK, percent_axis, plain, small_multiples, styled
from bu2td.evaluate.report.words import title

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["branches_figure", "input_title", "inputs_of"]

#: Of single inputs from fine to coarse; told apart by everybody (Okabe and Ito).
COLORS = ("#0072B2", "#E69F00", "#CC79A7", "#56B4E9", "#009E73", "#D55E00")
MARKERS = ("o", "s", "^", "D", "v", "P")


def inputs_of(rows: pd.DataFrame) -> list[str]:
    """The sets of perturbed inputs: none, single ones from fine to coarse, pairs, all."""
    reductions = {
        name: [int(r) for r in where.split("+") if r.isdecimal()]
        for name, where in zip(rows["inputs"], rows["reductions"], strict=True)
    }
    return sorted(reductions, key=lambda name: (size_of(name), reductions[name], name))


def size_of(name: str) -> int:
    """How many inputs a name stands for."""
    return {"none": 0, "all": 99}.get(name, 1 + name.count("+"))


def input_title(name: str, reductions: str) -> str:
    """ "highest (r1)", "highest + lowest"."""
    if size_of(name) != 1 or not reductions or name == f"r{reductions}":
        return " + ".join(name.split("+"))
    return f"{name} (r{reductions})"


@styled
def branches_figure(rows: pd.DataFrame, columns: int = 4) -> Figure | None:
    """Accuracy of one network against the scale of a perturbation that enters some inputs; a plot per attack.

    Args:
        rows: of branches.csv, of one arrangement; lines are means over its repeats.
        columns: of plots.
    """
    rows = strongest_first(rows[rows["accuracy"].notna()]) if len(rows) else rows
    if not len(rows):
        return None
    from matplotlib.ticker import FixedLocator, FuncFormatter

    attacks, inputs = rows["attack"].unique(), inputs_of(rows)
    styles = _styles(inputs)
    figure, grid = small_multiples(len(attacks), columns, 1.5, legend_lines=-(-len(inputs) // 4))
    scales = sorted(rows["scale"].unique())
    lines: dict[str, Any] = {}
    for axes, attack in zip(grid, attacks, strict=True):
        found = aggregate(rows[rows["attack"] == attack], ["inputs", "scale"], "accuracy")
        for name in inputs:
            points = [(s, found[name, s].mean) for s in scales if (name, s) in found]
            if points:
                (lines[name],) = axes.plot(*zip(*points, strict=True), **styles[name])
        axes.set_title(plain(title(attack)), loc="left", pad=3)
        axes.set_ylim(-0.03, 1.03)
        axes.xaxis.set_major_locator(FixedLocator(scales))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        percent_axis(axes.yaxis, 1)
        axes.grid(color=FAINT, linewidth=0.7)
    where = dict(zip(rows["inputs"], rows["reductions"], strict=True))
    figure.supylabel("accuracy", fontsize=7.5)
    figure.supxlabel("size of the perturbation, times the smallest one", fontsize=7.5)
    shown = [name for name in inputs if name in lines]
    labels = [plain(input_title(name, where[name])) for name in shown]
    figure.legend([lines[name] for name in shown], labels, loc="outside upper center", ncols=min(4, len(shown)))
    return figure


def _styles(inputs: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Single inputs have a colour each, pairs are dashed in the colours of both, all are black, none is grey."""
    single = [name for name in inputs if size_of(name) == 1]
    colors = {name: COLORS[i % len(COLORS)] for i, name in enumerate(single)}
    styles: dict[str, dict[str, Any]] = {}
    for name in inputs:
        parts = name.split("+")
        if name in colors:
            mark = MARKERS[single.index(name) % len(MARKERS)]
            styles[name] = {"color": colors[name], "marker": mark, "markersize": 3}
        elif len(parts) > 1:
            first, second = (colors.get(part, INK) for part in (parts[0], parts[-1]))
            styles[name] = {"color": first, "gapcolor": second, "linestyle": (0, (3, 3)), "linewidth": 1.2}
        else:
            color, line = (INK, "-") if name == "all" else ("#999999", (0, (1, 1.5)))
            styles[name] = {"color": color, "linestyle": line, "marker": ".", "markersize": 3}
    return styles
