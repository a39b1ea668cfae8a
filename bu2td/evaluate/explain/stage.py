"""Experiment 3: explaining trained networks side by side.

A part is one network on some test images: the measures of those that it classifies correctly. What is compared, the
images that all networks classify correctly, is found when the parts are put together; so more images, repeats and
arrangements add to what is there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from bu2td.evaluate.data.boxes import Box
from bu2td.evaluate.data.sets import first_images
from bu2td.evaluate.explain.explanations import (
    Explained,
    heat_arrays,
    is_correct,
    measure,
    pick_samples,
    pictured,
    save_explanations,
    summarise,
)
from bu2td.evaluate.explain.gradcam import GradCam, HeatMaps
from bu2td.evaluate.explain.objects import LOOKED_AT, Choice, choose_objects, find_objects
from bu2td.evaluate.parts import Found, Part, load_all
from bu2td.evaluate.schema import LAYERS, Boxes, ExplainedImage, Faithfulness, Localisation, Row, write_table
from bu2td.evaluate.stages import Answer, Context, Stage, digest, digest_model
from bu2td.evaluate.train.model import Classifier
from bu2td.packages import imported

MAPS = "explanations.npz"
CHUNK = 50  # images of a part
_PICTURES = 10  # images whose heat maps are kept
_STEPS = 20  # of deletion and insertion
_MEASURES = ("precision", "recall", "pointing", "max_box_acc_v2", "deletion", "insertion")
_NAME = re.compile(r"(\w+)-(\d+)/(\d+)-(\d+)")

#: What is there of a network: its parts in order of their images.
Parts = Mapping[tuple[str, int], Sequence[Found]]


def plan(context: Context) -> list[Part]:
    """A part per network and chunk of images; the first training's first chunk keeps heat maps to look at."""
    settings = context.settings
    positions, images, labels = context.sample(settings.explain_samples)
    objects, bench, parts = _objects(context), _Bench(context), []
    chunks = [slice(at, min(at + CHUNK, len(positions))) for at in range(0, len(positions), CHUNK)]
    for network in context.networks(settings.explain_arrangements, settings.repeats):
        weights = digest_model(context.classifier(*network))
        for chunk in chunks:
            boxes = _boxes(context, positions[chunk]) if objects.kind == "boxes" else None
            mark = {
                "weights": weights,
                "images": digest((images[chunk], labels[chunk]), str(boxes)),
                "objects": objects.kind,
                "threshold": settings.threshold,
                "seed": settings.seed,
                "layers": LAYERS,
                "steps": _STEPS,
            }
            name = f"{network[0]}-{network[1]}/{chunk.start:06d}-{chunk.stop:06d}"
            given = (positions[chunk], images[chunk], labels[chunk], boxes)
            parts.append(Part(name, mark, partial(_measured, bench, network, given, objects.kind)))
    return parts


def _boxes(context: Context, positions: Sequence[int]) -> list[list[Box]]:
    known = context.data.boxes or ()
    return [known[i] for i in positions]


