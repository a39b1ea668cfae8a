"""Tables and pictures of the segmentation example."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _scenes import Scenes
from scipy.stats import t as student
from torch import Tensor

from bu2td.evaluate.report.figures import (
    COLORS,
    FAINT,
    PAGE,
    new_figure,
    percent_axis,
    save_figure,
    styled,
    whole_axis,
)
from bu2td.files import write_text

TITLES = {"mean_iou": "mean IoU", "boundary_f1": "boundary F1", "outline_f1": "outline F1"}
LINES = {"FCN": (COLORS["bu"], "-"), "U-Net": (COLORS["uni"], (0, (4, 1.5))), "top-down": (COLORS["td"], "-")}
OURS = "top-down"


def save_report(
    result: Mapping[str, Any], classes: Sequence[str], scenes: Scenes, shown: Mapping[str, Tensor], out: Path
) -> None:
    """Write epochs.csv, results.md, curves.png and predictions.png.

    Args:
        result: what the run found, as in results.json.
        classes: names, without the background's.
        scenes: some of the test scenes.
        shown: what every network of the first seed says about them.
        out: the folder.
    """
    write_text(_epochs(result), out / "epochs.csv")
    write_text(_page(result), out / "results.md")
    save_figure(curves_figure(result), out / "curves.png")
    save_figure(predictions_figure(classes, scenes, shown), out / "predictions.png")


def _epochs(result: Mapping[str, Any]) -> str:
    rows = [{"network": r["network"], "seed": r["seed"], **epoch} for r in result["runs"] for epoch in r["history"]]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: f"{v:.5f}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    return text.getvalue()


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean of values, and the half width of its 95 % interval (Student's t)."""
    count = len(values)
    if count < 2:
        return float(np.mean(values)), float("nan")
    spread = float(np.std(values, ddof=1)) / count**0.5
    return float(np.mean(values)), float(student.ppf(0.975, count - 1)) * spread


def last_scores(result: Mapping[str, Any], network: str, measure: str) -> list[float]:
    """A measure after the last epoch, by seed."""
    return [r["history"][-1][measure] for r in result["runs"] if r["network"] == network]


def _page(result: Mapping[str, Any]) -> str:
    own, seeds = result["settings"], result["settings"]["seeds"]
    lines = [
        f"Scenes of {own['data']}, {own['size']}x{own['size']} pixels, {own['train']:,} to train with and "
        f"{own['test']:,} to test; {own['epochs']} epochs, {seeds} seeds. Means over the seeds in %, with the 95 % "
        f"interval of each (Student's t).",
        "",
        f"| network | width | parameters | MMACs | {' | '.join(TITLES.values())} |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, facts in result["networks"].items():
        scores = [_cell(last_scores(result, name, measure)) for measure in TITLES]
        size = f"{facts['width']} | {facts['parameters']:,} | {facts['macs'] / 1e6:.1f}"
        lines.append(f"| {name} | {size} | {' | '.join(scores)} |")
    for name in result["networks"]:
        if name != OURS:
            pairs = [
                [a - b for a, b in zip(*(last_scores(result, n, m) for n in (OURS, name)), strict=True)]
                for m in TITLES
            ]
            lines.append(f"| {OURS} less {name}, by seed | | | | {' | '.join(_cell(p, '+') for p in pairs)} |")
    return "\n".join([*lines, ""])


def _cell(values: Sequence[float], sign: str = "") -> str:
    mean, half = interval(values)
    return f"{100 * mean:{sign}.1f} \N{PLUS-MINUS SIGN} {100 * half:.1f}"


@styled
def curves_figure(result: Mapping[str, Any]) -> Any:
    """Draw loss and measures over the epochs: the mean of the seeds, and the range of them."""
    figure = new_figure(PAGE, 2.3)
    names = {"loss": "training loss", **{k: v for k, v in TITLES.items() if k != "outline_f1"}}
    for axes, (measure, title) in zip(figure.subplots(1, len(names)), names.items(), strict=True):
        for network, (color, dashes) in LINES.items():
            runs = [r["history"] for r in result["runs"] if r["network"] == network]
            values = np.array([[epoch[measure] for epoch in run] for run in runs])
            epochs = np.arange(1, values.shape[1] + 1)
            axes.plot(epochs, values.mean(0), color=color, linestyle=dashes, label=network)
            axes.fill_between(epochs, values.min(0), values.max(0), color=color, alpha=0.2, linewidth=0)
        axes.set(xlabel="epoch", ylabel=title)
        axes.grid(color=FAINT, linewidth=0.6)
        whole_axis(axes.xaxis)
        if measure == "loss":
            axes.legend()
        else:
            percent_axis(axes.yaxis, 1)
            axes.set_ylim(bottom=0)
    return figure


@styled
def predictions_figure(classes: Sequence[str], scenes: Scenes, shown: Mapping[str, Tensor]) -> Any:
    """Draw scenes, the truth, and what every network says."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    colors = ListedColormap([(0.08, 0.08, 0.08), *colormaps["tab10"].colors[: len(classes)]])
    rows = {"truth": scenes.labels, **shown}
    figure = new_figure(PAGE, 1.1 * (len(rows) + 1) + 0.5)
    grid = figure.subplots(len(rows) + 1, len(scenes.images), squeeze=False)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    for axes, image in zip(grid[0], scenes.images, strict=True):
        axes.imshow(image[0].numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    grid[0, 0].set_ylabel("image")
    for line, (name, maps) in zip(grid[1:], rows.items(), strict=True):
        line[0].set_ylabel(name, color=LINES.get(name, ("black",))[0])
        for axes, labels in zip(line, maps, strict=True):
            axes.imshow(labels.numpy(), cmap=colors, vmin=0, vmax=len(classes), interpolation="nearest")
    names = ["background", *classes]
    handles = [Patch(color=colors(i), label=name) for i, name in enumerate(names)]
    figure.legend(handles=handles, loc="outside lower center", ncols=6)
    return figure
