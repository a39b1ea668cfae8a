"""`bu2td.propose`: options of top-down networks below a budget, and what a training step is predicted to take."""

import json
from typing import Any

import pytest
import torch
from nets import Block, FlatResNet, head, unit
from torch import nn

import bu2td
from bu2td import budget as budgets
from bu2td.budget import RECOMPUTING
from bu2td.cli.program import main
from bu2td.errors import OptionError, PredictionError
from bu2td.measure import training_memory, training_step
from bu2td.measure.step import SPEED, Clock
from bu2td.models import baselines


def plain() -> nn.Module:
    return nn.Sequential(unit(3, 8), nn.MaxPool2d(2), unit(8, 16), nn.MaxPool2d(2), unit(16, 32), head(32))


def depthwise() -> nn.Module:
    def separable(inputs: int, outputs: int, stride: int) -> nn.Sequential:
        return nn.Sequential(unit(inputs, inputs, 3, stride, groups=inputs), unit(inputs, outputs, 1))

    return nn.Sequential(unit(3, 8, 3, 2), separable(8, 16, 1), separable(16, 32, 2), head(32))


#: Networks, their images, and a budget below which something but not everything stays.
MODELS: dict[str, tuple[Any, tuple[int, ...], float]] = {
    "lenet": (baselines.lenet_fc, (1, 28, 28), 2.0),
    "pre-activation": (lambda: FlatResNet((8, 16, 32), 1), (3, 32, 32), 1.2),
    "plain": (plain, (3, 32, 32), 3.0),
    "depthwise": (depthwise, (3, 32, 32), 4.0),
    "residual": (lambda: nn.Sequential(unit(3, 8), Block(8, 16, 2), Block(16, 24, 2), head(24)), (3, 24, 40), 2.0),
}


def proposed(name: str, budget: float, *arrangements: Any) -> tuple[bu2td.Analysis, Any]:
    build, shape, _ = MODELS[name]
    analysis = bu2td.analyze(build(), example_inputs=torch.zeros(1, *shape))
    return analysis, bu2td.propose(analysis, budget, arrangements or ("td",), batch_size=4)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_proposed_stays_below_the_budget_when_it_is_built(name: str) -> None:
    budget = MODELS[name][2]
    analysis, proposals = proposed(name, budget, "td")
    assert proposals.found
    assert proposals.closest is None
    shape = (4, *analysis.capture.image_shape[1:])
    before = training_step(analysis.capture.source, shape)
    whole = bu2td.convert(analysis, "td", device="meta", max_macs_ratio=None).plan.cost.macs
    for proposal in {proposals.found[0], proposals.found[-1]}:
        network = bu2td.convert(analysis, **proposal.options, device="meta", max_macs_ratio=None)
        keywords = RECOMPUTING[proposal.recomputing]
        network.set_grad_checkpointing(keywords is not None, **(keywords or {}))
        time = training_step(network, shape).seconds / before.seconds
        memory = training_memory(network, shape).peak / before.memory.peak
        assert (proposal.time, proposal.memory) == pytest.approx((time, memory))
        assert proposal.kept == pytest.approx(network.plan.cost.macs / whole)
        expected = {(True, True): "both", (True, False): "time", (False, True): "memory"}
        assert proposal.within == expected[time < budget, memory < budget]
    order = [(p.within != "both", -p.kept, p.time) for p in proposals.found]
    assert order == sorted(order)


def test_nothing_of_the_table_is_beaten_by_another_row() -> None:
    _, proposals = proposed("residual", 2.0, "td")
    points = [(-p.kept, p.time, p.memory) for p in proposals.found]
    assert len(points) > 3
    for point in points:
        assert not any(
            all(a <= b for a, b in zip(other, point, strict=True)) and other != point for other in points
        )


def test_a_wide_budget_takes_the_whole_network_and_a_narrow_one_names_the_closest() -> None:
    _, wide = proposed("plain", 1000.0)
    best = wide.found[0]
    assert (best.kept, best.finest_reduction, best.merge, best.recomputing) == (1.0, 1, "add_concat", "nothing")
    _, narrow = proposed("plain", 0.01)
    assert narrow.found == ()
    assert narrow.closest is not None
    assert narrow.closest.within == "none"
    assert "nothing stays below 0.01 times" in str(narrow)
    costs = [min(p.time, p.memory) for p in wide.found]
    assert min(narrow.closest.time, narrow.closest.memory) <= min(costs)