class _Bench:
    """The network that is looked at: parts of one network follow upon one another."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self._at: tuple[tuple[str, int], Classifier, GradCam] | None = None

    def take(self, network: tuple[str, int], images: torch.Tensor) -> tuple[Classifier, GradCam]:
        """A trained network, and Grad-CAM of it."""
        if self._at is None or self._at[0] != network:
            self._at = None  # one at a time
            model = self.context.classifier(*network)
            self._at = (network, model, GradCam(model, images, levels=("levels", *LAYERS)))
        return self._at[1:]


def _measured(bench: _Bench, network: tuple[str, int], given: tuple[Any, ...], kind: str) -> Found:
    positions, images, labels, boxes = given
    settings = bench.context.settings
    model, cam = bench.take(network, images)
    right = is_correct(model, images, labels, CHUNK)
    arrays = {"images": np.array(positions), "right": right.numpy()}
    index = right.nonzero()[:, 0]
    if not len(index):
        return Found((), arrays)
    objects = find_objects(kind, images, boxes, settings.threshold).take(index)
    images, labels = images[index], labels[index]
    options: dict[str, Any] = {"threshold": settings.threshold, "seed": settings.seed, "batch_size": CHUNK}
    chosen = [positions[i] for i in index.tolist()]
    found = measure(network, cam, images, labels, chosen, objects, tolerance=0.0, steps=_STEPS, **options)
    if found.overlaps is not None:
        arrays["overlaps"] = found.overlaps
    if network[1] == 0 and positions[0] == bench.context.drawn(1)[0]:
        raw = cam(images, labels, CHUNK, levels=pictured(cam))
        arrays |= {"levels": np.array(raw.levels), **{f"raw_{n}": raw.maps[n].numpy() for n in raw.levels}}
    return Found(tuple(found.rows), arrays)


def collect(context: Context) -> Answer:
    """Tables of all explanations that are there, of the arrangements that are compared now."""
    objects, parts = _objects(context), _load(context)
    context.run.note(objects=vars(objects))
    arrangements = [a for a in context.settings.explain_arrangements if a in context.settings.arrangements]
    repeats = sorted({k for _, k in parts})
    shared = {k: _shared([parts.get((a, k), ()) for a in arrangements]) for k in repeats}
    found = _summary([(parts[a, k], shared[k]) for k in repeats for a in arrangements if (a, k) in parts], context)
    made: tuple[Sequence[Row], ...] = (found.localisation, found.images, found.faithfulness, found.boxes)
    for table, rows in zip(STAGE.tables, made, strict=True):
        if rows:
            write_table(table, rows, context.run.path)
        else:  # what is there is of other arrangements or objects
            (context.run.path / table.file).unlink(missing_ok=True)
    arrays = _pictures(context, {a: parts.get((a, 0), ()) for a in arrangements}, shared.get(0, []))
    if arrays:
        save_explanations(context.run.path / MAPS, arrays)
    else:
        (context.run.path / MAPS).unlink(missing_ok=True)
    lone = [str(k) for k in repeats if not shared[k] and all((a, k) in parts for a in arrangements)]
    note: Answer = (
        {f"no image that all networks of repeat {', '.join(lone)} classify correctly": []} if lone else {}
    )
    return {**_answer(found, objects, context.settings.threshold), **note}


def _objects(context: Context) -> Choice:
    images, _ = first_images(context.data.test, LOOKED_AT)
    return choose_objects(context.settings.objects, images, context.data.boxes is not None)


def _load(context: Context) -> Parts:
    """What is there by network; of two parts that begin with one image the longer one."""
    longest: dict[tuple[str, int], dict[int, tuple[int, Found]]] = {}
    for name, part in load_all(context.run.parts(STAGE.name)):
        match = _NAME.fullmatch(name)
        if match is not None:
            own, start, end = longest.setdefault((match[1], int(match[2])), {}), int(match[3]), int(match[4])
            if start not in own or own[start][0] < end:
                own[start] = (end, part)
    return {network: [own[start][1] for start in sorted(own)] for network, own in longest.items()}


def _shared(networks: Sequence[Sequence[Found]]) -> list[int]:
    """The images that all networks classify correctly; of a network without parts that is none."""
    right = [{int(i) for p in parts for i in p.arrays["images"][p.arrays["right"]]} for parts in networks]
    return sorted(set.intersection(*right)) if right else []


def _summary(networks: Sequence[tuple[Sequence[Found], Sequence[int]]], context: Context) -> Explained:
    """Means over the shared images of every network."""
    rows: list[ExplainedImage] = []
    overlaps = []
    for parts, images in networks:
        wanted = set(images)
        for part in parts:
            own = part.of(ExplainedImage)
            kept = [i for i, row in enumerate(own) if row.image in wanted]
            rows += [own[i] for i in kept]
            if "overlaps" in part.arrays:
                overlaps.append(part.arrays["overlaps"][kept])
    return summarise(rows, context.settings.threshold, np.concatenate(overlaps) if overlaps else None)


def _pictures(context: Context, networks: Mapping[str, Sequence[Found]], shared: Sequence[int]) -> dict[str, Any]:
    """Heat maps of a few images of the first training, as far as all networks kept them."""
    firsts = {a: parts[0] for a, parts in networks.items() if parts and "levels" in parts[0].arrays}
    if len(firsts) < len(networks) or not firsts:
        return {}
    order = {a: [int(i) for i in p.arrays["images"][p.arrays["right"]]] for a, p in firsts.items()}
    wanted = set(shared).intersection(*order.values())
    candidates = [i for i in next(iter(order.values())) if i in wanted]
    if not candidates:
        return {}
    pairs = [context.data.test[i] for i in candidates]
    shown = pick_samples(torch.tensor([label for _, label in pairs]), _PICTURES, context.settings.seed).tolist()
    images = torch.stack([pairs[i][0] for i in shown])
    arrays: dict[str, Any] = {"images": images.numpy(), "labels": np.array([pairs[i][1] for i in shown])}
    for arrangement, part in firsts.items():
        rows = [order[arrangement].index(candidates[i]) for i in shown]
        levels = tuple(str(level) for level in part.arrays["levels"])
        raw = {level: torch.from_numpy(part.arrays[f"raw_{level}"][rows]) for level in levels}
        labels = torch.from_numpy(arrays["labels"])
        maps = HeatMaps(levels, raw, labels, torch.zeros(len(rows), 0), (images.shape[2], images.shape[3]))
        arrays |= heat_arrays(arrangement, maps)
    return arrays


def _answer(found: Explained, objects: Choice, threshold: float) -> Answer:
    """Means over repeats, by network, layer and normalisation."""
    if not found.images:
        return {}
    words = {
        "none": f"explanations, without localisation and pointing game: {objects.why}",
        "bright": f"explanations; the object is what is brighter than {threshold:g}: {objects.why}",
        "boxes": f"explanations; the object is what lies in its boxes (heat maps cut at {threshold:g}): "
        f"{objects.why}",
    }
    frame = imported("pandas").DataFrame([vars(row) for row in found.images])
    measures = [name for name in _MEASURES if frame[name].count()]
    names = ["arrangement", "layer", "normalisation"]
    means = frame.groupby([*names, "repeat"], sort=False)[measures].mean().groupby(level=names, sort=False).mean()
    rows = []
    for key, own in frame.groupby(names, sort=False):
        start = dict(zip(("network", "layer", "heat map"), key, strict=True))
        counts = {"images": len(own), "of them without a map": int(own["empty"].sum())}
        rows.append({**start, **{name: f"{means.loc[key, name]:.3f}" for name in measures}, **counts})
    return {words[objects.kind]: rows}


STAGE = Stage("explain", (Localisation, ExplainedImage, Faithfulness, Boxes), plan, collect, files=(MAPS,))
