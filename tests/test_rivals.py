"""The hand-written rivals of the speed bench compute what converted networks compute; the bench's arithmetic."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import bu2td

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
import rivals
import roofline
import speed

pytest.importorskip("timm")
LIGHT = ("lenet_fc", "nin_light", "resnet32")


def images_of(name: str, count: int = 2) -> Tensor:
    return torch.rand(count, *rivals.PAIRS[name].shape, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("name", rivals.PAIRS)
def test_rivals_have_the_networks_parameters(name: str) -> None:
    pair = rivals.PAIRS[name]
    with torch.device("meta"):
        rival = pair.rival()
    given, wanted = ([tuple(p.shape) for p in model.parameters()] for model in (pair.convert(device="meta"), rival))
    assert sorted(given) == sorted(wanted)


@pytest.mark.parametrize(
    "name", [*LIGHT, "nin", *(pytest.param(n, marks=pytest.mark.slow) for n in list(rivals.PAIRS)[4:])]
)
def test_rivals_compute_the_same(name: str) -> None:
    network, rival = rivals.build(name)
    images = images_of(name)
    assert rivals.check(network, rival, images) < 1e-5
    with torch.no_grad():
        one, two = rival.eval()(images)
    assert float((one - two).abs().max()) > 1e-3 * float(one.abs().max())  # it sees the image


@pytest.mark.parametrize("name", LIGHT)
def test_a_prepared_rival_computes_what_the_reference_computes(name: str) -> None:
    images = images_of(name)
    rival, reference = rivals.PAIRS[name].rival().eval(), rivals.paper.build(name, "td").eval()
    rivals.fill(rival)
    rivals.fill(reference)
    with torch.no_grad():
        torch.testing.assert_close(rival(images), reference(images))
    with pytest.raises(RuntimeError):
        rival(images[..., :-4])


@pytest.mark.parametrize("name", ["lenet_fc", "resnet32"])
def test_rivals_train_the_same(name: str) -> None:
    network, rival = (model.double().train() for model in rivals.build(name))
    rivals.prepared(rival, rivals.PAIRS[name].shape, torch.float64)
    images = images_of(name, 4).double()
    losses = [model(images).square().mean() for model in (network, rival)]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-9)
    for loss in losses:
        loss.backward()
    total = [sum(float(p.grad.square().sum()) for p in side.parameters()) for side in (network, rival)]  # type: ignore[union-attr]
    assert total[0] == pytest.approx(total[1], rel=1e-3)


@pytest.mark.parametrize(
    ("name", "fault"), [(name, fault) for name in LIGHT for fault in rivals.paper.mutants(name, "td")]
)
def test_the_check_notices_faults(name: str, fault: str) -> None:
    said = "does not have the parameters" if fault == "merge_before_block" else "the rival differs by"
    with pytest.raises(ValueError, match=said):
        rivals.build(name, fault)


# --- timing -------------------------------------------------------------------------------------------


def test_arms_take_turns() -> None:
    orders = list(speed.turns(["a", "b", "c"], 6))
    assert all(sorted(order) == ["a", "b", "c"] for order in orders)
    assert {order[0] for order in orders} == {"a", "b", "c"}


@pytest.mark.parametrize("task", speed.TASKS)
def test_every_arm_runs_and_is_timed(task: str) -> None:
    settings = speed.Settings(1, torch.device("cpu"), 1)
    rows = speed.speed_rows("lenet_fc", task, "eager", settings)
    assert [row["rival"] for row in rows] == ["as written", "channels_last", "converted"]
    for row in rows:
        assert row["slowest"] <= row["speedup"] <= row["fastest"]
        assert row["speedup"] == pytest.approx(row["rival_ms"] / row["ours_ms"], rel=0.02)


def test_arms_that_differ_are_refused() -> None:
    results = {"as written": torch.ones(3), speed.OURS: torch.tensor([1.0, 1.0, 1.1])}
    with pytest.raises(SystemExit, match="optimised differs"):
        speed._agree(results, 1e-4, "here")
    speed._agree({**results, speed.OURS: torch.ones(3)}, 1e-4, "here")
    with pytest.raises(SystemExit, match="differs"):
        speed._agree({**results, speed.OURS: torch.full((3,), torch.nan)}, 1e-4, "here")


def test_summary_is_the_geometric_mean() -> None:
    shared = {"task": "inference", "kind": "eager", "rival": "as written"}
    rows = [{**shared, "network": n, "speedup": s} for n, s in (("a", 2.0), ("b", 0.5), ("c", 8.0))]
    found = speed.summary([*rows, {"kind": "roofline"}])["speedups"]
    assert found == [{**shared, "networks": 3, "geometric_mean": 2.0, "smallest": 0.5, "of": "b"}]


def test_roofline_counts_every_level() -> None:
    """Multiply-accumulates per level are the plan's; what is left is what the optimisation reports."""
    settings = speed.Settings(1, torch.device("cpu"), 1)
    network = rivals.PAIRS["resnet32"].convert().eval()
    ours = bu2td.optimize(network, "inference", rules={"winograd": "always", "upsample_conv": "always"})
    rows = {row["level"]: row for row in roofline.levels(network, ours, images_of("resnet32"), settings.seconds, 1)}
    assert list(rows) == ["pyramid", "r4", "r2", "r1", "head"]
    saved: dict[str, float] = {}
    for rewrite in ours.optimization.made:
        level = rewrite.site.split(".")[0].split("_")[0]
        saved[level] = saved.get(level, 0) + (rewrite.macs[0] - rewrite.macs[1]) / 1e6
    assert saved["r1"] > 0
    for level in network.plan.levels:
        row = rows[level.name]
        assert row["MMACs"] == pytest.approx(level.cost.macs / 1e6, rel=0.01)
        assert row["MMACs"] - row["MMACs_left"] == pytest.approx(saved[level.name], rel=0.02, abs=0.02)
        assert row["share"] == pytest.approx(row["plain_convs_ms"] / row["level_ms"], rel=0.05)


def test_results_are_kept_and_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    out = tmp_path / "speed"
    words = ["speed.py", "--match", "lenet_fc", "--repeat", "1", "--out", str(out), "--kinds", "eager", "--tasks"]
    before = torch.get_num_threads()
    try:
        monkeypatch.setattr(sys, "argv", [*words, "inference"])
        speed.main()
        ran: list[str] = []

        def note(name: str, task: str, kind: str, settings: Any) -> list[Any]:
            ran.append(task)
            return []

        monkeypatch.setattr(speed, "run", note)
        monkeypatch.setattr(sys, "argv", [*words, "inference", "training"])
        speed.main()
    finally:
        torch.set_num_threads(before)
    assert ran == ["training"]
    kept = json.loads(out.with_suffix(".json").read_text())
    assert {"device", "threads", "packages", "torch", "speedups"} <= set(kept["about"])
    assert len(kept["rows"]) == 3
    assert len(out.with_suffix(".csv").read_text().splitlines()) == 4
    assert "geometric_mean" in capsys.readouterr().out