def test_a_budget_between_recomputing_and_storing_proposes_to_recompute() -> None:
    analysis, wide = proposed("residual", 1000.0)
    whole = wide.found[0]
    shape = (4, *analysis.capture.image_shape[1:])
    network = bu2td.convert(analysis, "td", device="meta")
    network.set_grad_checkpointing(inside=True)
    before = training_step(analysis.capture.source, shape).memory.peak
    budget = (training_memory(network, shape).peak / before + whole.memory) / 2
    best = bu2td.propose(analysis, budget, ["td"], batch_size=4).found
    whole_now = [p for p in best if p.kept == 1.0]
    assert [p.recomputing for p in whole_now] in (["inside"], ["levels"])
    assert whole_now[0].memory < budget < whole.memory
    assert whole_now[0].time > whole.time


def test_widths_are_tried_where_an_arrangement_has_one_and_lists_lose_their_fine_end() -> None:
    _, proposals = proposed("plain", 1.5, "uni")
    assert {p.width for p in proposals.found} == {None, 8}
    _, listed = proposed("plain", 3.0, (32, 16, 8))
    assert (32, 16) in {p.arrangement for p in listed.found}


def test_time_is_what_is_multiplied_moved_and_called() -> None:
    a, b = torch.empty(1000, 1000, device="meta"), torch.empty(2, 8, 32, 32, device="meta")
    dense, grouped = (torch.empty(16, 8 // g, 3, 3, device="meta") for g in (1, 4))
    for rate, kernel, groups in ((SPEED.dense, dense, 1), (SPEED.grouped, grouped, 4)):
        with Clock() as clock:
            assert a.view(-1).shape == (10**6,)
            torch.nn.functional.conv2d(b, kernel, padding=1, groups=groups)
        macs = 2 * 16 * 32 * 32 * 9 * 8 // groups
        moved = 4 * (2 * 8 * 1024 + kernel.numel() + 2 * 16 * 1024)
        assert clock.seconds == pytest.approx(macs / rate + moved / SPEED.bandwidth + SPEED.call)
    with Clock() as clock:
        a + a
    assert clock.seconds == pytest.approx(8e6 / SPEED.bandwidth + SPEED.call)


@pytest.mark.parametrize("budget", [0, -1.0, float("nan"), float("inf"), True, "2"])
def test_a_budget_that_is_none_is_refused(budget: Any) -> None:
    with pytest.raises(OptionError, match="positive number"):
        bu2td.propose(plain(), budget)


def test_without_a_network_to_propose_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionError, match="at least one of td"):
        bu2td.propose(plain(), 2.0, [])
    monkeypatch.setattr(budgets._Family, "_ways", lambda *args: iter(()))
    with pytest.raises(PredictionError, match="no training step of a top-down network"):
        bu2td.propose(plain(), 2.0, ["td"], example_inputs=torch.zeros(1, 3, 32, 32))


def test_a_network_without_a_training_step_on_meta_tensors_is_named() -> None:
    analysis = bu2td.analyze(plain(), example_inputs=torch.zeros(1, 3, 32, 32))
    analysis.capture.source.forward = lambda x: x.sum().item()  # type: ignore[method-assign,assignment]
    with pytest.raises(PredictionError, match="Sequential on images of"):
        bu2td.propose(analysis, 2.0)


def test_inspect_proposes(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["inspect", "bu2td:lenet_fc", "--arrangement", "td", "--budget", "2", "--batch-size", "4"]
    assert main([*words, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)["proposals"]
    assert (answer["budget"], answer["closest"]) == (2.0, None)
    assert all(min(row["time"], row["memory"]) < 2 for row in answer["found"])
    best = answer["found"][0]["options"]
    assert main(words) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    (title,) = [i for i, row in enumerate(rows) if row[:2] == ["arrangement", "width"]]
    assert rows[title + 1][:4] == ["td", str(best["finest_reduction"]), best["merge"], str(best["merge_kernel"])]
    assert main(["inspect", "bu2td:lenet_fc", "--budget", "0"]) == 2
    assert "OptionError: budget=0.0 must be a positive number" in capsys.readouterr().err
