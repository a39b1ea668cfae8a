"""The paper's statements beside what came out here: writes docs/paper.md from the runs in bench/results/evaluate.

    PYTHONPATH=. python bench/paper.py

Every number is one of report.json, which `bu2td evaluate report` writes into a run's folder; the words around them
are in this file. All runs that are there are in the tables, whatever came of them.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bu2td.evaluate import read_settings
from bu2td.evaluate.robustness.registry import PAPER, TITLES
from bu2td.files import write_text

HOME = Path(__file__).parent
RUNS, PAGE = HOME / "results" / "evaluate", HOME.parent / "docs" / "paper.md"

Row = Mapping[str, Any]

INTRO = """# The paper, side by side

What Lelekas, Tomen, Pintea and van Gemert (2020) say of top-down networks, in our words, and what the same
experiments show here. This page is written by `python bench/paper.py` from the runs that are committed under
[bench/results/evaluate](../bench/results/evaluate); each of them has a report with all tables and figures.

**How to read it.** A row compares the top-down with the bottom-up network on one quantity; the interval is of
95 %. *These networks* asks whether the trained networks differ on images like these (images are the units),
*architecture* whether other trainings would differ the same way (trainings are the units); with two to four
trainings the latter has little power. p values are adjusted within an experiment. **holds**: decided, in the
direction that the paper says; **opposite**: decided, the other way; **equal**: the interval lies within a small
margin; **open**: not decided.
"""


@dataclass(frozen=True)
class Run:
    """A run: its folder, what its report says, and what it is called: network and data."""

    folder: Path
    report: Mapping[str, Any]
    title: str

    @property
    def link(self) -> str:
        """The title as a link to the report."""
        return f"[{self.title}](../bench/results/evaluate/{self.folder.name}/report.md)"

    def compared(self, family: str, level: str, arrangement: str) -> dict[tuple[str, str], Row]:
        """Comparisons by measure and subject."""
        return {
            (c["measure"], c["subject"]): c
            for c in self.report["comparisons"]
            if (c["family"], c["level"], c["arrangement"]) == (family, level, arrangement)
        }


_NETWORKS = {"lenet_fc": "LeNetFC", "nin_light": "NIN-light", "nin": "NIN", "resnet32": "ResNet32",
             "resnet18_imagenette": "ResNet18"}  # fmt: skip
_DATA = {"mnist": "MNIST", "fashion-mnist": "Fashion-MNIST", "cifar10": "CIFAR-10", "imagenette": "Imagenette"}


def read_runs() -> list[Run]:
    """All runs that are there; those of one network on the same data are told apart by their epochs."""
    found = []
    for path in sorted(RUNS.glob("*/report.json")):
        report = json.loads(path.read_text())
        about = report["run"]
        model, data = about["settings"]["model"].partition(":")[2], about["data"]["name"]
        found.append(Run(path.parent, report, f"{_NETWORKS.get(model, model)} on {_DATA.get(data, data)}"))
    titles = [run.title for run in found]
    return [
        replace(run, title=f"{run.title}, {run.report['run']['settings']['epochs']} epochs")
        if titles.count(run.title) > 1
        else run
        for run in found
    ]


@dataclass(frozen=True)
class Claim:
    """A statement of the paper, and where a run answers it.

    Attributes:
        where: experiment and figure.
        title: of the section.
        words: the statement, and what differs here.
        family: of the comparisons.
        measures: of these (all where there are none).
        subjects: of these, in order (all where there are none).
        at_least: the statement is that top-down networks are no worse.
        said: the paper says so; otherwise a row is better or worse.
        arrangements: that are compared with the bottom-up network.
    """

    where: str
    title: str
    words: str
    family: str
    measures: tuple[str, ...] = ()
    subjects: tuple[str, ...] = ()
    at_least: bool = False
    said: bool = True
    arrangements: tuple[str, ...] = ("td",)


CLAIMS = (
    Claim(
        "experiment 1, figure 4 and table 1",
        "Accuracy",
        "**The paper:** top-down networks are about as accurate as their bottom-up counterparts, in all three "
        "arrangements, with more parameters in some. **Here:** the same networks (their parameter counts are "
        "the authors' to the unit) and settings (docs/training-conventions.md has what differs).",
        "Accuracy",
        measures=("test accuracy",),
        at_least=True,
        arrangements=("td", "uni", "rev"),
    ),
    Claim(
        "experiment 2.b, figure 6",
        "Adversarial robustness",
        "**The paper:** top-down networks lose less accuracy at the same L2 distance, most clearly under "
        "attacks that bring in high frequencies; its curves are of ten black-box attacks, the smallest of "
        "three runs. **Here:** the same ten with as many queries, and the strongest attack per image, white-"
        "box ones included, which the paper does not have. The quantity is the mean distance up to a limit: "
        "the area over figure 6's curve, finite where an attack fails.",
        "Attacks",
        measures=("mean distance up to the limit",),
        subjects=("strongest", "strongest-white-box", *PAPER),
    ),
    Claim(
        "experiment 3, figure 9",
        "Localisation",
        "**The paper:** Grad-CAM of the last convolution covers the object better in top-down networks: higher"
        " precision on (Fashion-)MNIST, recall higher or alike; object and heat map are cut at t = 0.2. "
        "**Here:** the same cut, on images that all networks of a repeat classify correctly, for heat maps "
        "centred as in the authors' code; the reports have plain ones and the last level beside them.",
        "Localisation",
        measures=("precision", "recall"),
        subjects=("last-convolution, centred",),
    ),
    Claim(
        "not in the paper as such; its explanation",
        "High frequencies",
        "**The paper:** blur at the coarse levels is what defends against high frequencies. **Here:** the "
        "error that waves of one frequency band add (Yin et al., 2019), in cycles per image.",
        "Frequency bands",
    ),
    Claim(
        "not in the paper",
        "Corruptions",
        "Common corruptions, mean accuracy over five severities.",
        "Corruptions",
        said=False,
    ),
)  # fmt: skip


def main() -> None:
    runs = read_runs()
    parts = [INTRO, *made(runs), *(section(claim, runs) for claim in CLAIMS), branches(runs), repeat(runs)]
    write_text("\n".join(part.strip() + "\n" for part in parts if part), PAGE)


def made(runs: list[Run]) -> Iterator[str]:
    """What was run."""
    rows = []
    for run in runs:
        about, own = run.report["run"], run.report["run"]["settings"]
        attacked = sorted({int(r["samples"]) for r in run.report["rows"]["robustness"]})
        explained = sorted({int(r["samples"]) for r in run.report["rows"]["localisation"]})
        trained = ", ".join(f"{a} {count(run, a)}" for a in own["arrangements"])
        spent, trainings = about["seconds"], sum(r["seconds"] or 0 for r in run.report["rows"]["accuracy"])
        looked = sum(seconds for stage, seconds in spent.items() if stage != "train")
        seconds = looked + max(spent.get("train", 0), trainings)  # a stage that was resumed knows of its last part
        rows.append((run.link, trained, own["epochs"], f"{_span(attacked)} ({own['attack_budget']})",
                     _span(explained), f"{seconds / 3600:.1f} h{_trained_on(about)}"))  # fmt: skip
    yield "## What was run\n"
    head = ("run", "trainings", "epochs", "images attacked (budget)", "images explained", "time")
    yield table(head, rows)
    yield "Times are of two busy cores, or as said, all trainings and stages added up."


def _trained_on(about: Mapping[str, Any]) -> str:
    """Of a run that was trained on a GPU, whatever looked at it later."""
    calls = [call["command"] for call in about["calls"] if call["stage"] in ("train", "all")]
    return ", trained on a GPU" if any("--device cuda" in command for command in calls) else ""


def count(run: Run, arrangement: str) -> int:
    """Trainings of an arrangement."""
    return sum(row["arrangement"] == arrangement for row in run.report["rows"]["accuracy"])


def section(claim: Claim, runs: list[Run]) -> str:
    """A statement, and a table with a block of rows per run."""
    rows = [row for run in runs for arrangement in claim.arrangements for row in answers(claim, run, arrangement)]
    if not rows:
        return ""
    head = ("run", "quantity", "bottom-up", "top-down", "difference (95 %)", "these networks", "architecture")
    return f"## {claim.title}\n\n*Paper: {claim.where}.* {claim.words}\n\n{table(head, rows)}"


def answers(claim: Claim, run: Run, arrangement: str) -> Iterator[tuple[str, ...]]:
    """Rows of one run and arrangement."""
    own = run.compared(claim.family, "these networks", arrangement)
    trained = run.compared(claim.family, "as an architecture", arrangement)
    for key in sorted(own, key=lambda key: _place(claim.subjects, key[1])):
        measure, subject = key
        if (claim.measures and measure not in claim.measures) or (claim.subjects and subject not in claim.subjects):
            continue
        row = own[key]
        write = _writer(measure)
        name = TITLES.get(subject, subject) if len(claim.measures) < 2 else measure
        if arrangement != "td":
            name = f"{name or measure} ({arrangement})"
        gap = f"{write(row['estimate'])} ({write(row['low'])} to {write(row['high'])})"
        yield (
            run.title, name or measure, write(row["bottom_up"]), write(row["top_down"]), gap,
            verdict(row, claim), verdict(trained[key], claim) if key in trained else "one training",
        )  # fmt: skip


def verdict(row: Row, claim: Claim) -> str:
    """A comparison's verdict seen from the statement."""
    said = row["verdict"]
    if said == "equal":
        return "**holds** (equal)" if claim.at_least else "equal"
    words = (
        {"better": "**holds**", "worse": "**opposite**"} if claim.said else {"better": "better", "worse": "worse"}
    )
    return words.get(said, "open") + (f", n = {row['n']}" if row["level"] != "these networks" else "")


