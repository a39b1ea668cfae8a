"""The experiments of an evaluation, one after the other, in one folder."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bu2td.errors import DataError, OptionError, RunFolderError
from bu2td.evaluate.data.sets import Data, Images, Part, first_images, load_data
from bu2td.evaluate.folder import RunFolder, create, describe_data, move_aside, open_run
from bu2td.evaluate.report.compare import aggregate
from bu2td.evaluate.robustness.registry import GRADIENT, PAPER, find_attack
from bu2td.evaluate.settings import Settings
from bu2td.evaluate.train.accuracy import RESULT, load_classifier, run_accuracy
from bu2td.evaluate.train.engine import device_name, start
from bu2td.evaluate.train.loop import write_rows
from bu2td.evaluate.train.model import Classifier
from bu2td.evaluate.train.search import search
from bu2td.runtime import TopDownNetwork

STAGES = ("all", "train", "robustness", "corruptions", "explain")
_ATTACKED, _MAPS = "robustness", "explanations.npz"
_PICTURES = 10  # images whose heat maps are kept
_TABLES = {
    "robustness": ("robustness.csv", "curves.csv", "branches.csv"),
    "corruptions": ("corruptions.csv",),
    "explain": ("localisation.csv", "faithfulness.csv", "boxes.csv", _MAPS),
}
_GROUPS = {"paper": PAPER, "gradient": GRADIENT}


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
        _attack_names(settings)  # before the first hour of training
        data = _data(settings, download)
        engine = start(settings)
        run = _opened(engine, path, settings, resume, overwrite, preset)
    else:
        run = open_run(path, dict(settings))
        _attack_names(run.settings)
        data = _data(run.settings, download)
        engine = start(run.settings)
        if overwrite and engine.is_global_zero:
            _move_results(path, stage)
    return _stages(stage, run, data, engine)


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


def _stages(stage: str, run: RunFolder, data: Data, engine: Any) -> dict[str, Any]:
    chosen = [name for name in _STAGE if stage in (name, "all")]
    answer: dict[str, Any] = {"tables": {}, "written": []}
    if engine.is_global_zero:
        run.note(
            settings=run.settings.to_dict(),
            data=describe_data(data, run.settings.validation_share),
            device=device_name(engine.device),
            processes=engine.world_size,
        )
    for name in chosen:
        if engine.is_global_zero:
            _keep_results(run, name)
            with run.timed(name):
                answer["tables"] |= _STAGE[name](run, data, engine)
            run.note(stages={**run.record.get("stages", {}), name: run.settings.identity(name)})
        else:
            _STAGE[name](run, data, engine)
        engine.barrier()
    answer["written"] = [f"written to {run.path}"]
    if stage == "all" and engine.is_global_zero:
        from bu2td.evaluate.report.writing import write_report

        answer["written"] = [f"written to {write_report(run.path)}"]
    return answer


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


# --- the experiments ----------------------------------------------------------------------------------


def _train(run: RunFolder, data: Data, engine: Any) -> dict[str, Any]:
    results = run_accuracy(run, data, engine)
    rows = []
    for arrangement in run.settings.arrangements:
        own = [r for r in results if r.arrangement == arrangement]
        accuracies = torch.tensor([r.test_accuracy for r in own], dtype=torch.float64)
        spread = f" +- {accuracies.std():.2%}" if len(own) > 1 else ""
        rows.append({
            "network": arrangement,
            "test accuracy": f"{accuracies.mean():.2%}{spread}",
            "n": len(own),
            "parameters": f"{own[0].parameters:,}",
            "MMACs": f"{own[0].macs / 1e6:.1f}",
            "s/epoch": f"{sum(r.seconds_per_epoch for r in own) / len(own):.2f}",
            "peak MiB": f"{max(r.peak_memory_mib for r in own):.0f}",
        })  # fmt: skip
    return {f"test accuracy on {data.name} (mean and standard deviation of n trainings)": rows}


def _robustness(run: RunFolder, data: Data, engine: Any) -> dict[str, Any]:
    from bu2td.evaluate.robustness.branches import branch_accuracy
    from bu2td.evaluate.robustness.smallest import attack_images, collect, write_robustness

    settings, names = run.settings, _attack_names(run.settings)
    images, labels = sample(data.test, settings.attack_samples, settings.seed)
    pairs = _trained(run, settings.attack_arrangements, settings.attack_runs)
    for arrangement, repeat in pairs:
        attack_images(
            _placed(load_classifier(run, data, arrangement, repeat), engine),
            images,
            labels,
            names,
            run.path / _ATTACKED / f"{arrangement}-{repeat}",
            repeats=settings.attack_repeats,
            budget=settings.attack_budget,
            seed=settings.seed + repeat,
            batch_size=settings.attack_batch_size,
            shard=(engine.global_rank, engine.world_size),
            device=engine.device,
            progress=engine.is_global_zero,
        )
    engine.barrier()
    if not engine.is_global_zero:
        return {}
    found = {pair: collect(run.path / _ATTACKED / f"{pair[0]}-{pair[1]}", names) for pair in pairs}
    write_robustness(found, run.path)
    rows = []
    for (arrangement, repeat), perturbations in found.items():
        classifier = load_classifier(run, data, arrangement, repeat)
        if isinstance(classifier.network, TopDownNetwork):
            placed = _placed(classifier, engine)
            for name, one in perturbations.items():
                key = {"arrangement": arrangement, "repeat": repeat, "attack": name}
                perturbed = torch.as_tensor(one.images)
                found_rows = branch_accuracy(
                    placed, images, perturbed, labels, batch_size=settings.attack_batch_size
                )
                rows += [key | row for row in found_rows]
    _write(run.path / "branches.csv", rows)
    run.note(attacks=[find_attack(name).describe(settings.attack_budget) for name in names])
    table = [
        {"attack": name, **{a: _median(found, a, name) for a in settings.attack_arrangements}} for name in names
    ]
    return {f"median L2 of the smallest perturbation, {len(images)} images": table}


def _median(found: Mapping[Any, Any], arrangement: str, name: str) -> str:
    from bu2td.evaluate.robustness.smallest import summarise

    medians = [summarise(own[name], 1.0)["median_l2"] for (a, _), own in found.items() if a == arrangement]
    known = [m for m in medians if m is not None and math.isfinite(m)]
    return f"{sum(known) / len(known):.3f}" if known and len(known) == len(medians) else "none found for half"


def _corruptions(run: RunFolder, data: Data, engine: Any) -> dict[str, Any]:
    from bu2td.evaluate.robustness.corruptions import corruption_accuracy

    settings = run.settings
    if not engine.is_global_zero:
        return {}
    images, labels = sample(data.test, settings.corruption_samples, settings.seed)
    rows: list[dict[str, Any]] = []
    for arrangement, repeat in _watched(_trained(run, settings.arrangements, settings.repeats), "corruptions"):
        classifier = _placed(load_classifier(run, data, arrangement, repeat), engine)
        key = {"arrangement": arrangement, "repeat": repeat}
        rows += [key | row for row in corruption_accuracy(classifier, images, labels, seed=settings.seed)]
    _write(run.path / "corruptions.csv", rows)
    means = aggregate([r for r in rows if r["severity"]], ["corruption", "arrangement"], "accuracy")
    names = list(dict.fromkeys(r["corruption"] for r in rows if r["severity"]))
    table = [
        {"corruption": name, **{a: f"{means[name, a].mean:.2%}" for a in settings.arrangements}} for name in names
    ]
    return {f"accuracy under corruption (mean of five severities, {len(images)} images)": table}


def _explain(run: RunFolder, data: Data, engine: Any) -> dict[str, Any]:
    from bu2td.evaluate.explain.explanations import explain, save_explanations

    settings = run.settings
    if not engine.is_global_zero:
        return {}
    images, labels = sample(data.test, settings.explain_samples, settings.seed)
    boxes = None
    if data.boxes is not None:
        boxes = [data.boxes[i] for i in _drawn(len(data.test), settings.explain_samples, settings.seed)]
    tables: dict[str, list[dict[str, Any]]] = {"localisation": [], "faithfulness": [], "boxes": []}
    left_out: list[dict[str, Any]] = []
    arrangements = [a for a in settings.attack_arrangements if a in settings.arrangements]
    repeats = range(settings.repeats)
    for repeat in _watched([k for k in repeats if _is_trained(run, arrangements, k)], "explanations"):
        pair = {a: _placed(load_classifier(run, data, a, repeat), engine) for a in arrangements}
        pictures = 0 if (run.path / _MAPS).exists() and tables["localisation"] else _PICTURES
        options: dict[str, Any] = {"threshold": settings.threshold, "repeat": repeat, "seed": settings.seed}
        try:
            found = explain(pair, images, labels, pictures=pictures, boxes=boxes, **options)
        except DataError as error:  # networks that share no image: the others are still compared
            left_out.append({"repeat": repeat, "left out": str(error).partition(":")[0]})
            continue
        tables["localisation"] += found.localisation
        tables["faithfulness"] += found.faithfulness
        tables["boxes"] += found.boxes
        if pictures:
            save_explanations(run.path / _MAPS, found.arrays)
    answer = {"explanations that could not be made": left_out} if left_out else {}
    rows = tables["localisation"]
    if not rows:
        return answer
    for name, own in tables.items():
        if own:
            _write(run.path / f"{name}.csv", own)
    means = {key: aggregate(rows, ["arrangement", "normalisation"], key) for key in ("precision", "recall")}
    table = [
        {"network": a, "heat map": n, **{key: f"{means[key][a, n].mean:.3f}" for key in means}}
        for a, n in means["precision"]
    ]
    return answer | {f"localisation (threshold {settings.threshold:g})": table}


_STAGE: dict[str, Callable[[RunFolder, Data, Any], dict[str, Any]]] = {
    "train": _train,
    "robustness": _robustness,
    "corruptions": _corruptions,
    "explain": _explain,
}


# --- helpers ------------------------------------------------------------------------------------------


def sample(images: Images, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Some images, drawn at random: (N, C, H, W) in [0, 1], labels (N,)."""
    return first_images(Part(images, _drawn(len(images), count, seed)))


