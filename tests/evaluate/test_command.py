"""``bu2td evaluate`` as it is typed: a whole evaluation of tiny size, resumption, refusals, errors in one line."""

import json
import shutil
from pathlib import Path

import pytest
from tiny_run import FEW, REST, SMALL, tables
from tiny_run import rows as _rows

for package in ("foolbox", "lightning_fabric", "yaml", "matplotlib", "torchvision"):
    pytest.importorskip(package)

from bu2td import cli
from bu2td.evaluate import Settings, evaluate
from bu2td.evaluate.command import main
from bu2td.evaluate.folder import move_aside
from bu2td.evaluate.run import EXPERIMENTS


@pytest.fixture
def model(finished: Path) -> str:
    return f"{finished.parent / 'net.py'}:net"


# --- what a run leaves --------------------------------------------------------------------------------


def test_everything_is_written(finished: Path) -> None:
    tables = {"accuracy", "robustness", "curves", "branches", "corruptions", "localisation", "faithfulness"}
    assert {p.stem for p in finished.glob("*.csv")} >= tables
    pairs = {("bu", "0"), ("bu", "1"), ("td", "0"), ("td", "1")}
    for name in tables - {"branches"}:
        assert {(r["arrangement"], r["repeat"]) for r in _rows(finished / f"{name}.csv")} == pairs
    assert {r["arrangement"] for r in _rows(finished / "branches.csv")} == {"td"}
    for name in ("report.html", "report.md", "report.json", "explanations.npz", "figures/accuracy.png"):
        assert (finished / name).stat().st_size > 0
    accuracies = [float(r["test_accuracy"]) for r in _rows(finished / "accuracy.csv")]
    assert min(accuracies) > 0.2  # ten classes


def test_the_record_says_how(finished: Path) -> None:
    record = json.loads((finished / "run.json").read_text())
    assert record["settings"]["epochs"] == 2
    assert record["data"]["shape"] == [1, 16, 16]
    assert record["data"]["train"] + record["data"]["validation"] + record["data"]["test"] == 1797
    assert set(record["seconds"]) == {"train", *EXPERIMENTS}
    assert record["versions"]["torch"]
    assert {a["name"] for a in record["attacks"]} == {"fgsm", "contrast-reduction"}
    assert [(c["stage"], c["settings"]["attack_samples"]) for c in record["calls"]] == [("all", 6)]


def test_the_ends_of_curves_and_branches_agree(finished: Path) -> None:
    curves, table = _rows(finished / "curves.csv"), _rows(finished / "robustness.csv")
    clean = {(r["arrangement"], r["repeat"], r["attack"]): float(r["clean_accuracy"]) for r in table}
    starts = {
        (r["arrangement"], r["repeat"], r["attack"]): float(r["accuracy"]) for r in curves if float(r["l2"]) == 0
    }
    assert starts == pytest.approx(clean)
    for row in _rows(finished / "branches.csv"):
        if row["inputs"] == "none":
            assert float(row["accuracy"]) == 1  # of images that the attack fools, and that are right without it
    corrupted = [r for r in _rows(finished / "corruptions.csv") if r["severity"] == "0"]
    assert len({(r["arrangement"], r["repeat"], r["accuracy"]) for r in corrupted}) == 4


# --- going on, and refusing ---------------------------------------------------------------------------


def test_a_finished_run_stays_as_it_is(copied: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in copied.rglob("*.pt")}
    words = ["all", "--model", model, "--arrangement", "bu", "td", "-o", str(copied), *SMALL, *FEW, *REST]
    assert main(words) == 2
    assert "already holds a run: --resume goes on with it" in capsys.readouterr().err
    tables = {p.name: p.read_text() for p in copied.glob("*.csv")}
    assert main([*words, "--resume", "--json"]) == 0
    assert "test accuracy" in json.dumps(json.loads(capsys.readouterr().out)["tables"])
    assert {p.name: p.read_text() for p in copied.glob("*.csv")} == tables
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in copied.rglob("*.pt")} == before