def branches(runs: list[Run]) -> str:
    """Which input is vulnerable: mean accuracy over attacks, by input and scale of the perturbation."""
    rows = []
    for run in runs:
        found = [r for r in run.report["rows"]["branches"] if r["accuracy"] is not None and r["attack"] in PAPER]
        inputs = [i for i in dict.fromkeys(r["inputs"] for r in found) if i != "none"]
        for scale in (1.5, 2.0, 3.0):
            own = {i: [r["accuracy"] for r in found if (r["inputs"], r["scale"]) == (i, scale)] for i in inputs}
            cells = [f"{100 * statistics.fmean(own[i]):.0f}" if own.get(i) else "-" for i in _INPUTS]
            if any(own.values()):
                rows.append((run.title, f"{scale:g}", *cells))
    if not rows:
        return ""
    words = (
        "**The paper:** perturbations hurt most where they enter the highest resolution; inputs of lower "
        "resolution are blurred and hardly matter. **Here:** the perturbation of each image, 1.5 to 3 times "
        "the smallest that fools the network (at 1 nothing but the whole of it can), enters one, two or all "
        "inputs of the pyramid. Accuracy in per cent on these images, mean over the paper's attacks and "
        "trainings (a share, not a test): the lower, the more vulnerable the input."
    )
    head = ("run", "times the smallest", *_INPUTS)
    return f"## Which input is vulnerable\n\n*Paper: experiment 2.a, figure 5.* {words}\n\n{table(head, rows)}"


