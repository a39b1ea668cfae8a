"""The folders of shards, put together; trainings and parts are files of their own, so they only need one place."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from bu2td.errors import FileError, OptionError, RunFolderError
from bu2td.evaluate.folder import RUN, create, holds_run, make_folder, read_record, settings_of, stored_settings
from bu2td.evaluate.locks import check_free, is_left_over, locked
from bu2td.evaluate.parts import load
from bu2td.evaluate.train.accuracy import read_result
from bu2td.files import replacing, write_json

_KEPT = ("runs", "parts", "search")
_RESULT, _NAMED = "result.json", 4


def merge(folders: Sequence[str | Path], into: str | Path, changes: Mapping[str, Any] | None = None) -> list[str]:
    """Copy what folders of one evaluation hold into one folder, and write its tables.

    Args:
        folders: of the shards; they stay as they are.
        into: may hold a part of the same evaluation already, and is made otherwise.
        changes: settings of the machine (data_dir, device), by name, for the tables that need the networks.

    Returns:
        What was done, in words.

    Raises:
        RunFolderError: a folder holds no run, or another one, or one that somebody works in; or two folders hold
            different results of the same work, which the message names. Nothing is copied then.
        FileError: a file cannot be read or written.
    """
    from bu2td.evaluate.run import collect

    target, sources = Path(into), [Path(folder) for folder in folders]
    if not sources:
        raise OptionError("merge needs the folders of shards")
    for source in sources:
        if not (source / RUN).is_file():
            raise RunFolderError(f"{source} holds no run (there is no {RUN}), so that there is nothing to merge")
        read_record(source)
        check_free(source)
    first = target if holds_run(target) else sources[0]
    for source in sources:
        settings_of(first, _identity(source))
    plan = _plan(sources, target)
    make_folder(target)
    with locked(target):
        for source, own in plan:
            _copy(source, own)
        _records(sources, target)
        stages = collect(target, dict(changes or {}))
    written = ", ".join(["train", *stages])
    return [
        f"{len(plan)} files of {len(sources)} folders copied to {target}; its tables are those of {written}",
        f"bu2td evaluate all -o {target} --resume does what is missing, and writes the report",
    ]


def _identity(folder: Path) -> dict[str, Any]:
    return stored_settings(read_record(folder)).identity("data", "training")


def _plan(sources: Sequence[Path], target: Path) -> list[tuple[Path, Path]]:
    """Files to copy, with where to: of the same work the first one that is whole."""
    chosen: dict[str, Path] = {}
    conflicts = []
    for folder in [target, *sources]:
        for name, place in _pieces(folder):
            if name not in chosen or not _is_whole(chosen[name]):
                chosen[name] = place
            elif _is_whole(place) and not _same(chosen[name], place):
                conflicts.append(f"{chosen[name]} and {place}")
    if conflicts:
        more = f" and {len(conflicts) - _NAMED} more" if len(conflicts) > _NAMED else ""
        raise RunFolderError(
            f"the folders hold different results of the same work: {'; '.join(conflicts[:_NAMED])}{more}. Delete "
            f"one of each pair and merge again"
        )
    copies = []
    for name, place in chosen.items():
        if not place.is_relative_to(target):
            files = [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.is_file())
            copies += [(f, target / name / f.relative_to(place)) for f in files if not is_left_over(f)]
    return copies


def _pieces(folder: Path) -> list[tuple[str, Path]]:
    """What is one result: the folder of a training, or a file, by name below the run's folder."""
    found = []
    for top in _KEPT:
        paths = (folder / top).glob("*") if top != "parts" else (folder / top).rglob("*.npz")
        found += [p for p in sorted(paths) if not is_left_over(p)]
    return [(path.relative_to(folder).as_posix(), path) for path in found]


def _is_whole(place: Path) -> bool:
    if place.is_dir():
        return read_result(place) is not None or place.parent.name == "search"
    if place.suffix == ".npz":
        try:
            load(place)
        except FileError:
            return False
    return True


def _same(one: Path, other: Path) -> bool:
    """Whether two results agree; times, and what depends on them, may differ."""
    if one.is_dir():
        if not (one / _RESULT).is_file():
            return True  # a search's, which it looks at itself
        results = [found for p in (one, other) if (found := read_result(p)) is not None]
        if len(results) < 2:
            return False
        ours, theirs = ({k: str(v) for k, v in asdict(r["result"]).items()} for r in results)  # nan is nan
        odd = [k for k in {**ours, **theirs} if ours.get(k) != theirs.get(k)]
        timed = ("seconds", "seconds_per_epoch", "peak_memory_mib")
        return results[0]["identity"] == results[1]["identity"] and not set(odd) - set(timed)
    if one.suffix != ".npz":
        return one.read_bytes() == other.read_bytes()
    first, second = load(one), load(other)
    if first.mark != second.mark or repr(first.rows) != repr(second.rows):
        return False
    arrays = first.arrays, second.arrays
    return arrays[0].keys() == arrays[1].keys() and all(
        np.array_equal(a, arrays[1][k], equal_nan=a.dtype.kind == "f") for k, a in arrays[0].items()
    )


def _copy(source: Path, target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"{target.parent} cannot be made: {error.strerror}") from error
    with replacing(target) as temporary:
        shutil.copyfile(source, temporary)


def _records(sources: Sequence[Path], target: Path) -> None:
    """One run.json: the settings of all, their calls one after the other, their seconds added up."""
    known = [target] if (target / RUN).is_file() else []
    records = [read_record(folder) for folder in (*known, *sources)]
    if not known:
        write_json({**records[0], "calls": [], "seconds": {}}, target / RUN)
        records.insert(0, read_record(target))
    merged = records[0]
    for record in records[1:]:
        calls = [call for call in record.get("calls", []) if call not in merged["calls"]]
        merged["calls"] += calls
        for stage, seconds in record.get("seconds", {}).items() if calls else ():  # else it was merged before
            merged["seconds"][stage] = round(merged["seconds"].get(stage, 0) + seconds, 1)
        merged.setdefault("data", record.get("data"))
    write_json(merged, target / RUN)
    for record in records[1:]:
        create(target, settings_of(target, record["settings"]), "merge")
    grown = read_record(target)
    write_json({**grown, "calls": [*merged["calls"], grown["calls"][-1]]}, target / RUN)  # it was one call
