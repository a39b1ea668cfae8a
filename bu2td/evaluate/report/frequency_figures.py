"""The charts of the frequency experiment: sensitivity maps, error by band, spectra of attacks, filtered images.

Every function takes rows of its table (dicts or a DataFrame) and returns a figure, or None where there is nothing
to draw. Bands and bars are 95 % confidence intervals of the mean over the trainings (Student's t); there are none
where there is one training. Frequencies are cycles per image.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from bu2td.evaluate.report import figures as shared
from bu2td.evaluate.report.figures import COLORS, COLUMN, DASHES, FAINT, GREY, MARKERS, PAGE, SHORT
from bu2td.evaluate.schema import ARRANGEMENTS, WORDS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["bands_figure", "figures", "filters_figure", "maps_figure", "octave", "spectra_figure"]

CONFIDENCE = 0.95
INTERVAL = "95 % confidence intervals of the mean over the n trainings (none for n = 1)"


def figures(tables: Mapping[str, Any]) -> list[tuple[str, Figure | None, str]]:
    """All charts that the tables of a run allow, as (name of the file, figure, caption).

    Args:
        tables: rows by name: fourier, bands, spectra, filtered.
    """
    cells, bands, spectra, filtered = (
        frame(tables.get(name)) for name in ("fourier", "bands", "spectra", "filtered")
    )
    drawn: list[tuple[str, Figure | None, str]] = []
    for norm in sorted(set(cells["norm"])) if len(cells) else []:
        own = cells[cells["norm"] == norm]
        caption = (
            f"Fourier sensitivity (Yin et al., 2019): share of {_range(own, 'samples')} test images, in per cent, "
            f"that are misclassified when a wave of one frequency and of L2 norm {norm:.3g} per channel is added, "
            f"mean over {_trainings(own)}. Zero frequency is in the middle. On the right or below, the difference "
            "to bottom-up in points: blue where the top-down network errs less, red where it errs more."
        )
        drawn.append((f"frequency-maps{_suffix(cells, norm)}", maps_figure(own), caption))
    for norm in sorted(set(bands["norm"])) if len(bands) else []:
        own = bands[bands["norm"] == norm]
        caption = (
            f"Error under such waves (L2 norm {norm:.3g} per channel) by the radius of their frequency, octaves; "
            f"0 is the mean brightness alone. Of {_range(own, 'samples')} test images; bars are {INTERVAL}. "
            "Dotted: the error without any wave."
        )
        drawn.append((f"frequency-bands{_suffix(bands, norm)}", bands_figure(own), caption))
    if len(spectra):
        caption = (
            "Where the power of the smallest perturbations lies: share of their squared L2 norm at every radius, "
            f"in per cent, mean over the images for which one was found ({_range(spectra, 'samples')}) and over "
            f"{_trainings(spectra)}; bands are {INTERVAL}. Dotted: white noise."
        )
        drawn.append(("frequency-spectra", spectra_figure(spectra), caption))
    if len(filtered):
        caption = (
            "Accuracy on images that keep the frequencies up to a radius (left), or those above it and the mean "
            f"brightness (right), of {_range(filtered, 'samples')} test images; bands are {INTERVAL}. The far "
            "right of the left chart and the far left of the right one are the images as they are."
        )
        drawn.append(("frequency-filters", filters_figure(filtered), caption))
    return drawn


# --- sensitivity maps ---------------------------------------------------------------------------------


@shared.styled
def maps_figure(rows: Any) -> Figure | None:
    """Error under every basis perturbation of one norm, per network, and the differences to bottom-up."""
    cells = frame(rows)
    names = _present(cells)
    if not names:
        return None
    maps = {a: _map(cells[cells["arrangement"] == a]) for a in names}
    others = [a for a in names if a != "bu"] if "bu" in names else []
    figure, networks, differences = _panels(len(names), len(others))
    high = _greatest(maps.values())
    shown = {WORDS[a]: values for a, values in maps.items()}
    _draw_maps(figure, networks, shown, "error, %", cmap="cividis", vmin=0, vmax=high)
    if others:
        changes = {f"{SHORT[a]} less BU": maps[a] - maps["bu"] for a in others}  # pandas matches the frequencies
        reach = _greatest(changes.values())
        _draw_maps(figure, differences, changes, "difference, points", cmap="RdBu_r", vmin=-reach, vmax=reach)
    figure.supxlabel("horizontal frequency, cycles per image", fontsize=7.5)
    figure.supylabel("vertical frequency", fontsize=7.5)
    return figure


def _panels(networks: int, differences: int) -> tuple[Figure, list[Axes], list[Axes]]:
    """Up to three maps in one row; else every difference below its network, and nothing below bottom-up."""
    one_row = networks + differences <= 3
    columns = networks + differences if one_row else networks
    width = PAGE if columns > 2 else COLUMN * columns / 2 + 1
    height = 0.72 * PAGE / max(columns, 3) + 0.5
    figure = shared.new_figure(width, height if one_row else 2 * height)
    grid = figure.subplots(1 if one_row else 2, columns, squeeze=False)
    if one_row:
        return figure, list(grid[0][:networks]), list(grid[0][networks:])
    for axes in grid[1][: columns - differences]:
        axes.remove()
    return figure, list(grid[0]), list(grid[1][columns - differences :])


def _greatest(maps: Iterable[pd.DataFrame]) -> float:
    """The greatest absolute value, in per cent; 100 where all are 0."""
    return 100 * (max(float(np.nanmax(np.abs(values))) for values in maps) or 1.0)


def _map(cells: pd.DataFrame) -> pd.DataFrame:
    """Mean errors by vertical (index) and horizontal (columns) frequency; what -side/2 has, side/2 has too."""
    table = cells.pivot_table(index="vertical", columns="horizontal", values="error", aggfunc="mean")
    for _ in range(2):
        table = table.T  # one axis after the other
        first = min(table.index)
        if -first not in table.index:
            table.loc[-first] = table.loc[first]
        table = table.sort_index()
    return table.astype(float)


def _draw_maps(
    figure: Figure, grid: list[Axes], maps: Mapping[str, pd.DataFrame], label: str, **colours: Any
) -> None:
    """Maps side by side, with one bar of colours."""
    from matplotlib.ticker import MaxNLocator

    for axes, (title, values) in zip(grid, maps.items(), strict=True):
        vertical, horizontal = values.index.to_numpy(float), values.columns.to_numpy(float)
        shares = 100 * np.ma.masked_invalid(values.to_numpy())
        mesh = axes.pcolormesh(horizontal, vertical, shares, shading="nearest", rasterized=True, **colours)
        axes.set_aspect("equal" if len(vertical) == len(horizontal) else "auto")
        axes.set_title(title, loc="left", pad=3)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 4, 5, 8, 10]))
        for spine in axes.spines.values():
            spine.set_visible(False)
    figure.colorbar(mesh, ax=grid, label=label, shrink=0.8, pad=0.01)


# --- bands, filters, spectra --------------------------------------------------------------------------


@shared.styled
def bands_figure(rows: Any) -> Figure | None:
    """Error by band of frequencies, for one norm, and the error without a wave."""
    bands = frame(rows)
    names = _present(bands)
    if not names:
        return None
    edges = sorted(set(zip(bands["low"], bands["high"], strict=True)))
    figure = shared.new_figure(COLUMN, 2.3)
    axes = figure.subplots()
    drawn = {}
    for index, name in enumerate(names):
        own = bands[bands["arrangement"] == name]
        values = own.pivot_table(index="repeat", columns=["low", "high"], values="error")
        mean, half = _interval(values.reindex(columns=pd.MultiIndex.from_tuples(edges)).to_numpy())
        axes.errorbar(
            np.arange(len(edges)) + (index - (len(names) - 1) / 2) * 0.08, mean, yerr=half if half.any() else None,
            color=COLORS[name], marker=MARKERS[name], linestyle=DASHES[name], markersize=3, elinewidth=0.9,
            capsize=2,
        )  # fmt: skip
        drawn[name] = len(values)
        axes.axhline(own["clean_error"].mean(), color=COLORS[name], linestyle=":", linewidth=0.9)
    axes.set_xticks(range(len(edges)), [octave(*edge) for edge in edges])
    axes.set(xlabel="radius, cycles per image", ylabel="error")
    _share_axis(axes)
    shared.legend(figure, drawn, markers=True)
    return figure


def octave(low: float, high: float) -> str:
    """A band in words."""
    return "0" if low == 0 and high <= 1 else f"{low:g}\N{EN DASH}{high:g}"


@shared.styled
def filters_figure(rows: Any) -> Figure | None:
    """Accuracy against the radius of a low-pass and of a high-pass filter."""
    filtered = frame(rows)
    kinds = [kept for kept in ("low", "high") if len(filtered) and (filtered["kept"] == kept).any()]
    if not kinds:
        return None
    figure = shared.new_figure(PAGE if len(kinds) > 1 else COLUMN, 2.3)
    drawn: dict[str, int] = {}
    for axes, kept in zip(figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0], kinds, strict=True):
        own = filtered[filtered["kept"] == kept]
        radii = sorted(set(own["radius"]))
        for name in _present(own):
            values = own[own["arrangement"] == name].pivot_table(
                index="repeat", columns="radius", values="accuracy"
            )
            _line(axes, np.arange(len(radii)), values.reindex(columns=radii).to_numpy(), name)
            drawn[name] = len(values)
        axes.set_xticks(range(len(radii)), [f"{radius:g}" for radius in radii])
        axes.set_title({"low": "low frequencies kept", "high": "high frequencies kept"}[kept], loc="left", pad=3)
        _share_axis(axes)
    figure.supxlabel("radius of the cut, cycles per image", fontsize=7.5)
    figure.supylabel("accuracy", fontsize=7.5)
    shared.legend(figure, drawn)
    return figure


@shared.styled
def spectra_figure(rows: Any, columns: int = 4) -> Figure | None:
    """The radial power spectrum of every attack's perturbations, one plot per attack."""
    spectra = frame(rows)
    attacks = list(dict.fromkeys(spectra["attack"])) if len(spectra) else []
    if not attacks:
        return None
    figure, grid = shared.small_multiples(len(attacks), columns, 1.45)
    drawn: dict[str, int] = {}
    for axes, attack in zip(grid, attacks, strict=True):
        own = spectra[spectra["attack"] == attack]
        white = own.drop_duplicates("radius").sort_values("radius")
        axes.plot(white["radius"], 100 * white["white"], color=GREY, linestyle=":", linewidth=1)
        for name in _present(own):
            values = own[own["arrangement"] == name].pivot_table(index="repeat", columns="radius", values="power")
            _line(axes, values.columns.to_numpy(float), 100 * values.to_numpy(), name)
            drawn[name] = max(drawn.get(name, 0), len(values))
        axes.set_title(shared.plain(attack), loc="left", pad=3)
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
        axes.grid(color=FAINT, linewidth=0.7)
    figure.supylabel("share of the power, %", fontsize=7.5)
    figure.supxlabel("radius, cycles per image", fontsize=7.5)
    shared.legend(figure, drawn)
    return figure


