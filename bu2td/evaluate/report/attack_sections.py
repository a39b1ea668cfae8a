"""The sections on robustness: which input is vulnerable, attacks, signs of masked gradients, corruptions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from bu2td.evaluate.means import aggregate, statistic
from bu2td.evaluate.report import branch_figures, figures
from bu2td.evaluate.report.compare import Comparison, Family, corruption_means, strongest_first
from bu2td.evaluate.report.figures import present
from bu2td.evaluate.report.page import Block, Cell, Heading, Table
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
from bu2td.evaluate.report.words import DASH, digits, share, spread, title
from bu2td.evaluate.robustness.registry import ATTACKS
from bu2td.evaluate.schema import WORDS


def robustness(run: Run, comparisons: Sequence[Comparison], drawer: Drawer) -> list[Block]:
    """Experiment 2."""
    branches, curves, rows = (run.tables[name] for name in ("branches", "curves", "robustness"))
    blocks: list[Block] = [Heading("Experiment 2: robustness"), Heading("Which input is vulnerable", 3)]
    if len(branches):
        for arrangement in present(branches):
            blocks += _branches(branches[branches["arrangement"] == arrangement], arrangement, drawer)
        blocks += gaps(run, "branches", "attack")
    else:
        blocks.append(missing(run, "branches", "Accuracies by perturbed input (branches.csv) are"))
    blocks.append(Heading("Accuracy against the size of a perturbation", 3))
    if len(curves):
        of = f"all {spread(rows['samples'])} attacked test images" if len(rows) else "all attacked test images"
        caption = (
            "Loss of accuracy against the L2 distance (the paper's figure 6): clean accuracy less the accuracy "
            f"when every perturbation up to that distance is applied, as a share of {of}; means over n repeats, "
            "bands are one standard deviation. Lower is better."
        )
        blocks += drawer.draw("curves", figures.curves_figure(curves), caption)
    else:
        blocks.append(missing(run, "curves", "Curves of accuracy against distance (curves.csv) are"))
    if len(rows):
        blocks += [
            _attack_table(rows),
            *verdict_table(comparisons, Family.ATTACKS),
            *gaps(run, "robustness", "attack"),
        ]
    else:
        blocks.append(missing(run, "robustness", "Medians and areas (robustness.csv) are"))
    return [*blocks, *_radii(run), *_masking(run)]


def _branches(rows: pd.DataFrame, arrangement: str, drawer: Drawer) -> list[Block]:
    name, repeats = WORDS[arrangement].capitalize(), rows["repeat"].nunique()
    caption = (
        f"{name}: accuracy when the perturbed image enters some inputs of the pyramid and the clean image "
        "the others (the paper's figure 5), against its size in multiples of the smallest that fools "
        f"the network, of {spread(rows['samples'])} test images with a perturbation, mean over n = {repeats} "
        "repeats. Pairs of inputs are dashed in their two colours."
    )
    blocks = drawer.draw(f"branches-{arrangement}", branch_figures.branches_figure(rows), caption)
    largest = rows[rows["scale"] == rows["scale"].max()]
    found = aggregate(largest, ["attack", "inputs"], "accuracy")
    inputs = branch_figures.inputs_of(rows)
    where = dict(zip(rows["inputs"], rows["reductions"], strict=True))
    table = [
        [title(attack), *(share(found.get((attack, i), statistic([])), 1) for i in inputs)]
        for attack in strongest_first(largest)["attack"].unique()
    ]
    text = (
        f"{name}: accuracy in per cent by perturbed input, {rows['scale'].max():g} times the smallest "
        f"perturbation; mean ± standard deviation, n = {repeats}."
    )
    heads = ["attack", *(branch_figures.input_title(i, where[i]) for i in inputs)]
    return [*blocks, Table(text, heads, table)]


def _attack_table(rows: pd.DataFrame) -> Table:
    caption = (
        "Mean ± standard deviation over n repeats; distances are L2 norms of pixel values from 0 to 1 (Linf where "
        "the attack says so). Success and median: of the images that are classified correctly without it; "
        "one that no perturbation was found for (failures, summed over repeats) counts as infinitely far. Area: "
        "under accuracy of all images against distance, from 0 to the limit, over the limit. Dropped: claims of "
        "success that a second look did not confirm. Upper bounds: the search had not come to rest, so that "
        "smaller perturbations may exist."
    )
    columns: dict[str, Any] = {
        "n": number_of("repeat"),
        "images": spread_of("samples"),
        "clean accuracy, %": share_of("clean_accuracy"),
        "success, %": share_of("success_rate"),
        "median distance": mean_of("median_l2", 2),
        "area": mean_of("auc", 3),
        "limit": spread_of("limit"),
        "failures": total_of("failures"),
        "dropped": total_of("dropped"),
        "queries per image": mean_of("queries"),
        "distances are": _bound,
    }
    return grouped(caption, strongest_first(rows), {"attack": "attack", "arrangement": "network"}, columns)


def _bound(rows: pd.DataFrame) -> str:
    """Whether distances are the smallest that the attack would find, or upper bounds."""
    converged = statistic(rows["converged"]).mean
    attack = ATTACKS.get(rows["attack"].iloc[0])
    if converged < 1:
        return f"upper bounds ({converged:.0%} at rest)"
    if math.isnan(converged) and attack is not None and attack.group == "decision":
        return "upper bounds"
    return DASH if math.isnan(converged) else "at rest"


def _radii(run: Run) -> list[Block]:
    rows = run.tables.get("robust_accuracy", pd.DataFrame())
    if not len(rows):
        return []
    found = aggregate(rows, ["attack", "norm", "radius", "arrangement"], "accuracy")
    arrangements = present(rows)
    table: list[list[str | Cell]] = [
        [
            title(a),
            str(norm),
            f"{radius:.4g}",
            *(share(found.get((a, norm, radius, w), statistic([]))) for w in arrangements),
        ]
        for a, norm, radius in dict.fromkeys(key[:3] for key in found)
    ]
    text = (
        f"Robust accuracy: per cent of {spread(rows['samples'])} test images that stay right within a radius under "
        "AutoAttack; mean ± standard deviation over repeats."
    )
    return [Table(text, ["attack", "norm", "radius", *(WORDS[a] for a in arrangements)], table, words=2)]


def _masking(run: Run) -> list[Block]:
    text = (
        "Whether gradients may be masked (Athalye et al., 2018): more steps must not find farther perturbations, "
        "black-box attacks none nearer than white-box ones, and a white-box attack without a bound must fool the "
        "network on every image. Violations: images on which the stronger side is behind by more than 5 % (summed "
        "over repeats), and by how much at most."
    )
    columns: dict[str, Any] = {
        "n": number_of("repeat"),
        "images": spread_of("images"),
        "violations": total_of("violations"),
        "largest, %": lambda own: digits(100 * own["largest"].max()),
        "change of the median, %": share_of("median_change"),
        "sign of masking": lambda own: Cell("none", "better") if own["holds"].all() else Cell("yes", "worse"),
    }
    found = optional(run, "masking", text, {"check": "check", "arrangement": "network"}, columns)
    return [Heading("Signs of masked gradients", 3), *found] if found else []


def corruptions(run: Run, comparisons: Sequence[Comparison], drawer: Drawer) -> list[Block]:
    """Common corruptions."""
    rows = run.tables["corruptions"]
    blocks: list[Block] = [Heading("Common corruptions", 3)]
    if not len(rows):
        blocks.append(missing(run, "corruptions", "Accuracies under corruptions (corruptions.csv) are"))
        return [*blocks, *_sets(run)]
    caption = (
        "Accuracy against the severity of a corruption that no adversary chose, as a share of "
        f"{spread(rows['samples'])} test images; {SPREAD}."
    )
    blocks += drawer.draw("corruptions", figures.corruptions_figure(rows), caption)
    means = corruption_means(rows)
    found = aggregate(means, ["corruption", "arrangement"], "accuracy")
    arrangements = present(rows)
    table: list[list[str | Cell]] = []
    for corruption, own in means.groupby("corruption", sort=False):
        cells = [share(found.get((corruption, a), statistic([]))) for a in arrangements]
        table.append([title(corruption), f"{own['low'].min()}{DASH}{own['high'].max()}", *cells])
    text = (
        "Accuracy in per cent, mean over the severities that every run has; mean ± standard deviation over repeats."
    )
    blocks.append(Table(text, ["corruption", "severities", *(WORDS[a] for a in arrangements)], table))
    blocks += [*verdict_table(comparisons, Family.CORRUPTIONS), *gaps(run, "corruptions", "corruption")]
    return [*blocks, *_sets(run)]


def _sets(run: Run) -> list[Block]:
    """Mean corruption errors, and flips along sequences."""
    source = "(Hendrycks and Dietterich, 2019, section 4); mean ± standard deviation over n repeats."
    errors: dict[str, Any] = {
        "n": number_of("repeat"),
        "corruptions": spread_of("corruptions"),
        "images": spread_of("samples"),
        "error, %": share_of("error"),
        "mCE, %": share_of("mce"),
    }
    flips: dict[str, Any] = {
        "n": number_of("repeat"),
        "sequences": spread_of("samples"),
        "flips, %": share_of("probability"),
        "relative, %": share_of("rate"),
    }
    text = f"Sets of corruptions: mean error, and mean corruption error relative to the bottom-up network {source}"
    blocks = optional(run, "corruption_errors", text, {"data": "data", "arrangement": "network"}, errors)
    text = f"Perturbation sequences: how often the class flips, also relative to the bottom-up network {source}"
    keys = {"perturbation": "perturbation", "arrangement": "network"}
    return [*blocks, *optional(run, "flips", text, keys, flips)]
