"""The files of a run folder: what is not whole is refused, in one line that names the file and the line."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from run_folders import put_all, put_explanations, put_logs, put_robustness, start

from bu2td.errors import FileError
from bu2td.evaluate import schema
from bu2td.evaluate.folder import FORMAT
from bu2td.evaluate.report.read import empty, read_run, read_table
from bu2td.evaluate.report.writing import write_report
from bu2td.evaluate.schema import TABLES, columns, write_table

NAMES = [Path(file).stem for file in TABLES]
HEADERS = {Path(file).stem: ",".join(columns(table)) for file, table in TABLES.items()}


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"no run folder: it has no run\.json"):
        write_report(tmp_path)
    with pytest.raises(FileError, match="there is no folder"):
        write_report(tmp_path / "nowhere")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON"),
        ("[]", "format 'list'"),
        ('{"format": 99}', f"format 99; this version reads format {FORMAT}"),
        ('{"format": FORMAT}', "does not name the model and the data"),
        ('{"format": FORMAT, "model": "x", "data": []}', "does not name the model and the data"),
        ('{"format": FORMAT, "model": "x", "data": {"name": "y"}, "versions": 3}', "versions is int"),
    ],
)
def test_a_damaged_run_json(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "run.json").write_text(text.replace("FORMAT", str(FORMAT)))
    with pytest.raises(FileError, match=re.escape(words)):
        write_report(tmp_path)


# --- tables -------------------------------------------------------------------------------------------


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """As by pandas alone, which checks nothing."""
    run = read_run(put_all(start(tmp_path)))
    read = {name for name, frame in run.tables.items() if len(frame)}
    assert {"accuracy", "predictions", "distances", "branches", "explained_images", "log", "search"} <= read
    for name in read - {"log"}:
        other = pd.read_csv(tmp_path / f"{name}.csv", keep_default_na=False)
        for column in columns(TABLES[f"{name}.csv"]):
            ours = run.tables[name][column]
            theirs = other[column] if ours.dtype == object else pd.to_numeric(other[column])
            assert ours.equals(theirs.astype(ours.dtype)), (name, column)


def test_numbers_are_numbers_and_what_was_not_measured_is_nan(tmp_path: Path) -> None:
    (tmp_path / "accuracy.csv").write_text(f"{HEADERS['accuracy']}\n\nbu,0,1,10,20,2,0.5,,0.8,,0.1,1,1,\n")
    frame = read_table(tmp_path / "accuracy.csv")
    assert (frame["parameters"].dtype, frame["test_accuracy"].dtype) == (int, float)
    assert frame["validation_accuracy"].isna().all()
    (tmp_path / "distances.csv").write_bytes(f"\ufeff{HEADERS['distances']}\nbu,0,a,1,inf\n".encode())
    assert read_table(tmp_path / "distances.csv")["distance"][0] == np.inf


@pytest.mark.parametrize("name", NAMES)
def test_a_table_without_rows(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"{name}.csv"
    for text in (f"{HEADERS[name]}\n", "\n"):  # the second is what a writer makes of no rows at all
        path.write_text(text)
        frame = read_table(path)
        pd.testing.assert_frame_equal(frame, empty(TABLES[path.name]), check_index_type=False)


def test_unreadable_text(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="cannot be read: No such file"):
        read_table(tmp_path / "accuracy.csv")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A row of every table that a made-up run has."""
    folder = put_all(tmp_path_factory.mktemp("good"))
    return {path.stem: path.read_text().splitlines()[1] for path in folder.glob("*.csv")}


@pytest.mark.parametrize(
    "name",
    ["accuracy", "predictions", "search", "robustness", "distances", "curves", "branches", "corruptions",
     "corrupted_images", "bands", "band_images", "localisation", "explained_images", "faithfulness", "boxes"],
)  # fmt: skip
def test_a_file_that_is_not_whole(tmp_path: Path, good: dict[str, str], name: str) -> None:
    path = tmp_path / f"{name}.csv"
    header, row = HEADERS[name], good[name]

    def refused(text: str | bytes, words: str) -> None:
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        with pytest.raises(FileError, match=re.escape(words)) as caught:
            read_run(start(tmp_path))
        assert str(path) in str(caught.value)

    path.write_text(f"{header},more\n{row},\n")
    assert len(read_table(path)) == 1  # a column that nobody knows does no harm
    refused("", "is empty")
    refused(b"\xff\xfe\x00", "not a text file")
    refused(f"{header.partition(',')[2]}\n", "line 1: no column arrangement")
    refused(f"{header},{header.split(',')[1]}\n", "twice")
    cut = ",".join(row.split(",")[:-2])
    refused(f"{header}\n{row}\n{cut}\n", "line 3: ")
    refused(f"{header}\n{row}", "line 2: the line does not end")
    refused(f"{header}\n{row},7\n", "line 2: ")
    refused(f"{header}\nxx{row[2:]}\n", "line 2: arrangement is 'xx'; expected one of bu, td, uni, rev")
    refused(f'{header}\n"{row}\n', "line ")
    if name != "search":
        refused(f"{header}\ntd,-1{row[4:]}\n", "line 2: repeat is '-1'")
    if TABLES[path.name].key:
        refused(f"{header}\n{row}\n{row}\n", "stands already in line 2")


