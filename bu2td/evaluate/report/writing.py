"""Writes the report of a run folder: report.html (one file), report.md, report.json and figures/*.png."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bu2td.errors import FileError
from bu2td.evaluate.report.compare import Comparison, Statistic, aggregate, compare_run, corruption_means
from bu2td.evaluate.report.page import Block, Heading, to_html, to_markdown
from bu2td.evaluate.report.read import ARRANGEMENTS, Run, read_run
from bu2td.evaluate.report.sections import Drawer, sections
from bu2td.evaluate.report.summary import summary_blocks
from bu2td.files import replacing

__all__ = ["write_report"]

FIGURES = "figures"
#: Per table: the columns that group its rows, beside the arrangement, and the columns that are averaged.
_AVERAGED: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "accuracy": (
        (),
        (
            "test_accuracy",
            "validation_accuracy",
            "train_loss",
            "parameters",
            "macs",
            "epochs",
            "seconds",
            "seconds_per_epoch",
            "peak_memory_mib",
        ),
    ),
    "robustness": (("attack",), ("clean_accuracy", "success_rate", "median_l2", "auc", "limit", "samples")),
    "branches": (("attack", "inputs"), ("accuracy", "samples")),
    "corruptions": (("corruption", "severity"), ("accuracy", "samples")),
    "localisation": (("normalisation", "threshold"), ("precision", "recall", "tp", "fp", "fn", "samples")),
    "boxes": (("normalisation",), ("max_box_acc_v2", "samples")),
    "faithfulness": (("normalisation",), ("pointing", "deletion", "insertion", "samples")),
}


def write_report(folder: str | Path) -> Path:
    """Write the report of what a run folder holds.

    Args:
        folder: with run.json and whatever there is of accuracy.csv, runs/*/log.csv, robustness.csv, curves.csv,
            branches.csv, corruptions.csv, localisation.csv, boxes.csv, faithfulness.csv and explanations.npz.

    Returns:
        The path of report.html, which holds its pictures and style; beside it lie report.md (with links to
        figures/*.png) and report.json (every number of the tables: mean, std with n - 1, n, values of the repeats;
        nan is null, infinity is the word "inf").

    Raises:
        FileError: the folder or its run.json is missing, a file is not whole, or the report cannot be written.
        MissingPackageError: matplotlib is not installed.
    """
    place = Path(folder)
    run = read_run(place)
    comparisons = compare_run(run)
    drawer = Drawer(_figures(place))
    title, subtitle = _title(run)
    present = [
        a for a in ARRANGEMENTS if any(row["arrangement"] == a for rows in run.tables.values() for row in rows)
    ]
    blocks: list[Block] = [Heading("Summary"), *summary_blocks(comparisons, present)]
    blocks += sections(run, comparisons, drawer)
    drawer.remove_others()
    _write(place / "report.json", json.dumps(_plain(_document(run, comparisons)), indent=1, allow_nan=False) + "\n")
    _write(place / "report.md", to_markdown(title, subtitle, blocks))
    _write(place / "report.html", to_html(title, subtitle, blocks))
    return place / "report.html"


def _figures(place: Path) -> Path:
    path = place / FIGURES
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise FileError(f"{path} cannot be made: {error.strerror}") from error
    return path


def _write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="replace")


def _title(run: Run) -> tuple[str, str]:
    data = run.settings["data"]
    counts = [
        f"{data[part]:,} {part}" for part in ("train", "validation", "test") if isinstance(data.get(part), int)
    ]
    shape = data.get("shape")
    size = f", {' × '.join(map(str, shape))}" if isinstance(shape, list) else ""  # noqa: RUF001
    images = f"{', '.join(counts)} images" if counts else "number of images not recorded"
    repeats = run.settings.get("repeats")
    trained = f"; every network trained {repeats} times" if isinstance(repeats, int) and repeats > 1 else ""
    return f"Bottom-up against top-down: {run.settings['model']} on {data['name']}", f"{images}{size}{trained}."


def _document(run: Run, comparisons: list[Comparison]) -> dict[str, Any]:
    tables: dict[str, list[dict[str, Any]]] = {}
    for name, (keys, values) in _AVERAGED.items():
        tables[name] = _records(run.tables[name], ("arrangement", *keys), values)
    means = corruption_means(run.tables["corruptions"])
    tables["corruption_means"] = _records(means, ("arrangement", "corruption"), ("accuracy",))
    return {
        "format": 1,
        "run": run.settings,
        "comparisons": [comparison.record() for comparison in comparisons],
        "tables": tables,
        "rows": {name: run.tables[name] for name in _AVERAGED},
    }


def _records(rows: list[dict[str, Any]], keys: tuple[str, ...], values: tuple[str, ...]) -> list[dict[str, Any]]:
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for value in values:
        for key, of in aggregate(rows, keys, value).items():
            found.setdefault(key, dict(zip(keys, key, strict=True)))[value] = of
    return list(found.values())


def _plain(value: Any) -> Any:
    """As JSON has it: nan is null, infinity a word."""
    if isinstance(value, Statistic):
        return _plain(asdict(value))
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "inf" if value > 0 else "-inf"
    return value
