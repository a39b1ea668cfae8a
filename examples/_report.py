"""Pictures and the page of the demo, by the means of the evaluation's report."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from bu2td.evaluate.report.figures import (
    COLORS,
    FAINT,
    PAGE,
    log_axis,
    new_figure,
    percent_axis,
    save_figure,
    styled,
    whole_axis,
)
from bu2td.evaluate.report.page import Block, Heading, Picture, Table, Text, to_html
from bu2td.files import write_text

__all__ = ["curves_figure", "features_figure", "pyramid_figure", "save_figure", "save_report"]

WORDS = {"bottom-up": COLORS["bu"], "top-down": COLORS["td"]}
WIDTH = 800  # CSS pixels


@styled
def curves_figure(results: Mapping[str, Mapping[str, Any]]) -> Any:
    """Draw training loss and test accuracy over the epochs."""
    figure = new_figure(PAGE, 2.4)
    loss, accuracy = figure.subplots(1, 2)
    for name, result in results.items():
        history = result["history"]
        epochs = [row["epoch"] for row in history]
        style: dict[str, Any] = {"color": WORDS[name], "marker": "o", "markersize": 3}
        loss.plot(epochs, [row["loss"] for row in history], label=name, **style)
        label = f"{name} ({result['test_accuracy']:.1%})"
        accuracy.plot(epochs, [row["test_accuracy"] for row in history], label=label, **style)
    loss.set(xlabel="epoch", ylabel="training loss")
    log_axis(loss)
    accuracy.set(xlabel="epoch", ylabel="test accuracy")
    percent_axis(accuracy.yaxis, 1)
    for axes in (loss, accuracy):
        whole_axis(axes.xaxis)
        axes.grid(color=FAINT, linewidth=0.6)
        axes.legend()
    return figure


@styled
def pyramid_figure(images: Sequence[Tensor], ladder: Sequence[int]) -> Any:
    """Draw one image at every level of the pyramid, coarse to fine."""
    figure = new_figure(1.7 * len(images) + 0.2, 2.1)
    places = figure.subplots(1, len(images), squeeze=False)[0]
    for axes, image, reduction in zip(places, images, ladder, strict=True):
        _show(axes, image[0, 0], "gray", vmin=0, vmax=1)
        axes.set_title(f"r{reduction}: {_size(image)}")
    return figure


@styled
def features_figure(
    image: Tensor, bottom_up: Sequence[Tensor], top_down: Sequence[Tensor], ladder: Sequence[int]
) -> Any:
    """Draw the mean feature map of every level, in the order in which each is computed."""
    rows = {
        "bottom-up": list(zip(bottom_up, ladder, strict=True))[::-1],
        "top-down": list(zip(top_down, ladder, strict=True)),
    }
    columns = len(ladder) + 1
    figure = new_figure(1.7 * columns + 0.3, 4.1)
    grid = figure.subplots(2, columns)
    for line, (name, levels) in zip(grid, rows.items(), strict=True):
        _show(line[0], image[0], "gray")
        line[0].set_title("image")
        line[0].set_ylabel(name, color=WORDS[name], fontsize=9, fontweight="bold")
        for axes, (features, reduction) in zip(line[1:], levels, strict=True):
            _show(axes, features[0].mean(0).cpu(), "viridis")
            axes.set_title(f"r{reduction}: {_size(features)}\n{features.shape[1]} channels")
    return figure


def _show(axes: Any, image: Tensor, cmap: str, **limits: float) -> None:
    axes.imshow(image, cmap=cmap, interpolation="nearest", **limits)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def _size(image: Tensor) -> str:
    return f"{image.shape[-2]}\N{MULTIPLICATION SIGN}{image.shape[-1]}"


def save_report(record: Mapping[str, Any], plans: Mapping[str, Any], out: Path) -> None:
    """Write report.html, one file with everything in it."""
    settings = record["configuration"]
    summary = [
        [name, f"{result['test_accuracy']:.2%}", f"{result['parameters']:,}", f"{result['seconds']:.1f}"]
        for name, result in record["lenet_fc"].items()
    ]
    blocks: list[Block] = [
        Text(
            "A bottom-up network loses resolution with depth. Its top-down network starts from the coarsest level "
            "of an image pyramid, and every level adds resolution and detail."
        ),
        Heading("LeNetFC on handwritten digits"),
        Table(
            f"Both networks are trained for {settings['epochs']} epochs on {settings['train_images']:,} images and "
            f"tested on {settings['test_images']:,} others.",
            ["network", "test accuracy", "parameters", "training, s"],
            summary,
        ),
        Picture(
            out / "accuracy.png",
            "Training loss and test accuracy after every epoch. While the learning rate is high, test accuracy "
            "lags: the running averages of the paper's batch norm (momentum 0.01) follow the weights slowly.",
            WIDTH,
        ),
        Picture(
            out / "pyramid.png",
            "A test image at every level of the pyramid, named by its reduction. Each level is computed from the "
            "full image by a Gaussian resample.",
            WIDTH,
        ),
        Picture(
            out / "features.png",
            "Mean feature map of every level after training, in the order in which each network computes them: "
            "bottom-up from fine to coarse, top-down from coarse to fine.",
            WIDTH,
        ),
    ]
    for name, plan in plans.items():
        blocks += [Heading(f"The top-down network of {name}"), *_plan(plan)]
        blocks.append(Picture(out / f"{name}.png", "Its levels, coarse to fine.", WIDTH))
    rows = {**settings, **{f"version of {k}": v for k, v in record["versions"].items()}}
    rows["seconds in all"] = record["seconds"]
    made = [[name.replace("_", " "), _cell(value)] for name, value in rows.items()]
    blocks += [Heading("How this was made"), Table("The run.", ["setting", "value"], made, words=2)]
    page = to_html("From bottom-up to top-down", "Two networks converted, one of them trained.", blocks)
    write_text(page, out / "report.html")


def _plan(plan: Any) -> list[Block]:
    before, after, rows = plan.bottom_up_cost, plan.cost, plan.rows()
    titles = [t for t in rows[0] if any(row[t] not in ("", None) for row in rows)]
    size = "\N{MULTIPLICATION SIGN}".join(map(str, plan.image_shape[-2:]))
    caption = (
        f"{after.parameters:,} parameters (bottom-up {before.parameters:,}); {after.macs / 1e6:,.1f} million "
        f"multiply-accumulates for an image of {size}, "
        f"{after.macs / before.macs:.1f} times the bottom-up network's."
    )
    table = Table(caption, titles, [[_cell(row[t]) for t in titles] for row in rows], words=len(titles))
    return [table, *(Text(note, small=True) for note in plan.notes)]


def _cell(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int | float) else str(value)
