"""A figure of a conversion for a paper: the bottom-up network, the image pyramid, the top-down network.

Rows are reductions, the coarsest on top: the bottom-up network climbs on the left, the top-down network
descends on the right, and the pyramid between them feeds every row of it. All coordinates are inches.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bu2td.errors import FileError, NotAModelError, OptionError
from bu2td.files import replacing
from bu2td.ir import BottomUpLevel, LevelPlan, Plan
from bu2td.nn import Pyramid, reduced
from bu2td.packages import imported
from bu2td.runtime import TopDownNetwork

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw"]

SUFFIXES = (".png", ".svg")
DPI = 300

WIDTH = 6.9
LABEL_X, BU_X, PYRAMID_X, MERGE_X, TD_X, TD_LABEL_X = 0.08, 1.68, 2.84, 3.74, 4.84, 5.54
MAX_BOX_WIDTH, MAX_BOX_HEIGHT, MIN_SIDE = 1.06, 0.74, 0.05
MAX_IMAGE_WIDTH = 1.0
MIN_ROW, GAP = 0.46, 0.24
HEADER, HEAD_ZONE, LEGEND, MARGIN = 0.38, 0.42, 0.56, 0.08
MERGE_RADIUS = 0.08
UP_BLOCK = (0.27, 0.16)
HEAD_BOX = (1.1, 0.18)

INK, GREY, FAINT = "#222222", "#666666", "#E6E6E6"
LATERAL = "#C4560A"
#: One hue from fine to coarse: safe for colour-blind readers and in black and white.
LIGHT, DARK = (0.80, 0.88, 0.95), (0.13, 0.33, 0.55)
EDGE = "#1B3F63"
SMALL, NORMAL, LARGE = 7.0, 7.5, 9.0


def draw(network_or_plan: TopDownNetwork | Plan, path: str | os.PathLike[str], *, title: str | None = None) -> None:
    """Draw the bottom-up and the top-down network side by side, to scale, and write the figure.

    Args:
        network_or_plan: what `bu2td.convert` returned, or its plan.
        path: file to write; its suffix, .png or .svg, chooses the type. An svg holds its text as text.
        title: a line above the figure.

    Raises:
        NotAModelError: neither a converted network nor a plan.
        OptionError: another suffix.
        FileError: the folder does not exist, or the file cannot be written.
        MissingPackageError: matplotlib is not installed.
    """
    plan, classes = _plan(network_or_plan)
    write_figure(lambda: _figure(plan, classes, title), check_path(path))


def _plan(value: Any) -> tuple[Plan, int]:
    plan = value.plan if isinstance(value, TopDownNetwork) else value
    if not isinstance(plan, Plan):
        raise NotAModelError(f"draw takes a network that bu2td.convert returned, or its plan, found {type(value)}")
    return plan, getattr(value, "num_classes", plan.head.exit_width)


def check_path(path: str | os.PathLike[str], suffixes: Sequence[str] = SUFFIXES) -> Path:
    """Check a figure's path, and that matplotlib is there, before anything is computed; `draw` does so itself.

    Raises:
        OptionError: its suffix is none of ``suffixes``.
        FileError: its folder does not exist.
        MissingPackageError: matplotlib is not installed.
    """
    file = Path(path)
    if file.suffix.lower() not in suffixes:
        words = " or ".join((", ".join(suffixes[:-1]), suffixes[-1]))
        raise OptionError(f"{file} must end in {words}, which names the type of the figure")
    if not file.parent.is_dir():
        raise FileError(f"{file} cannot be written: there is no folder {file.parent}")
    imported("matplotlib", why="A figure needs matplotlib.")
    return file


def write_figure(make: Callable[[], Figure], file: Path, **style: Any) -> None:
    """Make and write a figure: the same bytes every time, text as text, in matplotlib's own style and ``style``.

    The user's style neither enters the figure nor is lost.

    Raises:
        FileError: the file cannot be written.
    """
    import matplotlib

    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": "bu2td", "pdf.fonttype": 42, **style}
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(settings)
        figure = make()
        kind = file.suffix[1:].lower()
        metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
        with replacing(file) as temporary:
            figure.savefig(temporary, format=kind, dpi=DPI, facecolor="white", metadata=metadata)


# --- layout -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Row:
    """One reduction: where it is, and what the two networks have there."""

    reduction: int
    y: float
    size: tuple[int, int]
    bottom_up: BottomUpLevel | None
    top_down: LevelPlan | None


class _Layout:
    """Scales and rows of one figure."""

    def __init__(self, plan: Plan, title: str | None) -> None:
        height, width = plan.image_shape[-2:]
        bottom_up = {level.reduction: level for level in plan.bottom_up}
        top_down = {level.reduction: level for level in plan.levels}
        widths = [*(level.width for level in plan.bottom_up), *plan.widths]
        self.width_scale = MAX_BOX_WIDTH / max(widths) ** 0.5
        self.height_scale = MAX_BOX_HEIGHT / (height * width) ** 0.25
        self.image_scale = min(MAX_BOX_HEIGHT / height**0.5, MAX_IMAGE_WIDTH / width**0.5)
        self.name_width = 0.08 + 0.07 * len(f"r{max(*bottom_up, *top_down)}")
        self.bodies = [level.reduction for level in plan.bottom_up if level.blocks]
        self.top = MARGIN + (0.25 if title else 0) + HEADER + HEAD_ZONE
        self.head_y = -self.top + HEAD_BOX[1] / 2 + 0.1
        self.rows: list[_Row] = []
        y = -self.top
        for reduction in sorted({1, *bottom_up, *top_down}, reverse=True):
            size = (reduced(height, reduction), reduced(width, reduction))
            room = max(self.box_height(size), self.image_size(size)[1], MIN_ROW)
            self.rows.append(_Row(reduction, y - room / 2, size, bottom_up.get(reduction), top_down.get(reduction)))
            y -= room + GAP
        self.bottom = y + GAP - (HEAD_ZONE if self.rows[-1].top_down else 0.15)
        self.height = -self.bottom + LEGEND + MARGIN

    def box_height(self, size: tuple[int, int]) -> float:
        """Height of a level's box."""
        return max(MIN_SIDE, self.height_scale * (size[0] * size[1]) ** 0.25)

    def box_width(self, channels: int) -> float:
        """Width of a level's box."""
        return max(MIN_SIDE, self.width_scale * channels**0.5)

    def image_size(self, size: tuple[int, int]) -> tuple[float, float]:
        """Width and height of a pyramid image."""
        return (max(MIN_SIDE, self.image_scale * size[1] ** 0.5), max(MIN_SIDE, self.image_scale * size[0] ** 0.5))

    def shade(self, source: int | None) -> tuple[float, float, float] | None:
        """Colour of the blocks of a bottom-up level; None for a level without blocks."""
        if source not in self.bodies:
            return None
        share = self.bodies.index(source) / max(1, len(self.bodies) - 1)
        return tuple(a + share * (b - a) for a, b in zip(DARK, LIGHT, strict=True))  # type: ignore[return-value]


