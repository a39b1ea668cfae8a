"""The folder of an evaluation: what was asked for, and everything that came of it.

``run.json`` says which model, data and settings; a command that would write other results into it is refused. Every
file is written whole or not at all, and what is finished is never written again: ``--resume`` goes on where a run
stopped, ``--overwrite`` moves the earlier results aside.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from bu2td.errors import FileError, RunFolderError
from bu2td.evaluate.data.sets import Data
from bu2td.evaluate.settings import FIELDS, Settings, read_settings
from bu2td.files import write_json

FORMAT = 1
RUN = "run.json"
_PACKAGES = ("bu2td", "torch", "torchvision", "timm", "foolbox", "lightning-fabric", "numpy", "scikit-learn")
_SHOWN = 4


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

    def note(self, **entries: Any) -> None:
        """Put entries into run.json."""
        self.record |= entries
        write_json(self.record, self.path / RUN)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the seconds that a block takes to those of its stage in run.json, however it ends."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            seconds = dict(self.record.get("seconds", {}))
            seconds[stage] = round(seconds.get(stage, 0) + time.perf_counter() - begin, 1)
            self.note(seconds=seconds)


def create(path: Path, settings: Settings, *, resume: bool, overwrite: bool, preset: str | None) -> RunFolder:
    """Make the folder of a new evaluation, or open one to go on with it.

    Raises:
        RunFolderError: it holds another run, or something that is no run.
        FileError: it cannot be written.
    """
    if path.exists() and not path.is_dir():
        raise RunFolderError(f"{path} is a file; name a folder")
    if path.is_dir() and any(path.iterdir()):
        if not (path / RUN).is_file():
            raise RunFolderError(f"{path} holds files, but no run of bu2td evaluate; name another folder")
        if resume:
            return _resumed(path, settings)
        if not overwrite:
            raise RunFolderError(
                f"{path} already holds a run: --resume goes on with it, --overwrite moves it aside, -o another"
            )
        move_aside(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"{path} cannot be made: {error.strerror}") from error
    folder = RunFolder(path, settings, {"format": FORMAT})
    folder.note(
        model=settings.model,
        preset=preset,
        settings=settings.to_dict(),
        arrangements=list(settings.arrangements),
        repeats=settings.repeats,
        seed=settings.seed,
        versions=versions(),
        command=command_line(),
        seconds={},
    )
    return folder


def _resumed(path: Path, settings: Settings) -> RunFolder:
    folder = open_run(path)
    old, new = folder.settings.identity("data", "training"), settings.identity("data", "training")
    odd = [key for key in new if old[key] != new[key]]
    if odd:
        changes = "; ".join(f"{key} was {old[key]!r}, is {new[key]!r}" for key in odd[:_SHOWN])
        raise RunFolderError(
            f"{path} holds another run: {changes}. Resume with the same settings, or name another folder"
        )
    folder.settings = settings
    folder.note(settings=settings.to_dict())
    return folder


def open_run(path: Path, changes: dict[str, Any] | None = None) -> RunFolder:
    """Open the folder of an evaluation.

    Args:
        path: the folder.
        changes: settings other than those of data and training, by name.

    Raises:
        RunFolderError: there is no run in it, or `changes` would change what was trained.
        FileError: its run.json is damaged.
    """
    file = path / RUN
    if not file.is_file():
        raise RunFolderError(f"{path} holds no run (there is no {RUN}); bu2td evaluate train -o {path} makes one")
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        stored = dict(record["settings"])
        if record["format"] != FORMAT:
            raise FileError(f"{file} has format {record['format']!r}, expected {FORMAT}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FileError(f"{file} cannot be read ({type(error).__name__}: {error})") from error
    for name, value in (changes or {}).items():
        if FIELDS[name].metadata["group"] in ("data", "training") and value != getattr(
            read_settings(flags=stored), name
        ):
            raise RunFolderError(
                f"{path} was trained with {name} = {stored.get(name)!r}, not {value!r}; train another run for that"
            )
    return RunFolder(path, read_settings(flags={**stored, **(changes or {})}), record)


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
