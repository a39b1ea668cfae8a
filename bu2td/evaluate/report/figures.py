"""The charts of a report, from its tables to matplotlib figures (no pyplot, no global state).

Every function takes a table as `bu2td.evaluate.report.read.read_table` gives it and returns a figure, or None where
there is nothing to draw. Error bars and bands are one standard deviation over the repeats (n - 1 in the
denominator); where there is one repeat there are none. Lengths are inches.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pandas as pd

from bu2td.evaluate.means import Statistic, aggregate, statistic
from bu2td.evaluate.report.compare import strongest_first
from bu2td.evaluate.report.words import title
from bu2td.evaluate.schema import ARRANGEMENTS, LAYERS, NORMALISATIONS, WORDS
from bu2td.files import replacing
from bu2td.packages import imported

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMN, PAGE = 3.4, 6.9
DPI = 200
INK, GREY, FAINT = "#222222", "#666666", "#E9E9E9"
#: Okabe and Ito's colours, told apart by everybody; markers and dashes tell them apart in black and white.
COLORS = {"bu": "#0072B2", "td": "#D55E00", "uni": "#009E73", "rev": "#CC79A7"}
MARKERS = {"bu": "o", "td": "s", "uni": "^", "rev": "D"}
DASHES: dict[str, Any] = {"bu": "-", "td": "-", "uni": (0, (4, 1.5)), "rev": (0, (1.5, 1.2))}
SHORT = {"bu": "BU", "td": "TD", "uni": "TD uni", "rev": "TD rev"}
STYLE: dict[str, Any] = {
    "text.parse_math": False,
    "svg.hashsalt": "bu2td",
    "font.family": ["DejaVu Sans"],
    "font.size": 7.5,
    "axes.titlesize": 7.5,
    "axes.labelsize": 7.5,
    "axes.linewidth": 0.7,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 7,
    "legend.handlelength": 1.8,
    "lines.linewidth": 1.3,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
}
POINTS = 400  # of a curve, at most

Draw = TypeVar("Draw", bound=Callable[..., Any])


def styled(function: Draw) -> Draw:
    """Draw in the report's own style, and leave the user's as it was."""

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        with _style():
            return function(*args, **options)

    return call  # type: ignore[return-value]


@contextmanager
def _style() -> Iterator[None]:
    matplotlib = imported("matplotlib", why="the report draws with it:")
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure that arranges its axes itself."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure on white: as PNG, 200 dots per inch, or what the file's suffix says (.svg, .pdf).

    Raises:
        FileError: it cannot be written.
    """
    kind = path.suffix.removeprefix(".") or "png"
    dates: Any = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)  # the same figure, the same file
    with _style(), warnings.catch_warnings(), replacing(path) as temporary:
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*missing")  # of a class or attack in another script
        figure.savefig(temporary, format=kind, dpi=DPI, facecolor="white", metadata=dates)


# --- figure 4: accuracy -------------------------------------------------------------------------------


@styled
def accuracy_figure(rows: pd.DataFrame) -> Figure | None:
    """Test accuracy per arrangement (figure 4): mean, standard deviation, and every repeat as a dot."""
    found_of = aggregate(rows, ["arrangement"], "test_accuracy")
    statistics = {a: found_of[a,] for a in present(rows) if found_of[a,].n}
    if not statistics:
        return None
    figure = new_figure(COLUMN, 2.2)
    axes = figure.subplots()
    for place, (arrangement, found) in enumerate(statistics.items()):
        color = COLORS[arrangement]
        dots = place + 0.12 + 0.24 * (np.arange(found.n) + 0.5) / found.n
        style: Any = {"color": color, "markersize": 3.4, "alpha": 0.55, "markeredgewidth": 0}
        if found.n > 1:
            axes.plot(dots, found.values, MARKERS[arrangement], **style)
        axes.errorbar(
            place - 0.1,
            found.mean,
            yerr=None if math.isnan(found.std) else found.std,
            color=color,
            marker=MARKERS[arrangement],
            markersize=5.5,
            capsize=3,
            elinewidth=1.2,
        )
    names = [f"{SHORT[a]}\nn = {found.n}" for a, found in statistics.items()]
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.6, len(names) - 0.4)
    bars = [f.mean + sign * f.std for f in statistics.values() for sign in (-1, 1)]
    low, high = _zoom([*bars, *(v for f in statistics.values() for v in f.values)])
    axes.set_ylim(low, high)
    axes.set_ylabel("test accuracy")
    percent_axis(axes.yaxis, high - low)
    axes.grid(axis="y", color=FAINT, linewidth=0.7)
    return figure