# --- the figure ---------------------------------------------------------------------------------------


def _figure(plan: Plan, classes: int, title: str | None) -> Figure:
    from matplotlib.figure import Figure

    layout = _Layout(plan, title)
    figure = Figure(figsize=(WIDTH, layout.height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, WIDTH)
    axes.set_ylim(-layout.height, 0)
    axes.axis("off")
    pen = _Pen(axes, layout)
    _titles(pen, plan, title)
    _pyramid(pen, plan)
    _bottom_up(pen, plan, classes)
    _top_down(pen, classes, plan.options.merge)
    _legend(pen, plan)
    return figure


class _Pen:
    """Draws single shapes on the axes, in inches."""

    def __init__(self, axes: Axes, layout: _Layout) -> None:
        self.axes = axes
        self.layout = layout

    def text(self, x: float, y: float, text: str, **style: Any) -> None:
        settings: dict[str, Any] = {"fontsize": NORMAL, "color": INK, "va": "center", "ha": "left", **style}
        self.axes.text(x, y, text, parse_math=False, **settings)

    def arrow(self, *points: tuple[float, float], color: str = INK) -> None:
        from matplotlib.patches import FancyArrowPatch
        from matplotlib.path import Path as Line

        arrow = FancyArrowPatch(
            path=Line(points),
            arrowstyle="-|>,head_length=3.2,head_width=1.6",
            mutation_scale=1,
            color=color,
            linewidth=0.9,
            zorder=2,
            joinstyle="miter",
            capstyle="butt",
        )
        self.axes.add_patch(arrow)

    def box(
        self, x: float, y: float, width: float, height: float, shade: Any, round_: bool = False, edge: str = EDGE
    ) -> None:
        """A box around (x, y); without a shade it is that of a level without blocks."""
        from matplotlib.patches import FancyBboxPatch

        dashed: dict[str, Any] = {"linestyle": (0, (3, 2)), "edgecolor": "#8A8A8A", "facecolor": "white"}
        style = dashed if shade is None else {"edgecolor": edge, "facecolor": shade}
        corner = 0.04 if round_ else 0.0
        self.axes.add_patch(
            FancyBboxPatch(
                (x - width / 2, y - height / 2),
                width,
                height,
                boxstyle=f"round,pad=0,rounding_size={corner}" if round_ else "square,pad=0",
                linewidth=0.8,
                zorder=3,
                **style,
            )
        )

    def merge(self, x: float, y: float, kind: str) -> None:
        """A circled plus, or a circled c for a concatenation alone."""
        from matplotlib.patches import Circle

        self.axes.add_patch(
            Circle((x, y), MERGE_RADIUS, facecolor="white", edgecolor=LATERAL, linewidth=1.0, zorder=3)
        )
        if kind == "concat":
            self.text(x, y + 0.008, "c", ha="center", color=LATERAL, fontsize=NORMAL, zorder=4)
            return
        for dx, dy in ((MERGE_RADIUS, 0.0), (0.0, MERGE_RADIUS)):
            self.axes.plot([x - dx, x + dx], [y - dy, y + dy], color=LATERAL, linewidth=1.0, zorder=4)

    def up(self, x: float, y: float, factor: int, shade: Any) -> None:
        """The upsampling on the way into a level; with a shade, inside that level's first block."""
        luminance = 1.0 if shade is None else sum(shade) / 3
        if shade is None:
            from matplotlib.patches import Rectangle

            corner = (x - UP_BLOCK[0] / 2, y - UP_BLOCK[1] / 2)
            self.axes.add_patch(Rectangle(corner, *UP_BLOCK, facecolor="white", edgecolor="none", zorder=3))
        else:
            self.box(x, y, *UP_BLOCK, shade, round_=True)
        color = INK if luminance > 0.55 else "white"
        self.text(x, y - 0.005, f"\N{UPWARDS ARROW}{factor}", ha="center", fontsize=SMALL, color=color, zorder=4)

    def label(self, x: float, y: float, name: str, kind: str, shape: Sequence[int]) -> None:
        """Two lines: a level's name and what it holds, and its width and resolution."""
        self.text(x, y + 0.07, name, fontweight="bold")
        self.text(x + self.layout.name_width, y + 0.07, kind)
        self.text(x, y - 0.07, " \N{MULTIPLICATION SIGN} ".join(map(str, shape)), color=GREY)

    def head(self, x: float, y: float, classes: int) -> None:
        self.box(x, y, *HEAD_BOX, FAINT, round_=True, edge=GREY)
        text = f"head, {classes} classes" if classes else "head"
        self.text(x, y - 0.003, text, ha="center", fontsize=SMALL, zorder=4)


def _titles(pen: _Pen, plan: Plan, title: str | None) -> None:
    y = -MARGIN - 0.08
    if title:
        pen.text(WIDTH / 2, y, title, ha="center", fontsize=LARGE + 1, fontweight="bold")
        y -= 0.25
    arrangement = plan.options.arrangement
    word = arrangement if isinstance(arrangement, str) else "custom widths"
    name = plan.model if len(plan.model) <= 20 else f"{plan.model[:19]}\N{HORIZONTAL ELLIPSIS}"
    pen.text(LABEL_X, y, f"Bottom-up {name}", fontsize=LARGE, fontweight="bold")
    pen.text(MERGE_X - MERGE_RADIUS, y, f"Top-down {name}, {word}", fontsize=LARGE, fontweight="bold")
    before, after = plan.bottom_up_cost, plan.cost
    ratio = f" ({after.macs / before.macs:.1f}\N{MULTIPLICATION SIGN})" if before.macs else ""
    for x, cost, more in ((LABEL_X, before, ""), (MERGE_X - MERGE_RADIUS, after, ratio)):
        text = f"{_short(cost.parameters)} parameters, {_short(cost.macs)} MACs{more}"
        pen.text(x, y - 0.16, text, color=GREY, fontsize=SMALL)


def _short(number: int) -> str:
    """Three digits and a unit: 11.7 M."""
    for power, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= power:
            value = number / power
            return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}{unit}"
    return str(number)


