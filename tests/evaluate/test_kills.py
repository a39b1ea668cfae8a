"""A run that is killed anywhere, or whose disk is full, ends as one that nothing happened to."""

import random
import resource
import signal
import time
from pathlib import Path

import pytest
from tiny_run import FEW, REST, start, tables, words

for package in ("foolbox", "lightning_fabric", "yaml", "matplotlib", "torchvision"):
    pytest.importorskip(package)

from bu2td.evaluate.command import main

_KILLS = 12


def _files(folder: Path) -> dict[str, bytes]:
    """Files that must be the same to the byte: the tables that hold no times."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.csv")) if path.name != "accuracy.csv"}


@pytest.mark.slow
def test_twelve_kills(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    line = ["all", *words(finished.parent, *FEW, *REST), "-o", str(folder)]
    begin = time.monotonic()
    process = start(line)
    process.communicate()
    assert process.returncode == 0
    span = time.monotonic() - begin  # of a whole run, on this machine now
    assert _files(folder) == _files(finished)
    chance, folder, kills = random.Random(14), tmp_path / "killed", 0
    line[-1] = str(folder)
    while kills < _KILLS:
        more = ["--resume"] if (folder / "run.json").exists() else []
        process = start([*line, *more])
        time.sleep(chance.uniform(0.1, 0.7) * span)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        elif process.returncode == 0:  # it was faster
            folder = folder.with_name(f"{folder.name}-")
            line[-1] = str(folder)
        else:
            pytest.fail(process.stderr.read() if process.stderr else "")
        process.communicate()
    resumed = ["all", "-o", str(folder), "--resume"] if (folder / "run.json").exists() else line
    assert main(resumed) == 0
    assert tables(folder) == tables(finished)
    assert _files(folder) == _files(finished)


@pytest.mark.slow
@pytest.mark.parametrize("limit", [0, 100, 3_000, 30_000])
def test_a_full_disk(finished: Path, tmp_path: Path, limit: int) -> None:
    """No file may grow beyond a limit, as on a disk that is full: one line names the file, and it can go on."""
    folder = tmp_path / "out"
    line = ["all", *words(finished.parent, *FEW, *REST), "-o", str(folder)]

    def full() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as "no space left", an error of the writing call
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    process = start(line, preexec_fn=full, env={"PYTHONDONTWRITEBYTECODE": "1"})
    _, error = process.communicate()
    last = error.strip().splitlines()[-1]
    assert process.returncode == 2, error[-2000:]
    assert last.startswith("bu2td: FileError:"), error[-2000:]
    assert str(folder) in last
    assert main([*line, *(["--resume"] if (folder / "run.json").exists() else [])]) == 0
    assert tables(folder) == tables(finished)
