"""What a run is said to cost: nothing is written, what is there is not counted, and the numbers are about right."""

import dataclasses
import time
from pathlib import Path

import pytest
from tiny_run import FEW, REST, words

from bu2td.evaluate.command import main
from bu2td.evaluate.cost import Estimate, estimated
from bu2td.evaluate.data.sets import load_data
from bu2td.evaluate.rates import WORKS, Rate, measured_rates, predict
from bu2td.evaluate.robustness.masking import FACTOR
from bu2td.evaluate.robustness.registry import ATTACKS
from bu2td.evaluate.run import EXPERIMENTS, find_stage
from bu2td.evaluate.settings import read_settings

pytest.importorskip("foolbox")


def test_a_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["all", *words(tmp_path, *FEW, *REST), "-o", str(tmp_path / "out"), "--dry-run"]
    assert main(line) == 0
    out = capsys.readouterr().out
    for word in ("train", "fgsm", "contrast-reduction", "explain", "total", "4 epochs", "12 images", "rough"):
        assert word in out
    assert {path.name for path in tmp_path.iterdir()} == {"net.py"}


def test_what_is_done_costs_nothing(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in copied.rglob("*")}
    line = ["all", "-o", str(copied), "--resume", "--dry-run", "--attack", "shifts"]
    assert main(line) == 0
    out = capsys.readouterr().out
    assert "shifts" in out
    assert "fgsm" not in out
    assert "training" not in out
    assert {path: path.stat().st_mtime_ns for path in copied.rglob("*")} == before


def test_a_preset_says_what_it_costs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["train", "--preset", "quick", *words(tmp_path), "--epochs", "1", "--repeats", "1", "-o"]
    assert main([*line, str(tmp_path / "a")]) == 0
    assert "estimated cost" in capsys.readouterr().err
    assert main([*line, str(tmp_path / "b"), "--no-estimate"]) == 0
    assert "estimated cost" not in capsys.readouterr().err
    first, second = (tmp_path / run / "runs" / "td-0" / "log.csv" for run in "ab")
    accuracies = [[row.split(",")[2:6] for row in log.read_text().splitlines()] for log in (first, second)]
    assert accuracies[0] == accuracies[1]  # looking at the cost changes no number


@pytest.mark.slow
def test_the_estimate_is_about_right(tmp_path: Path) -> None:
    from bu2td.evaluate import evaluate

    (tmp_path / "unused").mkdir()
    words(tmp_path)
    values = {"model": f"{tmp_path / 'net.py'}:net", "input_size": [1, 24, 24], "arrangements": ["bu", "td"],
              "repeats": 2, "epochs": 4, "attacks": ["pgd", "salt-and-pepper", "gaussian-blur"],
              "attack_samples": 40, "attack_repeats": 2, "explain_samples": 100, "corruption_samples": 100,
              "device": "cpu"}  # fmt: skip
    settings = read_settings(flags=values)
    data = load_data("digits", input_size=(1, 24, 24))
    stages = {"train": None, **{name: find_stage(name) for name in EXPERIMENTS}}
    said = estimated(settings, data, stages, tmp_path / "unused").seconds
    begin = time.perf_counter()
    evaluate("all", settings, tmp_path / "out")
    took = time.perf_counter() - begin
    assert took / 3 < said < took * 3


def _estimated(folder: Path, *stages: str, **values: object) -> Estimate:
    words(folder)
    flags = {"model": f"{folder / 'net.py'}:net", "input_size": [1, 24, 24], "arrangements": ["bu", "td"],
             "repeats": 2, "epochs": 1, "device": "cpu", **values}  # fmt: skip
    data = load_data("digits", input_size=(1, 24, 24))
    unused = folder / "unused"
    unused.mkdir(exist_ok=True)
    return estimated(read_settings(flags=flags), data, {name: find_stage(name) for name in stages}, unused)


def test_images_are_counted_once(tmp_path: Path) -> None:
    """A stage that cuts its images into parts counts the images of each, not all of them again."""
    found = _estimated(tmp_path, "explain", "corruptions", explain_samples=0, corruption_samples=120)
    images = {(p.stage, p.network, p.what): p.units for p in found.pieces}
    assert images["explain", "bu", "all"] == images["explain", "td", "all"] == 2 * 299
    assert images["corruptions", "td", "contrast"] == 2 * 120


def test_attacks_cost_what_they_ask(tmp_path: Path) -> None:
    attacks = ["contrast-reduction", "salt-and-pepper", "ddn"]
    values = {"attacks": attacks, "attack_samples": 20, "attack_repeats": 3, "attack_runs": 2}
    each = {}
    for budget in ("quick", "full"):
        found = _estimated(tmp_path, "robustness", attack_budget=budget, **values)
        each[budget] = {p.what: p for p in found.pieces if p.network == "bu"}
        assert {p.what for p in found.pieces if p.network == "td"} == {*each[budget], "branches"}
    assert {p.units for p in each["quick"].values()} == {40}
    for pieces, index in ((each["quick"], 0), (each["full"], 1)):
        runs = 3 * ATTACKS["salt-and-pepper"].asks[index] / ATTACKS["contrast-reduction"].asks[index]
        assert pieces["salt-and-pepper"].each == pytest.approx(runs * pieces["contrast-reduction"].each)
        assert pieces["more-steps-ddn"].each == pytest.approx(FACTOR * pieces["ddn"].each)


def test_every_attack_says_how_often_it_asks() -> None:
    for attack in ATTACKS.values():
        quick, full = attack.asks
        assert 0 < quick <= full


def test_rates_scale_with_what_is_left_of_the_size() -> None:
    small = Rate("a", "x", "bu", "inference", 8, 1_000, 1e-3, "2")
    large = dataclasses.replace(small, macs=1_000_000, seconds=0.1)
    other = dataclasses.replace(small, work="training", seconds=5.0)
    rates = (small, large, other)
    assert predict(rates, "inference", 1_000) == 1e-3
    assert predict(rates, "inference", 2_000) == pytest.approx(2e-3)
    assert predict(rates, "inference", 2_000_000) == pytest.approx(0.2)
    assert predict(rates, "training", 500) == pytest.approx(2.5)


def test_measured_rates_are_whole() -> None:
    """Each device has both works of both networks of the same architectures, and training costs more."""
    for device, rates in measured_rates().items():
        found = {(r.network, r.arrangement, r.work): r for r in rates}
        networks = {(r.network, r.arrangement) for r in rates}
        assert len(found) == len(rates) == len(WORKS) * len(networks), device
        assert {a for _, a in networks} == {"bu", "td"}
        for network in networks:
            assert found[(*network, "training")].seconds > found[(*network, "inference")].seconds > 0
            assert found[(*network, "training")].macs == found[(*network, "inference")].macs


def test_another_device_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rate = Rate("cuda (Some GPU)", "x", "bu", "inference", 8, 1_000, 1e-9, "2")
    rates = {"cuda (Some GPU)": (rate, dataclasses.replace(rate, work="training"))}
    monkeypatch.setattr("bu2td.evaluate.cost.measured_rates", lambda: rates)
    found = _estimated(tmp_path, "corruptions", corruption_samples=20)
    ((device, seconds),) = found.others
    assert device == "cuda (Some GPU)"
    assert 0 < seconds < found.seconds
    assert "by rates measured there" in found.notes[1]
