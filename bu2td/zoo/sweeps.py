"""A sweep over the zoo: one row per model and arrangement in a CSV file, a summary in a JSON file beside it.

Both files are replaced as a whole after every model, so that a sweep that was stopped goes on from there.
"""

from __future__ import annotations

import csv
import importlib
import multiprocessing
import os
import platform
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import asdict, fields
from itertools import chain, groupby
from pathlib import Path
from statistics import median
from typing import Any

import torch

from bu2td.errors import Bu2tdError, FileError, MissingPackageError, OptionError, first_line, nearest
from bu2td.files import write_csv, write_json
from bu2td.ir import format_table
from bu2td.models.libraries import LIBRARIES, library_of
from bu2td.models.library import Library
from bu2td.options import ARRANGEMENTS
from bu2td.packages import imported
from bu2td.zoo.zoo import (
    HEAD_CONV,
    REAL_MACS,
    REAL_SIZE,
    RELAXATIONS,
    SEED,
    STATUSES,
    TIMEOUT,
    Row,
    ZooModel,
    convert_model,
    list_zoo,
)

__all__ = ["describe", "finish", "read_rows", "summarise", "sweep", "write_rows"]

#: Models per worker process, which is then renewed: caches and torch's own registries grow.
_MODELS_PER_WORKER = 40


def sweep(
    models: Sequence[ZooModel],
    arrangements: Sequence[str] = ARRANGEMENTS,
    *,
    file: Path,
    resume: bool = False,
    fresh: bool = False,
    jobs: int = 1,
    real: bool = True,
    timeout: float | None = TIMEOUT,
) -> Iterator[tuple[int, int, list[Row]]]:
    """Convert models into arrangements, and keep the rows in a CSV file and a summary in a JSON file.

    Args:
        models: from `select`.
        arrangements: out of "td", "uni", "rev".
        file: the CSV file; the summary lies beside it, with the suffix .json.
        resume: keep the rows that the file has, and do the others; a row that is deleted runs again.
        fresh: replace the file.
        jobs: processes at work, one thread each; one job works in this process.
        real: run networks below `REAL_MACS` forward and backward.
        timeout: seconds that an analysis, and every conversion, may take; None: any.

    Yields:
        (models done, models to do, all rows so far, in the order of the zoo), first before any model is built.

    Raises:
        OptionError: an unknown arrangement, no jobs, or a file that does not end in .csv.
        FileError: the file is there and neither to be resumed nor replaced, is not a sweep's, or cannot be
            written.
        MissingPackageError: a library of the models is not installed.
        Bu2tdError: a process was killed; the file has all rows that were finished.
    """
    _check(arrangements, file, resume or fresh, jobs, timeout)
    kept = read_rows(file) if resume and file.exists() else []
    done = {(row.model, row.arrangement): row for row in kept}
    missing = [(model, [a for a in arrangements if (model.word, a) not in done]) for model in models]
    todo = [(model, names) for model, names in missing if names]
    libraries = _libraries([*(model.word for model in models), *(row.model for row in kept)])
    known = list_zoo([library.title for library in libraries])
    places = {model.word: index for index, model in enumerate([*models, *known])}
    about = _about(libraries, arrangements, real, timeout)

    def place(row: Row) -> tuple[int, int]:
        return places.get(row.model, -1), ARRANGEMENTS.index(row.arrangement)

    work = chain(
        [[]], _worked(todo, jobs, real, timeout)
    )  # nothing first, which shows that the file can be written
    for count, new in enumerate(work):
        done |= {(row.model, row.arrangement): row for row in new}
        rows = sorted(done.values(), key=place)
        write_rows(file, rows, about)
        yield count, len(todo), rows


