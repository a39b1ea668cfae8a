"""Explaining classifiers side by side: tables of localisation and faithfulness, and heat maps to look at.

Everything is measured on the samples that **all** compared networks classify correctly and that have an object,
with the heat map of the last level: the features that the head reads. For each network there is a row per
normalisation of the heat maps (see `gradcam`), since on some data the normalisation decides which network looks
better.
"""

from __future__ import annotations

import importlib
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bu2td.errors import DataError, FileError, OptionError
from bu2td.evaluate.checks import check_count, check_images, check_labels, logits_of
from bu2td.evaluate.explain.faithfulness import deletion, insertion, pointing_game
from bu2td.evaluate.explain.gradcam import NORMALISATIONS, GradCam
from bu2td.evaluate.explain.localise import box_accuracy, box_masks, check_boxes, localisation, object_masks
from bu2td.files import replacing


@dataclass(frozen=True)
class Explained:
    """What `explain` found.

    Attributes:
        localisation: rows arrangement, repeat, normalisation, threshold, samples, tp, fp, fn, precision, recall;
            means over the samples, pixels for tp, fp and fn (`bu2td.evaluate.explain.localise`).
        faithfulness: rows arrangement, repeat, normalisation, samples, pointing, deletion, insertion; means over
            the samples.
        boxes: rows arrangement, repeat, normalisation, samples, max_box_acc_v2 and its parts; only where boxes were
            given.
        arrays: of a few samples, as `save_explanations` writes them.
        index: which of the images were measured (n,).
    """

    localisation: list[dict[str, Any]]
    faithfulness: list[dict[str, Any]]
    boxes: list[dict[str, Any]] = field(default_factory=list)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    index: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))


