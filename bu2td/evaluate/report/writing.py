"""Writes the report of a run folder: report.html (one file), report.md, report.json and figures/*.png and *.svg."""

from __future__ import annotations

from pathlib import Path

from bu2td.packages import imported

__all__ = ["write_report"]


def write_report(folder: str | Path) -> Path:
    """Write the report of what a run folder holds.

    Args:
        folder: with run.json and whatever there is of the tables (`bu2td.evaluate.schema.TABLES`), runs/*/log.csv
            and explanations.npz.

    Returns:
        The path of report.html, which holds its pictures and style; beside it lie report.md (with links to
        figures/*.png) and report.json (verdicts, and the numbers of the tables: mean, std with n - 1, n, values of
        the repeats; nan is null, infinity is the word "inf").

    Raises:
        FileError: the folder or its run.json is missing, a file is not whole, or the report cannot be written.
        MissingPackageError: pandas, jinja2 or matplotlib is not installed.
    """
    for package in ("pandas", "jinja2", "matplotlib"):
        imported(package, "'bu2td[evaluate]'", "the report needs it:")
    from bu2td.evaluate.report.document import write  # pandas takes half a second

    return write(Path(folder))
