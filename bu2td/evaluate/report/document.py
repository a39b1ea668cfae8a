"""The report of a run folder as files: verdicts, sections, numbers."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from bu2td.errors import FileError
from bu2td.evaluate.means import Statistic, aggregate
from bu2td.evaluate.report.compare import Comparison, compare_run, corruption_means
from bu2td.evaluate.report.page import Block, Heading, to_html, to_markdown
from bu2td.evaluate.report.read import Run, read_run
from bu2td.evaluate.report.sections import sections
from bu2td.evaluate.report.summary import summary_blocks
from bu2td.evaluate.report.tables import Drawer
from bu2td.evaluate.report.words import TIMES, model_title, title
from bu2td.evaluate.schema import ARRANGEMENTS, TABLES, columns
from bu2td.files import replacing

__all__ = ["write"]

FIGURES = "figures"
#: Tables with a row per image or epoch stand in their own files alone.
_LONG = (
    "log",
    "predictions",
    "distances",
    "corrupted_images",
    "explained_images",
    "band_images",
    "fourier",
    "curves",
)


def write(place: Path) -> Path:
    """Write the report of a run folder; returns the path of report.html (see `write_report`)."""
    run = read_run(place)
    comparisons = compare_run(run)
    drawer = Drawer(_figures(place))
    heading, subtitle = _title(run)
    present = [a for a in ARRANGEMENTS if any(a in set(table["arrangement"]) for table in run.tables.values())]
    blocks: list[Block] = [Heading("What is decided"), *summary_blocks(comparisons, present)]
    blocks += sections(run, comparisons, drawer)
    drawer.remove_others()
    _write(place / "report.json", json.dumps(_plain(_document(run, comparisons)), indent=1, allow_nan=False) + "\n")
    _write(place / "report.md", to_markdown(heading, subtitle, blocks))
    _write(place / "report.html", to_html(heading, subtitle, blocks))
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
    size = f", {f' {TIMES} '.join(map(str, shape))}" if isinstance(shape, list) else ""
    images = f"{', '.join(counts)} images" if counts else "number of images not recorded"
    repeats = run.settings.get("repeats")
    trained = f"; every network trained {repeats} times" if isinstance(repeats, int) and repeats > 1 else ""
    model = model_title(run.settings["model"])
    return f"Bottom-up against top-down: {model} on {title(str(data['name']))}", f"{images}{size}{trained}."


def _document(run: Run, comparisons: list[Comparison]) -> dict[str, Any]:
    short = {Path(file).stem: table for file, table in TABLES.items() if Path(file).stem not in _LONG}
    means = {
        name: _records(run.tables[name], [k for k in table.key if k != "repeat"] or ["arrangement"], table)
        for name, table in short.items()
        if table.key
    }
    severities = corruption_means(run.tables["corruptions"])
    means["corruption_means"] = [
        {"corruption": c, "arrangement": a, "accuracy": of}
        for (c, a), of in aggregate(severities, ["corruption", "arrangement"], "accuracy").items()
    ]
    return {
        "format": 2,
        "run": run.settings,
        "comparisons": [comparison.record() for comparison in comparisons],
        "tables": means,
        "rows": {name: run.tables[name].to_dict("records") for name in short},
    }


def _records(rows: pd.DataFrame, keys: list[str], table: Any) -> list[dict[str, Any]]:
    """Statistics over the repeats of every column that holds numbers."""
    numbers = [name for name, (of, _) in columns(table).items() if of is not str and name not in (*keys, "repeat")]
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for value in numbers:
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
    return value.item() if hasattr(value, "item") else value
