"""``bu2td doctor`` says what is there, and notices what is wrong."""

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import bu2td
from bu2td.cli import main
from bu2td.models import baselines
from bu2td.optimization import cache_folder

REQUIRED = ["torch>=2.6", "networkx>=3", "numpy>=1.26", "scipy>=1.11"]


@pytest.fixture
def asks(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let the metadata of bu2td ask for these packages."""
    return lambda *lines: monkeypatch.setattr(importlib.metadata, "requires", lambda name: list(lines))


def doctor(call: Any) -> tuple[int, dict[str, Any]]:
    status, out, err = call(main, "doctor", "--json")
    assert err == ""
    return status, json.loads(out)


def test_a_sound_installation(call: Any, asks: Any) -> None:
    asks(*REQUIRED, 'pytest; extra == "checks"')
    status, out, err = call(main, "doctor")
    assert (status, err) == (0, "")
    said = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert said["bu2td"] == f"{bu2td.__version__} in {Path(bu2td.__file__).parent}"
    assert said["torch"] == importlib.metadata.version("torch")
    assert said["devices"].startswith("cpu")
    assert said["cache"].endswith(str(cache_folder()))
    assert said["threads"].startswith(f"{torch.get_num_threads()} of ")
    assert said["[checks]"] == "complete"
    assert said["conversion"].startswith("works: LeNetFC in ")
    assert "problem" not in said


def test_extras_that_are_missing_are_told_and_no_fault(call: Any, asks: Any) -> None:
    asks(
        *REQUIRED,
        'no-such-package>=2; extra == "one"',
        'bu2td[one]; extra == "two"',
        "numpy>=99 ; extra == 'two'",
        'other; extra == "dev"',
    )
    status, answer = doctor(call)
    assert (status, answer["problems"], answer["conversion"]["works"]) == (0, [], True)
    one, two = answer["extras"]  # what developers need is not asked for
    assert [p["name"] for p in one["packages"]] == ["no-such-package"]
    assert [(p["name"], p["found"] is None, p["fits"]) for p in two["packages"]] == [
        ("no-such-package", True, False),
        ("numpy", False, False),
    ]
    assert not one["complete"]
    assert not two["complete"]
    _, out, _ = call(main, "doctor")
    line = next(line for line in out.splitlines() if line.startswith("[two]"))
    assert "no-such-package is missing (wanted: >=2), numpy " in line
    assert "(wanted: >=99). Run: pip install 'bu2td[two]'" in line


@pytest.mark.parametrize(("line", "wanted"), [("numpy>=99", ">=99"), ("no-such-package>=2", ">=2")])
def test_a_required_package_that_is_old_or_missing_is_a_fault(call: Any, asks: Any, line: str, wanted: str) -> None:
    asks(line)
    status, answer = doctor(call)
    assert status == 1
    [problem] = answer["problems"]
    assert problem.startswith(line.partition(">")[0])
    assert f"(wanted: {wanted}). Run: pip install '{line}'" in problem


@pytest.mark.parametrize(
    ("found", "fits"), [("1.26", True), ("1.26.0", True), ("1.26.0rc1", True), ("2.0", True), ("1.3.9", False)]
)
def test_versions_are_compared_as_numbers(found: str, fits: bool) -> None:
    from bu2td.cli.doctor import Package

    assert Package("numpy", ">=1.26", found).fits == fits


def test_a_conversion_that_fails(call: Any, asks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asks(*REQUIRED)

    def broken(*args: Any, **options: Any) -> None:
        raise ValueError("two\nlines")

    monkeypatch.setattr(bu2td, "convert", broken)
    status, answer = doctor(call)
    assert status == 1
    assert answer["conversion"]["works"] is False
    assert "ValueError: two lines (" in answer["problems"][0]
    assert "test_doctor.py:" in answer["problems"][0]


def test_a_network_that_is_not_the_right_one(call: Any, asks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asks(*REQUIRED)
    monkeypatch.setattr(bu2td, "convert", lambda model, **options: baselines.lenet_fc())
    status, answer = doctor(call)
    assert status == 1
    assert "7,670 parameters (right: 14,452)" in answer["conversion"]["error"]


def test_a_broken_torch_is_a_line(tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise OSError('libcudart.so is not there')")
    path = os.pathsep.join([str(tmp_path), str(Path(bu2td.__file__).parents[1])])
    done = subprocess.run(
        [sys.executable, "-m", "bu2td", "doctor"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert "OSError: libcudart.so is not there" in done.stdout


def test_the_version_is_said_once(call: Any) -> None:
    status, out, _ = call(main, "--version")
    assert (status, out) == (0, f"bu2td {bu2td.__version__}\n")
