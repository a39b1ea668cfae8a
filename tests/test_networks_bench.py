"""The bench over 24 families: its jobs, its rows, the plot of what they cost."""

import statistics
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
import cost
import networks
import speed

SETTINGS = speed.Settings(3, torch.device("cpu"), 1)


def test_there_are_24_families_and_a_job_for_each_of_their_cases() -> None:
    assert len(networks.FAMILIES) == 24
    assert {*networks.QUICK, *networks.COMPILED} <= {*networks.FAMILIES}
    jobs = networks.jobs(networks.FAMILIES, speed.TASKS, networks.BATCHES["cpu"])
    assert len({*jobs}) == len(jobs) == 24 * 2 * 3 + 6 * 2
    assert {job[3] for job in jobs} == {"1", "8", "32"}


def test_a_row_is_against_the_better_of_both_forms() -> None:
    (row,) = networks.run("lenet_fc", "inference", "eager", "1", settings=SETTINGS, tune=None)
    times = {arm: row[f"{arm}_ms"] for arm in networks.BEFORE}
    assert row["better"] == min(times, key=lambda arm: times[arm])
    assert row["slowest"] <= row["speedup"] <= row["fastest"]
    assert row["difference"] <= networks.TOLERANCE
    rows = [{**row, "speedup": value} for value in (0.5, 0.98, 2.0)]
    (found,) = networks.summary([*rows, {"task": "training", "kind": "eager", "note": "none"}])["speedups"]
    assert (found["cases"], found["smallest"], found["below_0.97"]) == (3, 0.5, 1)
    assert found["geometric_mean"] == pytest.approx(statistics.geometric_mean([0.5, 0.98, 2.0]), abs=1e-3)


def test_arms_that_differ_are_not_timed() -> None:
    same = {"converted": torch.ones(3), speed.OURS: torch.ones(3)}
    assert networks.difference(same) == 0
    assert networks.difference({**same, "channels_last": torch.tensor([1, 1, 1.5])}) == 0.5


def test_what_it_costs_is_a_ratio_to_the_bottom_up_network(tmp_path: Path, monkeypatch: Any) -> None:
    pytest.importorskip("matplotlib")
    rows = [row for task in speed.TASKS for row in cost.run("lenet_fc", task, SETTINGS, 2)]
    inference, training = rows
    assert "recomputing_time" not in inference
    assert training["recomputing_memory"] <= training["optimised_memory"] <= training["converted_memory"]
    assert all(row["converted_time"] > 1 for row in rows)
    means = {row["task"]: row for row in cost.summary(rows)["means"]}
    assert means["training"]["converted_memory"] == pytest.approx(training["converted_memory"], abs=0.01)
    import plots

    lines = [line for axes in plots.cost(rows).axes for line in axes.lines if line.get_label() == "converted"]
    assert [line.get_xdata()[0] for line in lines] == [
        row[f"converted_{what}"] for row in (training, inference) for what in ("time", "memory")
    ]
