"""The folder of an evaluation: what was asked for, and everything that came of it.

``run.json`` says which model, data and settings; a command that would write other results into it is refused. Every
file is written whole or not at all, and what is finished is never written again: a run grows by further
arrangements, repeats, attacks and images, ``--resume`` goes on where it stopped, ``--overwrite`` moves the earlier
results aside.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from bu2td.errors import FileError, OptionError, RunFolderError
from bu2td.evaluate.data.sets import Data
from bu2td.evaluate.locks import is_left_over, turn
from bu2td.evaluate.settings import Settings, grown, read_settings
from bu2td.files import loads, write_json

FORMAT = 1
RUN = "run.json"
_PACKAGES = ("bu2td", "torch", "torchvision", "timm", "foolbox", "lightning-fabric", "numpy", "scikit-learn")
_SHOWN = 4
#: Of the settings of data and training, those that say how many networks there are, not which.
_COUNTING = ("arrangements", "repeats")


class RunFolder:
    """An opened folder; `create` and `open_run` make one.

    Attributes:
        path: the folder.
        settings: of the evaluation.
        record: the content of run.json.
    """

    def __init__(self, path: Path, settings: Settings, record: dict[str, Any]) -> None:
        self.path, self.settings, self.record = path, settings, record

    def run(self, arrangement: str, repeat: int) -> Path:
        """The folder of one training."""
        return self.path / "runs" / f"{arrangement}-{repeat}"

    def parts(self, stage: str) -> Path:
        """The folder of the parts of a stage (`bu2td.evaluate.parts`)."""
        return self.path / "parts" / stage

    def with_settings(self, **changes: Any) -> RunFolder:
        """The same folder, looked at with other settings."""
        return RunFolder(self.path, dataclasses.replace(self.settings, **changes), self.record)

    def note(self, **entries: Any) -> None:
        """Put entries into run.json, beside what others put there meanwhile."""
        with turn(self.path):
            if (self.path / RUN).is_file():
                self.record |= read_record(self.path)
            self.record |= entries
            write_json(self.record, self.path / RUN)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the seconds that a block takes to those of its stage in run.json, however it ends."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            passed = time.perf_counter() - begin
            with turn(self.path):
                seconds = dict(read_record(self.path).get("seconds", {}))
                seconds[stage] = round(seconds.get(stage, 0) + passed, 1)
                self.note(seconds=seconds)


def holds_run(path: Path) -> bool:
    """Whether a folder holds a run; what a kill left of its first moment is none.

    Raises:
        RunFolderError: it holds something else.
    """
    if path.exists() and not path.is_dir():
        raise RunFolderError(f"{path} is a file: name a folder with -o")
    if (path / RUN).is_file():
        return True
    try:
        others = path.is_dir() and not all(map(is_left_over, path.iterdir()))
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror}") from error
    if others:
        raise RunFolderError(f"{path} holds files, but no run of bu2td evaluate: name another folder with -o")
    return False


def make_folder(path: Path) -> None:
    """Make the folder, where there is none, and see that it can be written.

    Raises:
        FileError: it cannot.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"{path} cannot be made: {error.strerror}") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise FileError(f"{path} cannot be written: no permission; name another folder with -o")


def create(path: Path, settings: Settings, stage: str, preset: str | None = None) -> RunFolder:
    """Begin a run in an empty folder, or add to the one that is there.

    Args:
        path: the folder, which exists.
        settings: of this call; `settings_of` made them, so that they fit the run that is there.
        stage: what is called.
        preset: where they came from.

    Returns:
        The folder with the settings of this call; run.json holds those of all calls together.

    Raises:
        FileError: it cannot be written.
    """
    folder = RunFolder(path, settings, {"format": FORMAT})
    with turn(path):
        stored, fresh = settings, True
        if holds_run(path):
            folder.record, fresh = read_record(path), False
            called = [call["stage"] for call in folder.record.get("calls", [])]
            stored = grown(stored_settings(folder.record), settings, stage, called)
        entries = {
            "settings": stored.to_dict(),
            "arrangements": list(stored.arrangements),
            "repeats": stored.repeats,
            "calls": [*folder.record.get("calls", []), _call(settings, stage)],
        }
        if fresh:
            entries |= {"model": settings.model, "preset": preset, "seed": settings.seed}
            entries |= {"versions": versions(), "command": command_line(), "seconds": {}}
        folder.note(**entries)
    return folder


