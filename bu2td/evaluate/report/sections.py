"""The sections of a report, in the paper's order: networks, accuracy, robustness, explanation, how it was made."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bu2td.evaluate.report import figures, heatmaps
from bu2td.evaluate.report.compare import Comparison, Statistic, aggregate, corruption_means
from bu2td.evaluate.report.page import Block, Cell, Heading, Missing, Picture, Table, Text
from bu2td.evaluate.report.read import ARRANGEMENTS, WORDS, Row, Run
from bu2td.evaluate.report.summary import DASH, difference, digits, mean, share, verdict_cell

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Drawer", "sections"]

PIXELS = 96  # CSS pixels per inch of a figure
SCALE = 1.3  # figures are a little larger on the screen than on paper
LEVEL_SAMPLES, IMAGE_SAMPLES = 2, 8
#: Which stage of the command makes which table.
STAGES = {
    "accuracy": "train",
    "log": "train",
    "robustness": "robustness",
    "curves": "robustness",
    "branches": "robustness",
    "corruptions": "corruptions",
    "localisation": "explain",
    "faithfulness": "explain",
    "explanations": "explain",
}
SPREAD = "error bars are one standard deviation over n repeats (none for n = 1)"


class Drawer:
    """Writes figures into a folder, and forgets those of an earlier report."""

    NAMES = (
        "accuracy",
        "training",
        "branches",
        "curves",
        "corruptions",
        "levels-plain",
        "levels-centred",
        "images",
        "localisation",
    )

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.written: set[str] = set()

    def draw(self, name: str, figure: Figure | None, caption: str) -> list[Block]:
        """Write a figure; no block where there is nothing to see."""
        if figure is None:
            return []
        path = self.folder / f"{name}.png"
        figures.save_figure(figure, path)
        self.written.add(name)
        return [Picture(path, caption, round(figure.get_figwidth() * PIXELS * SCALE))]

    def remove_others(self) -> None:
        """Remove figures of an earlier report that this one does not have."""
        for name in set(self.NAMES) - self.written:
            (self.folder / f"{name}.png").unlink(missing_ok=True)


def sections(run: Run, comparisons: Sequence[Comparison], drawer: Drawer) -> list[Block]:
    """All sections below the summary.

    Args:
        run: the files of a run.
        comparisons: of its networks.
        drawer: takes the figures.
    """
    return [
        *_networks(run),
        *_accuracy(run, comparisons, drawer),
        *_robustness(run, drawer),
        *_corruptions(run, comparisons, drawer),
        *_explanation(run, drawer),
        *_making(run),
    ]


# --- shared -------------------------------------------------------------------------------------------


def _missing(run: Run, table: str, what: str) -> Missing:
    return Missing(f"{what} not in this folder. This makes it:", _command(run, table))


def _command(run: Run, table: str) -> str:
    return f"bu2td evaluate {STAGES[table]} -o {shlex.quote(str(run.folder))} --resume"


def _gaps(run: Run, table: str, key: str | None = None) -> list[Block]:
    """A note on runs that lack rows that others have, or that run.json names and nobody finished."""
    rows = run.tables[table]
    done = {(row["arrangement"], row["repeat"]) for row in rows}
    odd: list[str] = []
    if key is None:
        arrangements, repeats = run.settings.get("arrangements"), run.settings.get("repeats")
        if isinstance(arrangements, list) and isinstance(repeats, int):
            odd = [f"{a}-{r}" for a in arrangements for r in range(repeats) if (a, r) not in done]
    else:
        subjects = list(dict.fromkeys(row[key] for row in rows))
        have = {(row["arrangement"], row["repeat"], row[key]) for row in rows}
        odd = [f"{s} of {a}-{r}" for s in subjects for a, r in sorted(done) if (a, r, s) not in have]
    if not odd:
        return []
    names = ", ".join(odd[:8]) + (f" and {len(odd) - 8} more" if len(odd) > 8 else "")
    text = f"Not finished: {names}; means are over what is there. This goes on with it:"
    return [Missing(text, _command(run, table))]


def _present(rows: Iterable[Row]) -> list[str]:
    words = {row["arrangement"] for row in rows}
    return [a for a in ARRANGEMENTS if a in words]


def _range(rows: Iterable[Row], column: str) -> str:
    """One number, or the smallest and the largest."""
    values = [row[column] for row in rows if not math.isnan(row[column])]
    if not values:
        return DASH
    low, high = (f"{value:,.4g}" if value % 1 else f"{value:,.0f}" for value in (min(values), max(values)))
    return low if low == high else f"{low}{DASH}{high}"


def _columns(arrangements: Sequence[str], first: str) -> list[str]:
    return [first, *(WORDS[a] for a in arrangements)]


# --- the networks, as in the paper's table 1 ----------------------------------------------------------


def _networks(run: Run) -> list[Block]:
    rows = run.tables["accuracy"]
    start: list[Block] = [Heading("Networks")]
    if not rows:
        return [*start, _missing(run, "accuracy", "The trained networks are")]
    arrangements = _present(rows)
    measures: list[tuple[str, str, Callable[[Statistic], str]]] = [
        ("parameters", "trainable parameters", lambda s: f"{s.mean:,.0f}"),
        ("macs", "multiply-accumulates per image", lambda s: digits(s.mean, 4)),
        ("seconds_per_epoch", "seconds per epoch", mean),
        ("seconds", "training time, s", mean),
        ("peak_memory_mib", "peak memory, MiB", mean),
    ]
    table: list[list[str | Cell]] = []
    for column, words, text in measures:
        found = aggregate(rows, ["arrangement"], column)
        own = [found[a,] for a in arrangements]
        table.append([words, *(text(s) for s in own)])
        if column in ("parameters", "macs") and arrangements[0] == "bu" and own[0].mean > 0:
            table.append([f"{words}, relative", *(f"{digits(s.mean / own[0].mean)} ×" for s in own)])  # noqa: RUF001
    table.append(["repeats, n", *(str(sum(r["arrangement"] == a for r in rows)) for a in arrangements)])
    caption = (
        "The networks (compare the paper's table 1); relative is to bottom-up. Times and memory are means ± "
        "standard deviations over the repeats."
    )
    return [*start, Table(caption, _columns(arrangements, ""), table)]


# --- experiment 1 -------------------------------------------------------------------------------------


def _accuracy(run: Run, comparisons: Sequence[Comparison], drawer: Drawer) -> list[Block]:
    rows = run.tables["accuracy"]
    blocks: list[Block] = [Heading("Experiment 1: accuracy")]
    images = run.settings["data"].get("test")
    of = f"share of the {images:,} test images that is" if isinstance(images, int) else "share of the test images"
    if rows:
        caption = (
            f"Test accuracy per arrangement (the paper's figure 4): {of} classified correctly; large marks are "
            f"means, {SPREAD}, small marks are the repeats. The axis does not start at 0."
        )
        blocks += drawer.draw("accuracy", figures.accuracy_figure(rows), caption)
        blocks.append(_accuracy_table(rows, comparisons))
    else:
        blocks.append(_missing(run, "accuracy", "Test accuracies are"))
    blocks += _gaps(run, "accuracy") if rows else []
    if run.tables["log"]:
        caption = (
            "Training loss (mean over training images) and validation accuracy (share of the validation images) "
            "after every epoch: means over n repeats, bands are one standard deviation."
        )
        blocks += drawer.draw("training", figures.training_figure(run.tables["log"]), caption)
    else:
        blocks.append(_missing(run, "log", "Training curves (runs/*/log.csv) are"))
    return blocks


def _accuracy_table(rows: Sequence[Row], comparisons: Sequence[Comparison]) -> Table:
    table: list[list[str | Cell]] = []
    columns = ("test_accuracy", "validation_accuracy")
    found = {column: aggregate(rows, ["arrangement"], column) for column in columns}
    losses = aggregate(rows, ["arrangement"], "train_loss")
    for arrangement in _present(rows):
        own = next((c for c in comparisons if (c.experiment, c.arrangement) == ("accuracy", arrangement)), None)
        table.append(
            [
                WORDS[arrangement],
                *(share(found[column][arrangement,]) for column in columns),
                mean(losses[arrangement,]),
                str(found["test_accuracy"][arrangement,].n),
                difference(own) if own else DASH,
                verdict_cell(own) if own else DASH,
            ]
        )
    caption = (
        "Accuracies in per cent, mean ± standard deviation over n repeats; the difference to bottom-up in "
        "points ± its standard error."
    )
    heads = ["network", "test accuracy", "validation accuracy", "training loss", "n", "difference", "verdict"]
    return Table(caption, heads, table)


# --- experiment 2 -------------------------------------------------------------------------------------


def _robustness(run: Run, drawer: Drawer) -> list[Block]:
    branches, curves, rows = (run.tables[name] for name in ("branches", "curves", "robustness"))
    blocks: list[Block] = [Heading("Experiment 2: robustness"), Heading("Which input is vulnerable", 3)]
    if branches:
        caption = (
            "Accuracy in per cent when the perturbed image enters some inputs of the pyramid and the clean "
            f"image the others (the paper's figure 5), of {_range(branches, 'samples')} test images, mean over "
            "n repeats; framed is the single input that costs most."
        )
        blocks += drawer.draw("branches", heatmaps.branches_figure(branches), caption)
        blocks += [_branch_table(branches, a) for a in _present(branches)]
        blocks += _gaps(run, "branches", "attack")
    else:
        blocks.append(_missing(run, "branches", "Accuracies by perturbed input (branches.csv) are"))
    blocks.append(Heading("Accuracy against the size of a perturbation", 3))
    if curves:
        of = f"all {_range(rows, 'samples')} attacked test images" if rows else "all attacked test images"
        caption = (
            "Loss of accuracy against the L2 distance (the paper's figure 6): clean accuracy less the accuracy "
            f"when every perturbation up to that distance is applied, as a share of {of}; means over n repeats, "
            "bands are one standard deviation. Lower is better."
        )
        blocks += drawer.draw("curves", figures.curves_figure(curves), caption)
    else:
        blocks.append(_missing(run, "curves", "Curves of accuracy against distance (curves.csv) are"))
    if rows:
        blocks += [_attack_table(rows), *_gaps(run, "robustness", "attack")]
    else:
        blocks.append(_missing(run, "robustness", "Medians and areas (robustness.csv) are"))
    return blocks


def _branch_table(rows: Sequence[Row], arrangement: str) -> Table:
    own = [row for row in rows if row["arrangement"] == arrangement]
    found = aggregate(own, ["attack", "inputs"], "accuracy")
    inputs = heatmaps.inputs_of(own)
    nothing = Statistic(math.nan, math.nan, 0, ())
    table = [
        [attack, *(share(found.get((attack, name), nothing), 1) for name in inputs)]
        for attack in dict.fromkeys(row["attack"] for row in own)
    ]
    repeats = len({row["repeat"] for row in own})
    caption = (
        f"{WORDS[arrangement].capitalize()}: accuracy by perturbed input in per cent, mean ± standard deviation, "
        f"n = {repeats}."
    )
    return Table(caption, ["attack", *inputs], table)


def _attack_table(rows: Sequence[Row]) -> Table:
    names = ("clean_accuracy", "success_rate", "median_l2", "auc")
    found = {name: aggregate(rows, ["attack", "arrangement"], name) for name in names}
    table: list[list[str | Cell]] = []
    for attack in dict.fromkeys(row["attack"] for row in rows):
        for arrangement in _present(row for row in rows if row["attack"] == attack):
            own = [row for row in rows if (row["attack"], row["arrangement"]) == (attack, arrangement)]
            key = (attack, arrangement)
            shares = [share(found[name][key]) for name in names[:2]]
            table.append(
                [
                    attack,
                    WORDS[arrangement],
                    str(len(own)),
                    _range(own, "samples"),
                    *shares,
                    mean(found["median_l2"][key], 2),
                    mean(found["auc"][key], 3),
                    _range(own, "limit"),
                ]
            )
    caption = (
        "Mean ± standard deviation over n repeats. Clean accuracy: per cent of all samples. Success and median "
        "L2: of the samples that are classified correctly without perturbation; one that no perturbation was "
        "found for counts as infinitely far. Area: under accuracy of all samples against L2, from 0 to the "
        "limit, over the limit (the mean accuracy up to the limit)."
    )
    heads = ["attack", "network", "n", "samples", "clean accuracy", "success", "median L2", "area", "limit"]
    return Table(caption, heads, table, words=2)


def _corruptions(run: Run, comparisons: Sequence[Comparison], drawer: Drawer) -> list[Block]:
    rows = run.tables["corruptions"]
    blocks: list[Block] = [Heading("Common corruptions", 3)]
    if not rows:
        return [*blocks, _missing(run, "corruptions", "Accuracies under corruptions (corruptions.csv) are")]
    caption = (
        "Accuracy against the severity of a corruption that no adversary chose, as a share of "
        f"{_range(rows, 'samples')} test images; {SPREAD}."
    )
    blocks += drawer.draw("corruptions", figures.corruptions_figure(rows), caption)
    means = corruption_means(rows)
    found = aggregate(means, ["corruption", "arrangement"], "accuracy")
    arrangements = _present(rows)
    nothing = Statistic(math.nan, math.nan, 0, ())
    table: list[list[str | Cell]] = []
    for corruption in dict.fromkeys(row["corruption"] for row in means):
        verdicts = [c for c in comparisons if (c.experiment, c.subject) == ("corruptions", corruption)]
        cells = [share(found.get((corruption, a), nothing)) for a in arrangements]
        severities = {s for row in means if row["corruption"] == corruption for s in row["severities"]}
        words: list[str | Cell] = [f"{difference(c)}" for c in verdicts[:1]] or [DASH]
        words += [verdict_cell(c) for c in verdicts[:1]] or [DASH]
        table.append([corruption, f"{min(severities)}{DASH}{max(severities)}", *cells, *words])
    first = next((c.arrangement for c in comparisons if c.experiment == "corruptions"), "td")
    text = (
        "Accuracy in per cent, mean over the severities that every run has: mean ± standard deviation over "
        f"repeats, and the difference {WORDS[first]} less bottom-up in points ± its standard error."
    )
    heads = ["corruption", "severities", *(WORDS[a] for a in arrangements), "difference", "verdict"]
    return [*blocks, Table(text, heads, table), *_gaps(run, "corruptions", "corruption")]


# --- experiment 3 -------------------------------------------------------------------------------------


def _explanation(run: Run, drawer: Drawer) -> list[Block]:
    blocks: list[Block] = [Heading("Experiment 3: explanation")]
    blocks += _heat_maps(run, drawer)
    rows = run.tables["localisation"]
    blocks.append(Heading("Localisation", 3))
    if rows:
        caption = (
            "Precision and recall of the heat map of the last level, cut at "
            f"{_range(rows, 'threshold')}, against the object (the paper's figure 9), for both normalisations: "
            f"means over {_range(rows, 'samples')} test images per repeat that all compared networks classify "
            f"correctly; {SPREAD}."
        )
        blocks += drawer.draw("localisation", figures.localisation_figure(rows), caption)
        blocks += [_localisation_table(rows), *_gaps(run, "localisation", "normalisation")]
    else:
        blocks.append(_missing(run, "localisation", "Precision and recall (localisation.csv) are"))
    if run.tables["boxes"]:
        blocks.append(_simple_table(run.tables["boxes"], "MaxBoxAccV2, per cent", {"max_box_acc_v2": share}))
    blocks.append(Heading("Faithfulness", 3))
    if run.tables["faithfulness"]:
        text = (
            "Pointing game: per cent of samples whose hottest pixel lies on the object (higher is better); "
            "deletion and insertion: area under the probability of the class, from 0 to 1, while the hottest "
            "pixels are removed (lower is better) or put in (higher is better). Mean ± standard deviation over "
            "n repeats."
        )
        columns = {"pointing": share, "deletion": mean, "insertion": mean}
        blocks.append(_simple_table(run.tables["faithfulness"], text, columns))
    else:
        blocks.append(_missing(run, "faithfulness", "Pointing game, deletion and insertion (faithfulness.csv) are"))
    return blocks


def _heat_maps(run: Run, drawer: Drawer) -> list[Block]:
    found = run.explanations
    if found is None:
        return [_missing(run, "explanations", "Heat maps (explanations.npz) are")]
    classes = run.settings["data"].get("classes")
    names = classes if isinstance(classes, list) else []
    blocks: list[Block] = []
    about = {
        "plain": "rectified and divided by its maximum",
        "centred": "centred, as the paper's authors do, then rectified and divided by its maximum",
    }
    for kind, words in about.items():
        caption = (
            "Grad-CAM per level, bottom-up above top-down, each in the order of its network, coarse levels "
            f"being those of a large reduction (the paper's figure 7); {kind}: each map is {words}."
        )
        picture = heatmaps.levels_figure(found, kind, range(LEVEL_SAMPLES), names)
        blocks += drawer.draw(f"levels-{kind}", picture, caption)
    caption = (
        "Image and Grad-CAM of the last level of each network, in both normalisations (the paper's figure 8), "
        "for test images that all compared networks classify correctly; in grey images the outline is where the "
        "image passes 0.2."
    )
    blocks += drawer.draw("images", heatmaps.images_figure(found, range(IMAGE_SAMPLES), names), caption)
    return blocks or [_missing(run, "explanations", "Images with heat maps (explanations.npz) are")]


def _localisation_table(rows: Sequence[Row]) -> Table:
    keys = ["normalisation", "threshold", "arrangement"]
    names = ("precision", "recall", "tp", "fp", "fn")
    found = {name: aggregate(rows, keys, name) for name in names}
    table: list[list[str | Cell]] = []
    for key in found["precision"]:
        own = [row for row in rows if tuple(row[k] for k in keys) == key]
        shares = [share(found[name][key]) for name in names[:2]]
        pixels = [mean(found[name][key]) for name in names[2:]]
        table.append(
            [key[0], WORDS[key[2]], digits(key[1]), str(len(own)), _range(own, "samples"), *shares, *pixels]
        )
    caption = (
        "Localisation: precision TP / (TP + FP) and recall TP / (TP + FN) in per cent, and TP, FP, FN in "
        "pixels, per sample and then averaged over the samples; mean ± standard deviation over n repeats."
    )
    heads = ["normalisation", "network", "t", "n", "samples", "precision", "recall", "TP", "FP", "FN"]
    return Table(caption, heads, table, words=2)


def _simple_table(rows: Sequence[Row], caption: str, columns: Mapping[str, Callable[[Statistic], str]]) -> Table:
    keys = ["normalisation", "arrangement"]
    found = {name: aggregate(rows, keys, name) for name in columns}
    table: list[list[str | Cell]] = []
    for key in next(iter(found.values())):
        own = [row for row in rows if tuple(row[k] for k in keys) == key]
        cells = [text(found[name][key]) for name, text in columns.items()]
        table.append([key[0], WORDS[key[1]], str(len(own)), _range(own, "samples"), *cells])
    heads = ["normalisation", "network", "n", "samples", *(name.replace("_", " ") for name in columns)]
    return Table(caption, heads, table, words=2)


# --- how it was made ----------------------------------------------------------------------------------


def _making(run: Run) -> list[Block]:
    settings = run.settings
    rows: list[list[str | Cell]] = []
    for name in ("command", "preset", "device", "repeats", "seed"):
        if settings.get(name) is not None:
            rows.append([name, _shown(settings[name])])
    seeds = sorted({row["seed"] for row in run.tables["accuracy"]})
    if seeds:
        rows.append(["seeds of the trainings", ", ".join(map(str, seeds))])
    data = settings["data"]
    rows += [
        [f"data: {key}", f"{len(value)}: {_shown(value)}" if key == "classes" else _shown(value)]
        for key, value in data.items()
    ]
    rows += [[f"seconds: {key}", _shown(value)] for key, value in (settings.get("seconds") or {}).items()]
    blocks: list[Block] = [
        Heading("How this was made"),
        Text("All numbers in this report come from the CSV files beside it; report.json holds them all."),
        Table("The run.", ["", ""], rows, words=2),
    ]
    attacks = settings.get("attacks")
    if isinstance(attacks, list) and all(isinstance(one, dict) for one in attacks):
        rows = [[_shown(one.get(key, DASH)) for key in ("name", "class", "budget", "settings")] for one in attacks]
        blocks.append(Table("Attacks.", ["attack", "class", "budget", "settings"], rows, words=4))
    for name, caption in (("settings", "Settings."), ("versions", "Versions.")):
        found = settings.get(name) or {}
        if found:
            rows = [[key.replace("_", " "), _shown(value)] for key, value in found.items()]
            blocks.append(Table(caption, ["", ""], rows, words=2))
    return blocks


def _shown(value: Any) -> str:
    """A value of run.json as words."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(v, str | int | float) for v in value):
        shown = ", ".join(map(str, value[:20]))
        return f"{shown} and {len(value) - 20} more" if len(value) > 20 else shown
    return json.dumps(value, ensure_ascii=False)
