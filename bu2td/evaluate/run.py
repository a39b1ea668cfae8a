"""The experiments of an evaluation, one after the other, in one folder."""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bu2td.errors import OptionError, RunFolderError
from bu2td.evaluate.before import check_before
from bu2td.evaluate.data.sets import Data, load_data
from bu2td.evaluate.folder import (
    RunFolder,
    create,
    describe_data,
    holds_run,
    make_folder,
    move_aside,
    read_record,
    settings_of,
    stored_settings,
)
from bu2td.evaluate.locks import WHOLE, Shard, check_free, locked, parse_shard, shard_word, turn
from bu2td.evaluate.parts import complete, missing
from bu2td.evaluate.schema import Training
from bu2td.evaluate.settings import Settings, read_settings
from bu2td.evaluate.stages import Answer, Context, Network, Stage
from bu2td.evaluate.train.accuracy import run_accuracy
from bu2td.evaluate.train.engine import device_name, start
from bu2td.evaluate.train.search import search
from bu2td.ir import format_table

#: The experiments on trained networks, in the order of a report, and the modules that hold them.
EXPERIMENTS = {
    "robustness": "bu2td.evaluate.robustness.stage",
    "corruptions": "bu2td.evaluate.robustness.corruptions_stage",
    "frequency": "bu2td.evaluate.robustness.frequency_stage",
    "explain": "bu2td.evaluate.explain.stage",
}
STAGES = ("all", "train", *EXPERIMENTS)
MAKES = ("all", "train", "search")  # stages that make a folder


