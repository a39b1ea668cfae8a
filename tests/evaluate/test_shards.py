"""One run on several machines or in several processes, put together again."""

import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_run import FEW, REST, record, rows, start, tables, words

for package in ("foolbox", "lightning_fabric", "yaml", "matplotlib", "torchvision"):
    pytest.importorskip(package)

from bu2td.evaluate import read_settings
from bu2td.evaluate.command import main
from bu2td.evaluate.run import EXPERIMENTS, trainings


def test_every_training_belongs_to_one_shard() -> None:
    for arrangements in (["bu"], ["bu", "td", "uni"]):
        for repeats in (1, 2, 5):
            settings = dataclasses.replace(
                read_settings(), arrangements=tuple(arrangements), repeats=repeats, attack_arrangements=("bu",)
            )
            whole = trainings(settings)
            assert len(whole) == len(arrangements) * repeats
            for count in (2, 3, 4, 20):
                shares = [trainings(settings, (index, count)) for index in range(count)]
                assert sorted(network for share in shares for network in share) == sorted(whole)
                if count <= repeats:  # whole repeats: networks of one repeat are compared with one another
                    assert all(len({a for a, k in share if k == repeat}) == len(arrangements)
                               for share in shares for _, repeat in share)  # fmt: skip


def test_two_shards_and_a_merge_are_one_process(finished: Path, tmp_path: Path) -> None:
    shards = [tmp_path / "one", tmp_path / "two"]
    base = words(finished.parent, *FEW, *REST)
    for index, shard in enumerate(shards):
        assert main(["all", *base, "-o", str(shard), "--shard", f"{index + 1}/2"]) == 0
        assert {path.name for path in (shard / "runs").iterdir()} == {f"bu-{index}", f"td-{index}"}
    merged = tmp_path / "merged"
    assert main(["merge", "-o", str(merged), *map(str, shards)]) == 0
    assert tables(merged) == tables(finished)
    assert (merged / "explanations.npz").exists()
    stamps = {path: path.stat().st_mtime_ns for path in merged.rglob("*") if path.suffix in (".pt", ".npz")}
    assert main(["all", "-o", str(merged), "--resume"]) == 0  # nothing is left to do but the report
    assert {path: path.stat().st_mtime_ns for path in stamps if "parts" in path.parts or path.suffix == ".pt"} == {
        path: stamp for path, stamp in stamps.items() if "parts" in path.parts or path.suffix == ".pt"
    }
    assert tables(merged) == tables(finished)
    assert (merged / "report.html").exists()
    own = record(merged)
    assert [call["stage"] for call in own["calls"]] == ["all", "all", "merge", "all"]
    assert own["settings"] == record(finished)["settings"]
    assert main(["merge", "-o", str(merged), *map(str, shards)]) == 0  # once more changes nothing
    assert record(merged)["seconds"] == own["seconds"]


