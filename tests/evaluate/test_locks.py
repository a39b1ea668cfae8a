"""Who works in a folder: one process is told of another, and a process that is gone holds nothing."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tiny_run import record, start, words

from bu2td.errors import FileError, OptionError, RunFolderError
from bu2td.evaluate.command import main
from bu2td.evaluate.folder import holds_run
from bu2td.evaluate.locks import WHOLE, began, check_free, holders, is_left_over, locked, parse_shard, turn

for package in ("foolbox", "lightning_fabric", "yaml", "torchvision"):
    pytest.importorskip(package)


def _held_by(folder: Path, name: str = ".lock.json", **other: Any) -> Path:
    """A lock of this very process, or of whom is said."""
    folder.mkdir(exist_ok=True)
    own = {"pid": os.getppid(), "host": socket.gethostname(), "begin": began(os.getppid()), "since": "noon"}
    path = folder / name
    path.write_text(json.dumps({**own, "shard": "1/1", **other}))
    return path


def _gone() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_lock_says_who(tmp_path: Path) -> None:
    with locked(tmp_path):
        ((path, holder),) = holders(tmp_path).items()
        assert (holder.pid, holder.host, holder.shard) == (os.getpid(), socket.gethostname(), "1/1")
        assert holder.is_alive()
        assert is_left_over(path)
    assert [path.name for path in tmp_path.iterdir()] == [".turn"]


def test_a_second_process_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _held_by(tmp_path / "out")
    for stage in ("all", "train", "search"):
        assert (
            main([stage, "-o", str(tmp_path / "out"), "--lr", "0.1", *(["0.2"] if stage == "search" else [])]) == 2
        )
        error = capsys.readouterr().err
        assert f"is in use by process {os.getppid()} on {socket.gethostname()} (since noon)" in error
        assert error.count("\n") == 1
    assert [p.name for p in (tmp_path / "out").iterdir()] == [".lock.json"]


@pytest.mark.parametrize("stage", ["robustness", "corruptions", "explain", "train", "merge"])
def test_so_is_one_on_a_finished_run(copied: Path, capsys: pytest.CaptureFixture[str], stage: str) -> None:
    lock = _held_by(copied)
    before = record(copied)
    more = [str(copied)] if stage == "merge" else ["--resume"]
    assert main([stage, "-o", str(copied.parent / "new" if stage == "merge" else copied), *more]) == 2
    assert "is in use by process" in capsys.readouterr().err
    assert record(copied) == before
    assert lock.exists()


def test_a_dry_run_needs_no_lock(copied: Path) -> None:
    _held_by(copied)
    assert main(["explain", "-o", str(copied), "--dry-run"]) == 0


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pid = _gone()
    path = _held_by(tmp_path, pid=pid)
    with locked(tmp_path):
        assert holders(tmp_path)[path].pid == os.getpid()
    assert f"process {pid} on {socket.gethostname()} (since noon) is gone" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [".turn"]


def test_a_number_that_was_given_again_is_another_process(tmp_path: Path) -> None:
    if not began(os.getpid()):
        pytest.skip("the system does not tell when a process began")
    _held_by(tmp_path, begin="1")
    check_free(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}'])
def test_half_a_lock_holds_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / ".lock.json").write_text(content)
    with locked(tmp_path):
        assert len(holders(tmp_path)) == 1


def test_of_other_machines_it_is_not_known(tmp_path: Path) -> None:
    path = _held_by(tmp_path, host="elsewhere", pid=1)
    with pytest.raises(RunFolderError, match="process 1 on elsewhere") as caught, locked(tmp_path):
        pass
    command = str(caught.value).rpartition("delete its lock: ")[2]
    assert command == f"rm {path}"
    subprocess.run(command.split(), check=True)  # what the message says helps
    with locked(tmp_path):
        pass


def test_shards_stand_side_by_side(tmp_path: Path) -> None:
    alive = {"pid": os.getppid(), "begin": began(os.getppid())}
    _held_by(tmp_path, ".lock-1of4.json", shard="1/4", **alive)
    with locked(tmp_path, (1, 4)):
        assert len(holders(tmp_path)) == 2
    for other in (WHOLE, (0, 4), (0, 2)):
        with pytest.raises(RunFolderError, match="shard 1/4"), locked(tmp_path, other):
            pass


@pytest.mark.parametrize("word", ["0/2", "3/2", "1", "1/0", "a/b", "1/2/3", "-1/2", ""])
def test_odd_shards(word: str) -> None:
    with pytest.raises(OptionError, match="expected K/N"):
        parse_shard(word)


def _at_once(count: int, code: str, place: Path) -> None:
    """Run code, which knows the place, in so many processes: copies of one that has imported what it needs."""
    program = (
        "import multiprocessing, sys, time\nfrom pathlib import Path\nfrom bu2td.errors import RunFolderError\n"
        "from bu2td.evaluate.locks import locked, turn\nplace = Path(sys.argv[1])\n"
        "start = multiprocessing.get_context('fork').Process\n"
        f"processes = [start(target=exec, args=({code!r}, globals())) for _ in range({count})]\n"
        "for process in processes:\n"
        "    process.start()\n"
        "for process in processes:\n"
        "    process.join()\n"
        "print([process.exitcode for process in processes])\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(place)], capture_output=True, text=True)
    assert done.stdout == f"{[0] * count}\n", done.stderr


def test_the_kernel_would_agree(tmp_path: Path) -> None:
    """Of many processes at once exactly one holds the folder at any time."""
    code = (
        "for _ in range(40):\n"
        "    try:\n"
        "        with locked(place):\n"
        "            mine = place / 'inside'\n"
        "            mine.mkdir()\n"  # fails where somebody else is inside
        "            time.sleep(0.002)\n"
        "            mine.rmdir()\n"
        "    except RunFolderError:\n"
        "        time.sleep(0.001)\n"
    )
    _at_once(4, code, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".turn"]


def test_one_turn_after_the_other(tmp_path: Path) -> None:
    code = (
        "file = place / 'sum'\n"
        "for _ in range(100):\n"
        "    with turn(place), turn(place):\n"  # within a turn it is still one's own
        "        file.write_text(str(int(file.read_text()) + 1))\n"
    )
    (tmp_path / "sum").write_text("0")
    _at_once(3, code, tmp_path)
    assert (tmp_path / "sum").read_text() == "300"
    with pytest.raises(FileError, match="cannot be written"), turn(tmp_path / "nowhere"):
        pass


# --- folders that a kill left -------------------------------------------------------------------------


def test_what_the_first_moment_leaves_is_no_run(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    assert not holds_run(folder)
    folder.mkdir()
    (folder / f".run.{_gone()}.json").write_text('{"format": 1, "sett')  # killed while it was written
    _held_by(folder, pid=_gone())
    (folder / ".turn").touch()
    assert not holds_run(folder)
    base = [*words(tmp_path), "--arrangement", "bu", "--epochs", "1", "--repeats", "1"]
    assert main(["train", *base, "-o", str(folder)]) == 0
    assert {p.name for p in folder.iterdir()} == {".turn", "run.json", "runs", "accuracy.csv", "predictions.csv"}


def test_halves_of_files_are_swept_up(copied: Path) -> None:
    left = [copied / f".robustness.{_gone()}.csv", copied / "runs" / "bu-0" / f".checkpoint.{_gone()}.pt"]
    other = copied / f".robustness.{os.getppid()}.csv"  # of a process that may still write
    for path in (*left, other):
        path.write_text("half")
    assert main(["corruptions", "-o", str(copied)]) == 0
    assert not any(path.exists() for path in left)
    assert other.exists()


def test_a_kill_lets_go(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    base = [*words(tmp_path), "--arrangement", "bu", "--epochs", "200", "--repeats", "1"]
    process = start(["train", *base, "-o", str(folder)])
    while not (folder / "runs" / "bu-0" / "log.csv").exists():
        assert process.poll() is None
        time.sleep(0.05)
    other = start(["train", "--resume", "-o", str(folder)])
    assert other.wait() == 2
    assert other.stderr is not None
    assert f"in use by process {process.pid}" in other.stderr.read()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (folder / ".lock.json").exists()
    check_free(folder)
    for pipe in (process.stdout, process.stderr, other.stdout, other.stderr):
        assert pipe is not None
        pipe.close()
