"""The experiments of an evaluation, one after the other, in one folder."""

from __future__ import annotations

import importlib
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bu2td.errors import OptionError
from bu2td.evaluate.data.corrupted import open_corrupted
from bu2td.evaluate.data.sets import Data, load_data
from bu2td.evaluate.folder import RunFolder, create, describe_data, move_aside, open_run
from bu2td.evaluate.parts import complete
from bu2td.evaluate.robustness.frequency import frequencies
from bu2td.evaluate.robustness.registry import find_attack
from bu2td.evaluate.schema import Training
from bu2td.evaluate.settings import Settings
from bu2td.evaluate.stages import Answer, Context, Stage
from bu2td.evaluate.train.accuracy import run_accuracy
from bu2td.evaluate.train.engine import device_name, start
from bu2td.evaluate.train.search import search

#: The experiments on trained networks, in the order of a report, and the modules that hold them.
EXPERIMENTS = {
    "robustness": "bu2td.evaluate.robustness.stage",
    "corruptions": "bu2td.evaluate.robustness.corruptions_stage",
    "frequency": "bu2td.evaluate.robustness.frequency_stage",
    "explain": "bu2td.evaluate.explain.stage",
}
STAGES = ("all", "train", *EXPERIMENTS)


def evaluate(
    stage: str,
    settings: Settings | Mapping[str, Any],
    folder: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    download: bool = False,
    preset: str | None = None,
) -> dict[str, Any]:
    """Run an experiment, or all of them.

    Args:
        stage: "train", "robustness", "corruptions", "explain" or "all".
        settings: all of them for "train" and "all"; for the others those that differ from the run's, by name.
        folder: of the evaluation. "train" and "all" make it; the others need one in which networks were trained.
        resume: go on with what is there.
        overwrite: move what is there aside (FOLDER.1, ...).
        download: fetch torchvision's data where they are missing.
        preset: the name of the preset that the settings came from, for the record.

    Returns:
        "tables": rows by title, "written": what was written, in words; of several processes (torchrun) the
        first one's is the whole.

    Raises:
        OptionError: an unknown stage, or settings that make no sense.
        RunFolderError: the folder holds another run, or none where one is needed.
        DataError, FileError, NonFiniteError, Bu2tdError: as the experiments themselves.
    """
    if stage not in STAGES:
        raise OptionError(f"there is no stage {stage!r}: expected {', '.join(STAGES)}")
    path = Path(folder)
    if isinstance(settings, Settings):
        _check_attacks(settings)  # before the first hour of training
        data = _data(settings, download)
        _check_measures(settings, data)
        engine = start(settings)
        run = _opened(engine, path, settings, resume, overwrite, preset)
    else:
        run = open_run(path, dict(settings))
        _check_attacks(run.settings)
        data = _data(run.settings, download)
        engine = start(run.settings)
        if overwrite and engine.is_global_zero:
            _move_results(run, find_stage(stage))
    return _stages(stage, Context(run, data, engine))


def find_stage(name: str) -> Stage:
    """The experiment of this name."""
    found: Stage = importlib.import_module(EXPERIMENTS[name]).STAGE
    return found


def _opened(
    engine: Any, path: Path, settings: Settings, resume: bool, overwrite: bool, preset: str | None
) -> RunFolder:
    """The folder, made by the first process."""
    if engine.is_global_zero:
        run = create(path, settings, resume=resume, overwrite=overwrite, preset=preset)
        engine.barrier()
        return run
    engine.barrier()
    return open_run(path)


def _stages(stage: str, context: Context) -> dict[str, Any]:
    run, engine = context.run, context.engine
    answer: dict[str, Any] = {"tables": {}, "written": []}
    if engine.is_global_zero:
        run.note(
            settings=run.settings.to_dict(),
            data=describe_data(context.data, run.settings.validation_share),
            device=device_name(engine.device),
            processes=engine.world_size,
        )
    for name in (name for name in ("train", *EXPERIMENTS) if stage in (name, "all")):
        if engine.is_global_zero:
            with run.timed(name):
                answer["tables"] |= _train(context) if name == "train" else _experiment(context, find_stage(name))
        else:
            _train(context) if name == "train" else _experiment(context, find_stage(name))
        engine.barrier()
    answer["written"] = [f"written to {run.path}"]
    if stage == "all" and engine.is_global_zero:
        from bu2td.evaluate.report.writing import write_report

        answer["written"] = [f"written to {write_report(run.path)}"]
    return answer


