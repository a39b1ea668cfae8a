"""Tables of a report on sets of corruptions and on perturbation sequences."""

from __future__ import annotations

import pandas as pd

from bu2td.evaluate.report.frequency_figures import frame
from bu2td.evaluate.report.page import Block, Cell, Table
from bu2td.evaluate.report.read import Run
from bu2td.evaluate.report.words import DASH
from bu2td.evaluate.schema import ARRANGEMENTS, WORDS

__all__ = ["corruption_tables"]


def corruption_tables(run: Run) -> list[Block]:
    """Mean corruption errors by set, and flip probabilities; nothing where there are none.

    Args:
        run: its tables corruption_errors and flips are rows or DataFrames.
    """
    errors, flips = (frame(run.tables.get(name)) for name in ("corruption_errors", "flips"))
    blocks: list[Block] = []
    if len(errors):
        caption = (
            "Mean error over corruptions and their five severities, and mean corruption error relative to the "
            "bottom-up network of the same repeat (Hendrycks and Dietterich, 2019; 100 is bottom-up), in per cent: "
            "mean ± standard deviation over n trainings. bu2td: the corruptions that the suite makes itself."
        )
        head = ["corruptions", "network", "n", "images", "mean error", "mCE"]
        blocks.append(Table(caption, head, _rows(errors, "data", ("error", "mce")), words=2))
    if len(flips):
        caption = (
            "How often the predicted class flips from one frame of a sequence to the next (noise: from the first "
<<<<<<< HEAD
            "frame on), and this flip probability relative to the bottom-up network of the same repeat, in per "
            "cent: mean ± standard deviation over n trainings."
=======
            "frame on), and this probability relative to the bottom-up network of the same repeat, in per cent: "
            "mean ± standard deviation over n trainings."
>>>>>>> ev_freq
        )
        head = ["perturbation", "network", "n", "sequences", "flip probability", "flip rate"]
        blocks.append(Table(caption, head, _rows(flips, "perturbation", ("probability", "rate")), words=2))
    return blocks


def _rows(table: pd.DataFrame, subject: str, measures: tuple[str, str]) -> list[list[str | Cell]]:
    rows: list[list[str | Cell]] = []
    for name, own in table.groupby(subject, sort=False):
        for arrangement in (a for a in ARRANGEMENTS if (own["arrangement"] == a).any()):
            one = own[own["arrangement"] == arrangement]
            cells = [spread(one[measure]) for measure in measures]
            rows.append([str(name), WORDS[arrangement], str(len(one)), f"{int(one['samples'].min()):,}", *cells])
    return rows


def spread(values: pd.Series) -> str:
    """Mean and standard deviation in per cent; a dash where nothing was measured."""
    known = values.dropna()
    if not len(known):
        return DASH
    mean = f"{100 * known.mean():.1f}"
    return f"{mean} ± {100 * known.std(ddof=1):.1f}" if len(known) > 1 else mean
