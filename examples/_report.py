"""Pictures and the HTML page of the demo."""

import base64
import html
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from torch import Tensor

COLORS = {"bottom-up": "#4477AA", "top-down": "#CC3311"}
STYLE: dict[str, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
}


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path that takes the place of `path` once everything is written."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure for print."""
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=200, facecolor="white")


def curves_figure(results: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw training loss and test accuracy over the epochs."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.8, 2.6), layout="constrained")
        loss, accuracy = figure.subplots(1, 2)
        for name, result in results.items():
            history = result["history"]
            epochs = [row["epoch"] for row in history]
            style = {"color": COLORS[name], "marker": "o", "markersize": 3, "label": name}
            loss.plot(epochs, [row["loss"] for row in history], **style)
            style["label"] = f"{name} ({result['test_accuracy']:.1%})"
            accuracy.plot(epochs, [row["test_accuracy"] for row in history], **style)
        loss.set(xlabel="epoch", ylabel="training loss", yscale="log")
        accuracy.set(xlabel="epoch", ylabel="test accuracy")
        accuracy.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        for axes in (loss, accuracy):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(color="0.92", linewidth=0.6)
            axes.set_axisbelow(True)
        loss.legend()
        accuracy.legend(loc="lower right")
    return figure


def pyramid_figure(images: Sequence[Tensor], ladder: Sequence[int]) -> Figure:
    """Draw one image at every level of the pyramid, coarse to fine."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(1.7 * len(images) + 0.2, 2.1), layout="constrained")
        for axes, image, reduction in zip(
            figure.subplots(1, len(images), squeeze=False)[0], images, ladder, strict=True
        ):
            _show(axes, image[0, 0], "gray", limits=(0, 1))
            axes.set_title(f"r{reduction}: {_size(image)}")
    return figure


def features_figure(
    image: Tensor, bottom_up: Sequence[Tensor], top_down: Sequence[Tensor], ladder: Sequence[int]
) -> Figure:
    """Draw the mean feature map of every level, in the order in which each is computed."""
    rows = {
        "bottom-up": list(zip(bottom_up, ladder, strict=True))[::-1],
        "top-down": list(zip(top_down, ladder, strict=True)),
    }
    columns = len(ladder) + 1
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(1.7 * columns + 0.3, 4.1), layout="constrained")
        grid = figure.subplots(2, columns)
        for line, (name, levels) in zip(grid, rows.items(), strict=True):
            _show(line[0], image[0], "gray")
            line[0].set_title("image")
            line[0].set_ylabel(name, color=COLORS[name], fontsize=10, fontweight="bold")
            for axes, (features, reduction) in zip(line[1:], levels, strict=True):
                _show(axes, features[0].mean(0).cpu(), "viridis")
                channels = features.shape[1]
                axes.set_title(f"r{reduction}: {_size(features)}\n{channels} channels")
    return figure


def _show(axes: Any, image: Tensor, cmap: str, limits: tuple[float | None, float | None] = (None, None)) -> None:
    axes.imshow(image, cmap=cmap, vmin=limits[0], vmax=limits[1], interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def _size(image: Tensor) -> str:
    return f"{image.shape[-2]}×{image.shape[-1]}"  # noqa: RUF001


def save_report(record: Mapping[str, Any], plans: Mapping[str, Any], out: Path) -> None:
    """Write report.html, one file with everything in it."""
    summary = [
        {
            "network": name,
            "test accuracy": f"{result['test_accuracy']:.2%}",
            "parameters": f"{result['parameters']:,}",
            "training": f"{result['seconds']:.1f} s",
        }
        for name, result in record["lenet_fc"].items()
    ]
    settings = record["configuration"]
    parts = [
        "<h1>From bottom-up to top-down</h1>",
        "<p>A bottom-up network loses resolution with depth. Its top-down network starts from the "
        "coarsest level of an image pyramid, and every level adds resolution and detail.</p>",
        "<h2>LeNetFC on handwritten digits</h2>",
        f"<p>Both networks are trained for {settings['epochs']} epochs on "
        f"{settings['train_images']:,} images and tested on "
        f"{settings['test_images']:,} others.</p>",
        _table(summary),
        _picture(
            out / "accuracy.png",
            "Training loss and test accuracy after every epoch. While the learning rate is high, "
            "test accuracy lags: the running averages of the paper's batch norm (momentum 0.01) "
            "follow the weights slowly.",
        ),
        _picture(
            out / "pyramid.png",
            "A test image at every level of the pyramid, named by its reduction. Each level is "
            "computed from the full image by a Gaussian resample.",
        ),
        _picture(
            out / "features.png",
            "Mean feature map of every level after training, in the order in which each network "
            "computes them: bottom-up from fine to coarse, top-down from coarse to fine.",
        ),
    ]
    for name, plan in plans.items():
        parts += [
            f"<h2>The top-down network of {html.escape(name)}</h2>",
            _plan(plan),
            _picture(out / f"{name}.png", "Its levels, coarse to fine."),
        ]
    rows = {**settings, **{f"version of {k}": v for k, v in record["versions"].items()}}
    rows["seconds in all"] = record["seconds"]
    parts += [
        "<h2>How this was made</h2>",
        _table([{"setting": k.replace("_", " "), "value": v} for k, v in rows.items()]),
    ]
    with atomic(out / "report.html") as path:
        path.write_text(PAGE.replace("BODY", "\n".join(parts)), encoding="utf-8")


def _plan(plan: Any) -> str:
    before, after = plan.bottom_up_cost, plan.cost
    ratio = after.macs / before.macs
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in plan.notes)
    return (
        _table(plan.rows())
        + f"<p>{after.parameters:,} parameters (bottom-up {before.parameters:,}); "
        + f"{after.macs / 1e6:,.1f} million multiply-accumulates for an image of "
        + f"{plan.image_shape[-2]}×{plan.image_shape[-1]}, "  # noqa: RUF001
        + f"{ratio:.1f} times the bottom-up network's.</p>"
        + (f"<ul>{notes}</ul>" if notes else "")
    )


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    titles = [t for t in rows[0] if any(row[t] not in ("", None) for row in rows)]
    head = "".join(f"<th>{html.escape(title)}</th>" for title in titles)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(_cell(row[t]))}</td>" for t in titles) + "</tr>" for row in rows
    )
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def _cell(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int | float) else str(value)


def _picture(path: Path, caption: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{html.escape(caption)}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>bu2td: from bottom-up to top-down</title>
<style>
body { max-width: 50rem; margin: 2.5rem auto; padding: 0 1rem; color: #222; background: #fff;
       font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.8rem; margin-bottom: .4rem; }
h2 { font-size: 1.25rem; margin-top: 2.6rem; border-bottom: 1px solid #ddd; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem .3rem 0; text-align: left; border-bottom: 1px solid #eee; }
th { border-bottom: 2px solid #bbb; }
figure { margin: 1.5rem 0; }
img { max-width: 100%; display: block; }
figcaption { color: #555; font-size: .85rem; margin-top: .4rem; }
</style>
</head>
<body>
BODY
</body>
</html>
"""
