"""A run grows: what is added stands beside what was there, and the folder alone says how to go on."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from tiny_run import FEW, record, rows, tables, words

for package in ("foolbox", "lightning_fabric", "yaml", "matplotlib", "torchvision"):
    pytest.importorskip(package)

from bu2td.evaluate import Settings, read_settings
from bu2td.evaluate.command import main
from bu2td.evaluate.settings import grown


def _run(stage: str, folder: Path, *more: str) -> None:
    assert main([stage, "-o", str(folder), *more]) == 0


def _keep(before: Sequence[dict[str, str]], after: Sequence[dict[str, str]], but: Sequence[str] = ()) -> None:
    """Every row that was there is there, with the same numbers."""

    def plain(row: dict[str, str]) -> tuple[tuple[str, str], ...]:
        return tuple((k, v) for k, v in row.items() if k not in but)

    assert {plain(row) for row in before} <= {plain(row) for row in after}


# --- what is added ------------------------------------------------------------------------------------


def test_another_attack_adds_to_those_that_are_there(copied: Path) -> None:
    before = tables(copied)
    _run("robustness", copied, "--attack", "shifts")
    after = tables(copied)
    assert {r["attack"] for r in after["robustness.csv"]} >= {"fgsm", "contrast-reduction", "shifts"}
    for table, but in (("distances.csv", ()), ("robustness.csv", ("auc", "limit"))):  # the limit is that of all
        single = [row for row in before[table] if not row["attack"].startswith("strongest")]
        _keep(single, after[table], but=but)
    assert set(record(copied)["settings"]["attacks"]) == {"fgsm", "contrast-reduction", "shifts"}
    assert [call["stage"] for call in record(copied)["calls"]] == ["all", "robustness"]
    assert record(copied)["calls"][1]["settings"]["attacks"] == ["shifts"]


def test_one_attack_again_loses_none(copied: Path) -> None:
    before = {path.name: path.read_bytes() for path in copied.glob("*.csv")}
    _run("robustness", copied, "--attack", "fgsm")
    _run("robustness", copied, "--attack", "fgsm", "--attack-samples", "4", "--attack-arrangements", "td")
    assert {path.name: path.read_bytes() for path in copied.glob("*.csv")} == before
    assert record(copied)["settings"]["attack_samples"] == 6
    assert record(copied)["settings"]["attack_arrangements"] == ["bu", "td"]


def test_more_attacked_images(copied: Path) -> None:
    before = tables(copied)
    _run("robustness", copied, "--attack-samples", "9")
    after = tables(copied)
    assert {r["samples"] for r in after["robustness.csv"]} == {"9"}
    names = ("arrangement", "repeat", "attack", "image")
    old = {tuple(r[n] for n in names) for r in before["distances.csv"]}
    assert old < {tuple(r[n] for n in names) for r in after["distances.csv"]}
    whole = copied.parent / "whole"
    _run("train", whole, *words(copied.parent))
    _run("robustness", whole, *FEW, "--attack-samples", "9")
    assert after["distances.csv"] == tables(whole)["distances.csv"]  # as if they had been asked for at once


def test_more_networks(copied: Path) -> None:
    before = tables(copied)
    _run("train", copied, "--resume", "--arrangements", "uni")
    after = tables(copied)
    _keep(before["accuracy.csv"], after["accuracy.csv"])
    assert {(r["arrangement"], r["repeat"]) for r in after["accuracy.csv"]} == {
        (a, k) for a in ("bu", "td", "uni") for k in "01"
    }
    settings = record(copied)["settings"]
    assert (settings["arrangements"], settings["repeats"]) == (["bu", "td", "uni"], 2)
    _run("train", copied, "--resume", "--repeats", "3", "--arrangement", "bu")
    assert record(copied)["settings"]["repeats"] == 3
    assert not (copied / "runs" / "td-2").exists()  # only what was asked for
    _run("all", copied, "--resume")
    assert len(rows(copied / "accuracy.csv")) == 9
    corrupted = {(r["arrangement"], r["repeat"]) for r in rows(copied / "corruptions.csv")}
    assert len(corrupted) == 9
    _keep(before["corruptions.csv"], tables(copied)["corruptions.csv"])
    _keep(before["localisation.csv"], tables(copied)["localisation.csv"])


def test_what_was_never_asked_for_does_not_count(tmp_path: Path) -> None:
    _run("train", tmp_path / "out", *words(tmp_path), "--arrangement", "bu", "--epochs", "1", "--repeats", "1")
    _run("robustness", tmp_path / "out", *FEW, "--attack-arrangements", "bu")
    settings = record(tmp_path / "out")["settings"]
    assert settings["attacks"] == ["fgsm", "contrast-reduction"]  # not the defaults, which train has noted
    _run("robustness", tmp_path / "out", "--resume")
    assert {r["attack"] for r in rows(tmp_path / "out" / "robustness.csv")} >= {"fgsm", "contrast-reduction"}


def test_settings_add_up() -> None:
    stored = read_settings(flags={"attacks": ["fgsm"], "attack_samples": 50, "attack_budget": "full"})
    asked = read_settings(
        flags={"attacks": ["ddn" if "ddn" in _attacks() else "pgd"], "attack_samples": 10, "arrangements": ["td"]}
    )
    first = grown(stored, asked, "robustness", ["train"])
    assert (first.attacks, first.attack_samples, first.attack_budget) == (asked.attacks, 10, "quick")
    second = grown(stored, asked, "robustness", ["train", "robustness"])
    assert (second.attacks, second.attack_samples) == (("fgsm", *asked.attacks), 50)
    assert second.arrangements == Settings().arrangements
    every = read_settings(flags={"attack_samples": "all"})
    assert every.attack_samples == 0
    assert grown(stored, every, "all", ["all"]).attack_samples == 0
    assert grown(every, stored, "all", ["all"]).attack_samples == 0


def _attacks() -> Sequence[str]:
    from bu2td.evaluate import ATTACKS

    return tuple(ATTACKS)


def test_the_order_of_networks_is_nobodys_choice() -> None:
    settings = read_settings(flags={"arrangements": ["rev", "bu"], "attack_arrangements": "td,bu"})
    assert settings.arrangements == ("bu", "rev")
    assert settings.attack_arrangements == ("bu", "td")


# --- the folder alone ---------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["all", "train", "robustness", "corruptions", "explain"])
def test_resuming_needs_the_folder_only(copied: Path, stage: str) -> None:
    before = tables(copied)
    for path in copied.glob("*.csv"):
        path.unlink()
    (copied / "runs" / "td-1" / "result.json").unlink()
    (copied / "runs" / "td-1" / "checkpoint.pt").unlink()
    if stage != "all":
        _run("train", copied, "--resume")
        assert tables(copied)["accuracy.csv"] == before["accuracy.csv"]
    _run(stage, copied, "--resume")
    after = tables(copied)
    for name in after:
        assert after[name] == before[name]
    assert stage != "all" or after.keys() == before.keys()


def test_a_search_is_resumed_and_grows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "s"
    base = [*words(tmp_path), "--arrangement", "bu", "--epochs", "1", "--repeats", "1"]
    _run("search", place, *base, "--lr", "0.01,0.1")
    before = rows(place / "search.csv")
    _run("search", place, "--resume")
    assert rows(place / "search.csv") == before
    _run("search", place, "--resume", "--lr", "0.05", "0.2")
    assert [float(r["lr"]) for r in rows(place / "search.csv")] == [0.01, 0.1, 0.05, 0.2]
    assert record(place)["grid"] == {"lr": [0.01, 0.1, 0.05, 0.2]}
    capsys.readouterr()
    assert main(["search", "-o", str(place), "--lr", "0.1", "0.2"]) == 2
    assert "already holds a run" in capsys.readouterr().err


def test_there_must_be_something_to_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for stage in ("all", "train", "search", "robustness", "corruptions", "explain"):
        assert main([stage, "-o", str(tmp_path / "none"), "--resume"]) == 2
        assert "holds no run" in capsys.readouterr().err
        assert not (tmp_path / "none").exists()


def test_a_loop_may_always_say_resume(tmp_path: Path) -> None:
    base = ["--resume", *words(tmp_path), "--epochs", "1", "--repeats", "1", "--arrangement", "bu"]
    _run("train", tmp_path / "out", *base)
    stamp = (tmp_path / "out" / "runs" / "bu-0" / "checkpoint.pt").stat().st_mtime_ns
    _run("train", tmp_path / "out", *base)
    assert (tmp_path / "out" / "runs" / "bu-0" / "checkpoint.pt").stat().st_mtime_ns == stamp


def test_flags_of_the_machine_may_change(copied: Path) -> None:
    _run("train", copied, "--resume", "--workers", "1", "--device", "cpu")
    assert record(copied)["settings"]["workers"] == 1