@pytest.mark.parametrize(
    ("name", "column", "cells"),
    [
        ("accuracy", "test_accuracy", ("x", "", "nan", "1.5", "-0.1", "inf")),
        ("accuracy", "parameters", ("x", "", "1.5", "-3", "inf", "nan", "1e300")),
        ("robustness", "clean_accuracy", ("x", "2")),
        ("robustness", "median_l2", ("x",)),
        ("curves", "l2", ("x", "-1", "nan", "")),
        ("curves", "accuracy", ("x", "1.1", "nan")),
        ("corruptions", "severity", ("x", "1.5", "")),
        ("localisation", "normalisation", ("x", "")),
        ("localisation", "layer", ("x", "")),
        ("distances", "distance", ("-1", "nan", "")),
        ("predictions", "confidence", ("1.5", "")),
        ("localisation", "precision", ("x", "1.2")),
        ("branches", "inputs", ("", " ")),
        ("faithfulness", "pointing", ("x", "-1")),
    ],
)
def test_a_cell_that_does_not_hold_what_it_should(
    tmp_path: Path, good: dict[str, str], name: str, column: str, cells: tuple[str, ...]
) -> None:
    path = tmp_path / f"{name}.csv"
    place = HEADERS[name].split(",").index(column)
    for cell in cells:
        row = good[name].split(",")
        row[place] = cell
        path.write_text(f"{HEADERS[name]}\n{','.join(row)}\n")
        with pytest.raises(FileError, match=re.escape(f"line 2: {column} is {cell!r}; expected")):
            read_table(path)


def test_areas_up_to_different_limits_are_not_compared(tmp_path: Path) -> None:
    put_robustness(start(tmp_path), {"pgd": 2.0})
    rows = read_table(tmp_path / "robustness.csv")
    rows["limit"] = [3.0, *[4.0] * (len(rows) - 1)]
    write_table(schema.Robustness, [schema.Robustness(**row) for row in rows.to_dict("records")], tmp_path)
    with pytest.raises(FileError, match="areas of pgd reach to 3 and to 4"):
        write_report(tmp_path)


def test_a_damaged_log_is_named(tmp_path: Path) -> None:
    put_logs(start(tmp_path))
    (tmp_path / "runs/td-0/log.csv").write_text(f"{HEADERS['log']}\n1,0.1,1,0.5,1,much,1\n")
    with pytest.raises(FileError, match=r"td-0.log.csv, line 2: validation_accuracy is 'much'"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_folders_beside_the_runs_are_left_alone(tmp_path: Path) -> None:
    for name in ("td-0.1", "other-0", "td"):
        (start(tmp_path) / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "log.csv").write_text("x")
    assert not len(read_run(tmp_path).tables["log"])


# --- heat maps ----------------------------------------------------------------------------------------


def edited(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        with np.load(path) as archive:
            arrays = dict(archive)
        change(arrays)
        np.savez(path, **arrays)

    return edit


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.write_bytes(b""), "cannot be read as arrays"),
        (lambda path: path.write_bytes(b"PK\x03\x04rubbish"), "cannot be read as arrays"),
        (lambda path: path.write_bytes(path.read_bytes()[:-200]), "cannot be read as arrays"),
        (edited(lambda a: a.pop("images")), "no array images"),
        (edited(lambda a: a.pop("td_centred")), "no array td_centred"),
        (edited(lambda a: a.update(td_plain=a["td_plain"][:, :2])), "td_plain has the shape (3, 2, 8, 8)"),
        (edited(lambda a: a.update(labels=a["labels"][:2])), "2 labels for 3 images"),
        (edited(lambda a: a.update(images=a["images"][0])), "images has 3 dimensions, expected 4"),
        (edited(lambda a: a.update(images=np.array([{}], object))), "cannot be read as arrays"),
    ],
)
def test_damaged_explanations(tmp_path: Path, damage: Callable[[Path], None], words: str) -> None:
    put_explanations(start(tmp_path))
    damage(tmp_path / "explanations.npz")
    with pytest.raises(FileError, match=re.escape(words)) as caught:
        read_run(tmp_path)
    assert "explanations.npz" in str(caught.value)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (start(tmp_path) / "figures").write_text("a file, not a folder")
    with pytest.raises(FileError, match="figures cannot be made"):
        write_report(tmp_path)
