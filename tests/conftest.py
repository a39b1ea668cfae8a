"""Settings for all tests: one thread, so that parallel workers do not fight for cores."""

import gc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """What is imported by now stays: the garbage collector need not walk through it again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 20)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Call a command line's main function with words; returns (exit status, stdout, stderr)."""

    def called(main: Callable[[list[str]], int], *words: str | Path) -> tuple[int, str, str]:
        try:
            status = main([str(word) for word in words])
        except SystemExit as end:
            status = int(end.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return called