# --- shared -------------------------------------------------------------------------------------------


def frame(rows: Any) -> pd.DataFrame:
    """Rows (dicts, a DataFrame or None) as a DataFrame."""
    return rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows or ()))


def _present(table: pd.DataFrame) -> list[str]:
    return [a for a in ARRANGEMENTS if len(table) and (table["arrangement"] == a).any()]


def _interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and half of its confidence interval, of columns (repeats, places); 0 for one repeat."""
    from scipy.stats import t

    count = len(values)
    if count < 2:
        return values.mean(0), np.zeros(values.shape[1])
    error = values.std(0, ddof=1) / count**0.5
    return values.mean(0), t.ppf((1 + CONFIDENCE) / 2, count - 1) * error


def _line(axes: Axes, places: np.ndarray, values: np.ndarray, arrangement: str) -> None:
    mean, half = _interval(values)
    axes.plot(places, mean, color=COLORS[arrangement], linestyle=DASHES[arrangement])
    if half.any():
        axes.fill_between(places, mean - half, mean + half, color=COLORS[arrangement], alpha=0.18, linewidth=0)


def _share_axis(axes: Axes) -> None:
    axes.set_ylim(-0.02, 1.02)
    shared.percent_axis(axes.yaxis, 1)
    axes.grid(axis="y", color=FAINT, linewidth=0.7)


def _suffix(table: pd.DataFrame, norm: float) -> str:
    return "" if table["norm"].nunique() == 1 else f"-{norm:g}"


def _range(table: pd.DataFrame, column: str) -> str:
    low, high = int(table[column].min()), int(table[column].max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _trainings(table: pd.DataFrame) -> str:
    counts = [table[table["arrangement"] == a]["repeat"].nunique() for a in _present(table)]
    return (
        f"n = {counts[0]} trainings" if len(set(counts)) == 1 else f"n = {min(counts)} to {max(counts)} trainings"
    )
