"""Attacks batch by batch into files: resumed, sharded, damaged, mixed up."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from blobs import QUICK, Small, attacked, equal
from torch import Tensor, nn

from bu2td.errors import FileError, OptionError
from bu2td.evaluate.robustness import smallest as robustness
from bu2td.evaluate.robustness.smallest import attack_images, collect, smallest_perturbations


@pytest.fixture
def problem() -> tuple[nn.Module, Tensor, Tensor]:
    return attacked()


NAMES = ["contrast-reduction", "additive-uniform"]


def run(problem: tuple, folder: Path, names: list[str] = NAMES, **options: Any) -> None:
    model, images, labels = problem
    attack_images(model, images, labels, names, folder, **{**QUICK, "progress": False, **options})


def test_files_and_memory_agree(problem: tuple, tmp_path: Path) -> None:
    model, images, labels = problem
    run(problem, tmp_path / "new" / "folder")
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == [
        f"{name}-{batch:05d}.npz" for name in sorted(NAMES) for batch in range(3)
    ]
    found = collect(tmp_path / "new" / "folder", NAMES)
    assert list(found) == NAMES
    for name in NAMES:
        equal(found[name], smallest_perturbations(model, images, labels, name, **QUICK))


@pytest.mark.parametrize("count", [2, 5])
def test_shards_agree_with_the_whole(problem: tuple, tmp_path: Path, count: int) -> None:
    run(problem, tmp_path / "whole")
    for index in reversed(range(count)):
        if index == 0:
            with pytest.raises(FileError, match=r"lacks \d of its batches \(0"):
                collect(tmp_path / "parts", NAMES)
        run(problem, tmp_path / "parts", shard=(index, count))
    for first, second in zip(
        collect(tmp_path / "whole", NAMES).values(), collect(tmp_path / "parts", NAMES).values(), strict=True
    ):
        equal(first, second)


@pytest.mark.parametrize("stop", [1, 4])
def test_killed_and_resumed(problem: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int) -> None:
    run(problem, tmp_path / "whole")
    real, calls = robustness._save, []

    def killed(path: Path, *rest: Any) -> None:
        if len(calls) == stop:
            raise KeyboardInterrupt
        calls.append(path)
        real(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(robustness, "_save", killed)
        with pytest.raises(KeyboardInterrupt):
            run(problem, tmp_path / "parts")
    assert len(list((tmp_path / "parts").iterdir())) == stop
    times = [path.stat().st_mtime_ns for path in calls]
    run(problem, tmp_path / "parts")
    assert [path.stat().st_mtime_ns for path in calls] == times
    whole, parts = collect(tmp_path / "whole", NAMES), collect(tmp_path / "parts", NAMES)
    for name in NAMES:
        equal(whole[name], parts[name])


def test_killed_while_writing_leaves_no_half_file(
    problem: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(path: Path, **arrays: Any) -> None:
        Path(path).write_bytes(b"PK half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez_compressed", half)
    with pytest.raises(KeyboardInterrupt):
        run(problem, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b[:-200] + bytes(200)])
def test_a_damaged_file_is_named_and_done_anew(problem: tuple, tmp_path: Path, damage: Any) -> None:
    run(problem, tmp_path, ["contrast-reduction"])
    before = collect(tmp_path, ["contrast-reduction"])["contrast-reduction"]
    path = tmp_path / "contrast-reduction-00001.npz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(FileError, match=r"contrast-reduction-00001\.npz is damaged"):
        collect(tmp_path, ["contrast-reduction"])
    run(problem, tmp_path, ["contrast-reduction"])
    equal(before, collect(tmp_path, ["contrast-reduction"])["contrast-reduction"])


def test_another_runs_files_are_refused(problem: tuple, tmp_path: Path) -> None:
    model, images, labels = problem
    names = ["additive-uniform"]
    run(problem, tmp_path, names)
    kept = {path: path.read_bytes() for path in tmp_path.iterdir()}
    torch.manual_seed(5)
    other = Small().eval()
    cases: list[tuple[tuple, dict[str, Any], str]] = [
        ((other, images, labels), {}, "the model's weights"),
        ((model, images.flip(0), labels), {}, "the images"),
        ((model, images, labels.flip(0)), {}, "the images"),
        (problem, {"seed": 1}, "seed"),
        (problem, {"repeats": 3}, "repeats"),
        (problem, {"budget": "full"}, "the attack's settings"),
        (problem, {"batch_size": 11}, "batch_size"),
    ]
    for changed, options, difference in cases:
        with pytest.raises(FileError, match=f"differs in {difference}. Use another folder, or delete"):
            run(changed, tmp_path, names, **options)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == kept
    run(problem, tmp_path / "second", names, seed=1)
    (tmp_path / "second" / "additive-uniform-00002.npz").replace(tmp_path / "additive-uniform-00002.npz")
    with pytest.raises(FileError, match="different runs: they differ in seed"):
        collect(tmp_path, names)


def test_repeats_do_not_matter_to_deterministic_attacks(problem: tuple, tmp_path: Path) -> None:
    run(problem, tmp_path, ["contrast-reduction"], repeats=1)
    run(problem, tmp_path, ["contrast-reduction"], repeats=5)


def test_nothing_to_collect(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no results of the attack 'pgd'"):
        collect(tmp_path, "pgd")
    with pytest.raises(OptionError, match="unknown attack"):
        collect(tmp_path, ["pdg"])


@pytest.mark.parametrize("shard", [(2, 2), (-1, 2), (0, 0), (0,), 3, (0.5, 2)])
def test_bad_shards(problem: tuple, tmp_path: Path, shard: Any) -> None:
    with pytest.raises(OptionError, match="shard"):
        run(problem, tmp_path, shard=shard)


def test_folder_that_cannot_be_made(problem: tuple, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="cannot be made"):
        run(problem, tmp_path / "file" / "folder")


def test_progress_bar(problem: tuple, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(problem, tmp_path, ["shifts"], progress=True)
    assert "3/3" in capsys.readouterr().err