def evaluate(
    stage: str,
    settings: Settings | Mapping[str, Any],
    folder: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    download: bool = False,
    preset: str | None = None,
    shard: str | None = None,
    estimate: bool = False,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Run an experiment, or all of them.

    A run grows: further arrangements, repeats, attacks and images add to what is there.

    Args:
        stage: "train", "robustness", "corruptions", "explain" or "all".
        settings: by name, or all of them; where a run goes on, what is not named is as the run has it.
        folder: of the evaluation. "train" and "all" make it; the others need one in which networks were trained.
        resume: go on with what is there.
        overwrite: move what is there aside (FOLDER.1, ...).
        download: fetch torchvision's data where they are missing.
        preset: the name of the preset that the settings came from, for the record.
        shard: "K/N": do the K-th of N shares. "all" and "train" share out whole repeats (networks, where there are
            fewer repeats than shares), and "all" goes on with the networks that it trained; an experiment by itself
            shares out its parts. Shards may have one folder, or folders of their own for `merge`.
        estimate: say on stderr, before it starts, what it will cost.
        dry_run: say only that.

    Returns:
        "tables": rows by title, "written": what was written, in words; of several processes (torchrun) the
        first one's is the whole.

    Raises:
        OptionError: an unknown stage, or settings that make no sense.
        RunFolderError: the folder holds another run, or none where one is needed, or somebody else works in it.
        DataError, FileError, NonFiniteError, Bu2tdError: as the experiments themselves.
    """
    if stage not in STAGES:
        raise OptionError(f"there is no stage {stage!r}: expected {', '.join(STAGES)}")
    path, share = Path(folder), parse_shard(shard)
    asked = _asked(stage, path, settings, resume or share != WHOLE, overwrite)
    if not dry_run:
        check_free(path, share)
    data = _data(asked, download)
    names = [name for name in ("train", *EXPERIMENTS) if stage in (name, "all")]
    check_before(asked, data, [*names, *(["report"] if stage == "all" else [])], None if dry_run else path)
    if dry_run or (estimate and "WORLD_SIZE" not in os.environ):
        said = _foreseen(asked, data, names, path)
        if dry_run:
            return said
        ((title, rows),) = said["tables"].items()
        print("\n".join([title, format_table(rows), *said["written"], ""]), file=sys.stderr, flush=True)
    engine = start(asked)
    with _opened(engine, path, asked, stage, overwrite, preset, share) as run:
        return _stages(stage, names, Context(run, data, engine), share)


def _foreseen(settings: Settings, data: Data, names: Sequence[str], path: Path) -> dict[str, Any]:
    """What a call will cost, as it is answered.

    Raises:
        OptionError: torchrun has started several processes, of which none can measure what one costs.
    """
    from bu2td.evaluate.cost import estimated

    if "WORLD_SIZE" in os.environ:
        raise OptionError("--dry-run measures what one process needs: run it without torchrun")
    found = estimated(settings, data, {n: find_stage(n) if n in EXPERIMENTS else None for n in names}, path)
    return {"tables": {found.title: found.rows}, "written": found.notes}


def find_stage(name: str) -> Stage:
    """The experiment of this name."""
    found: Stage = importlib.import_module(EXPERIMENTS[name]).STAGE
    return found


def is_first() -> bool:
    """Whether this process is the only one, or the first that torchrun started."""
    return int(os.environ.get("RANK", "0")) == 0


def _asked(
    stage: str, path: Path, settings: Settings | Mapping[str, Any], resume: bool, overwrite: bool
) -> Settings:
    """The settings of this call.

    Raises:
        RunFolderError: the folder is not what the call needs.
    """
    changes = settings.to_dict() if isinstance(settings, Settings) else dict(settings)
    if stage not in MAKES:
        return settings_of(path, changes)
    there = holds_run(path)
    if there and resume:
        return settings_of(path, changes)
    if there and not overwrite and is_first():
        raise RunFolderError(
            f"{path} already holds a run: --resume goes on with it, --overwrite moves it aside, -o names another "
            f"folder"
        )
    if resume and not changes:
        raise RunFolderError(
            f"{path} holds no run to go on with; without --resume one begins with default settings"
        )
    return read_settings(flags=changes)


@contextmanager
def _opened(
    engine: Any, path: Path, asked: Settings, stage: str, overwrite: bool, preset: str | None, share: Shard
) -> Iterator[RunFolder]:
    """The folder, held and made by the first process, with the settings of this call."""
    if not engine.is_global_zero:
        engine.barrier()
        yield RunFolder(path, asked, read_record(path))
        return
    if overwrite and stage in MAKES and holds_run(path):
        move_aside(path)
    make_folder(path)
    with locked(path, share):
        run = create(path, asked, stage, preset)
        if overwrite and stage not in MAKES:
            _move_results(run, find_stage(stage))
        engine.barrier()
        yield run


def _stages(stage: str, names: Sequence[str], context: Context, share: Shard) -> dict[str, Any]:
    run, engine = context.run, context.engine
    answer: dict[str, Any] = {"tables": {}, "written": []}
    if engine.is_global_zero:
        run.note(
            data=describe_data(context.data, run.settings.validation_share),
            device=device_name(engine.device),
            processes=engine.world_size,
        )
    for name in names:
        with run.timed(name) if engine.is_global_zero else contextlib.nullcontext():
            if name == "train":
                answer["tables"] |= _train(context, share)
            else:
                tables, notes = _experiment(_of_the_run(context, stage, share), find_stage(name), stage, share)
                answer["tables"] |= tables
                answer["written"] += notes
        engine.barrier()
    if stage == "all" and engine.is_global_zero:
        from bu2td.evaluate.report.writing import write_report

        with turn(run.path):
            answer["written"] += [f"written to {write_report(run.path)}"]
    else:
        answer["written"] += [f"written to {run.path}"]
    return answer


def _of_the_run(context: Context, stage: str, share: Shard) -> Context:
    """What an experiment looks at: the networks of the whole run, or those that this shard has trained."""
    whole = stored_settings(read_record(context.run.path))
    run = context.run.with_settings(arrangements=whole.arrangements, repeats=whole.repeats)
    only = tuple(trainings(context.settings, share)) if stage == "all" and share != WHOLE else None
    return Context(run, context.data, context.engine, only)


def trainings(settings: Settings, share: Shard = WHOLE) -> list[Network]:
    """The trainings of a shard: every n-th repeat, so that it can compare networks; of fewer repeats, networks."""
    index, count = share
    networks = [(a, k) for k in range(settings.repeats) for a in settings.arrangements]
    if count <= settings.repeats:
        return [(a, k) for a, k in networks if k % count == index]
    return networks[index::count]


def _experiment(context: Context, stage: Stage, called: str, share: Shard) -> tuple[Answer, list[str]]:
    """Do the parts of an experiment, shared among processes and shards; the first process puts them together.

    Parts are dealt out one after the other, and wait for nobody: a process that is done waits for the others, as
    long as it takes (`bu2td.evaluate.train.engine`).
    """
    engine, place = context.engine, context.run.parts(stage.name)
    index, count = WHOLE if called == "all" else share
    ranks = (engine.global_rank, engine.world_size)
    shares = (index * engine.world_size + engine.global_rank, count * engine.world_size)
    absent: list[str] = []
    for plan, mine in ((stage.plan, shares), (stage.then, ranks)):  # a shard goes on with what it has
        if plan is not None:
            parts = plan(context)
            complete(parts, place, shard=mine, title=stage.name, progress=engine.is_global_zero)
            engine.barrier()
            absent += missing(parts, place)
    if not engine.is_global_zero:
        return {}, []
    notes = []
    if absent:
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        notes = [f"{stage.name}: {absent[0]}{more} are left to the other shards; the tables hold what is there"]
    elif called == "all" and share != WHOLE:
        notes = [f"{stage.name}: done for shard {shard_word(share)}; the tables hold what is there"]
    with turn(context.run.path):
        return stage.collect(context), notes


def _train(context: Context, share: Shard) -> Answer:
    """Do the trainings of this call and shard; the table has those of the whole run."""
    whole = _of_the_run(context, "train", share)
    results = run_accuracy(whole.run, context.data, context.engine, trainings(context.settings, share))
    by_network = {a: [r for r in results if r.arrangement == a] for a in whole.settings.arrangements}
    rows = [_trained(a, own) for a, own in by_network.items() if own]
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
        "s/epoch": _known([r.seconds_per_epoch for r in results], ".2f"),
        "peak MiB": _known([r.peak_memory_mib for r in results], ".0f"),
    }


def _known(values: Sequence[float], form: str) -> str:
    """The mean of what was measured; nothing for networks that were not trained."""
    found = [value for value in values if not math.isnan(value)]
    return format(statistics.mean(found), form) if found else ""


def run_search(
    settings: Settings | Mapping[str, Any],
    grid: Mapping[str, tuple[float, ...]],
    folder: str | Path,
    *,
    resume: bool = False,
    download: bool = False,
) -> dict[str, Any]:
    """Search hyper-parameters on the validation images; see `bu2td.evaluate.train.search.search`.

    Args:
        settings: by name, or all of them: model, data, and the values of what is not searched.
        grid: values by name: lr, batch_size, weight_decay. Where a search goes on, they add to its own.
        folder: of the search; the best settings go to FOLDER/search/ARRANGEMENT.yaml, for ``--config``.
        resume: go on with a search that stopped.
        download: fetch torchvision's data where they are missing.

    Returns:
        As `evaluate`.
    """
    path = Path(folder)
    asked = _asked("search", path, settings, resume, False)
    grid = _grid(path, grid)
    check_free(path)
    data = _data(asked, download)
    check_before(asked, data, ["train"], path)
    engine = start(asked)
    with _opened(engine, path, asked, "search", False, None, WHOLE) as run:
        if engine.is_global_zero:
            run.note(grid={name: list(values) for name, values in grid.items()})
        with run.timed("search") if engine.is_global_zero else contextlib.nullcontext():
            trials, best = search(run, data, dict(grid), engine)
    rows = [
        {"network": t.arrangement, "varied": t.varied, "lr": f"{t.lr:g}", "batch size": t.batch_size,
         "weight decay": f"{t.weight_decay:g}", "validation": f"{t.validation_accuracy:.2%}",
         "best": "*" * t.best}
        for t in trials
    ]  # fmt: skip
    written = [f"best settings of {a}: {path / 'search' / a}.yaml" for a in best]
    return {"tables": {"accuracy on the validation images": rows}, "written": written}


def _grid(path: Path, grid: Mapping[str, tuple[float, ...]]) -> dict[str, tuple[float, ...]]:
    """The values of a search, those of its earlier calls first."""
    old = read_record(path).get("grid", {}) if holds_run(path) else {}
    return {name: tuple(dict.fromkeys([*old.get(name, ()), *grid.get(name, ())])) for name in {**old, **grid}}


def collect(folder: str | Path, changes: Mapping[str, Any]) -> list[str]:
    """Write the tables of everything that a folder holds, as after a merge; nothing is trained or measured.

    Args:
        folder: of the evaluation.
        changes: settings of the machine (data_dir, device), by name.

    Returns:
        The names of the experiments that are there.
    """
    path = Path(folder)
    asked = settings_of(path, changes)
    present = [name for name in EXPERIMENTS if any((path / "parts" / name).rglob("*.npz"))]
    context = Context(RunFolder(path, asked, read_record(path)), _data(asked, False), start(asked))
    run_accuracy(context.run, context.data, context.engine, only=())
    for name in present:
        find_stage(name).collect(context)
    return present


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
