"""What is decided, in words and as tables: computed from a run's comparisons, never presumed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from bu2td.evaluate.report.compare import (
    MARGINS,
    PAPERS_LAYER,
    PAPERS_NORMALISATION,
    STRONGEST,
    Comparison,
    Family,
    Level,
    Verdict,
)
from bu2td.evaluate.report.page import Block, Cell, Heading, Missing, Table, Text
from bu2td.evaluate.report.statistics import ALPHA, least_p
from bu2td.evaluate.report.words import DASH, digits, fixed, listed, probability, title, together
from bu2td.evaluate.schema import WORDS

__all__ = ["summary_blocks", "verdict_table"]

_MARKS = {Verdict.BETTER: "▲", Verdict.WORSE: "▼", Verdict.EQUAL: "=", Verdict.UNDECIDED: "?"}
_TONES = {Verdict.BETTER: "better", Verdict.WORSE: "worse", Verdict.EQUAL: "equal", Verdict.UNDECIDED: "undecided"}
#: What a subject of a family is called: under 3 attacks, in 2 bands.
_SUBJECTS = {
    Family.ATTACKS: ("under", "attacks"),
    Family.CORRUPTIONS: ("under", "corruptions"),
    Family.BANDS: ("in", "frequency bands"),
}


# --- numbers ------------------------------------------------------------------------------------------


def _in_points(found: Comparison) -> bool:
    """Whether a measure is a share, whose differences are points of per cent."""
    return found.family is not Family.ATTACKS and found.measure not in ("deletion", "insertion")


def amount(found: Comparison, value: float) -> str:
    """A value or a difference of a measure: per cent, L2, or an area from 0 to 1."""
    if math.isnan(value):
        return DASH
    return fixed(100 * value, 2) if _in_points(found) else digits(value)


def _unit(found: Comparison) -> str:
    if found.family is Family.ATTACKS:
        return " in L2" if "linf" not in found.subject else " in Linf"
    return " points" if _in_points(found) else ""


def _interval(found: Comparison, sign: int = 1) -> str:
    if math.isnan(found.low):
        return "no interval"
    low, high = sorted((sign * found.low, sign * found.high))
    return f"95 % {amount(found, low)} to {amount(found, high)}"


def _counted(found: Comparison) -> str:
    noun = "image" if found.level is Level.NETWORKS else "run"
    return f"{found.n:,} {noun}{'' if found.n == 1 else 's'}"


# --- words --------------------------------------------------------------------------------------------


def phrase(found: Comparison) -> str:
    """A comparison in words: who is better, by how much, and how strongly that is known."""
    if found.verdict in (Verdict.BETTER, Verdict.WORSE):
        winner = WORDS["bu" if found.verdict is Verdict.WORSE else found.arrangement]
        sign = 1 if found.estimate > 0 else -1
        by = f"{amount(found, abs(found.estimate))}{_unit(found)}"
        return f"{winner} better by {by} ({_interval(found, sign)}; {probability(found.adjusted_p)})"
    if found.verdict is Verdict.EQUAL:
        return f"equal within {amount(found, found.margin)}{_unit(found)} ({_interval(found)})"
    if found.level is Level.ARCHITECTURE and found.n < 2:
        return "not decided with 1 run"
    reason = f"; {found.reason}" if found.reason else ""
    known = "" if math.isnan(found.low) else f"{_interval(found)}; "
    return f"not decided with {_counted(found)} ({known}{probability(found.adjusted_p)}{reason})"


def sentence(comparisons: Sequence[Comparison], family: Family) -> str:
    """What is decided of a family, on both levels, from the comparisons of one arrangement."""
    own = [c for c in comparisons if c.family is family]
    primary = [c for c in own if c.primary]
    if not primary:
        where = f"{title(PAPERS_LAYER)}, {title(PAPERS_NORMALISATION)}"
        return f"not decided: heat maps were not measured as in the paper ({where}); the table has the others."
    parts = []
    for level in Level:
        found = [c for c in primary if c.level is level]
        if not found:
            parts.append(f"{level.value}: not measured image by image")
        elif family in _SUBJECTS:
            parts.append(f"{level.value}: {_counts(found, family)}")
        else:
            several = len(found) > 1
            phrases = [f"{c.measure} {phrase(c)}" if several else phrase(c) for c in found]
            parts.append(f"{level.value}: {', '.join(phrases)}")
    return "; ".join(parts) + "."


def _counts(found: Sequence[Comparison], family: Family) -> str:
    """Verdicts of many subjects: how many of each, and which."""
    word, plural = _SUBJECTS[family]
    first = [c for c in found if c.subject == STRONGEST]
    others = [c for c in found if c.subject != STRONGEST]
    texts = [f"the strongest attack per image: {phrase(c)}" for c in first]
    if len(others) == 1:
        texts.append(f"{word} {title(others[0].subject)}: {phrase(others[0])}")
    elif others:
        names = {v: [title(c.subject) for c in others if c.verdict is v] for v in Verdict}
        counts = [f"{v.value} {word} {len(own)} ({listed(own)})" for v, own in names.items() if own]
        if len(counts) == 1:
            counts = [f"{others[0].verdict.value} {word} all {len(others)} {plural}"]
        who = (
            "" if others[0].verdict is Verdict.UNDECIDED and len(counts) == 1 else f"{WORDS[found[0].arrangement]} "
        )
        runs = f" with {_counted(others[0])}" if found[0].level is Level.ARCHITECTURE else ""
        texts.append(f"{who}{', '.join(counts)}{runs}")
    return "; ".join(texts)


def summary_blocks(comparisons: Sequence[Comparison], arrangements: Iterable[str]) -> list[Block]:
    """What stands at the top of a report.

    Args:
        comparisons: of all arrangements.
        arrangements: those that the run has.
    """
    present = list(arrangements)
    if not comparisons:
        reason = "there is no bottom-up network" if "bu" not in present else "there are no two networks"
        return [Missing(f"Nothing can be compared: {reason} with results in this folder.")]
    blocks: list[Block] = []
    for arrangement in dict.fromkeys(c.arrangement for c in comparisons):
        own = [c for c in comparisons if c.arrangement == arrangement]
        blocks.append(Heading(f"{WORDS[arrangement].capitalize()} against bottom-up", 3))
        for family in Family:
            if any(c.family is family for c in own):
                blocks.append(Text(together(sentence(own, family)), lead=f"{family.value}:"))
    return [*blocks, Text(_rule(comparisons), small=True)]


def _rule(comparisons: Sequence[Comparison]) -> str:
    margins = ", ".join(
        f"{family.value.lower()} " + (f"{100 * margin:g} % of the bottom-up value" if family is Family.ATTACKS
                                      else f"{100 * margin:g} point{'' if margin == 0.01 else 's'}")
        for family, margin in MARGINS.items()
        if any(c.family is family for c in comparisons)
    )  # fmt: skip
    runs = sorted({c.n for c in comparisons if c.level is Level.ARCHITECTURE and c.n > 1})
    weak = [n for n in runs if least_p(n, n) > ALPHA]
    few = "".join(
        f" With {n} runs of each the exact permutation test cannot go below p = {least_p(n, n):.2g}; a verdict on "
        "the architecture then rests on runs being normally distributed."
        for n in weak[:1]
    )
    return (
        "How this is decided. These networks: images are the units; Wilcoxon's signed-rank test on the images that "
        "both have (exact sign test for right and wrong; an infinite distance is larger than any other), intervals "
        "by a bootstrap over images. As an architecture: trainings are the units; Welch's test, intervals of "
        "Student's t times the error of a bootstrap over runs and images. p values are adjusted within a family by "
        "Holm's rule. Better means "
        f"adjusted p ≤ {ALPHA} and a 95 % interval (of this comparison alone) without 0; equal means that the "
        f"interval lies within a margin: {margins}. All else is not decided.{few}"
    )


def verdict_table(comparisons: Sequence[Comparison], *families: Family) -> list[Block]:
    """Every comparison of some families, number by number; no block where there is none."""
    own = [c for c in comparisons if c.family in families]
    if not own:
        return []
    units = {
        Family.ATTACKS: "distances in L2 (Linf where the attack says so), pixel values from 0 to 1",
        Family.FAITHFULNESS: "deletion and insertion are areas from 0 to 1, the pointing game is in per cent",
    }.get(families[0], "in per cent and points")
    what = f" of the {_named(own[0])}" if len({c.measure for c in own}) == 1 else ""
    text = f"Verdicts{what}, number by number; the difference is top-down less bottom-up; {units}."
    if not all(c.primary for c in own):
        text += " * beside what the verdict above rests on; p values are adjusted among these."
    names = _names(own)
    heads = [*names, *("level", "verdict", "difference", "95 % interval", "adjusted p", "p"), *_SIDES, "n"]
    rows = [[*(name(c) for name in names.values()), *_numbers(c)] for c in own]
    return [Table(text, heads, rows, words=heads.index("verdict"))]


_SIDES = ("bottom-up", "top-down")


def _names(own: Sequence[Comparison]) -> dict[str, Callable[[Comparison], str]]:
    """The columns that name a comparison, as far as they differ among these; the last one has the star."""
    found: dict[str, Callable[[Comparison], str]] = {}
    subjects = any(c.subject for c in own)
    if len({c.arrangement for c in own}) > 1:
        found["network"] = lambda c: WORDS[c.arrangement]
    if len({c.measure for c in own}) > 1:
        found["measure"] = lambda c: _named(c) + ("" if subjects else _star(c))
    if subjects:
        found["of"] = lambda c: (title(c.subject) or DASH) + _star(c)
    return found


def _star(found: Comparison) -> str:
    return "" if found.primary else " *"


def _numbers(c: Comparison) -> list[str | Cell]:
    reason = f" ({c.reason})" if c.reason else ""
    return [
        c.level.value,
        Cell(f"{_MARKS[c.verdict]} {c.verdict.value}{reason}", _TONES[c.verdict]),
        amount(c, c.estimate),
        DASH if math.isnan(c.low) else f"{amount(c, c.low)} to {amount(c, c.high)}",
        *(probability(p).removeprefix("p = ").removeprefix("p ") for p in (c.adjusted_p, c.p)),
        amount(c, c.bottom_up),
        amount(c, c.top_down),
        _counted(c),
    ]


def _named(found: Comparison) -> str:
    return found.measure if found.higher_is_better else f"{found.measure} (lower is better)"
