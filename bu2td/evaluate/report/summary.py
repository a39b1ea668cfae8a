"""Where a top-down network is better, equal and worse, as tables: computed from a run's files, never presumed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from bu2td.evaluate.report.compare import BETTER, RULE, UNCLEAR, UNDECIDED, VERDICTS, WORSE, Comparison, Statistic
from bu2td.evaluate.report.page import Block, Cell, Heading, Missing, Table, Text
from bu2td.evaluate.report.read import WORDS

__all__ = ["difference", "digits", "mean", "points", "share", "summary_blocks", "verdict_cell"]

_MARKS = {BETTER: "▲", WORSE: "▼", UNCLEAR: "=", UNDECIDED: "?"}
_TONES = {BETTER: "better", WORSE: "worse", UNCLEAR: "unclear", UNDECIDED: "undecided"}
_HEADS = {
    "accuracy": "Accuracy",
    "robustness": "Robustness",
    "corruptions": "Corruptions",
    "localisation": "Localisation",
    "faithfulness": "Faithfulness",
}
DASH = "\N{EN DASH}"


# --- numbers as text ----------------------------------------------------------------------------------


def digits(value: float, figures: int = 3) -> str:
    """A number with so many significant figures, thousands with commas; a dash for nan."""
    if math.isnan(value):
        return DASH
    if math.isinf(value):
        return "∞" if value > 0 else "\N{MINUS SIGN}∞"
    if not value:
        return "0"
    places = figures - 1 - math.floor(math.log10(abs(value)))
    text = f"{round(value, places):,.{max(places, 0)}f}"
    return text.replace("-", "\N{MINUS SIGN}")


def fixed(value: float, places: int) -> str:
    """A number with so many places."""
    return f"{value:,.{places}f}".replace("-", "\N{MINUS SIGN}") if math.isfinite(value) else digits(value)


def mean(found: Statistic, places: int | None = None) -> str:
    """Mean ± standard deviation, both to so many places; by default to three figures of the mean."""
    if not found.n or not math.isfinite(found.mean):
        return digits(found.mean)
    if places is None:
        places = max(2 - math.floor(math.log10(abs(found.mean))), 0) if found.mean else 0
    deviation = "" if math.isnan(found.std) else f" ± {found.std:,.{places}f}"
    return fixed(found.mean, places) + deviation


def share(found: Statistic, places: int = 2) -> str:
    """Mean ± standard deviation in per cent."""
    if not found.n or math.isnan(found.mean):
        return DASH
    deviation = "" if math.isnan(found.std) else f" ± {100 * found.std:.{places}f}"
    return f"{100 * found.mean:.{places}f}{deviation}"


def points(value: float, error: float = math.nan) -> str:
    """A difference of shares in points of per cent, with its standard error."""
    if math.isnan(value):
        return DASH
    text = f"{100 * value:+.2f}".replace("-", "\N{MINUS SIGN}")
    return text if math.isnan(error) else f"{text} ± {100 * error:.2f}"


def difference(found: Comparison) -> str:
    """A difference with its standard error; in points where the measure is a share."""
    if _is_share(found):
        return points(found.difference, found.standard_error)
    if math.isnan(found.difference):
        return DASH
    text = f"{found.difference:+.3f}".replace("-", "\N{MINUS SIGN}")
    return text if math.isnan(found.standard_error) else f"{text} ± {found.standard_error:.3f}"


def _is_share(found: Comparison) -> bool:
    return found.measure in (
        "test accuracy",
        "mean accuracy",
        "precision",
        "recall",
        "MaxBoxAccV2",
        "pointing game",
    )


def verdict_cell(found: Comparison) -> Cell:
    """A verdict with its mark; one that is not decided says where the single runs point to."""
    text = f"{_MARKS[found.verdict]} {found.verdict}"
    if found.verdict == UNDECIDED and (ahead := _ahead(found)):
        text += f" ({ahead} in one run)" if min(found.bottom_up.n, found.top_down.n) == 1 else f" ({ahead})"
    return Cell(text, _TONES[found.verdict])


def _ahead(found: Comparison) -> str:
    before, after = found.bottom_up.mean, found.top_down.mean
    if math.isnan(before) or math.isnan(after) or before == after:
        return ""
    return "ahead" if (after > before) == found.higher_is_better else "behind"


# --- the summary --------------------------------------------------------------------------------------


def summary_blocks(comparisons: Sequence[Comparison], arrangements: Iterable[str]) -> list[Block]:
    """What stands at the top of a report.

    Args:
        comparisons: of all arrangements.
        arrangements: those that the run has.
    """
    present = list(arrangements)
    if not comparisons:
        reason = "there is no bottom-up network" if "bu" not in present else "there are no finished networks"
        return [Missing(f"Nothing can be compared: {reason} with results in this folder.")]
    blocks: list[Block] = []
    for arrangement in dict.fromkeys(c.arrangement for c in comparisons):
        own = [c for c in comparisons if c.arrangement == arrangement]
        if blocks:
            blocks.append(Heading(f"{_name(arrangement)} against bottom-up", 3))
            blocks += [Text(_sentence(own, arrangement)), _overview(own, arrangement)]
        else:
            blocks += [Text(_sentence(own, arrangement)), _overview(own, arrangement)]
            blocks.append(Text(f"{RULE} {_chance(own)}", small=True))
            blocks += [Heading(f"{_name(arrangement)} against bottom-up, number by number", 3), *_details(own)]
    return blocks


def _name(arrangement: str) -> str:
    return WORDS[arrangement].capitalize()


def _sentence(comparisons: Sequence[Comparison], arrangement: str) -> str:
    counts = {verdict: sum(c.verdict == verdict for c in comparisons) for verdict in VERDICTS}
    text = (
        f"{_name(arrangement)} against bottom-up: better in {counts[BETTER]} of {len(comparisons)} comparisons, "
        f"worse in {counts[WORSE]}, no clear difference in {counts[UNCLEAR]}"
    )
    return text + (f", not decided in {counts[UNDECIDED]}." if counts[UNDECIDED] else ".")


def _overview(comparisons: Sequence[Comparison], arrangement: str) -> Table:
    """A row per experiment and measure, a column per verdict, with the names of what stands there."""
    rows: list[list[str | Cell]] = []
    for experiment, measure in dict.fromkeys((c.experiment, c.measure) for c in comparisons):
        own = [c for c in comparisons if (c.experiment, c.measure) == (experiment, measure)]
        cells: list[str | Cell] = []
        for verdict in (BETTER, UNCLEAR, WORSE, UNDECIDED):
            found = [_with_sign(c) for c in own if c.verdict == verdict]
            count = f"{len(found)}: " if own[0].subject else ""
            text = count + ", ".join(found) if found else DASH
            cells.append(Cell(text, _TONES[verdict]) if found else text)
        rows.append([_HEADS[experiment], measure, *cells])
    if all(row[-1] == DASH for row in rows):
        rows = [row[:-1] for row in rows]
    columns = ["experiment", "measure", "▲ better", "= no clear difference", "▼ worse", "? not decided"]
    caption = f"Where {WORDS[arrangement]} is better than bottom-up, equal and worse."
    return Table(caption, columns[: len(rows[0])], rows, words=6)


def _with_sign(found: Comparison) -> str:
    """The subject of a comparison, or its difference where it has none."""
    name = found.subject or f"{difference(found)} points"
    ahead = _ahead(found) if found.verdict == UNDECIDED else ""
    return f"{name} ({ahead})" if ahead else name


def _chance(comparisons: Sequence[Comparison]) -> str:
    chances = [c.chance for c in comparisons if not math.isnan(c.chance)]
    if not chances:
        return ""
    return (
        f"If the networks were equal, about {digits(sum(chances), 2)} of the {len(chances)} comparisons with a "
        "spread would pass this rule by chance (Student's t; repeats taken as independent)."
    )


def _details(comparisons: Sequence[Comparison]) -> list[Block]:
    plain = [c for c in comparisons if c.experiment != "robustness"]
    blocks: list[Block] = []
    if plain:
        rows: list[list[str | Cell]] = [
            [
                _HEADS[c.experiment],
                c.measure if c.higher_is_better else f"{c.measure} (lower is better)",
                c.subject or DASH,
                _value(c, c.bottom_up),
                _value(c, c.top_down),
                _repeats(c),
                difference(c),
                verdict_cell(c),
            ]
            for c in plain
        ]
        columns = ["experiment", "measure", "of", "bottom-up", "top-down", "n", "difference", "verdict"]
        text = (
            "Mean ± standard deviation over repeats, and the difference top-down less bottom-up ± its standard "
            "error. Shares and their differences are in per cent and points; deletion and insertion are areas "
            "from 0 to 1."
        )
        blocks.append(Table(text, columns, rows, words=3))
    robust = [c for c in comparisons if c.experiment == "robustness"]
    if robust:
        blocks.append(_robustness(robust))
    return blocks


def _value(found: Comparison, of: Statistic) -> str:
    return share(of) if _is_share(found) else mean(of, 3)


def _repeats(found: Comparison) -> str:
    counts = (found.bottom_up.n, found.top_down.n)
    return str(counts[0]) if counts[0] == counts[1] else f"{counts[0]} and {counts[1]}"


def _robustness(comparisons: Sequence[Comparison]) -> Table:
    rows: list[list[str | Cell]] = []
    by = comparisons[0].arrangement
    for attack in dict.fromkeys(c.subject for c in comparisons):
        own = {c.measure: c for c in comparisons if c.subject == attack}
        median, area = own.get("median L2"), own.get("area under the curve")
        cells: list[str | Cell] = [DASH] * 6
        if median:
            medians = [mean(median.bottom_up, 2), mean(median.top_down, 2), fixed(median.ratio, 2)]
            cells[:4] = [*medians, verdict_cell(median)]
        if area:
            cells[4:] = [difference(area), verdict_cell(area)]
        rows.append([attack, _repeats(next(iter(own.values()))), *cells])
    columns = [
        "attack",
        "n",
        "median L2, bottom-up",
        f"median L2, {WORDS[by]}",
        "ratio",
        "verdict (median L2)",
        "difference of areas",
        "verdict (area)",
    ]
    text = (
        "Smallest perturbation that changes the class: median over samples of its L2 norm, and its ratio "
        "top-down over bottom-up (above 1: top-down withstands more). Area: under the curve of accuracy against "
        "L2."
    )
    return Table(text, columns, rows)