def _pyramid(pen: _Pen, plan: Plan) -> None:
    layout = pen.layout
    pen.text(PYRAMID_X, layout.head_y - 0.003, "image pyramid", ha="center")
    picture = landscape(*plan.image_shape[-2:])
    reducer = Pyramid((1,), plan.options.pyramid, plan.options.sigma)
    for row in layout.rows:
        if row.top_down is None and row.reduction > 1:
            continue
        width, height = layout.image_size(row.size)
        left, right = PYRAMID_X - width / 2, PYRAMID_X + width / 2
        pen.axes.imshow(
            _enlarged(reducer.reduce(picture, row.reduction)),
            extent=(left, right, row.y - height / 2, row.y + height / 2),
            aspect="auto",
            interpolation="none",
            zorder=3,
        )
        pen.axes.plot(
            [left, right, right, left, left],
            [row.y + s * height / 2 for s in (-1, -1, 1, 1, -1)],
            color=INK,
            linewidth=0.6,
            zorder=4,
        )
    pen.axes.set_xlim(0, WIDTH)
    pen.axes.set_ylim(-layout.height, 0)


def landscape(height: int, width: int) -> Tensor:
    """A landscape with a sun, (1, 3, height, width) in [0, 1]."""
    y = (torch.arange(height) + 0.5)[:, None] / height
    x = (torch.arange(width) + 0.5)[None, :] / width
    colors = {
        "sky": (0.86, 0.91, 0.95),
        "sun": (0.96, 0.76, 0.32),
        "far": (0.56, 0.67, 0.74),
        "near": (0.27, 0.40, 0.46),
    }
    masks = {
        "sky": torch.ones(height, width, dtype=torch.bool),
        "sun": (x - 0.72) ** 2 + (y - 0.28) ** 2 < 0.13**2,
        "far": y > 0.42 + 0.9 * (x - 0.33).abs(),
        "near": y > 0.62 + 0.55 * (x - 0.74).abs(),
    }
    picture = torch.zeros(3, height, width)
    for name, mask in masks.items():
        picture[:, mask] = torch.tensor(colors[name])[:, None]
    return picture[None]


