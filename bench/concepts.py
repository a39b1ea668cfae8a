"""The pictures of docs/concepts.md, from the networks that bu2td makes.

    python bench/concepts.py [--out docs]

Writes levels.png, pyramid.png, merge.png and arrangements.png. Widths, levels and images are those of
``timm.create_model("resnet18")`` and of `bu2td.nn.Pyramid`; nothing is drawn that was not asked of them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from matplotlib.patches import Circle, FancyArrowPatch, Rectangle

import bu2td
from bu2td.evaluate.report.figures import new_figure, save_figure, styled
from bu2td.nn import Pyramid

INK, GREY, LATERAL, FACE, EDGE = "#222222", "#666666", "#C4560A", "#CCE0F2", "#1B3F63"
PAGE = 6.9


def box(axes: Any, x: float, y: float, width: float, height: float, text: str, color: str = FACE) -> None:
    """A labelled box around (x, y)."""
    place = (x - width / 2, y - height / 2)
    axes.add_patch(Rectangle(place, width, height, facecolor=color, edgecolor=EDGE, linewidth=0.8))
    axes.text(x, y, text, ha="center", va="center", color=INK, fontsize=7)


def arrow(axes: Any, start: tuple[float, float], end: tuple[float, float], color: str = INK) -> None:
    """An arrow between two points."""
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=8, color=color, linewidth=0.9))


def canvas(height: float, xs: tuple[float, float], ys: tuple[float, float]) -> tuple[Any, Any]:
    """A figure without axes, and its coordinates."""
    figure = new_figure(PAGE, height)
    axes = figure.subplots()
    axes.set_xlim(*xs)
    axes.set_ylim(*ys)
    axes.axis("off")
    return figure, axes


@styled
def levels(td: Any) -> Any:
    """Each level of both networks: height is resolution, the number its width."""
    coarse_first = td.plan.bottom_up
    figure = new_figure(PAGE, 2.5)
    rows = [("bottom-up: resolution falls", coarse_first[::-1]), ("top-down: resolution rises", td.plan.levels)]
    for axes, (title, found) in zip(figure.subplots(1, 2, sharey=True), rows, strict=True):
        for place, level in enumerate(found):
            height = 1 / level.reduction**0.5
            body = "no blocks" if not level.blocks else f"{len(level.blocks)} blocks"
            box(axes, place, 0, 0.62, height, "")
            said = f"r{level.reduction}\n{level.width} wide\n{body}"
            axes.text(place, -0.55, said, ha="center", va="top", fontsize=7)
            if place:
                arrow(axes, (place - 0.68, 0), (place - 0.33, 0))
        axes.set_title(title, loc="left")
        axes.set_xlim(-0.6, len(found) - 0.4)
        axes.set_ylim(-1.05, 0.6)
        axes.axis("off")
    return figure


def zone_plate(size: int) -> torch.Tensor:
    """Rings that grow finer from the middle: (1, 1, size, size) in [0, 1]."""
    places = torch.linspace(-1, 1, size)
    radius = places[:, None] ** 2 + places[None, :] ** 2
    return (0.5 + 0.5 * torch.cos(radius * size * 0.7))[None, None]


@styled
def pyramid() -> Any:
    """An image at four reductions, by two reducers."""
    image, reductions = zone_plate(128), (1, 2, 4, 8)
    figure = new_figure(PAGE, 3.7)
    grid = figure.subplots(2, len(reductions))
    for row, reducer in zip(grid, ("gaussian", "strided"), strict=True):
        levels = Pyramid(reductions, reducer)(image)
        for axes, reduction, level in zip(row, reductions, levels, strict=True):
            axes.imshow(level[0, 0].numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes.set_title(f"{reducer}, 1/{reduction}: {level.shape[-1]} px", fontsize=7)
            axes.axis("off")
    return figure


@styled
def merge(td: Any) -> Any:
    """The parts of one finer level, with the widths of a real one."""
    coarse, level = td.plan.levels[:2]
    width, above = level.merge_width, coarse.width
    figure, axes = canvas(2.0, (0, 13.4), (-1.7, 1.5))
    box(axes, 1.0, 0.6, 1.7, 0.8, f"r32\n{above} channels")
    box(axes, 3.6, 0.6, 2.1, 0.8, f"up-block\nto {width}, upsample")
    box(axes, 1.0, -1.0, 1.7, 0.8, "image at 1/16\n3 channels", "#F7E3D4")
    box(axes, 3.6, -1.0, 2.1, 0.8, f"lateral\n3 to {width}", "#F7E3D4")
    axes.add_patch(Circle((6.0, -0.2), 0.28, facecolor="white", edgecolor=EDGE, linewidth=0.8))
    axes.text(6.0, -0.2, "+", ha="center", va="center", fontsize=9)
    box(axes, 8.0, -0.5, 1.5, 0.9, f"concat\n{2 * width}")
    box(axes, 10.2, -0.5, 1.8, 0.9, f"3x3 conv\nto {width}")
    box(axes, 12.5, -0.5, 1.5, 0.9, "r16\nits blocks")
    for start, end, color in (
        ((1.85, 0.6), (2.55, 0.6), INK),
        ((1.85, -1.0), (2.55, -1.0), LATERAL),
        ((4.65, 0.5), (5.75, -0.05), INK),
        ((4.65, -0.9), (5.75, -0.35), LATERAL),
        ((6.28, -0.25), (7.25, -0.4), INK),
        ((4.65, -1.15), (7.25, -0.75), LATERAL),
        ((8.75, -0.5), (9.3, -0.5), INK),
        ((11.1, -0.5), (11.75, -0.5), INK),
    ):
        arrow(axes, start, end, color)
    axes.text(9.1, 0.25, "merge", ha="center", fontsize=8, color=GREY)
    return figure


@styled
def arrangements(networks: dict[str, Any]) -> Any:
    """Widths of the levels, coarse to fine, in each arrangement."""
    figure = new_figure(PAGE, 1.9)
    for axes, (name, td) in zip(figure.subplots(1, len(networks), sharey=True), networks.items(), strict=True):
        places = range(len(td.plan.ladder))
        bars = axes.bar(places, td.plan.widths, color=FACE, edgecolor=EDGE, linewidth=0.8)
        axes.bar_label(bars, fontsize=6.5)
        axes.set_xticks(places, [f"r{r}" for r in td.plan.ladder])
        parameters, ratio = td.plan.cost.parameters / 1e6, td.plan.cost.macs / td.plan.bottom_up_cost.macs
        axes.set_title(f"{name}: {parameters:.1f} M parameters, {ratio:.1f} x MACs", loc="left", fontsize=7)
        axes.set_ylim(0, 600)
    figure.axes[0].set_ylabel("channels")
    return figure


def main() -> None:
    """Convert on the meta device, and draw."""
    import timm

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    out = parser.parse_args().out
    analysis = bu2td.analyze(timm.create_model("resnet18"))
    networks = {
        name: bu2td.convert(analysis, name, device="meta", max_macs_ratio=None) for name in ("td", "uni", "rev")
    }
    td = networks["td"]
    figures = {
        "levels": levels(td),
        "pyramid": pyramid(),
        "merge": merge(td),
        "arrangements": arrangements(networks),
    }
    for name, figure in figures.items():
        save_figure(figure, out / f"{name}.png")
        print(f"written to {out / name}.png")


if __name__ == "__main__":
    main()
