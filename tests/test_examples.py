"""The examples run as a user runs them, and write what they promise."""

import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
PNG = b"\x89PNG\r\n\x1a\n"

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("timm", "sklearn", "tqdm", "matplotlib")),
    reason="the examples need bu2td[demo]",
)


def run(name: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error::UserWarning"}
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def check_demo(out: Path, epochs: int) -> dict:
    pictures = ("accuracy", "pyramid", "features", "lenet_fc", "resnet18")
    expected = {"report.html", "results.json", *(f"{name}.png" for name in pictures)}
    assert {path.name for path in out.iterdir()} == expected  # no temporary file is left
    for name in pictures:
        data = (out / f"{name}.png").read_bytes()
        assert data.startswith(PNG)
        assert len(data) > 5_000
    results = json.loads((out / "results.json").read_text())
    assert set(results["lenet_fc"]) == {"bottom-up", "top-down"}
    assert results["lenet_fc"]["bottom-up"]["parameters"] == 7_670
    for result in results["lenet_fc"].values():
        assert [row["epoch"] for row in result["history"]] == list(range(1, epochs + 1))
        assert result["test_accuracy"] == result["history"][-1]["test_accuracy"]
    assert results["configuration"]["train_images"] + results["configuration"]["test_images"] == 1797
    assert {"python", "torch", "bu2td"} <= set(results["versions"])
    report = (out / "report.html").read_text()
    assert report.count("data:image/png;base64,") == len(pictures)
    assert not re.search(r'(src|href)="(?!data:)', report)  # nothing outside the file
    assert report.count("<h2>") == report.count("</h2>") >= 4
    for word in ("resnet18", "lenet_fc", "r32", "seed"):
        assert word in report
    return results


def test_demo_of_one_epoch(tmp_path: Path) -> None:
    done = run("demo.py", "--out", "out/demo", "--epochs", "1", "--seed", "3", cwd=tmp_path)
    results = check_demo(tmp_path / "out" / "demo", epochs=1)
    assert results["configuration"]["seed"] == 3
    assert "top-down: test accuracy" in done.stdout
    assert "r32" in done.stdout  # the plan of resnet18


@pytest.mark.slow
def test_demo_learns_and_repeats(tmp_path: Path) -> None:
    accuracies = []
    for attempt in ("first", "second"):
        run("demo.py", "--out", attempt, cwd=tmp_path)
        results = check_demo(tmp_path / attempt, epochs=16)["lenet_fc"]
        accuracies.append({name: result["test_accuracy"] for name, result in results.items()})
    assert min(accuracies[0].values()) > 0.95
    assert accuracies[0] == accuracies[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--epochs", "0"), "--epochs must be at least 1"),
        (("--device", "tpu9"), "--device"),
        (("--out", "taken"), "--out: cannot write to taken"),
    ],
)
def test_demo_refuses(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    (tmp_path / "taken").write_text("a file")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setattr(sys, "argv", ["demo.py", *arguments])
    demo = importlib.import_module("demo")
    with pytest.raises(SystemExit) as caught:
        demo.parse_arguments()
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_quickstart(tmp_path: Path) -> None:
    done = run("quickstart.py", cwd=tmp_path)
    assert re.search(r"^r32 ", done.stdout, re.MULTILINE)
    assert re.search(r"^loss \d+\.\d+$", done.stdout, re.MULTILINE)


def test_train_loop_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    arguments = ("--batch-size", "128", "--checkpoint", "run/last.pt")
    run("train_loop.py", *arguments, "--epochs", "1", cwd=tmp_path)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["last.pt"]
    done = run("train_loop.py", *arguments, "--epochs", "2", "--resume", cwd=tmp_path)
    assert re.findall(r"^epoch +(\d+) ", done.stdout, re.MULTILINE) == ["2"]


@pytest.mark.slow
@pytest.mark.parametrize("arrangement", ["td", "uni", "rev"])
def test_train_loop_learns(tmp_path: Path, arrangement: str) -> None:
    done = run("train_loop.py", "--arrangement", arrangement, cwd=tmp_path)
    last = re.findall(r"test accuracy (\d+\.\d)%", done.stdout)[-1]
    assert float(last) > 95


def test_custom_converter(tmp_path: Path) -> None:
    done = run("custom_converter.py", cwd=tmp_path)
    before, after = done.stdout.split("With converters:")
    assert "special_ndtr at" in before
    assert "relaxations 0\n" not in before
    assert "relaxations 0\n" in after
    for name in ("GainConv", "PowerNorm", "GaussianUnit"):
        assert f"11 of {name}, 11 of them with gradients" in after


def test_receptive_fields(tmp_path: Path) -> None:
    done = run("receptive_fields.py", cwd=tmp_path)
    bottom_up, default, paper = done.stdout.split("\n\n")
    sizes = [int(line.split()[2]) for line in bottom_up.splitlines() if line.startswith("  ")]
    assert sizes == [3, 4, 8, 10, 18]
    assert "fields of 3 and 24 pixels" in default
    assert "fields of 3 and 22 pixels" in paper


@pytest.mark.slow
def test_distil_from_every_start(tmp_path: Path) -> None:
    done = run("distil.py", "--quick", cwd=tmp_path)
    assert "62.3% of the top-down network's parameters are inherited" in done.stdout
    found = re.findall(r"^top-down, (\w+): \d+\.\d\d% after 10 steps$", done.stdout, re.MULTILINE)
    assert found == ["scratch", "inherited", "distilled"]


def test_distillation_pulls_levels_and_logits_to_the_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its teacher computes what the model does, level by level, and stays as it is; every term has its minimum."""
    import torch
    from torch.nn import functional as F

    monkeypatch.syspath_prepend(EXAMPLES)
    distil = importlib.import_module("distil")
    torch.manual_seed(0)
    model, images, labels = distil.small_resnet(), torch.rand(8, 1, 16, 16), torch.arange(8)
    model(images)  # running statistics of its own
    td, loss, beside = distil.start_network("distilled", model, images, seed=0)
    model.eval()
    logits, levels = loss.teacher(images)
    torch.testing.assert_close(logits, model(images))
    by_hand = [model.stem(images)]
    for stage in model.stages:
        by_hand.append(stage(by_hand[-1]))
    assert loss.shared == [4, 2, 1]
    for level, wanted in zip(levels, by_hand[:0:-1], strict=True):  # of the stages, coarse to fine
        torch.testing.assert_close(level, wanted)

    before = {name: value.clone() for name, value in loss.teacher.state_dict().items()}
    values = []
    optimizer = torch.optim.Adam([*td.parameters(), *beside], 3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        value = loss(td, images, labels)
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.5 * values[0]
    assert all(torch.equal(value, before[name]) for name, value in loss.teacher.state_dict().items())
    td.eval()
    own = td.features(images)
    with torch.no_grad():
        distances = [
            1 - F.cosine_similarity(adapter(mine), theirs, dim=1).mean()
            for adapter, mine, theirs in zip(loss.adapters, own, levels, strict=True)
        ]
        mine = td(images)
        loss.teacher.forward = lambda images: (mine, levels)  # logits that it has already
        alone = loss(td, images, labels)
        expected = F.cross_entropy(mine, labels) / 2 + torch.stack(distances).mean()
    torch.testing.assert_close(alone, expected, rtol=1e-3, atol=1e-3)