def test_a_lost_part_is_made_again(copied: Path, model: str) -> None:
    before, expected = tables(copied), {p.name: p.read_text() for p in copied.glob("*.csv")}
    shutil.rmtree(copied / "runs" / "bu-1")
    attacked = sorted((copied / "parts" / "robustness" / "td-0").glob("*.npz"))
    attacked[0].unlink()
    attacked[1].write_bytes(attacked[1].read_bytes()[:50])
    assert main(["all", "-o", str(copied), "--resume"]) == 0
    for name, text in expected.items():
        if name == "accuracy.csv":  # times and memory are measured again
            assert tables(copied)[name] == before[name]
        else:
            assert (copied / name).read_text() == text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--lr", "0.2"], "lr was 0.1, is 0.2"),
        (["--data", "digits-padded"], "data was 'digits', is 'digits-padded'"),
        (["--input-size", "1", "20", "20"], "input_size was [1, 16, 16], is [1, 20, 20]"),
    ],
)
@pytest.mark.parametrize("stage", ["train", "all"])
def test_other_settings_are_another_run(
    copied: Path, capsys: pytest.CaptureFixture[str], stage: str, change: list[str], message: str
) -> None:
    assert main([stage, "-o", str(copied), *change, "--resume"]) == 2
    assert message in capsys.readouterr().err


def test_overwriting_moves_aside(copied: Path, model: str) -> None:
    accuracy = (copied / "accuracy.csv").read_text()
    words = [
        "train",
        "--model",
        model,
        "--arrangement",
        "bu",
        "-o",
        str(copied),
        *SMALL,
        "--repeats",
        "1",
        "--overwrite",
    ]
    assert main(words) == 0
    assert (copied.with_name("out.1") / "accuracy.csv").read_text() == accuracy
    assert len(_rows(copied / "accuracy.csv")) == 1
    assert move_aside(copied).name == "out.2"