def _check(arrangements: Sequence[str], file: Path, wanted: bool, jobs: int, timeout: float | None) -> None:
    """Refuse what a sweep cannot do; ``wanted``: the file may be there already."""
    for name in arrangements:
        if name not in ARRANGEMENTS:
            hint = nearest(name, ARRANGEMENTS) or f" It knows {', '.join(ARRANGEMENTS)}."
            raise OptionError(f"a sweep has no arrangement {name!r}.{hint}")
    if jobs < 1:
        raise OptionError(f"jobs={jobs} must be at least 1")
    if timeout is not None and timeout <= 0:
        raise OptionError(f"timeout={timeout:g} must be more than 0")
    if file.suffix != ".csv":
        raise OptionError(f"{file} must end in .csv")
    if file.exists() and not wanted:
        raise FileError(f"{file} is already there: go on with it (--resume), or replace it (--fresh)")


def finish(steps: Iterator[tuple[int, int, list[Row]]]) -> list[Row]:
    """Run a sweep to its end, with a bar on stderr where tqdm is installed, and return all rows."""
    _, total, rows = next(steps)
    bar: Any = steps
    with suppress(MissingPackageError):
        bar = imported("tqdm").tqdm(steps, total=total, unit="model")
    for step in bar:
        rows = step[2]
    return rows


def _libraries(words: Iterable[str]) -> list[Library]:
    """The libraries of MODEL words, in the order of the list of libraries."""
    found = {pair[0] for pair in map(library_of, words) if pair is not None}
    return [library for library in LIBRARIES.values() if library in found]


def _about(
    libraries: Sequence[Library], arrangements: Sequence[str], real: bool, timeout: float | None
) -> dict[str, Any]:
    packages = ("bu2td", "torch", *(library.package for library in libraries if library.package))
    return {
        **{name: str(importlib.import_module(name).__version__) for name in packages},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "seed": SEED,
        "arrangements": list(arrangements),
        "real": {"size": REAL_SIZE, "max_macs": REAL_MACS} if real else None,
        "timeout": timeout,
    }


def _worked(
    todo: Sequence[tuple[ZooModel, list[str]]], jobs: int, real: bool, timeout: float | None
) -> Iterator[list[Row]]:
    """The rows of every model, as they come."""
    if jobs == 1:
        for model, arrangements in todo:
            yield convert_model(model, arrangements, real, timeout)
        return
    batch = _MODELS_PER_WORKER * jobs
    for start in range(0, len(todo), batch):
        yield from _batch(todo[start : start + batch], jobs, real, timeout)


def _batch(
    todo: Sequence[tuple[ZooModel, list[str]]], jobs: int, real: bool, timeout: float | None
) -> Iterator[list[Row]]:
    """The rows of every model, as new processes bring them; when one dies, those of the others come first."""
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _start_worker)
    waiting: dict[Future[list[Row]], str] = {}
    finished = set()
    try:
        with suppress(BrokenProcessPool):
            for model, names in todo:
                waiting[pool.submit(convert_model, model, names, real, timeout)] = model.word
        for future in as_completed(waiting):
            if not isinstance(future.exception(), BrokenProcessPool):
                finished.add(waiting[future])
                yield future.result()
        at_work = [model.word for model, _ in todo if model.word not in finished][:jobs]
        if at_work:
            raise Bu2tdError(
                f"a process of the sweep was killed (out of memory?) at work on {' or '.join(at_work)}; the rows "
                "so far are kept: go on with --resume, if need be with fewer --jobs"
            )
        pool.shutdown()
    finally:  # interrupted, or a process is dead: nobody waits for the others
        pool.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
            process.join()


def _start_worker() -> None:
    """One thread, nothing on stdout, Ctrl-C left to the parent, and an end when the parent is killed."""
    torch.set_num_threads(1)
    sys.stdout = sys.stderr
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait = parent.join
        threading.Thread(target=lambda: (wait(), os._exit(1)), daemon=True).start()


# --- rows in files ------------------------------------------------------------------------------------


def write_rows(file: Path, rows: Sequence[Row], about: dict[str, Any]) -> None:
    """Write rows as CSV and their summary as JSON beside it, each whole or not at all.

    Raises:
        FileError: a file cannot be written.
    """
    write_csv([asdict(row) for row in rows], file, [field.name for field in fields(Row)])
    write_json({"about": about, **summarise(rows)}, file.with_suffix(".json"))