def _zoom(values: Sequence[float]) -> tuple[float, float]:
    """Limits of an axis around what is drawn, at least two points apart."""
    known = [v for v in values if not math.isnan(v)]
    room = max(max(known) - min(known), 0.02)
    return max(min(known) - 0.12 * room, -0.02), max(known) + 0.12 * room


# --- figure 6: loss of accuracy against distance ------------------------------------------------------


def step(rows: pd.DataFrame, places: np.ndarray) -> np.ndarray:
    """Accuracy at distances: that of the last row at or below each (nan before the first row)."""
    ordered = rows.sort_values(["l2", "accuracy"], ascending=[True, False])
    index = np.searchsorted(ordered["l2"], places, side="right") - 1
    return np.where(index >= 0, ordered["accuracy"].to_numpy()[np.maximum(index, 0)], np.nan)


@styled
def curves_figure(rows: pd.DataFrame, columns: int = 4) -> Figure | None:
    """Loss of accuracy against the L2 distance (figure 6), one plot per attack.

    The loss of a repeat is its accuracy at distance 0 less its accuracy at a distance, in points. Lines are means
    over the repeats, bands their standard deviation; the axis ends where no curve changes any more.
    """
    rows = rows[np.isfinite(rows["l2"].astype(float))]
    if not len(rows):
        return None
    from matplotlib.ticker import MaxNLocator

    rows = strongest_first(rows)
    attacks = rows["attack"].unique()
    figure, grid = small_multiples(len(attacks), columns, 1.45)
    drawn: dict[str, int] = {}
    for axes, attack in zip(grid, attacks, strict=True):
        own = rows[rows["attack"] == attack]
        end = _last_change(own)
        places = np.unique([0.0, *own["l2"][own["l2"] <= end], end])
        if len(places) > POINTS:
            places = np.linspace(0, end, POINTS)
        for arrangement in present(own):
            accuracy = np.array(
                [step(repeat, places) for _, repeat in own[own["arrangement"] == arrangement].groupby("repeat")]
            )
            loss = 100 * (accuracy[:, :1] - accuracy)
            stds = np.std(loss, axis=0, ddof=1) if len(loss) > 1 else np.zeros(len(places))
            _mean_line(axes, places, loss.mean(axis=0), stds, arrangement)
            drawn[arrangement] = max(drawn.get(arrangement, 0), len(accuracy))
        axes.set_title(plain(title(attack)), loc="left", pad=3)
        axes.set_xlim(0, end)
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        axes.set_ylim(-3, 103)
        axes.set_yticks([0, 50, 100])
    figure.supylabel("loss of accuracy, points", fontsize=7.5)
    figure.supxlabel("L2 distance, pixel values in [0, 1]", fontsize=7.5)
    legend(figure, drawn)
    return figure


def _last_change(rows: pd.DataFrame) -> float:
    """A little beyond the distance where the last of the curves ends to fall."""
    ends = [0.0]
    for _, own in rows.groupby(["arrangement", "repeat"]):
        ordered = own.sort_values(["l2", "accuracy"], ascending=[True, False])
        ends += list(ordered["l2"][ordered["accuracy"].diff().fillna(0) != 0])
    return float(1.05 * max(ends) or rows["l2"].max() or 1.0)


# --- corruptions --------------------------------------------------------------------------------------


@styled
def corruptions_figure(rows: pd.DataFrame, columns: int = 4) -> Figure | None:
    """Accuracy against the severity of a corruption, one plot per corruption; severity 0 is clean."""
    if not len(rows) or not (rows["severity"] > 0).any():
        return None
    clean = rows[rows["severity"] == 0]
    corruptions = rows["corruption"][rows["severity"] > 0].unique()
    figure, grid = small_multiples(len(corruptions), columns, 1.45)
    drawn: dict[str, int] = {}
    lowest = rows["accuracy"].min()
    for axes, corruption in zip(grid, corruptions, strict=True):
        own = rows[rows["corruption"] == corruption]
        if (own["severity"] > 0).all():  # the clean accuracy stands once for all corruptions
            own = pd.concat([clean, own])
        found = aggregate(own, ["arrangement", "severity"], "accuracy")
        for arrangement in present(own):
            places = sorted(key[1] for key in found if key[0] == arrangement)
            statistics = [found[arrangement, place] for place in places]
            _error_line(axes, places, statistics, arrangement)
            drawn[arrangement] = max(drawn.get(arrangement, 0), *(s.n for s in statistics))
        axes.set_title(plain(title(corruption)), loc="left", pad=3)
        axes.set_ylim(max(0, math.floor(10 * lowest - 0.5) / 10) - 0.02, 1.02)
        whole_axis(axes.xaxis)
        percent_axis(axes.yaxis, 1)
        axes.grid(axis="y", color=FAINT, linewidth=0.7)
    figure.supylabel("accuracy", fontsize=7.5)
    figure.supxlabel("severity, 0 is clean", fontsize=7.5)
    legend(figure, drawn, markers=True)
    return figure


