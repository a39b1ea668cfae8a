"""Work in parts: each is a file of its own, written once, by whichever process or machine takes it.

A stage lays out its work as `Part`s; `complete` makes those that are not there yet. A part's mark says what decides
its result (settings, weights, images): a file with another mark is another result, and is never overwritten. What a
stage reports is put together from all files that are there, so that a run grows and nothing is lost.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from bu2td.errors import FileError, OptionError, RunFolderError
from bu2td.evaluate.arrays import read_arrays, write_arrays
from bu2td.evaluate.schema import TABLES, Row, columns
from bu2td.files import loads

R = TypeVar("R", bound=Row)


@dataclass(frozen=True)
class Found:
    """What a part came to: rows of tables, and arrays by name (not: "mark", "rows")."""

    rows: tuple[Row, ...] = ()
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    mark: Mapping[str, Any] = field(default_factory=dict)

    def of(self, table: type[R]) -> list[R]:
        """The rows of one table."""
        return [row for row in self.rows if isinstance(row, table)]


@dataclass(frozen=True)
class Part:
    """A piece of work.

    Attributes:
        name: of its file below the stage's folder, without suffix: "td-0/fgsm-00000".
        mark: JSON-ready; whatever decides the result.
        make: does the work.
    """

    name: str
    mark: Mapping[str, Any]
    make: Callable[[], Found]


def complete(
    parts: Sequence[Part], folder: Path, *, shard: tuple[int, int] = (0, 1), title: str = "", progress: bool = True
) -> None:
    """Do the parts that are not there yet.

    Args:
        parts: all of a stage; their order is the same in every process.
        folder: of the stage.
        shard: (i, n): this process takes the parts i, i + n, i + 2n, ...
        title, progress: of the bar.

    Raises:
        RunFolderError: a part is there with another mark.
        FileError: a file cannot be written.
    """
    from tqdm import tqdm

    index, count = check_shard(shard)
    for part in tqdm(parts[index::count], desc=title, unit="part", disable=None if progress else True):
        if not is_done(part, folder):
            save(part, part.make(), folder)


def path_of(name: str, folder: Path) -> Path:
    """The file of a part."""
    return folder / f"{name}.npz"


def is_done(part: Part, folder: Path) -> bool:
    """Whether a part's file holds this very result; one that is cut off is none.

    Raises:
        RunFolderError: it is there with another mark.
    """
    path = path_of(part.name, folder)
    if not path.exists():
        return False
    try:
        mark = load(path).mark
    except FileError:
        return False
    wanted = json.loads(json.dumps(dict(part.mark)))
    if mark != wanted:
        odd = ", ".join(k for k in {**mark, **wanted} if mark.get(k) != wanted.get(k))
        raise RunFolderError(
            f"{path} is the result of other settings: it differs in {odd}. Give the settings of then, "
            f"name another folder with -o, or move the results of this stage aside with --overwrite"
        )
    return True


def missing(parts: Sequence[Part], folder: Path) -> list[str]:
    """The names of the parts that are not there."""
    return [part.name for part in parts if not is_done(part, folder)]


def save(part: Part, found: Found, folder: Path) -> None:
    """Write a part, whole or not at all.

    Raises:
        FileError: it cannot be written.
    """
    path = path_of(part.name, folder)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"{path.parent} cannot be made: {error.strerror}") from error
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in found.rows:
        rows.setdefault(row.file, []).append(asdict(row))
    content: dict[str, Any] = {"mark": json.dumps(dict(part.mark)), "rows": json.dumps(rows), **found.arrays}
    write_arrays(content, path)


def load(path: Path) -> Found:
    """Read a part.

    Raises:
        FileError: it is damaged.
    """
    arrays = read_arrays(path)
    try:
        mark, rows = (loads(str(arrays.pop(name))) for name in ("mark", "rows"))
        made = [as_row(TABLES[table], row) for table, own in rows.items() for row in own]
        dict(mark.items())
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise FileError(f"{path} is damaged ({error}); the same command with --resume makes it anew") from error
    return Found(tuple(made), arrays, mark)


def as_row(table: type[R], values: Mapping[str, Any]) -> R:
    """A row of a table, of the values that a file has for it.

    Raises:
        ValueError, KeyError, TypeError: they are not what the table's columns hold.
    """
    known = columns(table)
    for name, value in values.items():
        of, kind = known[name]
        if not isinstance(value, str if of is str else (int, float)):
            raise ValueError(f"{name} is {value!r:.80}; expected {kind.words}")
    return table(**values)


def load_all(folder: Path, pattern: str = "*/*") -> Iterator[tuple[str, Found]]:
    """All parts of a stage with their names, in order of these; damaged ones are none.

    Args:
        folder: of the stage.
        pattern: of names, as `Path.glob` reads it.
    """
    for path in sorted(folder.glob(f"{pattern}.npz")):
        if path.name.startswith("."):
            continue
        try:
            found = load(path)
        except FileError:
            continue
        yield path.relative_to(folder).with_suffix("").as_posix(), found


def check_shard(shard: Any) -> tuple[int, int]:
    """A pair (i, n) with 0 <= i < n.

    Raises:
        OptionError: it is none.
    """
    try:
        index, count = (int(n) for n in shard)
    except (TypeError, ValueError):
        raise OptionError(f"shard must be a pair (i, n), found {shard!r}") from None
    if not 0 <= index < count:
        raise OptionError(f"shard {index} of {count}: shards are numbered from 0 to n - 1")
    return index, count
