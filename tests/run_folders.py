"""Run folders of an evaluation, made up."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bu2td.evaluate import schema
from bu2td.evaluate.folder import FORMAT
from bu2td.evaluate.schema import write_table

ALL = ("bu", "td", "uni", "rev")
IMAGES = 50
#: Test accuracies of four repeats: td is clearly below bu, uni is not, rev is above by less than one image of 50.
ACCURACY = {
    "bu": (0.96, 0.98, 0.96, 0.98),
    "td": (0.80, 0.84, 0.82, 0.80),
    "uni": (0.98, 0.92, 0.98, 0.94),
    "rev": (0.97, 0.98, 0.97, 0.98),
}
#: Per attack: what distances of top-down are in multiples of bottom-up's; "pixel" finds none for top-down.
ATTACKS = {"strongest": 1.5, "pgd": 2.0, "gaussian-blur": 0.7, "shifts": 1.0, "single-pixel": math.inf}
LAYERS = (("last-convolution", "centred"), ("last-convolution", "plain"), ("last-level", "centred"),
          ("last-level", "plain"))  # fmt: skip


def settings(**changes: Any) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "model": "bu2td:lenet_fc",
        "data": {"name": "digits", "train": 180, "validation": 20, "test": IMAGES, "shape": [1, 8, 8],
                 "classes": [f"digit {i}" for i in range(10)]},
        "preset": "quick",
        "settings": {"epochs": 2, "lr": 0.1, "arrangements": list(ALL), "convert": {}},
        "arrangements": list(ALL),
        "repeats": 4,
        "seed": 7,
        "versions": {"python": "3.11.2", "torch": "2.15"},
        "device": "cpu",
        "attacks": [{"name": "pgd", "class": "foolbox.PGD", "budget": "quick", "settings": {"steps": 20}}],
        "command": "bu2td evaluate all -o out",
        "seconds": {"train": 3.5},
        **changes,
    }  # fmt: skip


def start(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(settings(**changes)))
    return folder


def row(table: type[schema.Row], network: tuple[str, int], **known: Any) -> Any:
    """A row; of columns that are not named, names are "x", counts 0, and numbers were not measured."""
    blank = {str: "x", int: 0, float: math.nan}
    values = {name: blank[of] for name, (of, _) in schema.columns(table).items()}
    return table(**{**values, "arrangement": network[0], "repeat": network[1], **known})


def put_accuracy(folder: Path, accuracies: dict[str, tuple[float, ...]] | None = None) -> None:
    rows = [
        row(schema.Training, (a, r), seed=7 + r, parameters=1000 * (1 + ALL.index(a)), macs=5000.0, epochs=2,
            train_loss=0.25, validation_accuracy=0.9, test_accuracy=value, calibration_error=0.03, seconds=1.5 + r,
            seconds_per_epoch=0.75)
        for a, values in (accuracies or ACCURACY).items()
        for r, value in enumerate(values)
    ]  # fmt: skip
    write_table(schema.Training, rows, folder)


def put_predictions(folder: Path, accuracies: dict[str, tuple[float, ...]] | None = None) -> None:
    """The images from the first on are wrong, as many as the accuracy says."""
    rows = []
    for a, values in (accuracies or ACCURACY).items():
        for r, value in enumerate(values):
            wrong = round((1 - value) * IMAGES)
            rows += [
                schema.Prediction(a, r, i, i % 10, (i + (i < wrong)) % 10, 1 + (i < wrong), 0.9)
                for i in range(IMAGES)
            ]
    write_table(schema.Prediction, rows, folder)


def put_search(folder: Path) -> None:
    rows = [schema.Trial("td", "lr", lr, 32, 0.0, 0.5 + lr, int(lr == 0.3)) for lr in (0.1, 0.3)]
    write_table(schema.Trial, rows, folder)


def put_robustness(
    folder: Path, attacks: dict[str, float] | None = None, repeats: int = 3, images: int = 30
) -> None:
    """Attacks on images, the first of which is wrong without any."""
    random = np.random.default_rng(0)
    table: list[Any] = []
    curves: list[Any] = []
    distances: list[Any] = []
    for attack, factor in (attacks or ATTACKS).items():
        of_bu = random.gamma(4, 0.5, images)
        found: dict[tuple[str, int], np.ndarray] = {}
        for a in ("bu", "td"):
            for r in range(repeats):
                d = of_bu * (1 if a == "bu" else factor) * random.uniform(0.9, 1.1, images)
                found[a, r] = np.where(np.arange(images) == 0, 0.0, d)
        limit = max(float(d[np.isfinite(d)].max()) for d in found.values())
        for (a, r), d in found.items():
            right = d[1:]
            table.append(
                row(schema.Robustness, (a, r), attack=attack, samples=images, clean_accuracy=1 - 1 / images,
                    success_rate=float(np.isfinite(right).mean()), median_l2=float(np.median(right)),
                    auc=float(np.minimum(d, limit).mean() / limit), limit=limit,
                    failures=int(np.isinf(right).sum()), queries=120.0, converged=0.9 if attack == "pgd" else 1.0)
            )  # fmt: skip
            grid = np.linspace(0, limit, 20)
            curves += [schema.CurvePoint(a, r, attack, float(x), float((d > x).mean())) for x in grid]
            distances += [schema.ImageDistance(a, r, attack, i, float(x)) for i, x in enumerate(d)]
    for kind, rows in ((schema.Robustness, table), (schema.CurvePoint, curves), (schema.ImageDistance, distances)):
        write_table(kind, rows, folder)


INPUTS = {"none": "", "highest": "1", "medium": "2", "lowest": "4", "highest+medium": "1+2",
          "highest+lowest": "1+4", "medium+lowest": "2+4", "all": "1+2+4"}  # fmt: skip


def put_branches(folder: Path, scales: Sequence[float] = (1.0, 1.5, 2.0, 3.0)) -> None:
    """Accuracy falls by 0.02 per scale and place in `INPUTS`."""
    rows = [
        row(schema.Branch, ("td", r), attack=a, inputs=name, reductions=where, scale=scale, samples=20,
            accuracy=0.9 - 0.02 * i * scale)
        for r in (0, 1) for a in ("pgd", "gaussian-blur") for i, (name, where) in enumerate(INPUTS.items())
        for scale in scales
    ]  # fmt: skip
    write_table(schema.Branch, rows, folder)


def put_corruptions(folder: Path, repeats: int = 3) -> None:
    """Top-down is right at one severity more under noise, and at two less under contrast."""
    fall = {("bu", "gaussian-noise"): 3, ("td", "gaussian-noise"): 4, ("bu", "contrast"): 4, ("td", "contrast"): 2}
    images = [
        schema.CorruptedImage(a, r, c, i, 5, min(5, n + (i + r) % 2)) for (a, c), n in fall.items()
        for r in range(repeats) for i in range(IMAGES)
    ]  # fmt: skip
    write_table(schema.CorruptedImage, images, folder)
    rows = [
        schema.Corruption(a, r, c, s, IMAGES, 0.95 - 0.02 * s * (5 - n) - 0.001 * r) for (a, c), n in fall.items()
        for r in range(repeats) for s in range(6)
    ]  # fmt: skip
    write_table(schema.Corruption, rows, folder)


def put_bands(folder: Path, repeats: int = 2) -> None:
    """The error of top-down is 0.2 lower in the middle."""
    bands = ((0, 3, 0.0), (3, 6, -0.2), (6, 16, 0.0))
    networks = [(a, r) for a in ("bu", "td") for r in range(repeats)]
    rows, images = [], []
    for (a, r), (low, high, gain) in ((n, b) for n in networks for b in bands):
        error = 0.4 + (gain if a == "td" else 0) + 0.01 * r
        known: dict[str, Any] = {"network": (a, r), "low": float(low), "high": float(high), "norm": 4.0}
        rows.append(row(schema.Band, **known, samples=40, error=error))
        images += [row(schema.BandImage, **known, image=i, error=error + 0.005 * (i % 5)) for i in range(40)]
    write_table(schema.Band, rows, folder)
    write_table(schema.BandImage, images, folder)


def put_explanations(folder: Path, channels: int = 1, count: int = 3, repeats: int = 2) -> None:
    """Top-down is better in precision at the last level, worse at the last convolution."""
    local, faithful, images = [], [], []
    for layer, kind in LAYERS:
        gain = 0.1 if layer == "last-level" else -0.1
        for a, r in ((a, r) for a in ("bu", "td") for r in range(repeats)):
            p, d = 0.6 + 0.01 * r + (gain if a == "td" else 0), 0.3 - (0.1 if a == "td" else 0)
            known: dict[str, Any] = {"network": (a, r), "layer": layer, "normalisation": kind}
            counts: dict[str, Any] = {**known, "samples": 30, "empty": 2}
            pixels = {"threshold": 0.2, "without_prediction": 1, "tp": 20.5, "fp": 10.0, "fn": 5.0}
            local.append(row(schema.Localisation, **counts, **pixels, precision=p, recall=0.5))
            faithful.append(row(schema.Faithfulness, **counts, pointing=0.8, deletion=d, insertion=0.6))
            for i in range(30):
                empty, swing = i in (3, 4), 0.02 * (i % 5 - 2) * (1 if a == "bu" else -1)
                found = {} if empty else {"precision": p + swing, "recall": 0.5}
                curves = {"deletion": d + swing, "insertion": 0.6, "pointing": float(i % 5 > 0)}
                images.append(row(schema.ExplainedImage, **known, image=i, **found, **curves))
    for table, rows in (
        (schema.Localisation, local),
        (schema.Faithfulness, faithful),
        (schema.ExplainedImage, images),
    ):
        write_table(table, rows, folder)
    random = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        "images": random.random((count, channels, 8, 8), np.float32),
        "labels": np.arange(count),
    }
    for arrangement, names in (("bu", ["r1", "r2", "r4"]), ("td", ["r4", "r2", "r1"])):
        arrays[f"{arrangement}_levels"] = np.array(names)
        for kind in ("plain", "centred"):
            arrays[f"{arrangement}_{kind}"] = random.random((count, 3, 8, 8), np.float32)
    np.savez(folder / "explanations.npz", **arrays)


def put_boxes(folder: Path) -> None:
    rows = [
        row(schema.Boxes, (a, r), layer="last-level", normalisation="plain", samples=30, max_box_acc_v2=0.5)
        for a in ("bu", "td") for r in (0, 1)
    ]  # fmt: skip
    write_table(schema.Boxes, rows, folder)


def put_logs(folder: Path) -> None:
    for arrangement in ALL:
        for repeat in range(2):
            place = folder / f"runs/{arrangement}-{repeat}"
            place.mkdir(parents=True)
            rows = [schema.Epoch(e, 0.1, 2 / (e + 1 + repeat), 0.5, 1.0, 0.1 * e, 1.0) for e in range(1, 4)]
            write_table(schema.Epoch, rows, place)


PUTS = {
    "accuracy": put_accuracy,
    "predictions": put_predictions,
    "search": put_search,
    "robustness": put_robustness,
    "branches": put_branches,
    "corruptions": put_corruptions,
    "bands": put_bands,
    "explanations": put_explanations,
    "boxes": put_boxes,
    "logs": put_logs,
}


def put_all(folder: Path) -> Path:
    for put in PUTS.values():
        put(folder)
    return folder