def test_shards_in_one_folder(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    base = words(finished.parent, *FEW, *REST)
    processes = [start(["all", *base, "-o", str(folder), "--shard", f"{k}/2"]) for k in (1, 2)]
    ends = [(*process.communicate(), process.returncode) for process in processes]
    assert [end[2] for end in ends] == [0, 0], ends
    assert tables(folder) == tables(finished)
    assert {call["stage"] for call in record(folder)["calls"]} == {"all"}
    assert not list(folder.glob(".lock*"))


def test_a_stage_by_itself_shares_its_parts(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tables(copied)
    shutil.rmtree(copied / "parts" / "robustness")
    assert main(["robustness", "-o", str(copied), "--resume", "--shard", "1/2"]) == 0
    assert "are left to the other shards" in capsys.readouterr().out
    assert len(tables(copied)["distances.csv"]) < len(before["distances.csv"])
    assert main(["robustness", "-o", str(copied), "--resume", "--shard", "2/2"]) == 0
    assert "left to the other shards" not in capsys.readouterr().out
    assert tables(copied) == before


# --- merging ------------------------------------------------------------------------------------------


def test_more_trainings_come_together(copied: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(copied, tmp_path / "other"))
    assert main(["train", "-o", str(other), "--resume", "--arrangements", "uni"]) == 0
    assert main(["robustness", "-o", str(copied), "--attack", "shifts"]) == 0
    assert main(["merge", "-o", str(copied), str(other)]) == 0
    assert {r["arrangement"] for r in rows(copied / "accuracy.csv")} == {"bu", "td", "uni"}
    assert {r["attack"] for r in rows(copied / "robustness.csv")} >= {"fgsm", "contrast-reduction", "shifts"}
    settings = record(copied)["settings"]
    assert (settings["arrangements"], "shifts" in settings["attacks"]) == (["bu", "td", "uni"], True)


def test_a_finished_training_replaces_a_half_one(copied: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(copied, tmp_path / "other"))
    (copied / "runs" / "td-1" / "result.json").unlink()
    (copied / "runs" / "td-1" / "checkpoint.pt").write_bytes(b"half")
    damaged = next((copied / "parts" / "robustness").rglob("*.npz"))
    damaged.write_bytes(damaged.read_bytes()[:40])
    before = tables(other)
    assert main(["merge", "-o", str(copied), str(other)]) == 0
    assert tables(copied) == before


def test_conflicts_are_named_and_nothing_is_copied(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Path(shutil.copytree(copied, tmp_path / "other"))
    result = other / "runs" / "td-1" / "result.json"
    content = json.loads(result.read_text())
    content["result"]["test_accuracy"] = 0.123
    result.write_text(json.dumps(content))
    part = next((other / "parts" / "robustness").rglob("*.npz"))
    with np.load(part) as archive:
        arrays = {name: archive[name] for name in archive.files}
    np.savez(part, **{**arrays, "distance": arrays["distance"] + 1})
    (other / "parts" / "new.npz").write_bytes(part.read_bytes())
    assert main(["merge", "-o", str(copied), str(other)]) == 2
    error = capsys.readouterr().err
    assert "different results of the same work" in error
    for path in (result.parent, copied / "runs" / "td-1", part):
        assert str(path) in error
    assert not (copied / "parts" / "new.npz").exists()
    result.parent.rename(tmp_path / "away")  # what the message says helps
    part.unlink()
    (other / "parts" / "new.npz").unlink()
    assert main(["merge", "-o", str(copied), str(other)]) == 0


def test_other_runs_are_not_merged(copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = Path(shutil.copytree(copied, tmp_path / "other"))
    content = record(other)
    content["settings"]["lr"] = 0.3
    (other / "run.json").write_text(json.dumps(content))
    assert main(["merge", "-o", str(copied), str(other)]) == 2
    assert "lr was 0.1, is 0.3" in capsys.readouterr().err
    assert main(["merge", "-o", str(copied), str(tmp_path / "nowhere")]) == 2
    assert "holds no run" in capsys.readouterr().err


# --- torchrun -----------------------------------------------------------------------------------------


def test_processes_wait_as_long_as_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    import lightning_fabric

    from bu2td.evaluate.train.engine import start as start_engine

    seen = {}

    class Fabric:
        def __init__(self, **options: object) -> None:
            seen.update(options)

        def launch(self) -> None: ...

    monkeypatch.setattr(lightning_fabric, "Fabric", Fabric)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    start_engine(read_settings(flags={"device": "cpu"}))
    assert seen["strategy"]._timeout.days >= 7


@pytest.mark.slow
def test_two_processes_over_all_stages(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port)]
    command += ["-m", "bu2td.evaluate", "all", *words(tmp_path, *FEW, *REST), "-o", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert ended.stdout.count("median L2") == 1  # the first process speaks
    assert record(folder)["processes"] == 2
    assert (folder / "report.html").exists()
    assert not list(folder.glob(".lock*"))
    before = tables(folder)
    parts = {path: path.stat().st_mtime_ns for path in (folder / "parts").rglob("*.npz")}
    assert main(["all", "-o", str(folder), "--resume"]) == 0  # by one process: all of it is there, and the same
    assert {path: path.stat().st_mtime_ns for path in (folder / "parts").rglob("*.npz")} == parts
    assert tables(folder) == before
    (tmp_path / "alone").mkdir()
    shutil.copytree(folder / "runs", tmp_path / "alone" / "runs")
    shutil.copy(folder / "run.json", tmp_path / "alone")
    for stage in ("train", *EXPERIMENTS):
        assert main([stage, "-o", str(tmp_path / "alone"), "--resume"]) == 0
    assert tables(tmp_path / "alone") == before
