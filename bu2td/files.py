"""Files are written whole or not at all."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bu2td.errors import FileError


def loads(text: str) -> Any:
    """What JSON says; what names something twice, or is nested without end, says nothing.

    Raises:
        ValueError: it is no such JSON.
    """
    try:
        return json.loads(text, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(n for n in names if names.count(n) > 1)!r:.80} stands in it twice")
    return found


def leaves(document: Any, most: int = 2**17, deep: int = 20) -> Iterator[Any]:
    """The plain values of a document of dicts and lists, keys included; what is repeated counts every time.

    Raises:
        ValueError: there are more of them than ``most``, or they lie deeper than ``deep``.
    """
    todo, count = [(document, 0)], 0
    while todo:
        value, depth = todo.pop()
        count += 1
        if not isinstance(value, dict | list | tuple):
            yield value
            continue
        keys, inner = ([*value], [*value.values()]) if isinstance(value, dict) else ([], value)
        count += len(keys)
        if depth >= deep or count + len(todo) + len(inner) > most:
            raise ValueError(f"it is nested deeper than {deep}, or has more than {most:,} entries")
        yield from keys
        todo += [(part, depth + 1) for part in inner]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path that takes the place of ``path`` once everything is written.

    Raises:
        FileError: the file cannot be written.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise FileError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(text: str, path: str | os.PathLike[str]) -> None:
    """Write a text file in UTF-8, lines as they are.

    Raises:
        FileError: the file cannot be written.
    """
    with replacing(Path(path)) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def write_json(document: Any, path: str | os.PathLike[str]) -> None:
    """Write JSON.

    Raises:
        FileError: the file cannot be written.
    """
    write_text(json.dumps(document, indent=1) + "\n", path)


def write_csv(
    rows: Sequence[Mapping[str, Any]], path: str | os.PathLike[str], columns: Sequence[str] | None = None
) -> None:
    """Write rows as CSV.

    Args:
        rows: by column; pairs such as sizes are written 10x12, None as nothing.
        path: the file.
        columns: by default those of all rows, in the order of appearance.

    Raises:
        FileError: the file cannot be written.
    """
    text = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row)) if columns is None else list(columns)
    table = csv.DictWriter(text, names, lineterminator="\n")
    table.writeheader()
    for row in rows:
        table.writerow({name: _cell(value) for name, value in row.items()})
    write_text(text.getvalue(), path)


def _cell(value: Any) -> Any:
    if isinstance(value, tuple | list):
        nested = any(isinstance(part, tuple | list) for part in value)
        return (" " if nested else "x").join(str(_cell(part)) for part in value)
    return "" if value is None else value
