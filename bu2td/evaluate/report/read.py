"""Reads the files of a run folder, and refuses what is not whole."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bu2td.errors import FileError, shown
from bu2td.evaluate.arrays import read_arrays
from bu2td.evaluate.folder import FORMAT
from bu2td.evaluate.schema import ARRANGEMENTS, NORMALISATIONS, TABLES, Epoch, Kind, Row, columns
from bu2td.files import loads

__all__ = ["Explanations", "Run", "read_explanations", "read_run", "read_table"]

_ANEW = "Remove the file and compute it anew with --resume"


# --- tables -------------------------------------------------------------------------------------------


def read_table(path: Path, kind: str | None = None) -> pd.DataFrame:
    """Read a CSV file of a run folder.

    pandas fills up a line that is cut off without a word, so lines are taken apart by the csv module.

    Args:
        path: the file.
        kind: which table it is (a name of `TABLES`); by default its own name.

    Returns:
        Its rows with the columns of the table: numbers as numbers, what was not measured as nan. Columns that are
        not known are left out. A file with a header alone, or with empty lines, has no rows.

    Raises:
        FileError: the file cannot be read, lacks a column, has a line that is cut off or longer than the header, a
            cell that does not hold what its column holds, or two lines about the same thing. The message names the
            file and the line.
    """
    table = TABLES[kind or path.name]
    text = _text(path)
    if not text:
        raise FileError(f"{path} is empty; expected a header with {', '.join(columns(table))}. {_ANEW}")
    if not text.strip():  # a table without rows, written without columns
        return empty(table)
    cells = _cells(text, path, table)
    made = {name: _column(cells, name, *about, path) for name, about in columns(table).items()}
    frame = pd.DataFrame(made, index=cells.index)
    _check_key(frame, table, path)
    return frame.reset_index(drop=True)


def empty(table: type[Row]) -> pd.DataFrame:
    """A table without rows."""
    return pd.DataFrame({name: pd.Series(dtype=_dtype(of)) for name, (of, _) in columns(table).items()})


def _dtype(of: type) -> Any:
    return object if of is str else of


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise FileError(f"{path} is not a text file ({error.reason} at byte {error.start})") from error


def _cells(text: str, path: Path, table: type[Row]) -> pd.DataFrame:
    """All cells as text; the index is the number of the line."""
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    found: dict[int, list[str]] = {}
    try:
        for cells in lines:
            if cells:
                found[lines.line_num] = cells
    except csv.Error as error:
        raise FileError(f"{path}, line {lines.line_num}: {error}. {_ANEW}") from error
    (_, header), *rows = found.items()
    missing = [name for name in columns(table) if name not in header]
    if missing:
        many = "s" if len(missing) > 1 else ""
        raise FileError(
            f"{path}, line 1: no column{many} {', '.join(missing)}; expected {', '.join(columns(table))}, "
            f"found {', '.join(header)}"
        )
    if len(set(header)) < len(header):
        raise FileError(f"{path}, line 1: a column appears twice in {', '.join(header)}")
    for line, cells in rows:
        if len(cells) != len(header):
            raise FileError(
                f"{path}, line {line}: {len(cells)} of {len(header)} cells; the line is cut off. {_ANEW}"
            )
    if not text.endswith(("\n", "\r")):
        raise FileError(f"{path}, line {lines.line_num}: the line does not end, so the file is cut off. {_ANEW}")
    index = pd.Index([line for line, _ in rows], dtype=int)
    return pd.DataFrame([cells for _, cells in rows], index=index, columns=header, dtype=object)


def _column(cells: pd.DataFrame, name: str, of: type, kind: Kind, path: Path) -> pd.Series:
    """A column as what it holds; every different text is looked at once."""
    known: dict[str, Any] = {}
    for text in cells[name].unique():
        try:
            value = text if of is str else float(text) if text.strip() else np.nan
            good = kind.holds(value) and (of is not int or abs(value) < 2**63)
        except ValueError:
            good = False
        if not good:
            line = cells.index[cells[name] == text][0]
            raise FileError(f"{path}, line {line}: {name} is {shown(text)}; expected {kind.words}")
        known[text] = value
    return pd.Series([known[text] for text in cells[name]], cells.index, dtype=_dtype(of), name=name)


def _check_key(frame: pd.DataFrame, table: type[Row], path: Path) -> None:
    key = list(table.key)
    twice = frame.index[frame.duplicated(key)] if key else frame.index[:0]
    if len(twice):
        line, row = twice[0], frame.loc[twice[0], key]
        first = frame.index[(frame[key] == row).all(axis=1)][0]
        what = ", ".join(f"{name} {value}" for name, value in row.items())
        raise FileError(f"{path}, line {line}: {what} stands already in line {first}. {_ANEW}")


# --- heat maps ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Explanations:
    """Heat maps of some images.

    Attributes:
        images: (N, C, H, W) in [0, 1].
        labels: (N,).
        levels: per arrangement the names of its levels, in the order of the maps.
        maps: per arrangement and normalisation, (N, L, H, W) in [0, 1], the levels in the order of `levels`.
    """

    images: np.ndarray
    labels: np.ndarray
    levels: dict[str, list[str]]
    maps: dict[str, dict[str, np.ndarray]]

    def order(self, arrangement: str) -> list[int]:
        """Indices of an arrangement's levels in the order in which its network computes them.

        Levels that are named by their reduction (``r4``) are sorted by it, others stay as they stand in the file.
        """
        names = self.levels[arrangement]
        reductions = [re.match(r"r(\d+)", name) for name in names]
        if not all(reductions):
            return list(range(len(names)))
        sign = 1 if arrangement == "bu" else -1
        return sorted(range(len(names)), key=lambda i: sign * int(reductions[i][1]))  # type: ignore[index]


def read_explanations(path: Path) -> Explanations:
    """Read explanations.npz.

    Raises:
        FileError: the file cannot be read, or an array is missing or of another shape.
    """
    try:
        arrays = read_arrays(path)
    except FileError as error:
        raise FileError(f"{error}. {_ANEW}") from error
    images = _array(arrays, "images", path, 4)
    labels = _array(arrays, "labels", path, 1)
    levels: dict[str, list[str]] = {}
    maps: dict[str, dict[str, np.ndarray]] = {}
    for arrangement in ARRANGEMENTS:
        if f"{arrangement}_levels" not in arrays:
            continue
        levels[arrangement] = [str(name) for name in _array(arrays, f"{arrangement}_levels", path, 1)]
        shape = (len(images), len(levels[arrangement]), *images.shape[2:])
        maps[arrangement] = {}
        for kind in NORMALISATIONS:
            array = _array(arrays, f"{arrangement}_{kind}", path, 4)
            if array.shape != shape:
                raise FileError(
                    f"{path}: {arrangement}_{kind} has the shape {array.shape}, expected {shape}. {_ANEW}"
                )
            maps[arrangement][kind] = array
    if labels.shape != images.shape[:1]:
        raise FileError(f"{path}: {len(labels)} labels for {len(images)} images. {_ANEW}")
    return Explanations(images, labels, levels, maps)


def _array(arrays: Mapping[str, np.ndarray], name: str, path: Path, dimensions: int) -> np.ndarray:
    if name not in arrays:
        raise FileError(f"{path} has no array {name}, found {', '.join(sorted(arrays)) or 'none'}. {_ANEW}")
    if arrays[name].ndim != dimensions:
        raise FileError(f"{path}: {name} has {arrays[name].ndim} dimensions, expected {dimensions}. {_ANEW}")
    return arrays[name]


# --- a run --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """What a run folder holds; a table that is not there has no rows.

    Attributes:
        folder: where it is.
        settings: run.json.
        tables: by file name without its suffix (see `bu2td.evaluate.schema.TABLES`); log is of all trainings, with
            arrangement and repeat.
        explanations: heat maps, or None.
    """

    folder: Path
    settings: dict[str, Any]
    tables: dict[str, pd.DataFrame] = field(repr=False)
    explanations: Explanations | None = field(repr=False)


def read_run(folder: Path) -> Run:
    """Read all files of a run folder that exist.

    Raises:
        FileError: the folder or its run.json is missing, or a file is not whole.
    """
    settings = _settings(folder)
    tables = {}
    for name, table in TABLES.items():
        path = folder / name
        tables[path.stem] = read_table(path) if path.exists() else empty(table)
    _check_limits(tables["robustness"], folder / "robustness.csv")
    tables["log"] = _logs(folder)
    path = folder / "explanations.npz"
    return Run(folder, settings, tables, read_explanations(path) if path.exists() else None)


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / "run.json"
    if not path.is_file():
        place = (
            f"{folder} is no run folder: it has no run.json" if folder.is_dir() else f"there is no folder {folder}"
        )
        raise FileError(f"{place}. `bu2td evaluate all -o FOLDER` makes one")
    try:
        found = loads(_text(path))
    except ValueError as error:
        raise FileError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        number = found.get("format") if isinstance(found, dict) else type(found).__name__
        raise FileError(f"{path} is of format {number!r}; this version reads format {FORMAT}")
    data = found.get("data", _data_of(found.get("settings")))
    if not isinstance(found.get("model"), str) or not isinstance(data, dict) or "name" not in data:
        raise FileError(
            f"{path} does not name the model and the data; expected model (a word) and data (with a name)"
        )
    for name in ("settings", "versions", "seconds"):
        if not isinstance(found.get(name) or {}, dict):
            raise FileError(f"{path}: {name} is {type(found[name]).__name__}, expected an object")
    return {**found, "data": data}


def _data_of(settings: Any) -> Any:
    """The data of a run that was stopped before it had read them."""
    name = settings.get("data") if isinstance(settings, dict) else None
    return {"name": name} if isinstance(name, str) else None


def _check_limits(rows: pd.DataFrame, path: Path) -> None:
    for attack, limits in rows.groupby("attack")["limit"]:
        if limits.nunique(dropna=False) > 1:
            low, high = limits.min(), limits.max()
            raise FileError(
                f"{path}: the areas of {attack} reach to {low:g} and to {high:g}, so they cannot be compared. "
                f"{_ANEW}"
            )


def _logs(folder: Path) -> pd.DataFrame:
    found = []
    for path in folder.glob("runs/*/log.csv"):
        match = re.fullmatch(r"(\w+)-(\d+)", path.parent.name)
        if match and match[1] in ARRANGEMENTS:
            found.append((ARRANGEMENTS.index(match[1]), int(match[2]), path))
    frames = [read_table(p).assign(arrangement=ARRANGEMENTS[i], repeat=k) for i, k, p in sorted(found)]
    filled = [frame for frame in frames if len(frame)]
    return pd.concat(filled, ignore_index=True) if filled else empty(Epoch).assign(arrangement="", repeat=0)
