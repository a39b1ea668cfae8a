"""The sections of a report, in the paper's order: networks, accuracy, robustness, explanation, making."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from bu2td.evaluate.means import aggregate, statistic
from bu2td.evaluate.report import figures, heatmaps
from bu2td.evaluate.report.attack_sections import corruptions, robustness
from bu2td.evaluate.report.compare import Comparison, Family
from bu2td.evaluate.report.figures import present
from bu2td.evaluate.report.frequency_section import frequency_section
from bu2td.evaluate.report.page import Block, Cell, Heading, Table, Text
from bu2td.evaluate.report.read import Run
from bu2td.evaluate.report.summary import verdict_table
from bu2td.evaluate.report.tables import (
    SPREAD,
    Drawer,
    gaps,
    grouped,
    mean_of,
    missing,
    number_of,
    optional,
    share_of,
    spread_of,
    total_of,
)
from bu2td.evaluate.report.words import DASH, TIMES, digits, mean, share, shown, spread, title
from bu2td.evaluate.schema import WORDS
from bu2td.evaluate.train.calibration import per_class_accuracy

__all__ = ["sections"]

LEVEL_SAMPLES, IMAGE_SAMPLES = 2, 8
#: Classes of a table; where there are more, those on which the networks differ most.
CLASSES = 20


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
        *_search(run),
        *robustness(run, comparisons, drawer),
        *corruptions(run, comparisons, drawer),
        *frequency_section(run, drawer),
        *verdict_table(comparisons, Family.BANDS),
        *_explanation(run, comparisons, drawer),
        *_making(run),
    ]


# --- the networks, as in the paper's table 1 ----------------------------------------------------------


def _networks(run: Run) -> list[Block]:
    rows = run.tables["accuracy"]
    start: list[Block] = [Heading("Networks")]
    if not len(rows):
        return [*start, missing(run, "accuracy", "The trained networks are")]
    arrangements = present(rows)
    measures: list[tuple[str, str, Any]] = [
        ("parameters", "trainable parameters", lambda s: f"{s.mean:,.0f}"),
        ("macs", "multiply-accumulates per image", lambda s: digits(s.mean, 4)),
        ("seconds_per_epoch", "time per epoch, s", mean),
        ("seconds", "training time, s", mean),
        ("peak_memory_mib", "peak memory, MiB", mean),
    ]
    table: list[list[str | Cell]] = []
    for column, words, text in measures:
        found = aggregate(rows, ["arrangement"], column)
        own = [found[a,] for a in arrangements]
        table.append([words, *(text(s) for s in own)])
        if column in ("parameters", "macs") and arrangements[0] == "bu" and own[0].mean > 0:
            table.append([f"{words}, relative", *(f"{digits(s.mean / own[0].mean)} {TIMES}" for s in own)])
    table.append(["repeats, n", *(str(int((rows["arrangement"] == a).sum())) for a in arrangements)])
    caption = (
        "The networks (compare the paper's table 1); relative is to bottom-up. Times and memory are means ± "
        "standard deviations over the repeats."
    )
    return [*start, Table(caption, ["of a network", *(WORDS[a] for a in arrangements)], table)]


# --- experiment 1 -------------------------------------------------------------------------------------


def _accuracy(run: Run, comparisons: Sequence[Comparison], drawer: Drawer) -> list[Block]:
    rows, images = run.tables["accuracy"], run.settings["data"].get("test")
    blocks: list[Block] = [Heading("Experiment 1: accuracy")]
    of = f"share of the {images:,} test images that is" if isinstance(images, int) else "share of the test images"
    if len(rows):
        caption = (
            f"Test accuracy per arrangement (the paper's figure 4): {of} classified correctly; large marks are "
            f"means, {SPREAD}, small marks are the repeats. The axis does not start at 0."
        )
        blocks += drawer.draw("accuracy", figures.accuracy_figure(rows), caption)
        caption = (
            "Mean ± standard deviation over n repeats, in per cent but for the loss. Calibration error: expected "
            "difference of confidence and accuracy on the test images (15 bins; lower is better)."
        )
        columns: dict[str, Any] = {
            "n": number_of("repeat"),
            "test accuracy, %": share_of("test_accuracy"),
            "top 5, %": share_of("top5_accuracy"),
            "validation accuracy, %": share_of("validation_accuracy"),
            "calibration error, %": share_of("calibration_error"),
            "training loss": mean_of("train_loss"),
        }
        blocks.append(grouped(caption, rows, {"arrangement": "network"}, columns))
        blocks += verdict_table(comparisons, Family.ACCURACY)
        blocks += _classes(run)
        blocks += gaps(run, "accuracy")
    else:
        blocks.append(missing(run, "accuracy", "Test accuracies are"))
    if not len(run.tables["log"]):
        return [*blocks, missing(run, "log", "Training curves (runs/*/log.csv) are")]
    caption = (
        "Training loss (mean over training images) and validation accuracy (share of the validation images) "
        "after every epoch: means over n repeats, bands are one standard deviation."
    )
    return [*blocks, *drawer.draw("training", figures.training_figure(run.tables["log"]), caption)]


def _classes(run: Run) -> list[Block]:
    """Accuracy class by class."""
    said = run.tables["predictions"]
    if not len(said):
        return []
    count = int(said["label"].max()) + 1
    means = pd.DataFrame(
        {"label": label, "arrangement": network[0], "right": right}
        for network, own in said.groupby(["arrangement", "repeat"], sort=False)
        for label, right in enumerate(per_class_accuracy(own["label"], own["predicted"], count))
    )
    found = aggregate(means, ["label", "arrangement"], "right")
    arrangements, labels = present(said), sorted(said["label"].unique())
    most = ""
    if len(labels) > CLASSES:
        spans = means.groupby(["label", "arrangement"])["right"].mean().unstack()
        labels = sorted((spans.max(axis=1) - spans.min(axis=1)).nlargest(CLASSES).index)
        most = f", of the {CLASSES} classes on which the networks differ most"
    names = run.settings["data"].get("classes")
    names = names if isinstance(names, list) else []
    counts = said.drop_duplicates(["image"]).groupby("label").size()
    none = statistic([])
    rows: list[list[str | Cell]] = [
        [
            str(names[label]) if label < len(names) else str(label),
            f"{counts.get(label, 0):,}",
            *(share(found.get((label, a), none)) for a in arrangements),
        ]
        for label in labels
    ]
    caption = (
        f"Accuracy on the test images of each class, in per cent, mean ± standard deviation over repeats{most}."
    )
    return [Table(caption, ["class", "images", *(WORDS[a] for a in arrangements)], rows)]


def _search(run: Run) -> list[Block]:
    rows = run.tables["search"]
    if not len(rows):
        return []
    table: list[list[str | Cell]] = [
        [
            WORDS[row.arrangement],
            title(row.varied),
            digits(row.lr),
            f"{row.batch_size:,}",
            digits(row.weight_decay),
            share(statistic([row.validation_accuracy])),
            Cell("best", "better") if row.best else "",
        ]
        for row in rows.itertuples()
    ]
    heads = ["network", "varied", "learning rate", "batch, images", "weight decay", "validation accuracy, %", ""]
    caption = "Search of hyper-parameters: accuracy on the validation images after the last epoch."
    return [Heading("Search", 3), Table(caption, heads, table, words=2)]


# --- experiment 3 -------------------------------------------------------------------------------------


#: How a heat map is named in a table.
MAP = {"layer": "heat map of the", "normalisation": "heat map is", "arrangement": "network"}
_MAPS: dict[str, Any] = {"n": number_of("repeat"), "images": spread_of("samples"), "empty maps": total_of("empty")}


def _explanation(run: Run, comparisons: Sequence[Comparison], drawer: Drawer) -> list[Block]:
    blocks: list[Block] = [Heading("Experiment 3: explanation"), *_heat_maps(run, drawer)]
    blocks += [Heading("Localisation", 3), *_localisation(run, drawer)]
    columns: dict[str, Any] = {"n": number_of("repeat"), "images": spread_of("samples")}
    columns["MaxBoxAccV2, %"] = share_of("max_box_acc_v2")
    blocks += optional(run, "boxes", "Localisation by boxes, mean ± standard deviation.", MAP, columns)
    blocks += [*verdict_table(comparisons, Family.LOCALISATION), Heading("Faithfulness", 3)]
    columns = {
        **_MAPS,
        "pointing game, %": share_of("pointing"),
        "deletion": mean_of("deletion"),
        "insertion": mean_of("insertion"),
    }
    caption = (
        "Pointing game: per cent of images whose hottest pixel lies on the object (higher is better); deletion and "
        "insertion: area under the probability of the class, from 0 to 1, while the hottest pixels are removed "
        "(lower is better) or put in (higher is better). Mean ± standard deviation over n repeats."
    )
    blocks += optional(run, "faithfulness", caption, MAP, columns) or [
        missing(run, "faithfulness", "Pointing game, deletion and insertion (faithfulness.csv) are")
    ]
    return [*blocks, *verdict_table(comparisons, Family.FAITHFULNESS)]


def _localisation(run: Run, drawer: Drawer) -> list[Block]:
    rows, objects = run.tables["localisation"], run.settings.get("objects")
    if not len(rows):
        if isinstance(objects, dict) and objects.get("kind") == "none":
            return [Text(f"Nothing is localised: {shown(objects.get('why'))}.")]
        return [missing(run, "localisation", "Precision and recall (localisation.csv) are")]
    caption = (
        f"Precision and recall of the heat map, cut at {spread(rows['threshold'])} of its maximum, against the "
        "object (the paper's figure 9, of the last convolution, centred), by layer and normalisation: "
        f"means over {spread(rows['samples'])} test images per repeat that all compared networks classify "
        f"correctly; {SPREAD}."
    )
    blocks = drawer.draw("localisation", figures.localisation_figure(rows), caption)
    caption = (
        "Localisation: precision TP / (TP + FP) and recall TP / (TP + FN) in per cent; TP, FP, FN in pixels; "
        "per image, then averaged over images; mean ± standard deviation over n repeats. Images whose map is "
        "empty (zero everywhere) or has nothing above the cut have no precision and are not counted as 0; "
        "dropped images have no object. These counts are sums over the repeats."
    )
    columns: dict[str, Any] = {
        "cut": spread_of("threshold"),
        **_MAPS,
        "nothing above the cut": total_of("without_prediction"),
        "dropped": total_of("dropped"),
        "precision, %": share_of("precision"),
        "recall, %": share_of("recall"),
        **{f"{name}, px": mean_of(name.lower()) for name in ("TP", "FP", "FN")},
    }
    return [*blocks, grouped(caption, rows, MAP, columns), *gaps(run, "localisation", "normalisation")]


def _heat_maps(run: Run, drawer: Drawer) -> list[Block]:
    found = run.explanations
    if found is None:
        return [missing(run, "explanations", "Heat maps (explanations.npz) are")]
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
        "Image and Grad-CAM of the last map of each network, in both normalisations (the paper's figure 8), for "
        "test images that all compared networks classify correctly; in grey images the outline is where the image "
        "passes 0.2."
    )
    blocks += drawer.draw("images", heatmaps.images_figure(found, range(IMAGE_SAMPLES), names), caption)
    return blocks or [missing(run, "explanations", "Images with heat maps (explanations.npz) are")]


# --- how it was made ----------------------------------------------------------------------------------


def _making(run: Run) -> list[Block]:
    settings, data = run.settings, run.settings["data"]
    rows: list[list[str | Cell]] = [
        [name, shown(settings[name])]
        for name in ("model", "command", "preset", "device", "repeats", "seed")
        if settings.get(name) is not None
    ]
    seeds = sorted(set(run.tables["accuracy"]["seed"]))
    if seeds:
        rows.append(["seeds of the trainings", ", ".join(map(str, seeds))])
    rows += [
        [f"data: {key}", f"{len(value)}: {shown(value)}" if key == "classes" else shown(value)]
        for key, value in data.items()
    ]
    rows += [[f"{key}, s", shown(value)] for key, value in (settings.get("seconds") or {}).items()]
    blocks: list[Block] = [
        Heading("How this was made"),
        Text("All numbers in this report come from the CSV files beside it; report.json holds them all."),
        Table("The run.", ["", ""], rows, words=2),
    ]
    attacks = settings.get("attacks")
    if isinstance(attacks, list) and all(isinstance(one, dict) for one in attacks):
        keys = ("name", "class", "budget", "settings")
        rows = [
            [title(shown(one.get(keys[0], DASH))), *(shown(one.get(k, DASH)) for k in keys[1:])] for one in attacks
        ]
        blocks.append(Table("Attacks.", ["attack", "class", "budget", "settings"], rows, words=4))
    for name, caption in (("settings", "Settings."), ("versions", "Versions.")):
        found = settings.get(name) or {}
        if found:
            rows = [[key.replace("_", " "), shown(value)] for key, value in found.items()]
            blocks.append(Table(caption, ["", ""], rows, words=2))
    return blocks
