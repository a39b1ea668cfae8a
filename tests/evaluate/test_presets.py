"""The paper's presets, end to end on small files in the formats of their data."""

from pathlib import Path

import pytest
from small_data import write_cifar, write_imagenette, write_mnist
from tiny_run import rows

from bu2td.evaluate.data import idx
from bu2td.evaluate.settings import list_presets, read_settings

pytest.importorskip("torchvision")
pytest.importorskip("foolbox")

from bu2td.evaluate.command import main

SMALL = ["--epochs", "1", "--repeats", "1", "--batch-size", "4", "--validation-share", "0.25", "--device", "cpu",
         "--top-down", "batch_size=4", "--no-measure-memory"]  # fmt: skip
FEW = ["--attack", "fgsm", "contrast-reduction", "--attack-budget", "quick", "--attack-samples", "4",
       "--attack-repeats", "1", "--corruption-samples", "4", "--explain-samples", "4", "--frequency-samples", "4",
       "--frequency-step", "8"]  # fmt: skip
PAPERS = [name for name in list_presets() if read_settings(name).data != "digits"]
FAST = ("mnist-lenet_fc",)


def _write(data: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idx, "DEBIAN", root / "nowhere")
    if data == "cifar10":
        write_cifar(root, monkeypatch, 20)
    elif data == "imagenette":
        write_imagenette(root, 2)
    else:
        write_mnist(root, {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}[data])


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow, id=n) for n in PAPERS]
)
def test_a_preset_runs_to_its_report(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = read_settings(name).data, tmp_path / "out"
    _write(data, tmp_path / "data", monkeypatch)
    line = ["all", "--preset", name, "--data-dir", str(tmp_path / "data"), "-o", str(out)]
    small = [*SMALL, "--arrangements", "bu", "td", *FEW]
    assert main([*line, *small, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "branches" in said
    assert "on a GPU" in said or "on cuda" in said
    assert main([*line, *small, "--no-estimate"]) == 0
    assert {(row["arrangement"], row["repeat"]) for row in rows(out / "accuracy.csv")} == {("bu", "0"), ("td", "0")}
    assert {row["attack"] for row in rows(out / "robustness.csv")} >= {"fgsm", "contrast-reduction"}
    assert (out / "report.html").stat().st_size > 10_000