def _drawn(size: int, count: int, seed: int) -> list[int]:
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed)).tolist()[:count]


def _attack_names(settings: Settings) -> list[str]:
    """Attacks by name, groups spelled out."""
    names = [name for word in settings.attacks for name in _GROUPS.get(word, (word,))]
    return [find_attack(name).name for name in dict.fromkeys(names)]


def _data(settings: Settings, download: bool) -> Data:
    size = settings.input_size
    return load_data(
        settings.data,
        settings.data_dir,
        input_size=None if size is None else (size[0], size[1], size[2]),
        download=download,
    )


def _trained(run: RunFolder, arrangements: Sequence[str], repeats: int) -> list[tuple[str, int]]:
    """The trainings that an experiment looks at; those that the run never asked for are left out."""
    wanted = [a for a in arrangements if a in run.settings.arrangements]
    if not wanted:
        raise OptionError(
            f"{run.path} has {', '.join(run.settings.arrangements)}, not {', '.join(arrangements)}; train these too"
        )
    return [(a, k) for k in range(min(repeats, run.settings.repeats)) for a in wanted]


def _is_trained(run: RunFolder, arrangements: Iterable[str], repeat: int) -> bool:
    return all((run.run(a, repeat) / RESULT).is_file() for a in arrangements)


def _placed(classifier: Classifier, engine: Any) -> Classifier:
    return classifier.to(engine.device).eval()


def _watched(items: Sequence[Any], title: str) -> Any:
    from tqdm import tqdm

    return tqdm(items, desc=title, disable=None)


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    write_rows(path, [dict(row) for row in rows], list(dict.fromkeys(key for row in rows for key in row)))


def _keep_results(run: RunFolder, stage: str) -> None:
    """Refuse to write over a table that came of other settings (trainings and attacks know their own files)."""
    done = run.record.get("stages", {}).get(stage)
    current = run.settings.identity(stage)
    if stage in ("corruptions", "explain") and done not in (None, current):
        odd = [
            f"{key} was {done.get(key)!r}, is {value!r}" for key, value in current.items() if done.get(key) != value
        ]
        if any((run.path / name).exists() for name in _TABLES[stage]):
            raise RunFolderError(
                f"{run.path} has results of {stage} with other settings ({'; '.join(odd)}); "
                f"bu2td evaluate {stage} --overwrite moves them aside"
            )


def _move_results(path: Path, stage: str) -> None:
    for name in _TABLES.get(stage, ()):
        if (path / name).exists():
            move_aside(path / name)
    if stage == _ATTACKED and (path / _ATTACKED).exists():
        move_aside(path / _ATTACKED)