def explain(
    classifiers: Mapping[str, nn.Module],
    images: Tensor,
    labels: Tensor,
    *,
    count: int | None = None,
    pictures: int = 10,
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
        count: how many of the samples that all classify correctly are measured, drawn at random; None for all.
        pictures: how many of the measured samples the arrays show, samples of different classes first.
        boxes: (N, 4), or (M, 4) for every image: left, top, right, bottom in pixels. They take the place of the
            thresholded image as the object, and add MaxBoxAccV2.
        threshold: of the grey value (object) and of the heat map (prediction).
        tolerance: of the pointing game, in pixels.
        steps: of deletion and insertion.
        repeat: number of the training run, for the rows.
        seed: of the choice of samples and of the order of equally hot pixels.
        batch_size: how many images run at once.
        progress: show a bar on stderr, where tqdm is installed.

    Returns:
        The `Explained`.

    Raises:
        OptionError: labels, boxes or options are of the wrong kind.
        DataError: a label is no class, or the classifiers share no correctly classified sample with an object.
        Bu2tdError: images are no images in [0, 1], or a classifier does not run on them or cannot be followed.
    """
    check_images(images)
    labels = check_labels(labels, len(images), None).cpu()
    _check_options(classifiers, count, pictures, repeat, seed, batch_size)
    size = (images.shape[2], images.shape[3])
    checked = None if boxes is None else check_boxes(boxes, len(images), size)
    masks = object_masks(images, threshold).cpu() if checked is None else box_masks(checked, size)
    index = _choose(shared_correct(classifiers, images, labels, batch_size), masks, count, seed)
    samples = _Samples(
        images[index.to(images.device)],
        labels[index],
        masks[index],
        None if checked is None else [checked[i] for i in index.tolist()],
    )
    shown = pick_samples(samples.labels, pictures, seed)
    result = Explained([], [], [], _shown_samples(samples, shown), index)
    options = {"steps": steps, "seed": seed, "batch_size": batch_size}
    for name, model in _watched(classifiers, progress):
        cam = GradCam(model, images)
        if pictures:
            result.arrays.update(_heat_arrays(name, cam, samples, shown, batch_size))
        maps = cam(samples.images, samples.labels, batch_size, levels=cam.levels[-1])
        for normalisation in NORMALISATIONS:
            heat = maps.resized(normalisation)[:, 0]
            start = {"arrangement": name, "repeat": repeat, "normalisation": normalisation}
            result.localisation.append(start | localisation(heat, samples.masks, threshold=threshold).row())
            if samples.boxes is not None:
                result.boxes.append(start | box_accuracy(heat, samples.boxes).row())
            result.faithfulness.append(start | _faithful(model, samples, heat, tolerance, options))
    return result


@dataclass(frozen=True)
class _Samples:
    """The samples that are measured: all have an object."""

    images: Tensor
    labels: Tensor
    masks: Tensor
    boxes: list[np.ndarray] | None


def _faithful(
    model: nn.Module, samples: _Samples, heat: Tensor, tolerance: float, options: Mapping[str, Any]
) -> dict[str, Any]:
    given = (model, samples.images, samples.labels, heat)
    return {
        "samples": len(heat),
        "pointing": float(pointing_game(heat, samples.masks, tolerance=tolerance).mean()),
        "deletion": float(deletion(*given, **options).auc.mean()),
        "insertion": float(insertion(*given, **options).auc.mean()),
    }


def shared_correct(
    classifiers: Mapping[str, nn.Module], images: Tensor, labels: Tensor, batch_size: int = 64
) -> Tensor:
    """Which images all classifiers classify correctly: (N,), bool, on the CPU.

    Raises:
        DataError: there is none, or a label is no class of a classifier.
        Bu2tdError: a classifier does not run on the images.
    """
    shared = torch.ones(len(images), dtype=torch.bool)
    rates = []
    for name, model in classifiers.items():
        logits = logits_of(model, images, batch_size)
        right = logits.argmax(1) == check_labels(labels, len(images), logits.shape[1]).cpu()
        rates.append(f"{name} {float(right.double().mean()):.1%}")
        shared &= right
    if not bool(shared.any()):
        raise DataError(
            f"no image is classified correctly by all of {', '.join(classifiers)} (accuracy: {', '.join(rates)}): "
            f"there is nothing to compare; train the networks, give more images, or check the labels"
        )
    return shared


def pick_samples(labels: Tensor, count: int, seed: int = 0) -> Tensor:
    """Positions of ``count`` samples (or of all, if there are fewer), of different classes as long as possible.

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


def _choose(shared: Tensor, masks: Tensor, count: int | None, seed: int) -> Tensor:
    """Samples that all classify correctly and that have an object."""
    index = (shared & masks.flatten(1).any(1)).nonzero()[:, 0]
    if not len(index):
        raise DataError(
            f"none of the {int(shared.sum())} samples that all networks classify correctly has an object pixel; "
            f"lower the threshold, or give boxes"
        )
    if count is None or count >= len(index):
        return index
    drawn = torch.randperm(len(index), generator=torch.Generator().manual_seed(seed))[:count]
    return index[drawn.sort().values]


def _shown_samples(samples: _Samples, shown: Tensor) -> dict[str, np.ndarray]:
    if not len(shown):
        return {}
    images = samples.images[shown.to(samples.images.device)]
    return {"images": images.detach().float().cpu().numpy(), "labels": samples.labels[shown].numpy()}


def _heat_arrays(
    name: str, cam: GradCam, samples: _Samples, shown: Tensor, batch_size: int
) -> dict[str, np.ndarray]:
    maps = cam(samples.images[shown.to(samples.images.device)], samples.labels[shown], batch_size)
    coarse_first = sorted(maps.levels, key=lambda level: -Fraction(level.removeprefix("r")))
    return {
        f"{name}_levels": np.array(coarse_first),
        **{f"{name}_{kind}": maps.resized(kind, levels=coarse_first).numpy() for kind in NORMALISATIONS},
    }


def _watched(classifiers: Mapping[str, nn.Module], progress: bool) -> Iterator[tuple[str, nn.Module]]:
    items: Any = classifiers.items()
    if progress:
        with suppress(ImportError):
            items = importlib.import_module("tqdm").tqdm(items, total=len(items), desc="explain", unit="network")
    yield from items


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
        arrays: ``images`` (N, C, H, W), ``labels`` (N,), and for every network ``a``: ``a_levels`` (L names, coarse
            to fine), ``a_plain`` and ``a_centred`` (N, L, H, W).

    Raises:
        OptionError: arrays are missing or do not fit together.
        FileError: the file cannot be written.
    """
    wrong = _misfit(arrays)
    if wrong:
        raise OptionError(
            f"these are no explanations: {wrong}; give the arrays of bu2td.evaluate.explain.explanations.explain"
        )
    with replacing(Path(path)) as temporary, temporary.open("wb") as file:
        whole: dict[str, Any] = {name: np.asarray(array) for name, array in arrays.items()}
        np.savez_compressed(file, **whole)


def load_explanations(path: str | Path) -> dict[str, np.ndarray]:
    """Read what `save_explanations` wrote; pickled objects are refused.

    Raises:
        FileError: the file is missing, damaged, or holds something else.
    """
    path = Path(path)
    remedy = "run the explanation again to write it"
    try:
        with path.open("rb") as file:  # numpy leaves a damaged file open that it opened itself
            found = np.load(file, allow_pickle=False)
            if isinstance(found, np.ndarray):
                raise ValueError("it is no .npz file")
            arrays = {name: found[name] for name in found.files}
    except FileNotFoundError:
        raise FileError(f"{path} does not exist; {remedy}") from None
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise FileError(f"{path} cannot be read as explanations: {error}; {remedy}") from error
    wrong = _misfit(arrays)
    if wrong:
        raise FileError(f"{path} holds no explanations: {wrong}; {remedy}")
    return arrays


def _misfit(arrays: Mapping[str, Any]) -> str:
    """What does not fit together, in words; empty if all does."""
    shapes = {name: np.shape(array) for name, array in arrays.items()}
    missing = [name for name in ("images", "labels") if name not in shapes]
    names = [name.removesuffix("_levels") for name in shapes if name.endswith("_levels")]
    if missing or not names:
        return f"{' and '.join(missing) or 'heat maps (NAME_levels)'} missing"
    if len(shapes["images"]) != 4 or shapes["labels"] != shapes["images"][:1]:
        return f"images {shapes['images']} and labels {shapes['labels']}"
    n, _, height, width = shapes["images"]
    for name in names:
        expected = (n, *shapes[f"{name}_levels"], height, width)
        for kind in NORMALISATIONS:
            if shapes.get(f"{name}_{kind}") != expected:
                return f"{name}_{kind} has shape {shapes.get(f'{name}_{kind}')} instead of {expected}"
    return ""
