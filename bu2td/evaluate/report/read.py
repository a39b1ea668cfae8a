"""Reads the files of a run folder, and refuses what is not whole."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bu2td.errors import FileError
from bu2td.evaluate.schema import ARRANGEMENTS, NORMALISATIONS, TABLES, WORDS, Kind, columns

__all__ = ["ARRANGEMENTS", "WORDS", "Explanations", "Row", "Run", "read_explanations", "read_run", "read_table"]

Row = dict[str, Any]
Readers = Mapping[str, tuple[type, Kind]]

FORMAT = 1


# --- files --------------------------------------------------------------------------------------------


def read_table(path: Path, kind: str | None = None) -> list[Row]:
    """Read a CSV file of a run folder.

    Args:
        path: the file.
        kind: which table it is (a name of `TABLES`); by default its own name.

    Returns:
        Its rows with numbers as numbers; a number that was not measured is nan. Columns that are not known are left
        out. A file with a header alone has no rows.

    Raises:
        FileError: the file cannot be read, lacks a column, has a line that is cut off or longer than the header, a
            cell that does not hold what its column holds, or two lines about the same thing. The message names the
            file and the line.
    """
    table = TABLES[kind or path.name]
    readers, key = columns(table), table.key
    text = _text(path)
    if not text:
        raise FileError(f"{path} is empty; expected a header with {', '.join(readers)}. {_ANEW}")
    if not text.strip():  # a table without rows, written without columns
        return []
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[Row] = []
    seen: dict[tuple[Any, ...], int] = {}
    for number, cells in _lines(lines, path):
        if number == 0:
            header = cells
            _check_header(header, readers, path)
            continue
        row = _row(header, cells, readers, path, lines.line_num)
        identity = tuple(row[name] for name in key)
        if key and identity in seen:
            what = ", ".join(f"{name} {value}" for name, value in zip(key, identity, strict=True))
            raise FileError(
                f"{path}, line {lines.line_num}: {what} stands already in line {seen[identity]}. {_ANEW}"
            )
        seen[identity] = lines.line_num
        rows.append(row)
    if not text.endswith(("\n", "\r")):
        raise FileError(f"{path}, line {lines.line_num}: the line does not end, so the file is cut off. {_ANEW}")
    return rows


_ANEW = "Remove the file and compute it anew with --resume"


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise FileError(f"{path} is not a text file ({error.reason} at byte {error.start})") from error


def _lines(lines: Any, path: Path) -> Iterator[tuple[int, list[str]]]:
    try:
        yield from enumerate(cells for cells in lines if cells)
    except csv.Error as error:
        raise FileError(f"{path}, line {lines.line_num}: {error}. {_ANEW}") from error


def _check_header(header: list[str], readers: Readers, path: Path) -> None:
    missing = [name for name in readers if name not in header]
    if missing:
        many = "s" if len(missing) > 1 else ""
        raise FileError(
            f"{path}, line 1: no column{many} {', '.join(missing)}; expected {', '.join(readers)}, "
            f"found {', '.join(header)}"
        )
    if len(set(header)) < len(header):
        raise FileError(f"{path}, line 1: a column appears twice in {', '.join(header)}")


def _row(header: list[str], cells: list[str], readers: Readers, path: Path, line: int) -> Row:
    if len(cells) != len(header):
        raise FileError(f"{path}, line {line}: {len(cells)} of {len(header)} cells; the line is cut off. {_ANEW}")
    found = dict(zip(header, cells, strict=True))
    row: Row = {}
    for name, (cell, kind) in readers.items():
        text = found[name]
        try:
            value = text if cell is str else float(text) if text.strip() else math.nan
            good = kind.holds(value)
        except ValueError:
            good = False
        if not good:
            raise FileError(f"{path}, line {line}: {name} is {text!r}; expected {kind.words}")
        row[name] = int(value) if cell is int else value
    return row


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
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise FileError(f"{path} cannot be read as arrays ({error}). {_ANEW}") from error
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


@dataclass(frozen=True)
class Run:
    """What a run folder holds; a table that is not there, or that has no rows, is empty.

    Attributes:
        folder: where it is.
        settings: run.json.
        tables: rows by file name without its suffix: accuracy, robustness, curves, branches, corruptions,
            localisation, faithfulness, and log (with arrangement and repeat).
        explanations: heat maps, or None.
    """

    folder: Path
    settings: dict[str, Any]
    tables: dict[str, list[Row]] = field(repr=False)
    explanations: Explanations | None = field(repr=False)


def read_run(folder: Path) -> Run:
    """Read all files of a run folder that exist.

    Raises:
        FileError: the folder or its run.json is missing, or a file is not whole.
    """
    settings = _settings(folder)
    tables = {}
    for name in TABLES:
        path = folder / name
        tables[name.removesuffix(".csv")] = read_table(path) if path.exists() else []
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
        found = json.loads(_text(path))
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


def _check_limits(rows: Iterable[Row], path: Path) -> None:
    limits: dict[str, float] = {}
    for row in rows:
        if limits.setdefault(row["attack"], row["limit"]) != row["limit"]:
            raise FileError(
                f"{path}: the areas of {row['attack']} reach to {limits[row['attack']]:g} and to "
                f"{row['limit']:g}, so they cannot be compared. {_ANEW}"
            )


def _logs(folder: Path) -> list[Row]:
    rows: list[Row] = []
    found = []
    for path in folder.glob("runs/*/log.csv"):
        match = re.fullmatch(r"(\w+)-(\d+)", path.parent.name)
        if match and match[1] in ARRANGEMENTS:
            found.append((ARRANGEMENTS.index(match[1]), int(match[2]), path))
    for index, repeat, path in sorted(found):
        rows += [{"arrangement": ARRANGEMENTS[index], "repeat": repeat, **row} for row in read_table(path)]
    return rows
