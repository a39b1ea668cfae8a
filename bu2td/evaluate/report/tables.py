"""What the sections of a report share: figures, tables of means, and notes on what is missing."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pandas as pd

from bu2td.evaluate.means import statistic
from bu2td.evaluate.report import figures
from bu2td.evaluate.report.page import Block, Cell, Missing, Picture, Table
from bu2td.evaluate.report.read import Run
from bu2td.evaluate.report.words import DASH, listed, mean, share, spread, title
from bu2td.evaluate.schema import ARRANGEMENTS, WORDS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PIXELS = 96  # CSS pixels per inch of a figure
SCALE = 1.3  # figures are a little larger on the screen than on paper
#: Which stage of the command makes which table.
STAGES = {
    "accuracy": "train",
    "log": "train",
    "robustness": "robustness",
    "curves": "robustness",
    "branches": "robustness",
    "corruptions": "corruptions",
    "bands": "frequency",
    "spectra": "frequency",
    "localisation": "explain",
    "faithfulness": "explain",
    "explanations": "explain",
}
SPREAD = "error bars are one standard deviation over n repeats (none for n = 1)"
#: From the rows of a group to a cell.
CellOf: TypeAlias = Callable[[pd.DataFrame], str | Cell]


class Drawer:
    """Writes figures into a folder, as PNG for the page and as SVG, and forgets those of an earlier report."""

    NAMES = ("accuracy", "training", "branches*", "curves", "corruptions", "levels-*", "images", "localisation",
             "frequency*")  # fmt: skip

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.written: set[str] = set()

    def draw(self, name: str, figure: Figure | None, caption: str) -> list[Block]:
        """Write a figure; no block where there is nothing to see."""
        if figure is None:
            return []
        path = self.folder / f"{name}.png"
        figures.save_figure(figure, path)
        figure.set_layout_engine("none")  # what was laid out for one is laid out for the other
        figures.save_figure(figure, path.with_suffix(".svg"))
        self.written.add(name)
        return [Picture(path, caption, round(figure.get_figwidth() * PIXELS * SCALE))]

    def remove_others(self) -> None:
        """Remove figures of an earlier report that this one does not have."""
        for path in self.folder.iterdir():
            ours = path.suffix in (".png", ".svg") and any(fnmatch(path.stem, name) for name in self.NAMES)
            if ours and path.stem not in self.written:
                path.unlink()


# --- tables -------------------------------------------------------------------------------------------


def grouped(caption: str, rows: pd.DataFrame, keys: Mapping[str, str], columns: Mapping[str, CellOf]) -> Table:
    """A row per combination of some columns.

    Args:
        caption: of the table.
        rows: of a table.
        keys: columns that name a row -> heads; "arrangement", the last one, in the usual order.
        columns: heads -> what a cell says of the rows of a group. A column of dashes is left out.
    """
    names = list(keys)
    order = rows.assign(**{"__place": rows["arrangement"].map(ARRANGEMENTS.index)})
    for name in names[:-1]:
        order[f"__{name}"] = order[name].map({value: i for i, value in enumerate(order[name].unique())})
    groups = order.sort_values([*(f"__{name}" for name in names[:-1]), "__place"], kind="stable")
    table = []
    for key, own in groups.groupby(names, sort=False):
        cells = [WORDS[k] if name == "arrangement" else title(str(k)) for name, k in zip(names, key, strict=True)]
        table.append([*cells, *(of(own) for of in columns.values())])
    heads = [*keys.values(), *columns]
    kept = [i for i in range(len(heads)) if i < len(names) or any(row[i] != DASH for row in table)]
    return Table(caption, [heads[i] for i in kept], [[row[i] for i in kept] for row in table], len(names))


def optional(
    run: Run, name: str, caption: str, keys: Mapping[str, str], columns: Mapping[str, CellOf]
) -> list[Block]:
    """As `grouped`, of a table that a run has or has not."""
    rows = run.tables.get(name)
    return [] if rows is None or not len(rows) else [grouped(caption, rows, keys, columns)]


def mean_of(column: str, places: int | None = None) -> CellOf:
    """Mean ± standard deviation."""
    return lambda rows: mean(statistic(rows[column]), places)


def share_of(column: str) -> CellOf:
    """Mean ± standard deviation in per cent."""
    return lambda rows: share(statistic(rows[column]))


def spread_of(column: str) -> CellOf:
    """One number, or the smallest and the largest."""
    return lambda rows: spread(rows[column])


def number_of(column: str) -> CellOf:
    """How many different values there are."""
    return lambda rows: str(rows[column].nunique())


def total_of(column: str) -> CellOf:
    """The sum."""
    return lambda rows: f"{rows[column].sum():,.0f}"


# --- what is missing ----------------------------------------------------------------------------------


def missing(run: Run, table: str, what: str) -> Missing:
    """A note that a table is not there, and the command that makes it."""
    return Missing(f"{what} not in this folder. This makes it:", _command(run, table))


def _command(run: Run, table: str) -> str:
    return f"bu2td evaluate {STAGES[table]} -o {shlex.quote(str(run.folder))} --resume"


def gaps(run: Run, table: str, key: str | None = None) -> list[Block]:
    """A note on runs that lack rows that others have, or that run.json names and nobody finished."""
    rows = run.tables[table]
    done = set(zip(rows["arrangement"], rows["repeat"], strict=True))
    odd: list[str] = []
    if key is None:
        arrangements, repeats = run.settings.get("arrangements"), run.settings.get("repeats")
        if isinstance(arrangements, list) and isinstance(repeats, int):
            odd = [f"{a}-{r}" for a in arrangements for r in range(repeats) if (a, r) not in done]
    else:
        have: set[Any] = set(zip(rows["arrangement"], rows["repeat"], rows[key], strict=True))
        odd = [
            f"{title(s)} of {a}-{r}" for s in rows[key].unique() for a, r in sorted(done) if (a, r, s) not in have
        ]
    if not odd:
        return []
    text = f"Not finished: {listed(odd, 8)}; means are over what is there. This goes on with it:"
    return [Missing(text, _command(run, table))]
