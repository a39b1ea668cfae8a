"""A sample of `bench/reliability.py`: damaged files, odd options, many conversions, equal numbers."""

import multiprocessing
from collections import Counter
from typing import Any

import burden
import damage
import fuzz
import numerics
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

# --- files --------------------------------------------------------------------------------------------

#: How many damaged files of each kind are read.
NETWORKS, OTHERS = 12, 15


@pytest.fixture(scope="module")
def outcomes() -> list[dict[str, Any]]:
    pytest.importorskip("safetensors")
    pytest.importorskip("yaml")
    pytest.importorskip("pandas")
    pytest.importorskip("PIL")
    counts = {name: NETWORKS if name in damage.NETWORKS else OTHERS for name in damage.SUBJECTS}
    return damage.run([f"{name}:0:{count}" for name, count in counts.items()])


def test_damaged_files_are_refused_in_one_line_and_run_no_code(outcomes: list[dict[str, Any]]) -> None:
    assert {row["subject"] for row in outcomes} == set(damage.SUBJECTS)
    assert [(row, faults) for row in outcomes if (faults := damage.faults(row))] == []
    kinds = Counter(row["outcome"] for row in outcomes)
    assert kinds["refused"] > 0.5 * len(outcomes)  # what is read as it was is not damaged enough to say anything
    assert kinds["equal"] + kinds["read"] > 0


def test_what_watches_the_readers_notices() -> None:
    """Code in a pickle, a file that is written, memory that is not there, an error of Python."""
    row = {"fault": "", "calls": [], "asked": False, "mib": 0, "seconds": 0.1}
    assert damage.faults(row) == []
    for odd in (
        {"fault": "raises KeyError"},
        {"calls": ["os.system"]},
        {"asked": True},
        {"mib": 5000},
        {"seconds": 99},
    ):
        assert len(damage.faults({**row, **odd})) == 1


# --- options ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", fuzz.CALLS)
def test_options_are_refused_by_bu2td_or_make_what_verifies(call: str) -> None:
    @settings(
        max_examples=200 if call == "evaluate" else 25,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(st.randoms(use_true_random=False))
    def check(rng: Any) -> None:
        fuzz.outcome(call, fuzz.drawn(call, rng))

    check()


def test_a_success_with_all_options_verifies_in_full() -> None:
    options: dict[str, Any] = {
        "arrangement": "uni",
        "stem": "coarse",
        "width": 7,
        "merge": "concat",
        "merge_kernel": 5,
    }
    options |= {"upsample": "transpose", "pyramid": "max_blur", "seed": 2**63 - 1, "sigma": 3.0}
    assert fuzz.outcome("convert on the CPU", options, full=True) == "accepted"


# --- load ---------------------------------------------------------------------------------------------


def test_memory_and_open_files_stay_flat() -> None:
    grown = burden.memory(24, 8)
    assert grown["memory"] <= 1.05
    assert grown["open files"] <= 1.05


def test_threads_make_the_same_networks_and_disturb_nobody() -> None:
    assert burden.threads(8) == []


def test_nothing_that_a_process_shares_is_changed() -> None:
    assert burden.state(0) == []


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_child_processes_make_the_same_network(method: str) -> None:
    context = multiprocessing.get_context(method)
    found = context.Queue()
    burden.put_digest(found, 0)
    child = context.Process(target=burden.put_digest, args=(found, 0))
    child.start()
    assert found.get(timeout=300) == found.get(timeout=300)
    child.join()


# --- numbers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", numerics.FORMS)
def test_forms_of_a_network_have_its_numbers(form: str) -> None:
    found = numerics.compare(form, ("residual td",), numerics.SHAPES[1:4])
    assert {key: value for key, value in found.items() if not value <= numerics.TOLERANCE[key[0]]} == {}


def test_other_processes_make_the_same_network() -> None:
    found = numerics.processes((2,))
    assert {key: value for key, value in found.items() if not value <= numerics.TOLERANCE[torch.float32]} == {}