def _experiment(context: Context, stage: Stage) -> Answer:
    """Do the parts of an experiment, shared among the processes; the first puts them together."""
    engine = context.engine
    complete(
        stage.plan(context),
        context.run.parts(stage.name),
        shard=(engine.global_rank, engine.world_size),
        title=stage.name,
        progress=engine.is_global_zero,
    )
    engine.barrier()
    return stage.collect(context) if engine.is_global_zero else {}


def _train(context: Context) -> Answer:
    results = run_accuracy(context.run, context.data, context.engine)
    rows = [_trained(a, [r for r in results if r.arrangement == a]) for a in context.settings.arrangements]
    return {f"test accuracy on {context.data.name} (mean and standard deviation of n trainings)": rows}


def _trained(arrangement: str, results: Sequence[Training]) -> dict[str, Any]:
    accuracies = [r.test_accuracy for r in results]
    spread = f" +- {statistics.stdev(accuracies):.2%}" if len(results) > 1 else ""
    return {
        "network": arrangement,
        "test accuracy": f"{statistics.mean(accuracies):.2%}{spread}",
        "n": len(results),
        "parameters": f"{results[0].parameters:,}",
        "MMACs": f"{results[0].macs / 1e6:.1f}",
        "s/epoch": f"{statistics.mean(r.seconds_per_epoch for r in results):.2f}",
        "peak MiB": f"{max(r.peak_memory_mib for r in results):.0f}",
    }


def run_search(
    settings: Settings,
    grid: dict[str, tuple[float, ...]],
    folder: str | Path,
    *,
    resume: bool = False,
    download: bool = False,
) -> dict[str, Any]:
    """Search hyper-parameters on the validation images; see `bu2td.evaluate.train.search.search`.

    Args:
        settings: model, data, and the values of what is not searched.
        grid: values by name: lr, batch_size, weight_decay.
        folder: of the search; the best settings go to FOLDER/search/ARRANGEMENT.yaml, for ``--config``.
        resume: go on with a search that stopped.
        download: fetch torchvision's data where they are missing.

    Returns:
        As `evaluate`.
    """
    data, engine, path = _data(settings, download), start(settings), Path(folder)
    run = _opened(engine, path, settings, resume, False, None)
    if engine.is_global_zero:
        with run.timed("search"):
            trials, best = search(run, data, grid, engine)
    else:
        trials, best = search(run, data, grid, engine)
    rows = [
        {"network": t.arrangement, "varied": t.varied, "lr": f"{t.lr:g}", "batch size": t.batch_size,
         "weight decay": f"{t.weight_decay:g}", "validation": f"{t.validation_accuracy:.2%}",
         "best": "*" * t.best}
        for t in trials
    ]  # fmt: skip
    written = [f"best settings of {a}: {path / 'search' / a}.yaml" for a in best]
    return {"tables": {"accuracy on the validation images": rows}, "written": written}


def _check_attacks(settings: Settings) -> None:
    from bu2td.evaluate.robustness.registry import GROUPS

    for word in settings.attacks:
        if word not in GROUPS:
            find_attack(word)


def _check_measures(settings: Settings, data: Data) -> None:
    """What later experiments need of the data, before the first hour of training."""
    frequencies(*data.shape[1:], settings.frequency_step)
    if settings.corrupted_data is not None:
        open_corrupted(settings.corrupted_data, data)


def _data(settings: Settings, download: bool) -> Data:
    size = settings.input_size
    return load_data(
        settings.data,
        settings.data_dir,
        input_size=None if size is None else (size[0], size[1], size[2]),
        download=download,
    )


def _move_results(run: RunFolder, stage: Stage) -> None:
    for name in (*(table.file for table in stage.tables), *stage.files):
        if (run.path / name).exists():
            move_aside(run.path / name)
    if run.parts(stage.name).exists():
        move_aside(run.parts(stage.name))
