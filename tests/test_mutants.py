"""The faults that the tests are tried with: which there are, and that each is a fault where it says so."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).parents[1] / "bench"
CODE = '''"""A doc of 1."""
def rate(count: int = 3) -> float:
    if count > 2:
        raise ValueError(f"{count + 1}")
    return divmod(count, 7)[0]
'''


@pytest.fixture
def mutants(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(BENCH))
    import mutants

    monkeypatch.setattr(mutants, "ROOT", tmp_path)
    yield mutants
    sys.modules.pop("mutants")


def test_every_fault_is_one_change_of_the_code(mutants: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "rate.py"
    file.write_text(CODE)
    found = {(fault.kind, fault.before, fault.after) for fault in mutants.faults_of(file)}
    assert found == {
        ("constant", "3", "4"),
        ("constant", "2", "3"),
        ("constant", "7", "8"),
        ("constant", "0", "1"),
        ("operator", "count > 2", "(count >= 2)"),
        ("branch", "count > 2", "False"),
        ("arguments", "divmod(count, 7)", "divmod(7, count)"),
    }
    for fault in mutants.faults_of(file):
        assert fault.text == CODE.replace(fault.before, fault.after, 1)
        assert fault.text.count("\n") == CODE.count("\n")
        assert fault.text != CODE
        assert fault.file == "rate.py"


def test_faults_are_the_same_every_time_and_the_packages_take_turns(mutants: ModuleType, tmp_path: Path) -> None:
    for package in ("bu2td/one", "bu2td/two", "converters"):
        (tmp_path / package).mkdir(parents=True)
        (tmp_path / package / "rate.py").write_text(CODE)
    first = mutants.drawn(12, 0)
    assert first == mutants.drawn(12, 0)
    assert first != mutants.drawn(12, 1)
    assert len({(fault.file, fault.before, fault.after) for fault in first}) == 12
    assert {len({fault.file for fault in first[at : at + 3]}) for at in range(0, 12, 3)} == {3}


def test_what_the_tests_notice_is_told_from_what_they_do_not(mutants: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "bu2td").mkdir()
    (tmp_path / "bu2td" / "__init__.py").touch()  # else an installed bu2td is imported instead
    (tmp_path / "bu2td" / "rate.py").write_text(CODE)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_rate.py").write_text(
        "from bu2td.rate import rate\n\n\ndef test_rate():\n    assert rate(2) == 0\n"
    )
    faults = {fault.after: fault for fault in mutants.faults_of(tmp_path / "bu2td" / "rate.py")}
    assert mutants.tests_of("bu2td/rate.py") == ["tests/test_rate.py"]
    caught = mutants.faced(faults["(count >= 2)"], ["tests/test_rate.py"], 1)
    assert caught == "tests/test_rate.py::test_rate"
    assert mutants.faced(faults["8"], ["tests/test_rate.py"], 1) == ""