def _error_line(axes: Axes, places: Sequence[int], statistics: Sequence[Statistic], arrangement: str) -> None:
    shift = (ARRANGEMENTS.index(arrangement) - 1.5) * 0.06
    stds = [0 if math.isnan(s.std) else s.std for s in statistics]
    axes.errorbar(
        np.array(places) + shift,
        [s.mean for s in statistics],
        yerr=stds if any(stds) else None,
        color=COLORS[arrangement],
        marker=MARKERS[arrangement],
        linestyle=DASHES[arrangement],
        markersize=2.6,
        linewidth=1.1,
        elinewidth=0.8,
        capsize=1.5,
    )


# --- figure 9: localisation ---------------------------------------------------------------------------


@styled
def localisation_figure(rows: pd.DataFrame) -> Figure | None:
    """Precision and recall of the localised object (figure 9), by layer and normalisation of the heat map."""
    keys = ["layer", "normalisation", "threshold"]
    rows = rows[rows["precision"].notna() | rows["recall"].notna()] if len(rows) else rows
    if not len(rows):
        return None
    kinds = rows[keys].drop_duplicates().itertuples(index=False)
    kinds = sorted(kinds, key=lambda k: (LAYERS.index(k[0]), NORMALISATIONS.index(k[1]), k[2]))
    several = len({threshold for *_, threshold in kinds}) > 1
    figure = new_figure(COLUMN if len(kinds) <= 2 else PAGE, 2.1)
    grid = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    drawn: dict[str, int] = {}
    for axes, kind in zip(grid, kinds, strict=True):
        own = rows[(rows[keys] == list(kind)).all(axis=1)]
        shown = present(own)
        width = 0.8 / len(shown)
        for index, arrangement in enumerate(shown):
            found = [statistic(own[m][own["arrangement"] == arrangement]) for m in ("precision", "recall")]
            places = np.arange(2) + (index - (len(shown) - 1) / 2) * width
            _bars(axes, places, found, arrangement, width)
            drawn[arrangement] = max(drawn.get(arrangement, 0), *(s.n for s in found))
        text = f"{title(kind[0])},\n{title(kind[1])}" + (f", t = {kind[2]:g}" if several else "")
        axes.set_title(text, loc="left", pad=3)
        axes.set_xticks([0, 1], ["precision", "recall"])
        axes.tick_params(axis="x", length=0)
        axes.set_ylim(0, 1.02)
        percent_axis(axes.yaxis, 1)
        axes.grid(axis="y", color=FAINT, linewidth=0.7)
    legend(figure, drawn, patches=True)
    return figure


def _bars(axes: Axes, places: np.ndarray, found: Sequence[Statistic], arrangement: str, width: float) -> None:
    for place, one in zip(places, found, strict=True):
        if not one.n:
            continue
        axes.bar(place, one.mean, width * 0.92, color=COLORS[arrangement])
        if not math.isnan(one.std):
            axes.errorbar(place, one.mean, yerr=one.std, color=INK, capsize=2, elinewidth=0.9)
        axes.text(
            place, 0.02, f"{100 * one.mean:.0f}", ha="center", va="bottom", fontsize=6.5, color="white", zorder=5
        )


# --- training -----------------------------------------------------------------------------------------