def read_rows(file: Path) -> list[Row]:
    """Read the rows of a sweep, or of several (those of shards, say) one behind the other.

    Raises:
        FileError: the file is missing, or not a sweep's.
    """
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            table = csv.DictReader(lines)
            if table.fieldnames != [field.name for field in fields(Row)]:
                raise ValueError("it has other columns")
            return [_row(line) for line in table if line["model"] != "model"]
    except OSError as error:
        raise FileError(f"{file} cannot be read: {error.strerror}") from error
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        cause = first_line(error)
        raise FileError(
            f"{file} is not a table of bu2td zoo ({cause}): choose another file, or replace it (--fresh)"
        ) from error


def _row(line: dict[str, str]) -> Row:
    read: dict[str, Any] = {
        "int": int,
        "float": float,
        "bool": {"True": True, "False": False}.__getitem__,
        "str": str,
    }
    if None in line or None in line.values():
        raise ValueError(f"{line['model']}: a line is cut off")
    row = Row(**{field.name: read[str(field.type)](line.pop(field.name)) for field in fields(Row)})
    if line or row.status not in STATUSES or row.arrangement not in ARRANGEMENTS:
        raise ValueError(f"{row.model} {row.arrangement} is no row of a sweep")
    return row


# --- the summary --------------------------------------------------------------------------------------


def summarise(rows: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
    """Return tables of plain data.

    Returns:
        "arrangements" (totals), "families", "causes" of refusals and failures, "feature_info" (models whose
        levels are timm's stages), and "failed" (every failed row).
    """
    causes = Counter((row.status, row.cause) for row in rows if row.status != "verified")
    infos = Counter({row.model: row.feature_info for row in rows}.values())
    different = sum(infos.values()) - infos["same"] - infos[HEAD_CONV] - infos[""]
    families = groupby(sorted(rows, key=lambda row: row.family), lambda row: row.family)
    totals = [(name, [row for row in rows if row.arrangement == name]) for name in ARRANGEMENTS]
    return {
        "arrangements": [_total(name, own) for name, own in totals if own],
        "families": [_family(name, list(own)) for name, own in families],
        "causes": [{"status": s, "cause": c, "networks": n} for (s, c), n in sorted(causes.items())],
        "feature_info": [
            {"same": infos["same"], "head conv": infos[HEAD_CONV], "different": different, "none": infos[""]}
        ],
        "failed": [
            {"model": row.model, "arrangement": row.arrangement, "cause": row.cause, "message": row.message}
            for row in rows
            if row.status == "failed"
        ],
    }


def describe(summary: dict[str, list[dict[str, Any]]]) -> str:
    """Return the tables of a summary as text, the totals last."""
    order = ("families", "feature_info", "causes", "failed", "arrangements")
    return "\n\n".join(f"{name}\n{format_table(summary[name])}" for name in order if summary[name])


def _total(arrangement: str, rows: Sequence[Row]) -> dict[str, Any]:
    verified = [row for row in rows if row.status == "verified"]
    return {
        "arrangement": arrangement,
        "models": len(rows),
        **{status: sum(row.status == status for row in rows) for status in STATUSES},
        "ran": sum(row.real for row in rows),
        "levels": sum(row.levels for row in verified),
        **{what: sum(getattr(row, what.replace(" ", "_")) for row in verified) for what in RELAXATIONS},
        "none %": _percent_none(verified, 2),
        "seconds": round(sum(row.seconds for row in rows)),
    }


def _family(family: str, rows: Sequence[Row]) -> dict[str, Any]:
    verified = [row for row in rows if row.status == "verified"]
    ratios = [row.macs_ratio for row in verified if row.arrangement == "td"]
    return {
        "family": family,
        "models": len({row.model for row in rows}),
        **{name: sum(row.arrangement == name for row in verified) for name in ARRANGEMENTS},
        "none %": _percent_none(verified, 1),
        "MACs ratio td": round(median(ratios), 2) if ratios else None,
        "causes": ", ".join(sorted({row.cause for row in rows if row.cause})),
    }


def _percent_none(rows: Sequence[Row], digits: int) -> float:
    """The share of levels that needed no relaxation."""
    return round(100 * sum(row.none for row in rows) / max(sum(row.levels for row in rows), 1), digits)
