"""Bounding boxes of a folder's test images: PATH/boxes.csv, carried over to the size at which images are read."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from bu2td.errors import DataError, nearest
from bu2td.evaluate.data.pictures import fitted_sides, seen_size

Box = tuple[float, float, float, float]
COLUMNS = ("file", "left", "top", "right", "bottom")
FILE = "boxes.csv"


def read_boxes(table: Path, folder: Path, files: Sequence[str], target: tuple[int, int]) -> tuple[list[Box], ...]:
    """Read the boxes of test images.

    Args:
        table: a CSV with the columns file (relative to `folder`), left, top, right, bottom: pixels of the image as
            it is seen (turned as its EXIF data say), right and bottom exclusive. Several rows of one file are
            several boxes.
        folder: of the test images.
        files: the test images, in their order.
        target: (H, W) at which they are read; boxes are resized, moved and cut as the images are.

    Returns:
        Per image at least one box (left, top, right, bottom) in pixels of what is read.

    Raises:
        DataError: a column is missing, a number is no number, a file is unknown or has no box, or nothing of a box
            is left in the image.
    """
    rows = _rows(table)
    names = {str(Path(file).relative_to(folder)): index for index, file in enumerate(files)}
    found: tuple[list[Box], ...] = tuple([] for _ in files)
    sizes: dict[int, tuple[int, int]] = {}
    for line, row in rows:
        name = row["file"].strip()
        if name not in names:
            raise DataError(f"{table}, line {line}: there is no image {name!r} in {folder}.{nearest(name, names)}")
        index = names[name]
        if index not in sizes:
            sizes[index] = seen_size(Path(files[index]))
        found[index].append(_fitted(_numbers(row, table, line), sizes[index], target, f"{table}, line {line}"))
    bare = next((name for name, index in names.items() if not found[index]), None)
    if bare is not None:
        raise DataError(f"{table} has no box of {bare}: every test image needs one")
    return found


def _rows(table: Path) -> list[tuple[int, dict[str, str]]]:
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise DataError(f"{table} needs the columns {', '.join(COLUMNS)}; {', '.join(missing)} is missing")
            rows = [(reader.line_num, dict(row)) for row in reader]
        for line, row in rows:
            if None in row or None in row.values():
                raise DataError(f"{table}, line {line}: it has other columns than the first line")
        return rows
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{table} cannot be read: {error}") from error


def _numbers(row: dict[str, str], table: Path, line: int) -> Box:
    try:
        left, top, right, bottom = (float(row[name]) for name in COLUMNS[1:])
    except (TypeError, ValueError):
        raise DataError(f"{table}, line {line}: left, top, right, bottom must be numbers") from None
    return left, top, right, bottom


def _fitted(box: Box, size: tuple[int, int], target: tuple[int, int], where: str) -> Box:
    left, top, right, bottom = box
    if not (0 <= left < right <= size[1] and 0 <= top < bottom <= size[0]):
        raise DataError(
            f"{where}: the box {box} is empty or leaves its image of {size[1]} x {size[0]} pixels (width x height)"
        )
    height, width, above, before = fitted_sides(size, target)
    x, y = width / size[1], height / size[0]
    edges = left * x - before, top * y - above, right * x - before, bottom * y - above
    left, top, right, bottom = (
        min(max(edge, 0.0), float(limit)) for edge, limit in zip(edges, (*target[::-1],) * 2, strict=True)
    )
    if right <= left or bottom <= top:
        raise DataError(
            f"{where}: nothing of the box is left in the middle of the image, which is all that is read"
        )
    return left, top, right, bottom
