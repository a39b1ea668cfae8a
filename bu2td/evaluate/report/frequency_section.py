"""The section of a report on spatial frequencies."""

from __future__ import annotations

import pandas as pd

from bu2td.evaluate.means import statistic
from bu2td.evaluate.report.frequency_figures import figures, frame, octave
from bu2td.evaluate.report.page import Block, Cell, Heading, Table, Text
from bu2td.evaluate.report.read import Run
from bu2td.evaluate.report.tables import Drawer, missing
from bu2td.evaluate.report.words import share
from bu2td.evaluate.schema import ARRANGEMENTS, WORDS

__all__ = ["frequency_section"]


def frequency_section(run: Run, drawer: Drawer) -> list[Block]:
    """Sensitivity maps, error by band, spectra of the attacks, accuracy on filtered images.

    Args:
        run: its tables fourier, bands, spectra and filtered are rows or DataFrames.
        drawer: takes the figures.
    """
    blocks: list[Block] = [Heading("Spatial frequency")]
    bands, spectra = frame(run.tables.get("bands")), frame(run.tables.get("spectra"))
    if not len(bands):
        blocks.append(missing(run, "bands", "The sensitivity to spatial frequencies is"))
    else:
        blocks.append(Text(
            "The paper's claim is about frequencies: a network that blurs the higher ones and restores them late "
            "is a defence against attacks that live there. Frequencies are cycles per image, along the longer "
            "side; the bands are octaves, as every level of a pyramid loses the upper octave of the level before."
        ))  # fmt: skip
    for name, figure, caption in figures(run.tables):
        blocks += drawer.draw(name, figure, caption)
        if name.startswith("frequency-bands"):
            own = bands[bands["norm"] == _norm(name, bands)]
            blocks.append(_band_table(own))
    if len(bands) and not len(spectra):
        blocks.append(missing(run, "robustness", "The spectra of the attacks need the attacks, which are"))
        blocks.append(missing(run, "spectra", "Then the spectra are"))
    return blocks


def _norm(name: str, bands: pd.DataFrame) -> float:
    suffix = name.removeprefix("frequency-bands").removeprefix("-")
    return next(n for n in set(bands["norm"]) if f"{n:g}" == suffix) if suffix else float(bands["norm"].iloc[0])


def _band_table(bands: pd.DataFrame) -> Table:
    names = [a for a in ARRANGEMENTS if (bands["arrangement"] == a).any()]
    against = [a for a in names if a != "bu"] if "bu" in names else []
    table: list[list[str | Cell]] = []
    groups = [(octave(*edges), own) for edges, own in bands.groupby(["low", "high"])]
    lowest = bands[bands["low"] == bands["low"].min()]
    groups.insert(0, ("no wave", lowest.assign(error=lowest["clean_error"])))
    for words, own in groups:
        errors = {a: own[own["arrangement"] == a]["error"] for a in names}
        differences = [f"{100 * (errors[a].mean() - errors['bu'].mean()):+.1f}" for a in against]
        table.append([words, *(share(statistic(errors[a]), 1) for a in names), *differences])
    caption = (
        f"Error under basis perturbations of L2 norm {bands['norm'].iloc[0]:.3g} per channel by radius, in per "
        "cent: mean ± standard deviation over the trainings; differences to bottom-up in points."
    )
    heads = ["radius", *(WORDS[a] for a in names), *(f"difference, {WORDS[a]}" for a in against)]
    return Table(caption, heads, table)