def _call(settings: Settings, stage: str) -> dict[str, Any]:
    """A call as run.json records it."""
    groups = {"all": (), "search": ("data", "training"), "train": ("data", "training")}.get(stage, (stage,))
    now = datetime.now(timezone.utc).isoformat(" ", "seconds")
    return {"stage": stage, "command": command_line(), "at": now, "settings": settings.identity(*groups)}


def settings_of(path: Path, changes: Mapping[str, Any]) -> Settings:
    """The settings of a call that goes on with a run: those of the run, and what the call changes.

    Args:
        path: the folder of the run.
        changes: settings by name. Arrangements and repeats say what this call is about; all other settings of data
            and training must be those of the run.

    Raises:
        RunFolderError: there is no run, or `changes` would change what was trained.
        FileError: its run.json is damaged.
        OptionError: a setting makes no sense.
    """
    stored = stored_settings(read_record(path))
    asked = read_settings(flags={**stored.to_dict(), **changes})
    old, new = (s.identity("data", "training") for s in (stored, asked))
    odd = [key for key in new if old[key] != new[key] and key not in _COUNTING]
    if odd:
        differences = "; ".join(f"{key} was {old[key]!r}, is {new[key]!r}" for key in odd[:_SHOWN])
        raise RunFolderError(
            f"{path} holds a run of other settings: {differences}. Leave them out to go on with it, or name "
            f"another folder with -o"
        )
    return asked


def read_record(path: Path) -> dict[str, Any]:
    """The content of run.json.

    Raises:
        RunFolderError: there is none.
        FileError: it is damaged.
    """
    file = path / RUN
    if not file.is_file():
        raise RunFolderError(
            f"{path} holds no run (there is no {RUN}); bu2td evaluate train -o {path} makes one with default "
            f"settings"
        )
    try:
        record: dict[str, Any] = loads(file.read_text(encoding="utf-8"))
        if record["format"] != FORMAT:
            raise FileError(f"{file} has format {record['format']!r}, expected {FORMAT}")
        _check_record(record)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FileError(
            f"{file} cannot be read ({type(error).__name__}: {error}). It is written whole or not at all, so that "
            f"something else changed it: put it right, or name another folder with -o"
        ) from error
    return record


def _check_record(record: Mapping[str, Any]) -> None:
    """Refuse entries of another kind, of those that are read again.

    Raises:
        ValueError, KeyError, TypeError: there are some.
    """
    calls, seconds = record.get("calls", []), record.get("seconds", {})
    if not isinstance(record["settings"], dict) or not isinstance(seconds, dict):
        raise ValueError("settings and seconds are no entries by name")
    if not all(isinstance(value, int | float) for value in seconds.values()):
        raise ValueError("seconds holds something else than numbers")
    if not isinstance(calls, list) or not all(isinstance(call["stage"], str) for call in calls):
        raise ValueError("calls is no list of calls")


def stored_settings(record: Mapping[str, Any]) -> Settings:
    """The settings that run.json holds.

    Raises:
        FileError: they are not settings.
    """
    try:
        return read_settings(flags=record["settings"])
    except OptionError as error:
        raise FileError(f"the settings in {RUN} are none: {error}") from error


def open_run(path: Path) -> RunFolder:
    """Open the folder of an evaluation, with all settings of the run.

    Raises:
        RunFolderError: there is no run in it.
        FileError: its run.json is damaged.
    """
    record = read_record(path)
    return RunFolder(path, stored_settings(record), record)


def move_aside(path: Path) -> Path:
    """Rename a file or folder to NAME.1, NAME.2, ...; returns where it is now."""
    number = 1
    while (target := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    try:
        os.replace(path, target)
    except OSError as error:
        raise FileError(f"{path} cannot be moved to {target}: {error.strerror}") from error
    return target


def describe_data(data: Data, validation_share: float) -> dict[str, Any]:
    """A data set as run.json records it."""
    held_out = round(len(data.train) * validation_share)
    return {
        "name": data.name,
        "train": len(data.train) - held_out,
        "validation": held_out,
        "test": len(data.test),
        "shape": list(data.shape),
        "classes": list(data.classes),
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that take part, where installed."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def command_line() -> str:
    """How this process was started, as one would type it."""
    name = Path(sys.argv[0]).name
    start = {"__main__.py": "python -m bu2td.evaluate"}.get(name, name)
    return " ".join([start, *sys.argv[1:]])