def test_another_budget_needs_a_word(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = (copied / "robustness.csv").read_text()
    words = ["robustness", "-o", str(copied), "--attack", "fgsm", "--attack-samples", "6", "--attack-repeats", "2"]
    words += ["--attack-budget", "full"]
    assert main(words) == 2
    assert "was made with" in capsys.readouterr().err
    assert (copied / "robustness.csv").read_text() == table
    assert main([*words, "--overwrite"]) == 0
    assert {r["attack"] for r in _rows(copied / "robustness.csv")} >= {"fgsm"}
    assert (copied / "parts" / "robustness.1").is_dir()
    assert (copied / "robustness.csv.1").read_text() == table


def test_the_report_alone(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copied / "report.html").unlink()
    (copied / "corruptions.csv").unlink()
    assert main(["report", "-o", str(copied)]) == 0
    assert "report.html" in capsys.readouterr().out
    assert "bu2td evaluate corruptions" in (copied / "report.md").read_text()


# --- searching ----------------------------------------------------------------------------------------


def test_the_search_is_linear(tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["search", "--model", model, "--arrangement", "bu", "-o", str(tmp_path / "s"), "--epochs", "2"]
    words += ["--device", "cpu", "--input-size", "1,16,16"]
    words += ["--lr", "1e-5", "0.1", "--weight-decay", "0", "1e-4", "--batch-size", "64"]
    assert main(words) == 0
    rows = _rows(tmp_path / "s" / "search.csv")
    assert [(r["varied"], float(r["lr"]), float(r["weight_decay"])) for r in rows[:2]] == [
        ("lr", 1e-5, 0),
        ("lr", 0.1, 0),
    ]
    best = max(rows[:2], key=lambda r: float(r["validation_accuracy"]))
    assert {r["lr"] for r in rows[2:]} == {best["lr"]}  # the second line starts from the best of the first
    assert [r["best"] for r in rows].count("1") == 2
    assert main(["train", "--config", str(tmp_path / "s" / "search" / "bu.yaml"), "--epochs", "1", "--repeats", "1",
                 "--arrangement", "bu", "-o", str(tmp_path / "t")]) == 0  # fmt: skip
    assert json.loads((tmp_path / "t" / "run.json").read_text())["settings"]["lr"] == float(best["lr"])
    capsys.readouterr()
    assert main([*words, "--resume"]) == 0
    assert _rows(tmp_path / "s" / "search.csv") == rows


# --- presets and bad words ----------------------------------------------------------------------------


def test_presets_are_listed_and_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", "presets"]) == 0
    assert "mnist-lenet_fc" in capsys.readouterr().out
    assert cli.main(["evaluate", "presets", "imagenette-resnet18"]) == 0
    assert "stem: coarse" in capsys.readouterr().out


BAD: list[tuple[list[str], str]] = [
    (["train", "--preset", "quik"], "Did you mean 'quick'"),
    (["train", "--config", "nowhere.yaml"], "nowhere.yaml cannot be read"),
    (["train", "--data", "digit"], "Did you mean 'digits'"),
    (["train", "--model", "lenet_fd"], "no model 'lenet_fd'"),
    (["train", "--data", "mnist", "--data-dir", "nowhere"], "--download"),
    (["train", "--lr", "fast"], "lr = 'fast': expected a number"),
    (["train", "--device", "cuda"], "The device 'cuda' cannot be used"),
    (["train", "--convert", "stem"], "expected KEY=VALUE"),
    (["train", "--convert", "stme=coarse"], "Did you mean 'stem'"),
    (["train", "--convert", "seed=1"], "may hold options of bu2td.convert, found 'seed'"),
    (["all", "--attack", "fgms"], "Did you mean 'fgsm'"),
    (["all", "--arrangement", "dt"], "Did you mean 'td'"),
    (["robustness"], "holds no run"),
    (["corruptions"], "holds no run"),
    (["explain", "--threshold", "2"], "between 0 and 1"),
    (["report"], "there is no folder"),
    (["search", "--lr", "0.1"], "a search needs several values"),
    (["search", "--lr", "0.1", "0.1"], "a search needs several values"),
    (["all", "--shard", "3/2"], "shard = '3/2': expected K/N"),
    (["train", "--arrangement", "bu,bu"], "each once"),
    (["train", "--data", "folder:nowhere"], "nowhere is not a folder"),
    (["explain", "--explain-samples", "some"], "explain_samples = 'some'"),
    (["merge", "nowhere"], "nowhere holds no run"),
    (["presets", "nist-lenet_fc"], "Did you mean 'mnist-lenet_fc'"),
]


@pytest.mark.parametrize(("words", "message"), BAD)
def test_bad_words_are_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    message: str,
) -> None:
    import torch

    monkeypatch.chdir(tmp_path)
    if "cuda" in words and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    place = [] if words[0] == "presets" else ["-o", str(tmp_path / "out")]
    assert main([*words, *place]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out" / "runs").glob("*"))


def test_folders_that_are_no_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for words in ([], ["--overwrite"], ["--resume"]):
        assert main(["train", "-o", str(tmp_path), *words]) == 2
        assert "no run of bu2td evaluate" in capsys.readouterr().err
    assert main(["train", "-o", str(tmp_path / "thesis.tex")]) == 2
    assert "is a file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "run.json"),
        ("{", "run.json"),
        ('{"format": 9, "settings": {}}', "run.json"),
        ('{"format": 1, "settings": {"lrr": 1}}', "lrr"),
    ],
)
def test_a_damaged_record(copied: Path, capsys: pytest.CaptureFixture[str], content: str, message: str) -> None:
    (copied / "run.json").write_text(content)
    assert main(["corruptions", "-o", str(copied)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert message in err


def test_an_unfinished_training_is_named(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copied / "runs" / "td-1" / "result.json").unlink()
    assert main(["corruptions", "-o", str(copied)]) == 2
    assert "no finished training of 'td', repeat 1" in capsys.readouterr().err


def test_data_and_training_are_not_changed_afterwards(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = copied / "mine.yaml"
    file.write_text("lr: 0.3\n")
    assert main(["corruptions", "-o", str(copied), "--config", str(file)]) == 2
    assert "lr was 0.1, is 0.3" in capsys.readouterr().err


def test_networks_that_were_not_trained(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["robustness", "-o", str(copied), "--attack-arrangement", "rev", "--overwrite"]) == 2
    assert "Train these too" in capsys.readouterr().err


def test_unknown_stages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["trian"])
    assert caught.value.code == 2
    assert "Did you mean 'train'" in capsys.readouterr().err
    with pytest.raises(Exception, match="there is no stage 'atack'"):
        evaluate("atack", Settings(), tmp_path)