def _enlarged(image: Tensor, side: int = 200) -> Any:
    """The image as an array (H, W, 3) of at least ``side`` pixels, each pixel a square."""
    times = max(1, side // min(image.shape[-2:]))
    large = image[0].repeat_interleave(times, 1).repeat_interleave(times, 2)
    return large.permute(1, 2, 0).clamp(0, 1).numpy()


def _bottom_up(pen: _Pen, plan: Plan, classes: int) -> None:
    layout = pen.layout
    rows = [row for row in layout.rows if row.bottom_up]
    image = rows[-1]
    left_of_image = (PYRAMID_X - layout.image_size(image.size)[0] / 2, image.y)
    below = None
    for row in reversed(rows):
        assert row.bottom_up
        channels, blocks, size = row.bottom_up.width, len(row.bottom_up.blocks), row.bottom_up.size
        half = layout.box_height(row.size) / 2
        if row is image and not blocks and not size:
            # Most stems stride in their first conv: at full resolution there is only the image.
            pen.label(LABEL_X, row.y, "r1", "image", (plan.image_shape[1], *row.size))
            continue
        if row is image:
            pen.arrow(left_of_image, (BU_X + layout.box_width(channels) / 2, row.y))
        elif below is None:
            pen.arrow(left_of_image, (BU_X, image.y), (BU_X, row.y - half))
        else:
            pen.arrow((BU_X, below), (BU_X, row.y - half))
        pen.box(BU_X, row.y, layout.box_width(channels), 2 * half, layout.shade(row.reduction))
        kind = _counted(blocks) if blocks else "stem"
        pen.label(LABEL_X, row.y, f"r{row.reduction}", kind, (channels, *(size or row.size)))
        below = row.y + half
    assert below is not None
    pen.arrow((BU_X, below), (BU_X, layout.head_y - HEAD_BOX[1] / 2))
    pen.head(BU_X, layout.head_y, classes)


def _top_down(pen: _Pen, classes: int, merge: str) -> None:
    layout = pen.layout
    above: tuple[float, int] | None = None
    for row in layout.rows:
        level = row.top_down
        if level is None:
            continue
        half = layout.box_height(row.size) / 2
        left = TD_X - layout.box_width(level.width) / 2
        image = PYRAMID_X + layout.image_size(row.size)[0] / 2
        if above is None:
            pen.arrow((image, row.y), (left, row.y), color=LATERAL if level.lateral else INK)
        else:
            pen.arrow((image, row.y), (MERGE_X - MERGE_RADIUS, row.y), color=LATERAL)
            _descent(pen, row, *above)
            pen.merge(MERGE_X, row.y, merge)
            pen.arrow((MERGE_X + MERGE_RADIUS, row.y), (left, row.y))
        pen.box(TD_X, row.y, layout.box_width(level.width), 2 * half, layout.shade(level.source))
        kind = _counted(len(level.blocks)) if level.blocks else "no blocks"
        if level.source not in (None, level.reduction):
            kind += f" of r{level.source}"
        pen.label(TD_LABEL_X, row.y, level.name, kind, (level.width, *row.size))
        above = (row.y - half, row.reduction)
    assert above is not None
    bottom = above[0] - 0.2 - HEAD_BOX[1] / 2
    pen.arrow((TD_X, above[0]), (TD_X, bottom + HEAD_BOX[1] / 2))
    pen.head(TD_X, bottom, classes)


def _descent(pen: _Pen, row: _Row, above: float, coarser: int) -> None:
    """The way from the coarser level's box down into the merge of a row."""
    layout = pen.layout
    assert row.top_down
    room = max(layout.box_height(row.size), layout.image_size(row.size)[1], MIN_ROW)
    turn = row.y + room / 2 + 0.65 * GAP
    end = row.y + MERGE_RADIUS
    pen.arrow((TD_X, above), (TD_X, turn), (MERGE_X, turn), (MERGE_X, end))
    shade = layout.shade(row.top_down.source) if row.top_down.up else None
    pen.up(MERGE_X, end + 0.1 + UP_BLOCK[1] / 2, coarser // row.reduction, shade)


def _counted(blocks: int) -> str:
    return f"{blocks} block{'s' if blocks != 1 else ''}"


def _legend(pen: _Pen, plan: Plan) -> None:
    """Keys of the shapes that occur, from left to right in as few lines as they need."""
    x, y = LABEL_X, pen.layout.bottom - 0.2
    pen.axes.plot([MARGIN, WIDTH - MARGIN], [y + 0.16, y + 0.16], color="#BBBBBB", linewidth=0.6)
    for icon, width, text in _keys(pen, plan):
        end = x + width + 0.07 + _text_width(text)
        if end > WIDTH - MARGIN:
            x, y = LABEL_X, y - 0.22
            end = x + width + 0.07 + _text_width(text)
        icon(x + width / 2, y)
        pen.text(x + width + 0.07, y - 0.003, text, fontsize=SMALL)
        x = end + 0.2


def _keys(pen: _Pen, plan: Plan) -> Iterator[tuple[Callable[[float, float], None], float, str]]:
    times, grows = "\N{MULTIPLICATION SIGN}", "\N{PROPORTIONAL TO} \N{SQUARE ROOT}"
    shade = pen.layout.shade(pen.layout.bodies[len(pen.layout.bodies) // 2])
    scale = f"level (height {grows}resolution, width {grows}channels; same shade: same blocks)"
    yield lambda x, y: pen.box(x, y, 0.26, 0.13, shade), 0.26, scale
    if any(not level.blocks for level in plan.levels):
        yield lambda x, y: pen.box(x, y, 0.26, 0.13, None), 0.26, "level without blocks"
    yield lambda x, y: pen.arrow((x - 0.14, y), (x + 0.14, y), color=LATERAL), 0.28, "lateral"
    kernel = f"{plan.options.merge_kernel}{times}{plan.options.merge_kernel} conv"
    steps = {"add_concat": "add, concatenate", "add": "add", "concat": "concatenate"}[plan.options.merge]
    yield lambda x, y: pen.merge(x, y, plan.options.merge), 2 * MERGE_RADIUS, f"merge: {steps}, {kernel}"
    if any(level.merge and not level.up for level in plan.levels):
        yield lambda x, y: pen.up(x, y, 2, None), 0.18, "upsampling"
    if any(level.up for level in plan.levels):
        yield lambda x, y: pen.up(x, y, 2, shade), UP_BLOCK[0], "upsampling inside the level's first block"


@cache
def _text_width(text: str) -> float:
    from matplotlib.textpath import TextPath

    return TextPath((0, 0), text, size=SMALL).get_extents().x1 / 72
