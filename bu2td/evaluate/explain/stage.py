"""Experiment 3: explaining trained networks side by side."""

from __future__ import annotations

from dataclasses import fields
from functools import partial
from typing import Any

from bu2td.errors import DataError
from bu2td.evaluate.explain.explanations import explain, save_explanations
from bu2td.evaluate.parts import Found, Part, load_all
from bu2td.evaluate.report.compare import aggregate
from bu2td.evaluate.schema import Boxes, ExplainedImage, Faithfulness, Localisation, Row, write_table
from bu2td.evaluate.stages import Answer, Context, Stage, digest, digest_model

MAPS = "explanations.npz"
_PICTURES = 10  # images whose heat maps are kept
_TABLES: tuple[type[Row], ...] = (Localisation, ExplainedImage, Faithfulness, Boxes)


def plan(context: Context) -> list[Part]:
    """A part per repeat: its networks are compared on the images that all of them classify correctly."""
    settings = context.settings
    _, images, labels = context.sample(settings.explain_samples)
    arrangements = [a for a in settings.attack_arrangements if a in settings.arrangements]
    parts = []
    for repeat in context.repeats(arrangements):
        mark = {
            "weights": [digest_model(context.classifier(a, repeat)) for a in arrangements],
            "images": digest((images, labels)),
            "threshold": settings.threshold,
            "seed": settings.seed,
        }
        parts.append(Part(f"all/{repeat}", mark, partial(_explained, context, arrangements, repeat)))
    return parts


def _explained(context: Context, arrangements: list[str], repeat: int) -> Found:
    settings = context.settings
    positions, images, labels = context.sample(settings.explain_samples)
    boxes = None if context.data.boxes is None else [context.data.boxes[i] for i in positions]
    pair = {a: context.classifier(a, repeat) for a in arrangements}
    options: dict[str, Any] = {"threshold": settings.threshold, "repeat": repeat, "seed": settings.seed}
    try:
        found = explain(pair, images, labels, pictures=_PICTURES if repeat == 0 else 0, boxes=boxes, **options)
    except DataError:  # networks that share no image: the others are still compared
        return Found()
    made = []
    tables = ((Localisation, found.localisation), (Faithfulness, found.faithfulness), (Boxes, found.boxes))
    for table, rows in tables:
        names = [f.name for f in fields(table)]
        blank = {"layer": "last-level", "empty": 0, "without_prediction": 0, "dropped": 0}
        made += [table(**{k: v for k, v in {**blank, **row}.items() if k in names}) for row in rows]
    return Found(tuple(made), found.arrays)


def collect(context: Context) -> Answer:
    """Tables of all explanations that are there."""
    parts = [found for _, found in load_all(context.run.parts(STAGE.name))]
    for table in _TABLES:
        found = [row for part in parts for row in part.of(table)]
        if found:
            write_table(table, found, context.run.path)
    shown = next((part.arrays for part in parts if part.arrays), None)
    if shown is not None:
        save_explanations(context.run.path / MAPS, shown)
    local = [vars(row) for part in parts for row in part.of(Localisation)]
    means = {key: aggregate(local, ["arrangement", "normalisation"], key) for key in ("precision", "recall")}
    rows = [
        {"network": a, "heat map": n, **{key: f"{means[key][a, n].mean:.3f}" for key in means}}
        for a, n in means["precision"]
    ]
    return {f"localisation (threshold {context.settings.threshold:g})": rows}


STAGE = Stage("explain", _TABLES, plan, collect, files=(MAPS,))
