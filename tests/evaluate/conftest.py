"""What the tests of a whole evaluation share: one that is finished."""

import shutil
from pathlib import Path

import pytest
from tiny_run import FEW, REST, words


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation with everything, a small network bottom-up and top-down on digits; not to be changed."""
    for package in ("foolbox", "lightning_fabric", "yaml", "matplotlib", "torchvision"):
        pytest.importorskip(package)
    from bu2td.evaluate.command import main

    place = tmp_path_factory.mktemp("evaluation")
    assert main(["all", *words(place), "-o", str(place / "out"), *FEW, *REST]) == 0
    return place / "out"


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(finished, tmp_path / "out"))