_INPUTS = ("highest", "medium", "lowest", "highest+medium", "highest+lowest", "medium+lowest", "all")


def repeat(runs: list[Run]) -> str:
    """The commands: of every run its preset, and what was asked otherwise."""
    lines = ["## Again\n", "```"]
    for run in runs:
        preset, own = run.report["run"]["preset"], run.report["run"]["settings"]
        usual = json.loads(json.dumps(asdict(read_settings(preset))))
        other = [name for name in own if name in usual and own[name] != usual[name] and name not in _MACHINE]
        words = [_option(name.replace("_", "-"), own[name]) for name in other]
        lines.append(" ".join(["bu2td evaluate all --preset", preset, *words, "-o", f"out/{run.folder.name}"]))
    return "\n".join([*lines, "```"])


#: Settings that say where a run is made, not what it is.
_MACHINE = ("data_dir", "workers", "device", "channels_last", "torchcompile")


def _option(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    return f"--{name} {' '.join(map(str, value)) if isinstance(value, list) else value}"


def table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"


def _writer(measure: str) -> Callable[[float], str]:
    share = "distance" not in measure
    return lambda value: f"{100 * value:.1f} %" if share else f"{value:.3g}"


def _place(subjects: tuple[str, ...], subject: str) -> float:
    return subjects.index(subject) if subject in subjects else math.inf


def _span(values: list[int]) -> str:
    if not values:
        return "none"
    return f"{values[0]:,}" if values[0] == values[-1] else f"{values[0]:,} to {values[-1]:,}"


if __name__ == "__main__":
    main()
