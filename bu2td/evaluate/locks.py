"""Who works in a folder: one process, or several that share the work of one run as shards.

A lock is a small file that says who holds it. It is written beside the results rather than held by the kernel
(`fcntl.flock`), because folders lie on network file systems where that is not to be relied on, and because a second
process is to be told whom it meets.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

from bu2td.errors import FileError, OptionError, RunFolderError
from bu2td.files import loads

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

Shard = tuple[int, int]
WHOLE: Shard = (0, 1)

_LOCKS = ".lock*.json"
_TURN = ".turn"
_TAKEN: set[Path] = set()  # folders in which it is this process's turn
#: What `bu2td.files.replacing` leaves behind when its process is killed: .NAME.PID.SUFFIX.
_LEFT = re.compile(r"\..+\.(\d+)(\.\w+)?")


@dataclass(frozen=True)
class Holder:
    """A process that works in a folder.

    Attributes:
        pid, host: where it runs.
        begin: when the process began, in the kernel's own count ("" where that is not told), so that another
            process that got its number later is not taken for it.
        since: when it took the lock, for people.
        shard: which part of the work it does, "1/1" for all.
    """

    pid: int
    host: str
    begin: str
    since: str
    shard: str

    def check(self) -> None:
        """Refuse what no process wrote of itself.

        Raises:
            ValueError, TypeError, OptionError: it is not what it should be.
        """
        if not all(isinstance(word, str) for word in (self.host, self.begin, self.since, self.shard)):
            raise TypeError("a lock holds words")
        if type(self.pid) is not int or not 0 < self.pid < 2**31:
            raise ValueError("a lock holds the number of a process")
        parse_shard(self.shard)

    def is_here(self) -> bool:
        """Whether it runs (or ran) on this machine."""
        return self.host == socket.gethostname()

    def is_alive(self) -> bool:
        """Whether it is still at work; of processes on other machines this is not known, and taken to be so."""
        return not self.is_here() or (is_running(self.pid) and self.begin == began(self.pid))

    def __str__(self) -> str:
        shard = "" if self.shard == "1/1" else f", shard {self.shard}"
        return f"process {self.pid} on {self.host}{shard} (since {self.since})"


def parse_shard(text: str | None) -> Shard:
    """ "2/4" as (1, 4): counted from 1 by people, from 0 by programs; None is the whole.

    Raises:
        OptionError: it is none.
    """
    if text is None:
        return WHOLE
    index, _, count = text.partition("/")
    if index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count):
        return int(index) - 1, int(count)
    raise OptionError(f"shard = {text!r}: expected K/N with K from 1 to N, such as 1/4")


def shard_word(shard: Shard) -> str:
    """The shard as people write it."""
    return f"{shard[0] + 1}/{shard[1]}"


def is_running(pid: int) -> bool:
    """Whether this machine has a process of this number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


def began(pid: int) -> str:
    """When a process began, in clock ticks since the machine did (proc(5), field 22); "" where not known."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def holders(folder: Path) -> dict[Path, Holder]:
    """Who says to work in a folder; a lock that cannot be read is nobody's."""
    found = {}
    for path in sorted(folder.glob(_LOCKS)):
        try:
            holder = Holder(**loads(path.read_text(encoding="utf-8")))
            holder.check()
        except (OSError, ValueError, TypeError, OptionError):
            continue
        found[path] = holder
    return found


def check_free(folder: Path, shard: Shard = WHOLE) -> None:
    """Refuse a folder in which somebody else does the same work.

    Shards of one count work side by side; everything else is alone in a folder.

    Raises:
        RunFolderError: says who has it.
    """
    for path, holder in holders(folder).items():
        other = parse_shard(holder.shard)
        beside = WHOLE not in (shard, other) and other[1] == shard[1] and other != shard
        if not beside and holder.is_alive() and (holder.pid, holder.is_here()) != (os.getpid(), True):
            away = "" if holder.is_here() else f". If that process is gone, delete its lock: rm {path}"
            raise RunFolderError(
                f"{folder} is in use by {holder}: wait for it, or name another folder with -o{away}"
            )


@contextmanager
def locked(folder: Path, shard: Shard = WHOLE) -> Iterator[None]:
    """Hold a folder, which must exist; a lock of a process that is gone is taken over.

    Raises:
        RunFolderError: somebody else holds it.
        FileError: nothing can be written there.
    """
    now = datetime.now(timezone.utc).isoformat(" ", "seconds")
    own = Holder(os.getpid(), socket.gethostname(), began(os.getpid()), now, shard_word(shard))
    path = folder / (".lock.json" if shard == WHOLE else f".lock-{shard[0] + 1}of{shard[1]}.json")
    _take(path, own, shard)
    try:
        check_free(folder, shard)  # two that exclude each other may have come at the same moment: both let go
        if shard == WHOLE:
            _tidy(folder)
        yield
    finally:
        if holders(folder).get(path) == own:
            path.unlink(missing_ok=True)


def _take(path: Path, own: Holder, shard: Shard) -> None:
    temporary = path.with_name(f".taking.{own.pid}.json")
    try:
        temporary.write_text(json.dumps(asdict(own)) + "\n", encoding="utf-8")
        with turn(path.parent):  # nobody else of this machine looks, removes or takes meanwhile
            while True:
                check_free(path.parent, shard)
                for other, holder in holders(path.parent).items():
                    if not holder.is_alive():
                        print(f"{path.parent}: {holder} is gone; going on from what it left", file=sys.stderr)
                        _remove(other, holder)
                if path not in holders(path.parent):  # nothing, or not even a lock
                    path.unlink(missing_ok=True)
                with contextlib.suppress(FileExistsError):  # somebody elsewhere was faster: look again
                    _put(temporary, path)
                    return
    except OSError as error:
        raise FileError(f"{path.parent} cannot be written: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _put(temporary: Path, path: Path) -> None:
    """Make a lock: whole, and only where there is none."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        with path.open("x", encoding="utf-8") as file:
            file.write(temporary.read_text(encoding="utf-8"))


def _remove(path: Path, gone: Holder) -> None:
    """Remove the lock of a process that is gone, and not one that has just taken its place."""
    aside = path.with_name(f".gone.{os.getpid()}.json")
    with contextlib.suppress(FileNotFoundError):
        os.replace(path, aside)
        if loads(aside.read_text(encoding="utf-8")) != asdict(gone):
            _put(aside, path)
        aside.unlink()


def _tidy(folder: Path) -> None:
    """Remove the halves of files that killed processes of this machine were about to write."""
    for path in folder.rglob(".*"):
        match = _LEFT.fullmatch(path.name)
        if match and path.is_file() and not is_running(int(match[1])):
            path.unlink(missing_ok=True)


def is_left_over(path: Path) -> bool:
    """Whether a file in a run's folder is a lock, or half of a file."""
    return path.name == _TURN or path.match(_LOCKS) or bool(_LEFT.fullmatch(path.name))


@contextmanager
def turn(folder: Path) -> Iterator[None]:
    """Wait until no shard of this machine reads what is there and writes a table of it, and do that.

    By the kernel, where it can: a second is at stake, and a row that is lost comes back with ``--resume``.

    Raises:
        FileError: nothing can be written there.
    """
    if fcntl is None or folder in _TAKEN:
        yield
        return
    try:
        handle = open(folder / _TURN, "w")  # noqa: SIM115  (closed below)
    except OSError as error:
        raise FileError(f"{folder / _TURN} cannot be written: {error.strerror}") from error
    with handle:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        _TAKEN.add(folder)
        try:
            yield
        finally:
            _TAKEN.discard(folder)
