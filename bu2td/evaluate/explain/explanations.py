"""Explaining classifiers side by side: tables of localisation and faithfulness, and heat maps to look at.

Networks are compared on the images that **all** of them classify correctly. For each there is a row per layer
(`bu2td.evaluate.explain.layers`) and per normalisation of the heat maps (`bu2td.evaluate.explain.gradcam`), since
both can decide which network looks better. What an image does not have (a prediction, an object, a heat map that is
not zero everywhere) is left out of means and counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bu2td.errors import DataError, OptionError
from bu2td.evaluate.arrays import write_arrays
from bu2td.evaluate.checks import check_count, check_images, check_labels, logits_of
from bu2td.evaluate.explain.faithfulness import deletion, insertion, pointing_game
from bu2td.evaluate.explain.gradcam import GradCam, HeatMaps
from bu2td.evaluate.explain.localise import box_accuracy, box_overlaps, localisation
from bu2td.evaluate.explain.objects import LOOKED_AT, Objects, choose_objects, find_objects
from bu2td.evaluate.schema import LAYERS, NORMALISATIONS, Boxes, ExplainedImage, Faithfulness, Localisation
from bu2td.packages import imported

_COLUMNS = ("arrangement", "repeat", "layer", "normalisation")


@dataclass(frozen=True)
class Explained:
    """What heat maps come to.

    Attributes:
        localisation: means by network, layer and normalisation; none where nothing is known of the objects.
        faithfulness: the same of the pointing game, deletion and insertion.
        boxes: the same of MaxBoxAccV2, where there are boxes.
        images: all measures, by image.
        arrays: of a few images, as `save_explanations` writes them.
        index: which of the given images were measured (n,).
    """

    localisation: list[Localisation]
    faithfulness: list[Faithfulness]
    boxes: list[Boxes]
    images: list[ExplainedImage]
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    index: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))


@dataclass(frozen=True)
class Measured:
    """Heat maps of one network, measured image by image.

    Attributes:
        rows: by layer, normalisation and image.
        overlaps: by row the overlaps with the image's boxes (R, T), as `box_overlaps` has them; None without boxes.
    """

    rows: list[ExplainedImage]
    overlaps: np.ndarray | None


def explain_networks(
    classifiers: Mapping[str, nn.Module],
    images: Tensor,
    labels: Tensor,
    *,
    count: int | None = None,
    pictures: int = 10,
    objects: str = "auto",
    boxes: Any = None,
    threshold: float = 0.2,
    tolerance: float = 0.0,
    steps: int = 20,
    repeat: int = 0,
    seed: int = 0,
    batch_size: int = 64,
    progress: bool = False,
) -> Explained:
    """Compare the explanations of classifiers.

    Args:
        classifiers: by name (the arrangement); each maps images in [0, 1] to logits (N, K), and runs in eval mode
            where its weights are. Weights, gradients and modes are left as found.
        images: (N, C, H, W) in [0, 1].
        labels: the true class of every image (N,).
        count: how many of the images that all classify correctly are measured, drawn at random; None for all.
        pictures: how many of the measured images the arrays show, images of different classes first.
        objects: what the object is: "bright" pixels, "boxes", "none" or "auto" (`bu2td.evaluate.explain.objects`).
        boxes: (N, 4), or (M, 4) for every image: left, top, right, bottom in pixels.
        threshold: of the grey value (object) and of the heat map (prediction).
        tolerance: of the pointing game, in pixels.
        steps: of deletion and insertion.
        repeat: number of the training run, for the rows.
        seed: of the choice of images and of the order of equally hot pixels.
        batch_size: how many images run at once.
        progress: show a bar on stderr.

    Returns:
        The `Explained`; rows name an image by its place among the given ones.

    Raises:
        OptionError: labels, boxes or options are of the wrong kind.
        DataError: a label is no class, or the classifiers share no correctly classified image.
        Bu2tdError: images are no images in [0, 1], or a classifier does not run on them or cannot be followed.
    """
    from tqdm import tqdm

    check_images(images)
    labels = check_labels(labels, len(images), None)
    _check_options(classifiers, count, pictures, repeat, seed, batch_size)
    kind = choose_objects(objects, images[:LOOKED_AT], boxes is not None).kind
    found = find_objects(kind, images, boxes, threshold)
    index = shared_correct(classifiers, images, labels, batch_size).nonzero()[:, 0]
    if count is not None and count < len(index):
        drawn = torch.randperm(len(index), generator=torch.Generator().manual_seed(seed))[:count]
        index = index[drawn.sort().values]
    images, labels = images[index.to(images.device)], labels[index]
    shown = pick_samples(labels, pictures, seed)
    few, few_labels = images[shown.to(images.device)], labels[shown]
    arrays = {"images": few.float().cpu().numpy(), "labels": few_labels.numpy()} if pictures else {}
    measured = []
    for name, model in tqdm(classifiers.items(), desc="explain", unit="network", disable=not progress):
        cam = GradCam(model, images, levels=("levels", *LAYERS))
        given = ((name, repeat), cam, images, labels, index.tolist(), found.take(index))
        one = measure(
            *given, threshold=threshold, tolerance=tolerance, steps=steps, seed=seed, batch_size=batch_size
        )
        measured.append(one)
        if pictures:
            arrays |= heat_arrays(name, cam(few, few_labels, batch_size, levels=pictured(cam)))
    rows = [row for one in measured for row in one.rows]
    overlaps = None if kind != "boxes" else np.concatenate([one.overlaps for one in measured])
    return replace(summarise(rows, threshold, overlaps), arrays=arrays, index=index)


def measure(
    network: tuple[str, int],
    cam: GradCam,
    images: Tensor,
    labels: Tensor,
    positions: Sequence[int],
    objects: Objects,
    *,
    threshold: float,
    tolerance: float,
    steps: int,
    seed: int,
    batch_size: int,
) -> Measured:
    """Measure the heat maps of one network for the true classes.

    Args:
        network: arrangement and repeat, for the rows.
        cam: Grad-CAM of all levels and of `LAYERS`.
        images: (N, C, H, W) in [0, 1], at least one.
        labels: (N,).
        positions: what rows name the images by.
        objects: of the images.
        threshold, tolerance, steps, seed, batch_size: as for `explain_networks`.
    """
    maps = cam(images, labels, batch_size, levels=LAYERS)
    known: dict[tuple[str, str], tuple[dict[str, list[float]], np.ndarray]] = {}
    rows, overlaps = [], []
    for layer in LAYERS:
        for kind in NORMALISATIONS:
            heat = maps.resized(kind, levels=layer)[:, 0]
            at = (cam.nodes[layer], kind)
            if at not in known:  # both layers may be one map
                columns = _against_objects(heat, objects, threshold, tolerance)
                for call in (deletion, insertion):
                    curves = call(cam.model, images, labels, heat, steps=steps, seed=seed, batch_size=batch_size)
                    columns[call.__name__] = curves.auc.tolist()
                known[at] = columns, np.zeros(0) if objects.boxes is None else box_overlaps(heat, objects.boxes)
            columns, own = known[at]
            empty = (heat.flatten(1).amax(1) == 0).tolist()
            for i, image in enumerate(positions):
                values: Any = {name: column[i] for name, column in columns.items()}
                start = (*network, layer, kind, int(image), int(empty[i]))
                rows.append(ExplainedImage(*start, **values, max_box_acc_v2=float("nan")))
            overlaps.append(own)
    return Measured(rows, None if objects.boxes is None else np.concatenate(overlaps))


def _against_objects(heat: Tensor, objects: Objects, threshold: float, tolerance: float) -> dict[str, list[float]]:
    """By measure a number per image; no numbers (nan) where nothing is known of the objects."""
    if objects.masks is None:
        return {n: [float("nan")] * len(heat) for n in ("tp", "fp", "fn", "precision", "recall", "pointing")}
    columns = {
        name: column.double().tolist()
        for name, column in vars(localisation(heat, objects.masks, threshold=threshold)).items()
    }
    return {**columns, "pointing": pointing_game(heat, objects.masks, tolerance=tolerance).tolist()}


def summarise(rows: Sequence[ExplainedImage], threshold: float, overlaps: np.ndarray | None = None) -> Explained:
    """Means over images, by network, layer and normalisation.

    Args:
        rows: of images that all compared networks classify correctly.
        threshold: that they were measured with.
        overlaps: by row those with the image's boxes (R, T).
    """
    frame = imported("pandas", why="means over images need it:").DataFrame([vars(row) for row in rows])
    found, made = Explained([], [], [], []), list(rows)
    groups: Any = frame.groupby(list(_COLUMNS), sort=False) if rows else ()
    for key, own in groups:
        start: dict[str, Any] = dict(zip(_COLUMNS, key, strict=True))
        counts: Any = {"samples": len(own), "empty": int(own["empty"].sum())}
        if overlaps is not None:
            accuracy = box_accuracy(overlaps[own.index])
            found.boxes.append(Boxes(**start, **counts, max_box_acc_v2=accuracy.mean))
            for i, right in zip(own.index, accuracy.right, strict=True):
                made[i] = replace(made[i], max_box_acc_v2=float(right))
        means: Any = {name: float(own[name].mean()) for name in ("pointing", "deletion", "insertion")}
        found.faithfulness.append(Faithfulness(**start, **counts, pointed=int(own["pointing"].count()), **means))
        if own["tp"].count():
            found.localisation.append(Localisation(**start, threshold=threshold, **_localised(own)))
    found.images.extend(made)
    return found


def _localised(own: Any) -> dict[str, Any]:
    there = own[own["tp"] + own["fn"] > 0]
    told = there[there["empty"] == 0]
    return {
        "samples": len(there),
        "empty": len(there) - len(told),
        "without_prediction": int((there["tp"] + there["fp"] == 0).sum()),
        "dropped": len(own) - len(there),
        **{name: float(told[name].mean()) for name in ("tp", "fp", "fn", "precision", "recall")},
    }


def is_correct(model: nn.Module, images: Tensor, labels: Tensor, batch_size: int = 64) -> Tensor:
    """Which images a classifier classifies correctly: (N,), bool, on the CPU.

    Raises:
        DataError: a label is no class of it.
        Bu2tdError: it does not run on the images.
    """
    logits = logits_of(model, images, batch_size)
    return logits.argmax(1) == check_labels(labels, len(images), logits.shape[1])


def shared_correct(
    classifiers: Mapping[str, nn.Module], images: Tensor, labels: Tensor, batch_size: int = 64
) -> Tensor:
    """Which images all classifiers classify correctly: (N,), bool, on the CPU.

    Raises:
        DataError: there is none, or a label is no class of a classifier.
        Bu2tdError: a classifier does not run on the images.
    """
    right = {name: is_correct(model, images, labels, batch_size) for name, model in classifiers.items()}
    shared = torch.stack(list(right.values())).all(0)
    if not bool(shared.any()):
        rates = ", ".join(f"{name} {float(own.double().mean()):.1%}" for name, own in right.items())
        raise DataError(
            f"no image is classified correctly by all of {', '.join(classifiers)} (accuracy: {rates}): there is "
            f"nothing to compare; train the networks, give more images, or check the labels"
        )
    return shared


def pick_samples(labels: Tensor, count: int, seed: int = 0) -> Tensor:
    """Positions of ``count`` images (or of all, if there are fewer), of different classes as long as possible.

    Drawn with the seed; ordered by round, then by class: one of each class, then a second of each, ...
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).tolist()
    taken: dict[int, int] = {}
    keys = []
    for place in order:
        label = int(labels[place])
        taken[label] = taken.get(label, 0) + 1
        keys.append((taken[label], label, place))
    return torch.tensor([place for _, _, place in sorted(keys)[:count]], dtype=torch.int64)