@styled
def training_figure(rows: pd.DataFrame) -> Figure | None:
    """Training loss and validation accuracy per epoch: mean and standard deviation over the repeats."""
    if not len(rows):
        return None
    figure = new_figure(PAGE, 2.1)
    loss, accuracy = figure.subplots(1, 2)
    drawn: dict[str, int] = {}
    losses = []
    for arrangement in present(rows):
        own = rows[rows["arrangement"] == arrangement]
        drawn[arrangement] = own["repeat"].nunique()
        for axes, column in ((loss, "train_loss"), (accuracy, "validation_accuracy")):
            found = aggregate(own, ["epoch"], column)
            epochs = sorted(key[0] for key, s in found.items() if math.isfinite(s.mean))
            if not epochs:
                continue
            values = np.array([found[epoch,].mean for epoch in epochs])
            stds = np.nan_to_num([found[epoch,].std for epoch in epochs])
            _mean_line(axes, np.array(epochs, float), values, stds, arrangement, floor=axes is loss)
            losses += list(values) if axes is loss else []
    if losses and min(losses) > 0:
        log_axis(loss)
    loss.set(xlabel="epoch", ylabel="training loss")
    accuracy.set(xlabel="epoch", ylabel="validation accuracy")
    low, high = accuracy.get_ylim()
    accuracy.set_ylim(max(low, 0), min(high, 1.02))
    percent_axis(accuracy.yaxis, high - low)
    for axes in (loss, accuracy):
        whole_axis(axes.xaxis)
        axes.grid(color=FAINT, linewidth=0.7)
    legend(figure, drawn)
    return figure


# --- shared -------------------------------------------------------------------------------------------


def plain(name: str, columns: int = 24) -> str:
    """A name for a figure: underscores become spaces, and what is too long or has no shape is cut."""
    words = "".join(c for c in re.sub(r"[_\s]+", " ", name).strip() if c.isprintable())
    widths = [2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in words]
    if sum(widths) <= columns:
        return words
    kept = sum(total < columns for total in itertools.accumulate(widths))
    return f"{words[:kept]}\N{HORIZONTAL ELLIPSIS}"


def present(rows: pd.DataFrame) -> list[str]:
    """The arrangements of a table, in the order of every table and figure."""
    words = set(rows["arrangement"])
    return [a for a in ARRANGEMENTS if a in words]


def small_multiples(count: int, columns: int, height: float, legend_lines: int = 1) -> tuple[Figure, list[Axes]]:
    """A grid of axes with one height and width; the legend has lines of its own."""
    columns = 3 if count in (3, 5, 6) else min(columns, count)
    lines = math.ceil(count / columns)
    width = PAGE if columns > 2 or legend_lines > 1 else COLUMN
    figure = new_figure(width, height * lines + 0.35 + 0.15 * legend_lines)
    grid = figure.subplots(lines, columns, squeeze=False, sharey=True).flatten().tolist()
    for axes in grid[count:]:
        axes.remove()
    return figure, grid[:count]


def _mean_line(
    axes: Axes, places: np.ndarray, values: np.ndarray, stds: np.ndarray, arrangement: str, floor: bool = False
) -> None:
    """A line and, where there is one, a band; ``floor`` keeps the band above a tenth of the mean (for logs)."""
    low = np.maximum(values - stds, values / 10) if floor else values - stds
    color = COLORS[arrangement]
    axes.plot(places, values, color=color, linestyle=DASHES[arrangement])
    if stds.any():
        axes.fill_between(places, low, values + stds, color=color, alpha=0.18, linewidth=0)


def legend(figure: Figure, drawn: dict[str, int], patches: bool = False, markers: bool = False) -> None:
    """One legend above all axes, with the number of repeats."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = []
    for arrangement in (a for a in ARRANGEMENTS if a in drawn):
        label = f"{WORDS[arrangement]} (n = {drawn[arrangement]})"
        marks: Any = {"marker": MARKERS[arrangement], "markersize": 3} if markers else {}
        if patches:
            handles.append(Patch(color=COLORS[arrangement], label=label))
        else:
            handles.append(
                Line2D([], [], color=COLORS[arrangement], linestyle=DASHES[arrangement], label=label, **marks)
            )
    narrow = figure.get_figwidth() < 5
    figure.legend(handles=handles, loc="outside upper center", ncols=min(len(handles), 2 if narrow else 4))


def percent_axis(axis: Any, span: float) -> None:
    """Ticks in per cent, none above 100."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    digits = 1 if span < 0.06 else 0
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.{digits}%}" if value < 1 + 1e-9 else ""))


def log_axis(axes: Axes) -> None:
    """A logarithmic axis of y with plain numbers at 1, 2 and 5."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def whole_axis(axis: Any) -> None:
    """Whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(6, integer=True))
