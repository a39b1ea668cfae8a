"""The segmentation example: its measures against independent ones, its scenes, and a run that stops and goes on."""

import importlib
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

EXAMPLES = Path(__file__).parent.parent / "examples"
metrics = pytest.importorskip("sklearn.metrics")
pytest.importorskip("matplotlib")


@pytest.fixture
def segmentation(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("segmentation")


def maps(seed: int) -> tuple[Tensor, Tensor]:
    """Blobs of three classes, and a noisy version of them."""
    generator = torch.Generator().manual_seed(seed)
    true = torch.randint(0, 3, (3, 5, 5), generator=generator).repeat_interleave(3, 1).repeat_interleave(3, 2)
    noise = torch.randint(0, 3, true.shape, generator=generator)
    return noise.where(torch.rand(true.shape, generator=generator) < 0.2, true), true


def boundary(mask: list[list[bool]]) -> set[tuple[int, int]]:
    """Pixels of a mask beside a pixel that is not of it."""
    rows, columns = len(mask), len(mask[0])
    inside = {(i, j) for i, j in itertools.product(range(rows), range(columns)) if mask[i][j]}
    around = [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1)]
    return {
        (i, j)
        for i, j in inside
        if any(0 <= i + a < rows and 0 <= j + b < columns and (i + a, j + b) not in inside for a, b in around)
    }


def slow_f1(predicted: Tensor, true: Tensor, classes: list[int]) -> float:
    """Boundary F1 with sets, one pixel of tolerance."""
    found = []
    for p, t in zip(predicted, true, strict=True):
        for c in classes:
            ours, theirs = boundary((p == c).tolist()), boundary((t == c).tolist())
            if not ours and not theirs:
                continue
            near = [
                [any(max(abs(i - k), abs(j - m)) <= 1 for k, m in b) for i, j in a]
                for a, b in ((ours, theirs), (theirs, ours))
            ]
            precision, recall = (sum(each) / max(len(each), 1) for each in near)
            found.append(2 * precision * recall / (precision + recall) if precision + recall else 0.0)
    return sum(found) / len(found)


@pytest.mark.parametrize("seed", range(3))
def test_measures_are_those_of_the_literature(segmentation: Any, seed: int) -> None:
    predicted, true = maps(seed)
    iou = metrics.jaccard_score(true.flatten(), predicted.flatten(), average="macro")
    assert segmentation.mean_iou(predicted, true, 3) == pytest.approx(iou)
    assert segmentation.mean_iou(predicted, true, 4) == pytest.approx(iou)  # a class that does not occur
    assert segmentation.boundary_f1(predicted, true, 3) == pytest.approx(slow_f1(predicted, true, [1, 2]))
    filled = [(each > 0).long() for each in (predicted, true)]
    assert segmentation.outline_f1(predicted, true) == pytest.approx(slow_f1(*filled, [1]))
    assert segmentation.boundary_f1(true, true, 3) == 1


def test_scenes(segmentation: Any) -> None:
    objects = segmentation.load_objects("digits", False)
    scenes, same, other = (segmentation.make_scenes(objects, 4, 48, seed) for seed in (3, 3, 4))
    assert torch.equal(scenes.images, same.images)
    assert not torch.equal(scenes.images, other.images)
    assert scenes.images.shape == (4, 1, 48, 48)
    assert 0 <= float(scenes.images.min()) <= float(scenes.images.max()) <= 1
    for labels in scenes.labels:
        assert 0.02 < float((labels > 0).float().mean()) < 0.6
        assert 1 <= len(labels.unique()) - 1 <= max(segmentation.Settings().seeds, 3)
    test = segmentation.load_objects("digits", True)
    assert not any((objects.images == one).flatten(1).all(1).any() for one in test.images[:5])


@pytest.mark.slow
def test_a_run_goes_on_where_it_was(
    segmentation: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = segmentation.Settings(**{**segmentation.QUICK, "size": 32, "epochs": 1})
    segmentation.run(settings, tmp_path)
    result = json.loads((tmp_path / "results.json").read_text())
    costs = [facts["macs"] for facts in result["networks"].values()]
    assert max(costs) / costs[0] < 1.1
    assert min(costs) / costs[0] > 0.9
    assert [(r["network"], r["seed"]) for r in result["runs"]] == [
        (name, seed) for seed in range(2) for name in ("FCN", "U-Net", "top-down")
    ]
    page = (tmp_path / "results.md").read_text()
    assert page in capsys.readouterr().out
    assert page.count("\N{PLUS-MINUS SIGN}") == 5 * 3
    for name in ("curves.png", "predictions.png"):
        assert (tmp_path / name).stat().st_size > 10_000
    (tmp_path / "checkpoints" / "U-Net-1.pt").unlink()
    kept = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "checkpoints").iterdir()}
    segmentation.run(settings, tmp_path)
    again = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "checkpoints").iterdir()}
    assert {name for name in again if again[name] != kept.get(name)} == {"U-Net-1.pt"}
    assert json.loads((tmp_path / "results.json").read_text()) == result  # the same numbers, from the seed alone
    with pytest.raises(SystemExit, match="other settings"):
        segmentation.run(segmentation.Settings(**{**segmentation.QUICK, "size": 32, "epochs": 2}), tmp_path)
