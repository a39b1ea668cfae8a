"""Figures of receptive fields for one column of a paper: field size against depth, nested boxes, heat maps.

All lengths are inches; the figure is 3.3 inches wide, whatever it shows.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from torch import Tensor

from bu2td.draw import landscape
from bu2td.erf.subject import Subject
from bu2td.errors import FileError, MissingPackageError, OptionError
from bu2td.files import replacing
from bu2td.ops import Role, converter_for

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Curve", "Level", "Panel", "check_plot", "plot", "plot_fields", "plot_maps"]

SUFFIXES = (".png", ".svg", ".pdf")
DPI = 300
WIDTH = 3.3
LEFT, RIGHT, TOP = 0.44, 0.06, 0.06
CURVE_HEIGHT, AXIS_HEIGHT = 1.75, 0.36
TITLE, LINE, GAP = 0.17, 0.115, 0.1

INK, GREY, FAINT = "#222222", "#666666", "#CCCCCC"
#: Okabe and Ito's blue and vermilion, told apart by everybody; markers tell them apart in black and white.
COLORS = {"bottom-up": "#0072B2", "top-down": "#D55E00"}
MARKERS = {"bottom-up": "o", "top-down": "s"}
SMALL, NORMAL = 6.0, 7.0

#: Roles of the operations that count as a layer of depth.
_LAYERS = (Role.CONV, Role.POOL, Role.ATTENTION, Role.LINEAR)


@dataclass(frozen=True)
class Level:
    """A level's field: its size, and its box (top, left, height, width) for the unit in the image's centre."""

    name: str
    reduction: float
    depth: float
    size: int
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Curve:
    """Largest field (its longer side) at every depth."""

    depths: Sequence[float]
    sizes: Sequence[int]


@dataclass(frozen=True)
class Panel:
    """What a figure shows of one network.

    Attributes:
        word: "bottom-up" or "top-down".
        image_size: (H, W).
        curve: field size against depth.
        levels: coarse to fine.
        maps: gradients by level, (H, W).
    """

    word: str
    image_size: tuple[int, int]
    curve: Curve
    levels: Sequence[Level]
    maps: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        word: str,
        looked_at: Subject,
        rows: Sequence[Mapping[str, Any]],
        maps: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> Panel:
        """The panel of a network out of the rows of all its layers, and the heat maps of some."""
        depth = depths(looked_at)
        fields = {row["node"]: row for row in rows if row["size"] is not None}
        largest: dict[int, int] = {}
        for node, row in fields.items():
            largest[depth[node]] = max(largest.get(depth[node], 0), *row["size"])
        levels = []
        for name, node in looked_at.levels.items():
            if node in fields:
                row = fields[node]
                box = _box(row, looked_at, node)
                levels.append(Level(name, row["reduction"], depth[node], max(row["size"]), box))
        size = (looked_at.image_shape[2], looked_at.image_shape[3])
        return cls(word, size, Curve(sorted(largest), [largest[d] for d in sorted(largest)]), levels, maps)


def depths(looked_at: Subject) -> dict[str, int]:
    """Per node the number of layers (convolutions, pools, attention, linear layers) on the longest path to it."""
    modules = dict(looked_at.graph_module.named_modules())
    found: dict[str, int] = {}
    for node in looked_at.graph_module.graph.nodes:
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        counts = node.op != "placeholder" and converter_for(node, module).role in _LAYERS
        found[node.name] = max((found[n.name] for n in node.all_input_nodes), default=0) + counts
    return found


def _box(row: Mapping[str, Any], looked_at: Subject, node: str) -> tuple[float, float, float, float]:
    """The field of the unit in the middle of a map."""
    value = looked_at.dims[node]
    corner = []
    for axis, side in enumerate(looked_at.axes(node)):
        centre = row["offset"][axis] + row["jump"][axis] * (value[side].size // 2)
        corner.append(centre - row["size"][axis] / 2)
    return (corner[0], corner[1], float(row["size"][0]), float(row["size"][1]))


# --- files --------------------------------------------------------------------------------------------


def check_plot(path: str | os.PathLike[str]) -> Path:
    """Check a figure's path, and that matplotlib is there, before anything is computed.

    Raises:
        OptionError: its suffix is none of .png, .svg, .pdf.
        FileError: its folder does not exist.
        MissingPackageError: matplotlib is not installed.
    """
    file = Path(path)
    if file.suffix.lower() not in SUFFIXES:
        raise OptionError(
            f"{file} must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}, the type of the figure"
        )
    if not file.parent.is_dir():
        raise FileError(f"{file} cannot be written: there is no folder {file.parent}")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(
            "drawing needs matplotlib, which is not installed. Run: pip install matplotlib"
        ) from error
    return file


def plot(panels: Sequence[Panel], path: str | os.PathLike[str], *, title: str | None = None) -> None:
    """Draw one or two networks: field size against depth, nested boxes, and heat maps where there are gradients.

    Args:
        panels: the networks.
        path: file to write; .png (300 dpi), or .svg and .pdf with text as text.
        title: a line above the figure.

    Raises:
        OptionError, FileError, MissingPackageError: see `check_plot`.
    """
    file = check_plot(path)
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # the user's style neither enters the figure nor is lost
        settings: Any = {"svg.fonttype": "none", "svg.hashsalt": "bu2td", "pdf.fonttype": 42, "font.size": NORMAL}
        matplotlib.rcParams.update({**settings, "axes.linewidth": 0.6, "text.parse_math": False})
        figure = _figure(panels, title)
        metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(file.suffix.lower())
        with replacing(file) as temporary:
            kind = file.suffix[1:].lower()
            figure.savefig(temporary, format=kind, dpi=DPI, facecolor="white", metadata=metadata)


def plot_fields(
    title: str, rows: Sequence[Mapping[str, Any]], image_size: tuple[int, int], path: str | os.PathLike[str]
) -> None:
    """Draw the rows of `bu2td.erf.Fields` in their order: field size against the number of the row.

    Raises:
        OptionError, FileError, MissingPackageError: see `check_plot`.
    """
    numbered = [(i, row) for i, row in enumerate(rows, start=1) if row["size"] is not None]
    curve = Curve([i for i, _ in numbered], [max(row["size"]) for _, row in numbered])
    few = len(numbered) <= 12
    levels = [
        Level(row["name"], row["reduction"] or 0, i, max(row["size"]), (0.0, 0.0, 0.0, 0.0))
        for i, row in numbered
        if few or row["name"][1:].isdecimal()
    ]
    plot([Panel(_word(title), image_size, curve, levels)], path, title=title)


def plot_maps(
    title: str, maps: Mapping[str, Tensor], image_size: tuple[int, int], path: str | os.PathLike[str]
) -> None:
    """Draw the heat map of every layer of `bu2td.erf.Gradients`.

    Raises:
        OptionError, FileError, MissingPackageError: see `check_plot`.
    """
    plot([Panel(_word(title), image_size, Curve((), ()), (), maps)], path)


def _word(title: str) -> str:
    """Which of the two networks a title is of."""
    return "top-down" if title.startswith("top-down") else "bottom-up"


# --- the figure ---------------------------------------------------------------------------------------


def _figure(panels: Sequence[Panel], title: str | None) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    parts = []
    if title:
        parts.append((TITLE, lambda pen: pen.title(title)))
    if any(panel.curve.depths for panel in panels):
        parts.append((CURVE_HEIGHT + AXIS_HEIGHT, lambda pen: pen.curves(panels)))
    boxed = [panel for panel in panels if any(level.box[2] for level in panel.levels)]
    if boxed:
        parts.append((_boxes_height(boxed), lambda pen: pen.boxes(boxed)))
    mapped = [panel for panel in panels if panel.maps]
    if mapped:
        parts.append((_maps_height(mapped), lambda pen: pen.maps(mapped)))
    height = TOP + sum(size for size, _ in parts)
    figure = Figure(figsize=(WIDTH, height))
    FigureCanvasAgg(figure)
    top = height - TOP
    for size, draw in parts:
        draw(_Pen(figure, height, top))
        top -= size
    return figure


def _boxes_side(panels: Sequence[Panel]) -> float:
    return min((WIDTH - 2 * RIGHT - GAP * (len(panels) - 1)) / len(panels), 1.9)


def _boxes_height(panels: Sequence[Panel]) -> float:
    lines = max(-(-len(panel.levels) // _columns(panels)) for panel in panels)
    return TITLE + _boxes_side(panels) + LINE * lines + GAP


def _columns(panels: Sequence[Panel]) -> int:
    return 2 if len(panels) > 1 else 3


def _names(panels: Sequence[Panel]) -> list[str]:
    """Layers with a heat map, in the order of the first network that has them, levels coarse to fine."""
    names = list({name: None for panel in panels for name in panel.maps})
    if all(name[1:].isdecimal() for name in names):
        names.sort(key=lambda name: -int(name[1:]))
    return names


def _map_size(panels: Sequence[Panel]) -> tuple[float, float]:
    """Width and height of a heat map, at most seven in a line."""
    width = (WIDTH - 0.2 - RIGHT) / min(len(_names(panels)), 7) - 0.04
    width = min(width, 1.0)
    height, wide = next(iter(panels[0].maps.values())).shape
    return width, width * height / wide


def _maps_height(panels: Sequence[Panel]) -> float:
    lines = -(-len(_names(panels)) // 7)
    return TITLE + lines * (LINE + len(panels) * (_map_size(panels)[1] + 0.04)) + 0.04


class _Pen:
    """Draws one part of a figure, downwards from ``top``."""

    def __init__(self, figure: Figure, height: float, top: float) -> None:
        self.figure = figure
        self.height = height
        self.top = top

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Axes by their upper left corner."""
        return self.figure.add_axes(
            (left / WIDTH, (top - height) / self.height, width / WIDTH, height / self.height)
        )

    def text(self, x: float, y: float, text: str, **style: Any) -> None:
        style = {"fontsize": SMALL, "color": INK, "va": "center", **style}
        self.figure.text(x / WIDTH, y / self.height, text, **style)

    def title(self, text: str) -> None:
        self.text(WIDTH / 2, self.top - TITLE / 2, text, ha="center", fontsize=NORMAL, fontweight="bold")

    # -- field size against depth ------------------------------------------------------------------

    def curves(self, panels: Sequence[Panel]) -> None:
        axes = self.axes(LEFT, self.top, WIDTH - LEFT - RIGHT, CURVE_HEIGHT)
        image = max(panels[0].image_size)
        axes.axhline(image, color=GREY, linewidth=0.6, linestyle=(0, (4, 2)), zorder=1)
        sizes = [image]
        for panel in panels:
            color = COLORS[panel.word]
            sizes += panel.curve.sizes
            axes.plot(panel.curve.depths, panel.curve.sizes, color=color, linewidth=1.0, zorder=3)
            points = [(level.depth, level.size) for level in panel.levels]
            marker = MARKERS[panel.word]
            axes.plot(
                [x for x, _ in points],
                [y for _, y in points],
                linestyle="none",
                marker=marker,
                markersize=3.2,
                color=color,
                markeredgecolor="white",
                markeredgewidth=0.4,
                zorder=4,
                label=panel.word,
            )
        axes.set_yscale("log", base=2)
        low, high = math.floor(math.log2(max(min(sizes), 1))), math.log2(max(sizes))
        axes.set_ylim(2**low, 2 ** (high + 0.55))
        ticks = [2**i for i in range(low, math.floor(high + 0.55) + 1, 2 if high - low > 8 else 1)]
        axes.set_yticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        last = max((max(p.curve.depths) for p in panels if p.curve.depths), default=1)
        axes.set_xlim(0, last * 1.04)
        step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, last) if last / s <= 8)
        axes.set_xticks([i * step for i in range(int(last / step) + 1)])
        axes.tick_params(labelsize=SMALL, length=2, width=0.6, pad=1.5)
        counted = "layers on the longest path" if any(p.levels and p.levels[0].box[2] for p in panels) else "row"
        axes.set_xlabel(f"depth ({counted})" if counted != "row" else "layer", fontsize=NORMAL, labelpad=1.5)
        axes.set_ylabel("receptive field (pixels)", fontsize=NORMAL, labelpad=1.5)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        self._level_names(axes, panels, last)
        box = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
        axes.text(
            last * 1.04, image, "image", fontsize=SMALL, color=GREY, ha="right", va="center", bbox=box, zorder=2
        )
        if len(panels) > 1:
            axes.legend(loc="lower right", fontsize=NORMAL, frameon=False, handletextpad=0.1, borderpad=0.1)

    def _level_names(self, axes: Axes, panels: Sequence[Panel], last: float) -> None:
        """Name the levels beside their marks: bottom-up below the curve, top-down above it; none on another."""
        taken: list[tuple[float, float]] = []
        for panel in panels:
            above = panel.word == "top-down" or len(panels) == 1
            for level in sorted(panel.levels, key=lambda level: level.depth):
                place = (level.depth / last, math.log2(level.size) / 10)
                if any(abs(place[0] - x) < 0.075 and abs(place[1] - y) < 0.06 for x, y in taken):
                    continue
                taken.append(place)
                axes.annotate(
                    level.name,
                    (level.depth, level.size),
                    xytext=(0, 3.5) if above else (3, -5.5),
                    textcoords="offset points",
                    ha="center" if above else "left",
                    va="bottom" if above else "center",
                    fontsize=SMALL,
                    color=COLORS[panel.word],
                    zorder=5,
                )

    # -- nested boxes ------------------------------------------------------------------------------

    def boxes(self, panels: Sequence[Panel]) -> None:
        side = _boxes_side(panels)
        low, high = _extent(panels)
        scale = _shades(panels)
        used = side * len(panels) + GAP * (len(panels) - 1)
        left = (WIDTH - used) / 2
        for panel in panels:
            self.text(left + side / 2, self.top - TITLE / 2, panel.word, ha="center", fontsize=NORMAL)
            axes = self.axes(left, self.top - TITLE, side, side)
            axes.set_xlim(low[1], high[1])
            axes.set_ylim(high[0], low[0])
            axes.set_xticks([])
            axes.set_yticks([])
            for spine in axes.spines.values():
                spine.set_color(FAINT)
            height, width = panel.image_size
            picture = landscape(height, width)[0].permute(1, 2, 0).numpy() * 0.45 + 0.55
            axes.imshow(picture, extent=(0, width, height, 0), aspect="auto", zorder=1, interpolation="none")
            for i, level in enumerate(panel.levels):
                alike = sum(other.size == level.size for other in panel.levels[i + 1 :])
                self._box(axes, level, scale[level.name], 1.0 + 1.2 * alike)  # equal sizes show around one another
            self._sizes(panel, left, self.top - TITLE - side, side, scale, _columns(panels))
            left += side + GAP

    def _box(self, axes: Axes, level: Level, color: Any, thick: float) -> None:
        from matplotlib.patches import Rectangle

        top, left, height, width = level.box
        axes.add_patch(
            Rectangle((left, top), width, height, facecolor="none", edgecolor=color, linewidth=thick, zorder=3)
        )

    def _sizes(
        self, panel: Panel, left: float, top: float, side: float, scale: Mapping[str, Any], columns: int
    ) -> None:
        """The key below a panel: a level's color, name and size."""
        for i, level in enumerate(panel.levels):
            x = left + (i % columns) * side / columns
            y = top - LINE * (i // columns + 0.65)
            self.figure.add_artist(self._stroke(x + 0.04, y, scale[level.name]))
            self.text(x + 0.2, y, f"{level.name}: {_written(level)}")

    def _stroke(self, x: float, y: float, color: Any) -> Any:
        from matplotlib.lines import Line2D

        xs = [x / WIDTH, (x + 0.12) / WIDTH]
        return Line2D(xs, [y / self.height] * 2, color=color, linewidth=1.6, transform=self.figure.transFigure)

    # -- heat maps ---------------------------------------------------------------------------------

    def maps(self, panels: Sequence[Panel]) -> None:
        names = _names(panels)
        width, height = _map_size(panels)
        y = self.top
        text = "gradient of the centre unit (square root, each to its own maximum)"
        self.text(WIDTH / 2, y - TITLE / 2, text, ha="center")
        y -= TITLE
        for start in range(0, len(names), 7):
            line = names[start : start + 7]
            for i, name in enumerate(line):
                self.text(0.2 + i * (width + 0.04) + width / 2, y - LINE / 2, name, ha="center")
            y -= LINE
            for panel in panels:
                self.text(0.1, y - height / 2, panel.word, ha="center", rotation=90, fontsize=SMALL)
                for i, name in enumerate(line):
                    if name in panel.maps:
                        self._map(panel, name, 0.2 + i * (width + 0.04), y, width, height)
                y -= height + 0.04

    def _map(self, panel: Panel, name: str, left: float, top: float, width: float, height: float) -> None:
        from matplotlib.patches import Rectangle

        mass = panel.maps[name]
        rows, columns = mass.shape
        axes = self.axes(left, top, width, height)
        shown = (mass / mass.max().clamp_min(1e-30)).sqrt().numpy()
        place: dict[str, Any] = {"extent": (0, columns, rows, 0), "aspect": "auto", "interpolation": "none"}
        dimmed = landscape(rows, columns)[0].mean(0).numpy() * 0.55  # of the light, so that the map stands out
        axes.imshow(dimmed, cmap="gray", vmin=0, vmax=1, **place)
        axes.imshow(shown, cmap="plasma", vmin=0, vmax=1, alpha=shown**0.6, **place)
        axes.set_xlim(0, columns)
        axes.set_ylim(rows, 0)
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_visible(False)
        level = next((level for level in panel.levels if level.name == name), None)
        if level is not None and panel.image_size == (rows, columns):
            y, x, high, wide = level.box
            axes.add_patch(
                Rectangle(
                    (x, y), wide, high, facecolor="none", edgecolor="white", linewidth=0.5, linestyle=(0, (3, 2))
                )
            )


def _extent(panels: Sequence[Panel]) -> tuple[tuple[float, float], tuple[float, float]]:
    """A square around the images and boxes of all panels, as (top, left), (bottom, right)."""
    boxes = [level.box for panel in panels for level in panel.levels]
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


def _written(level: Level) -> str:
    height, width = (int(side) for side in level.box[2:])
    return str(height) if height == width else f"{height}\N{MULTIPLICATION SIGN}{width}"