def pictured(cam: GradCam) -> list[str]:
    """The layers whose heat maps are kept: all levels in the network's order, and the last convolution."""
    return [level for level in cam.levels if level != "last-level"]


def heat_arrays(name: str, maps: HeatMaps) -> dict[str, np.ndarray]:
    """Heat maps of a network as `save_explanations` writes them."""
    made = {f"{name}_{kind}": maps.resized(kind).numpy() for kind in NORMALISATIONS}
    return {f"{name}_levels": np.array(maps.levels), **made}


def _check_options(classifiers: Any, count: Any, pictures: Any, repeat: Any, seed: Any, batch_size: Any) -> None:
    modules = isinstance(classifiers, Mapping) and all(isinstance(m, nn.Module) for m in classifiers.values())
    if not modules or not classifiers or not all(isinstance(name, str) and name for name in classifiers):
        raise OptionError(
            "classifiers must be a dict of networks by name, {'bu': ..., 'td': ...}, with at least one entry"
        )
    if count is not None:
        check_count("count", count)
    check_count("batch_size", batch_size)
    for name, value in (("pictures", pictures), ("repeat", repeat), ("seed", seed)):
        check_count(name, value, 0)


# --- the file of heat maps ----------------------------------------------------------------------------


def save_explanations(path: str | Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write the arrays of `Explained` as a compressed .npz file, whole or not at all.

    Args:
        path: the file; its folder exists.
        arrays: ``images`` (N, C, H, W), ``labels`` (N,), and for every network ``a``: ``a_levels`` (L names, in the
            order in which the network computes them, "last-convolution" last), ``a_plain`` and ``a_centred``
            (N, L, H, W).

    Raises:
        FileError: the file cannot be written.
    """
    write_arrays({name: np.asarray(array) for name, array in arrays.items()}, Path(path))
