"""Rows of a table as a file or a data frame."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path
from typing import Any

from bu2td.errors import MissingPackageError
from bu2td.files import replacing


class Table:
    """What a table of rows can be written as.

    Attributes:
        rows: a dict per layer.
    """

    rows: list[dict[str, Any]]

    def to_pandas(self) -> Any:
        """The rows as a `pandas.DataFrame`.

        Raises:
            MissingPackageError: pandas is not installed.
        """
        return data_frame(self.rows)

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the rows as CSV, whole or not at all.

        Raises:
            FileError: the file cannot be written.
        """
        write_csv(self.rows, path)

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write what `to_dict` returns as JSON, whole or not at all.

        Raises:
            FileError: the file cannot be written.
        """
        write_json(self.to_dict(), path)

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON-ready data."""
        return {"rows": self.rows}


def write_csv(rows: list[dict[str, Any]], path: str | os.PathLike[str]) -> None:
    """Write rows as CSV, whole or not at all; pairs such as sizes are written 10x12.

    Raises:
        FileError: the file cannot be written.
    """
    text = io.StringIO()
    columns = list(dict.fromkeys(name for row in rows for name in row))
    table = csv.DictWriter(text, columns, lineterminator="\n")
    table.writeheader()
    for row in rows:
        table.writerow({name: _cell(value) for name, value in row.items()})
    write_text(text.getvalue(), path)


def write_json(document: Any, path: str | os.PathLike[str]) -> None:
    """Write JSON, whole or not at all.

    Raises:
        FileError: the file cannot be written.
    """
    write_text(json.dumps(document, indent=1) + "\n", path)


def write_text(text: str, path: str | os.PathLike[str]) -> None:
    """Write a text file, whole or not at all.

    Raises:
        FileError: the file cannot be written.
    """
    with replacing(Path(path)) as temporary:
        temporary.write_text(text, encoding="utf-8")


def data_frame(rows: list[dict[str, Any]]) -> Any:
    """The rows as a `pandas.DataFrame`.

    Raises:
        MissingPackageError: pandas is not installed.
    """
    try:
        import pandas  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError as error:
        raise MissingPackageError(
            "a data frame needs pandas, which is not installed. Run: pip install pandas"
        ) from error
    return pandas.DataFrame(rows)


def _cell(value: Any) -> Any:
    if isinstance(value, tuple | list):
        nested = any(isinstance(part, tuple | list) for part in value)
        return (" " if nested else "x").join(str(_cell(part)) for part in value)
    return "" if value is None else value
