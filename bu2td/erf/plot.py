"""Figures of receptive fields for one column of a paper: field size against depth, nested boxes, heat maps.

The figure is 3.3 inches wide, whatever it shows; matplotlib's constrained layout finds the room for every text.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from bu2td.draw import check_path, landscape, write_figure
from bu2td.erf.panel import Level, Panel, word_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

__all__ = ["check_plot", "plot", "plot_fields", "plot_maps"]

SUFFIXES = (".png", ".svg", ".pdf")
#: Inches: the figure's width, the height of the curves, of a line of text, and about what a box or map may be.
WIDTH, CURVES, LINE, LARGEST_BOX, LARGEST_MAP = 3.3, 2.1, 0.13, 1.9, 1.0
MAPS_IN_A_LINE = 7

GREY, FAINT = "#666666", "#CCCCCC"
#: Okabe and Ito's blue and vermilion, told apart by everybody; markers tell them apart in black and white.
COLORS = {"bottom-up": "#0072B2", "top-down": "#D55E00"}
MARKERS = {"bottom-up": "o", "top-down": "s"}
SMALL, NORMAL = 6.0, 7.0
STYLE: dict[str, Any] = {
    **{"font.size": NORMAL, "axes.titlesize": NORMAL, "axes.titlepad": 3, "axes.labelpad": 1.5},
    **{"axes.linewidth": 0.6, "axes.spines.top": False, "axes.spines.right": False, "text.parse_math": False},
    **{"xtick.labelsize": SMALL, "xtick.major.size": 2, "xtick.major.width": 0.6, "xtick.major.pad": 1.5},
    **{"ytick.labelsize": SMALL, "ytick.major.size": 2, "ytick.major.width": 0.6, "ytick.major.pad": 1.5},
    **{"legend.frameon": False, "legend.borderpad": 0.1, "legend.borderaxespad": 0.4, "legend.labelspacing": 0.3},
    **{"legend.handletextpad": 0.5, "legend.columnspacing": 1, "legend.handlelength": 1.4},
}


def check_plot(path: str | os.PathLike[str]) -> Path:
    """Check a figure's path, and that matplotlib is there, before anything is computed.

    Raises:
        OptionError: its suffix is none of .png, .svg, .pdf.
        FileError: its folder does not exist.
        MissingPackageError: matplotlib is not installed.
    """
    return check_path(path, SUFFIXES)


def plot(panels: Sequence[Panel], path: str | os.PathLike[str], *, title: str | None = None) -> None:
    """Draw one or two networks: field size against depth, nested boxes, and heat maps where there are gradients.

    Args:
        panels: the networks.
        path: file to write; .png (300 dpi), or .svg and .pdf with text as text.
        title: a line above the figure.

    Raises:
        OptionError, FileError, MissingPackageError: see `check_plot`.
    """
    write_figure(lambda: _figure(panels, title), check_plot(path), **STYLE)


def plot_fields(
    title: str, rows: Sequence[Mapping[str, Any]], image_size: tuple[int, int], path: str | os.PathLike[str]
) -> None:
    """Draw the rows of `bu2td.erf.Fields` in their order: field size against the number of the row.

    Raises:
        OptionError, FileError, MissingPackageError: see `check_plot`.
    """
    plot([Panel.of_rows(title, rows, image_size)], path, title=title)


def plot_maps(
    title: str, maps: Mapping[str, Tensor], image_size: tuple[int, int], path: str | os.PathLike[str]
) -> None:
    """Draw the heat map of every layer of `bu2td.erf.Gradients`.

    Raises:
        OptionError, FileError, MissingPackageError: see `check_plot`.
    """
    plot([Panel(word_of(title), image_size, maps=maps)], path, title=title)


# --- the figure ---------------------------------------------------------------------------------------


def _figure(panels: Sequence[Panel], title: str | None) -> Figure:
    from matplotlib.figure import Figure

    curved = [panel for panel in panels if panel.curve]
    boxed = [panel for panel in panels if any(level.box for level in panel.levels)]
    mapped = [panel for panel in panels if panel.maps]
    parts: list[tuple[float, Callable[[SubFigure], None]]] = []
    if curved:
        parts.append((CURVES, lambda figure: _curves(figure, curved)))
    if boxed:
        parts.append((_boxes_height(boxed), lambda figure: _boxes(figure, boxed)))
    if mapped:
        parts.append((_maps_height(mapped), lambda figure: _maps(figure, mapped)))
    heights = [height for height, _ in parts]
    figure = Figure(figsize=(WIDTH, sum(heights) + 2 * LINE * bool(title)), layout="constrained")
    engine: Any = figure.get_layout_engine()
    engine.set(w_pad=0.03, h_pad=0.03, wspace=0, hspace=0)
    if title:
        figure.suptitle(title, fontsize=NORMAL, fontweight="bold")
    rooms = figure.subfigures(len(parts), 1, height_ratios=heights, squeeze=False)[:, 0]
    for room, (_, draw) in zip(rooms, parts, strict=True):
        draw(room)
    return figure


# --- field size against depth -------------------------------------------------------------------------


def _curves(figure: SubFigure, panels: Sequence[Panel]) -> None:
    from matplotlib.ticker import MaxNLocator

    axes = figure.subplots()
    image = max(panels[0].image_size)
    last = max(max(panel.curve) for panel in panels) * 1.04
    axes.axhline(image, color=GREY, linewidth=0.6, linestyle=(0, (4, 2)), zorder=1)
    marks: dict[str, Any] = {"linestyle": "none", "markersize": 3.2, "markeredgecolor": "white", "zorder": 4}
    for panel in panels:
        color = COLORS[panel.word]
        axes.plot(list(panel.curve), list(panel.curve.values()), color=color, linewidth=1.0, zorder=3)
        points = [level.depth for level in panel.levels], [level.size for level in panel.levels]
        style = {**marks, "marker": MARKERS[panel.word], "color": color, "markeredgewidth": 0.4}
        axes.plot(*points, label=panel.word, **style)
    axes.set_yscale("log", base=2)
    sizes = [image, *(size for panel in panels for size in panel.curve.values())]
    low, high = math.floor(math.log2(max(min(sizes), 1))), math.log2(max(sizes))
    ticks = [2**i for i in range(low, math.floor(high + 0.55) + 1, 2 if high - low > 8 else 1)]
    axes.set_yticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    depths = MaxNLocator(9, steps=[1, 2, 5, 10], integer=True).tick_values(0, last)
    axes.set_xticks([depth for depth in depths if depth <= last])
    axes.set(xlim=(0, last), ylim=(2**low, 2 ** (high + 0.55)))
    axes.set(xlabel=panels[0].counted, ylabel="receptive field (pixels)")
    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
    axes.text(last, image, "image", fontsize=SMALL, color=GREY, ha="right", va="center", bbox=box, zorder=2)
    _level_names(axes, panels, last)
    if len(panels) > 1:
        axes.legend(loc="lower right", handletextpad=0.1)


def _level_names(axes: Axes, panels: Sequence[Panel], last: float) -> None:
    """Name the levels beside their marks: bottom-up below the curve, top-down above it; none on another."""
    taken: list[tuple[float, float]] = []
    for panel in panels:
        above = panel.word == "top-down" or len(panels) == 1
        style: dict[str, Any] = {"xytext": (0, 3.5), "ha": "center", "va": "bottom"}
        if not above:
            style = {"xytext": (3, -5.5), "ha": "left", "va": "center"}
        for level in sorted(panel.levels, key=lambda level: level.depth):
            x, y = level.depth / last, math.log2(level.size) / 10
            if any(abs(x - a) < 0.075 and abs(y - b) < 0.06 for a, b in taken):
                continue
            taken.append((x, y))
            more: dict[str, Any] = {"textcoords": "offset points", "fontsize": SMALL, "color": COLORS[panel.word]}
            axes.annotate(level.name, (level.depth, level.size), zorder=5, **more, **style)


# --- nested boxes -------------------------------------------------------------------------------------


def _boxes_height(panels: Sequence[Panel]) -> float:
    lines = max(-(-len(panel.levels) // _columns(panels)) for panel in panels)
    return min(WIDTH / len(panels) - 0.06, LARGEST_BOX) + LINE * (lines + 1.8)


def _columns(panels: Sequence[Panel]) -> int:
    """Of the key below a panel."""
    return 2 if len(panels) > 1 else 3


def _boxes(figure: SubFigure, panels: Sequence[Panel]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Rectangle

    low, high = _extent(panels)
    shades = _shades(panels)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        height, width = panel.image_size
        picture = landscape(height, width)[0].permute(1, 2, 0).numpy() * 0.45 + 0.55
        axes.imshow(picture, extent=(0, width, height, 0), interpolation="none")
        boxes = [(level, level.box) for level in panel.levels if level.box is not None]
        for i, (level, (top, left, *sides)) in enumerate(boxes):
            alike = sum(other.size == level.size for other, _ in boxes[i + 1 :])
            thick = 1.0 + 1.2 * alike  # equal sizes show around one another
            box = Rectangle((left, top), sides[1], sides[0], fill=False, ec=shades[level.name], lw=thick, zorder=3)
            axes.add_patch(box)
        axes.set(title=panel.word, xlim=(low[1], high[1]), ylim=(high[0], low[0]), xticks=[], yticks=[])
        axes.spines[:].set(visible=True, color=FAINT)
        key = [Line2D([], [], color=shades[level.name], linewidth=1.6, label=str(level)) for level, _ in boxes]
        place: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, 0), "fontsize": SMALL}
        axes.legend(handles=key, ncols=_columns(panels), **place)


def _extent(panels: Sequence[Panel]) -> tuple[tuple[float, float], tuple[float, float]]:
    """A square around the images and boxes of all panels, as (top, left), (bottom, right)."""
    boxes = [level.box for panel in panels for level in panel.levels if level.box is not None]
    boxes += [(0.0, 0.0, float(panel.image_size[0]), float(panel.image_size[1])) for panel in panels]
    top, left = min(b[0] for b in boxes), min(b[1] for b in boxes)
    bottom, right = max(b[0] + b[2] for b in boxes), max(b[1] + b[3] for b in boxes)
    half = max(bottom - top, right - left) / 2 * 1.05
    middle = ((top + bottom) / 2, (left + right) / 2)
    return (middle[0] - half, middle[1] - half), (middle[0] + half, middle[1] + half)


def _shades(panels: Sequence[Panel]) -> dict[str, Any]:
    """A color per level, from coarse (dark) to fine, out of a map that is even to every eye."""
    import matplotlib

    found = {level.name: level.reduction for panel in panels for level in panel.levels}
    names = sorted(found, key=lambda name: -found[name])
    colors = matplotlib.colormaps["plasma"]
    return {name: colors(0.85 * i / max(len(names) - 1, 1)) for i, name in enumerate(names)}


# --- heat maps ----------------------------------------------------------------------------------------


def _names(panels: Sequence[Panel]) -> list[str]:
    """Layers with a heat map, in the order of the first network that has them, levels coarse to fine."""
    names = list({name: None for panel in panels for name in panel.maps})
    if all(name[1:].isdecimal() for name in names):
        names.sort(key=lambda name: -int(name[1:]))
    return names


def _grid(panels: Sequence[Panel]) -> list[list[str]]:
    """The layers of every line."""
    names = _names(panels)
    return [names[start : start + MAPS_IN_A_LINE] for start in range(0, len(names), MAPS_IN_A_LINE)]


def _maps_height(panels: Sequence[Panel]) -> float:
    lines = _grid(panels)
    height, width = next(iter(panels[0].maps.values())).shape
    side = min((WIDTH - LINE) / len(lines[0]) - 0.05, LARGEST_MAP)
    return 1.5 * LINE + len(lines) * (1.5 * LINE + len(panels) * (side * height / width + 0.02))


def _maps(figure: SubFigure, panels: Sequence[Panel]) -> None:
    figure.suptitle("gradient of the centre unit (square root, each to its own maximum)", fontsize=SMALL)
    lines = _grid(panels)
    grid = figure.subplots(len(lines) * len(panels), len(lines[0]), squeeze=False)
    for i, row in enumerate(grid):
        names, panel = lines[i // len(panels)], panels[i % len(panels)]
        for axes, name in zip(row, names, strict=False):
            if panel is panels[0]:
                axes.set_title(name, fontsize=SMALL)
            if name in panel.maps:
                _map(axes, panel, panel.maps[name], next((v for v in panel.levels if v.name == name), None))
        height, width = next(iter(panel.maps.values())).shape
        for axes in row:  # an empty one too is as large as the others
            axes.set(xticks=[], yticks=[], xlim=(0, width), ylim=(height, 0), aspect="equal")
            axes.spines[:].set_visible(False)
        row[0].set_ylabel(panel.word, fontsize=SMALL)


def _map(axes: Axes, panel: Panel, mass: Tensor, level: Level | None) -> None:
    from matplotlib.patches import Rectangle

    rows, columns = mass.shape
    shown = (mass / mass.max().clamp_min(1e-30)).sqrt().numpy()
    place: dict[str, Any] = {"extent": (0, columns, rows, 0), "interpolation": "none", "vmin": 0, "vmax": 1}
    dimmed = landscape(rows, columns)[0].mean(0).numpy() * 0.55  # of the light, so that the map stands out
    axes.imshow(dimmed, cmap="gray", **place)
    axes.imshow(shown, cmap="plasma", alpha=shown**0.6, **place)
    if level is not None and level.box is not None and panel.image_size == (rows, columns):
        top, left, high, wide = level.box
        axes.add_patch(Rectangle((left, top), wide, high, fill=False, ec="white", lw=0.5, ls=(0, (3, 2))))
