"""Rows of a table as a file or a data frame."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from bu2td.files import write_csv, write_json
from bu2td.packages import imported


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


def extent(size: Sequence[float]) -> str:
    """A height and a width as one word: 10 for (10, 10), else 10x12."""
    height, width = (f"{side:g}" if isinstance(side, float) else str(side) for side in size)
    return height if height == width else f"{height}x{width}"


def data_frame(rows: list[dict[str, Any]]) -> Any:
    """The rows as a `pandas.DataFrame`.

    Raises:
        MissingPackageError: pandas is not installed.
    """
    return imported("pandas", why="a data frame needs it:").DataFrame(rows)
