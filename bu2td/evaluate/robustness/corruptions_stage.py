"""Corrupted images and perturbation sequences: those made here, and data sets of them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bu2td.evaluate.checks import frozen, predict_classes
from bu2td.evaluate.data.corrupted import SEVERITIES, Corrupted, CorruptedData, Sequences, open_corrupted
from bu2td.evaluate.means import aggregate
from bu2td.evaluate.parts import Found, Part
from bu2td.evaluate.robustness.corruptions import CORRUPTIONS, corrupted_right
from bu2td.evaluate.robustness.judged import Judged, Network, by_network, joined
from bu2td.evaluate.schema import ARRANGEMENTS, CorruptedImage, Corruption, CorruptionError, Flips, write_table
from bu2td.evaluate.stages import Answer, Context, Stage, digest, digest_model
from bu2td.evaluate.train.model import Classifier

#: Images of a part, and sequences of one.
IMAGES, SEQUENCES = 100, 20
#: The name of the corruptions that are made here, as a set.
OWN = "bu2td"
_ALL = (0, *SEVERITIES)  # 0 is clean


def plan(context: Context) -> list[Part]:
    """A part per network, corruption or perturbation, and batch of images or sequences.

    Raises:
        DataError: corrupted_data is not what it should be.
    """
    settings = context.settings
    parts: list[Part] = []
    positions, images, labels = context.sample(settings.corruption_samples)
    folder = settings.corrupted_data
    data = None if folder is None else open_corrupted(folder, context.data)
    for network in context.networks(settings.arrangements, settings.repeats):
        model = context.classifier(*network)
        start, weights = f"{network[0]}-{network[1]}", digest_model(model)
        parts += _own_parts(start, weights, model, positions, images, labels, settings.seed)
        if data is not None:
            parts += _data_parts(start, weights, model, data, settings.corruption_samples, settings.seed)
    return parts


def _own_parts(
    network: str,
    weights: str,
    model: Classifier,
    positions: Sequence[int],
    images: Tensor,
    labels: Tensor,
    seed: int,
) -> Iterator[Part]:
    for first in range(0, len(positions), IMAGES):
        own = slice(first, first + IMAGES)
        batch, places = (images[own], labels[own]), list(positions[own])
        mark = {"weights": weights, "images": digest(batch), "positions": places, "seed": seed}
        for name in CORRUPTIONS:
            work = partial(_corrupted, model, *batch, places, name, seed, first)
            yield Part(
                f"{network}/{name}-{first:06d}-{first + len(places):06d}", {**mark, "corruption": name}, work
            )


def _data_parts(
    network: str, weights: str, model: Classifier, data: CorruptedData, samples: int, seed: int
) -> Iterator[Part]:
    """Parts of a folder: the images that are drawn of a test set's corruption have the same places in the set."""
    for one in data.corruptions:
        for first, places in _drawn(len(one), samples, IMAGES, seed):
            mark = {"weights": weights, "source": one.identity, "positions": places}
            name = f"{network}/{data.name}.{one.name}-{first:06d}-{first + len(places):06d}"
            work = partial(_read_and_judged, model, one, places)
            yield Part(name, {**mark, "corruption": f"{data.name}/{one.name}"}, work)
    for moving in data.sequences:
        for first, places in _drawn(len(moving), samples, SEQUENCES, seed):
            mark = {"weights": weights, "source": moving.identity, "positions": places}
            name = f"{network}/{data.name}.{moving.name}-{first:06d}-{first + len(places):06d}"
            yield Part(
                name,
                {**mark, "perturbation": f"{data.name}/{moving.name}"},
                partial(_flipped, model, moving, places),
            )


def _drawn(count: int, samples: int, size: int, seed: int) -> Iterator[tuple[int, list[int]]]:
    """Batches of places, drawn as `Context.drawn` draws; more of them start with the same ones."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()[: samples or None]
    for first in range(0, len(order), size):
        yield first, order[first : first + size]


def _corrupted(
    model: Classifier, images: Tensor, labels: Tensor, places: list[int], name: str, seed: int, first: int
) -> Found:
    right = corrupted_right(model, images, labels, name, severities=_ALL, seed=seed, start=first)
    return Found(arrays={"severities": np.array(_ALL), "positions": np.array(places), "right": right})


def _read_and_judged(model: Classifier, images: Corrupted, places: list[int]) -> Found:
    right = []
    for severity in SEVERITIES:
        x, labels = images.read(severity, places)
        with frozen(model):
            right.append((predict_classes(model, x, labels, IMAGES) == labels).numpy())
    arrays = {"severities": np.array(SEVERITIES), "positions": np.array(places), "right": np.stack(right)}
    return Found(arrays=arrays)


def _flipped(model: Classifier, moving: Sequences, places: list[int]) -> Found:
    shares = []
    for place in places:
        x = moving.read(place)
        with frozen(model):
            predicted = predict_classes(model, x, torch.zeros(len(x), dtype=torch.int64), IMAGES)
        shares.append(flip_probability(predicted.numpy(), noise="noise" in moving.name))
    return Found(arrays={"positions": np.array(places), "flips": np.array(shares)})


def flip_probability(predicted: np.ndarray, noise: bool = False) -> float:
    """The share of frames whose class has flipped (Hendrycks and Dietterich, 2019, section 4, flip probability).

    With f(x_j) the class of frame j of n: sum over j = 2 .. n of [f(x_j) != f(x_{j-1})] / (n - 1). The frames of
    noise do not follow from one another, so that they are compared with the first one, f(x_1).

    Args:
        predicted: classes (n,).
        noise: whether the perturbation is noise.
    """
    before = predicted[0] if noise else predicted[:-1]
    return float((predicted[1:] != before).mean())


# --- tables -------------------------------------------------------------------------------------------


def collect(context: Context) -> Answer:
    """Tables of all that is there."""
    rows: list[Corruption] = []
    images: list[CorruptedImage] = []
    flips: list[tuple[Network, str, Judged]] = []
    for network, parts in by_network(context, STAGE.name, "*").items():
        for name, own in _by_name(parts, "corruption"):
            table = joined((p.arrays["severities"][:, None], p.arrays["positions"], p.arrays["right"]) for p in own)
            for index, (severity,) in enumerate(table.things):
                known = table.known(index)
                rows.append(Corruption(*network, name, int(severity), len(known), float(known.mean())))
            images += _by_image(network, name, table)
        for name, own in _by_name(parts, "perturbation"):
            one = np.zeros((1, 1))
            flips.append(
                (network, name, joined((one, p.arrays["positions"], p.arrays["flips"][None]) for p in own))
            )
    errors, rates = corruption_errors(rows), _flip_rows(flips)
    path = context.run.path
    write_table(Corruption, rows, path)
    write_table(CorruptedImage, images, path)
    write_table(CorruptionError, errors, path)
    write_table(Flips, rates, path)
    return _answer(rows, errors, rates)


def _by_name(parts: Iterable[Found], kind: str) -> list[tuple[str, list[Found]]]:
    """Parts by what their marks name: what is made here first, in its order."""
    found: dict[str, list[Found]] = defaultdict(list)
    for part in parts:
        if kind in part.mark:
            found[part.mark[kind]].append(part)
    order = {name: index for index, name in enumerate(CORRUPTIONS)}
    return sorted(found.items(), key=lambda item: (order.get(item[0], len(order)), item[0]))


def _by_image(network: Network, name: str, table: Judged) -> list[CorruptedImage]:
    hit = [index for index, (severity,) in enumerate(table.things) if severity > 0]
    right = table.values[hit]
    there = ~np.isnan(right).any(0)
    return [
        CorruptedImage(*network, name, position, len(hit), int(right[:, index].sum()))
        for index, position in enumerate(table.positions)
        if there[index]
    ]


def corruption_errors(rows: Sequence[Corruption]) -> list[CorruptionError]:
    """Mean errors and mean corruption errors of every network, by set of corruptions.

    With E_sc the error at severity s of corruption c: CE_c = sum_s E_sc / sum_s E_sc of the baseline, and mCE is
    the mean of CE_c over c (Hendrycks and Dietterich, 2019, section 4, where AlexNet is the baseline; here it is
    the bottom-up network of the same repeat). Without an error of the baseline CE_c is not defined, and mCE is nan.
    """
    errors: dict[Network, dict[str, dict[str, list[float]]]] = {}
    samples: dict[tuple[Network, str], int] = {}
    for row in rows:
        if row.severity > 0:
            network, data = (row.arrangement, row.repeat), row.corruption.rpartition("/")[0] or OWN
            own = errors.setdefault(network, {}).setdefault(data, {})
            own.setdefault(row.corruption, []).append(1 - row.accuracy)
            samples[network, data] = min(row.samples, samples.get((network, data), row.samples))
    found = []
    for network, by_data in errors.items():
        for data, own in by_data.items():
            baseline = errors.get(("bu", network[1]), {}).get(data, {})
            ratios = [_ratio(sum(e), sum(baseline.get(name, []))) for name, e in own.items()]
            mean = float(np.mean([np.mean(e) for e in own.values()]))
            found.append(
                CorruptionError(*network, data, len(own), samples[network, data], mean, float(np.mean(ratios)))
            )
    return found


def _ratio(own: float, baseline: float) -> float:
    return own / baseline if baseline > 0 else math.nan


def _flip_rows(found: Sequence[tuple[Network, str, Judged]]) -> list[Flips]:
    means = {(network, name): float(table.known(0).mean()) for network, name, table in found}
    return [
        Flips(
            *network, name, len(table.known(0)), means[network, name],
            _ratio(means[network, name], means.get((("bu", network[1]), name), 0.0)),
        )
        for network, name, table in found
    ]  # fmt: skip


def _answer(rows: Sequence[Corruption], errors: Sequence[CorruptionError], flips: Sequence[Flips]) -> Answer:
    arrangements = [a for a in ARRANGEMENTS if any(row.arrangement == a for row in rows)]
    means = aggregate([vars(row) for row in rows if row.severity], ["corruption", "arrangement"], "accuracy")
    answer: Answer = {
        "accuracy under corruption (mean of five severities)": _lines("corruption", means, arrangements)
    }
    relative = aggregate([vars(row) for row in errors], ["data", "arrangement"], "mce")
    answer["mean corruption error, relative to bottom-up"] = _lines("corruptions of", relative, arrangements)
    if flips:
        chances = aggregate([vars(row) for row in flips], ["perturbation", "arrangement"], "probability")
        answer["flip probability"] = _lines("perturbation", chances, arrangements)
    return answer


def _lines(title: str, means: Mapping[tuple[str, ...], Any], arrangements: Sequence[str]) -> list[dict[str, str]]:
    return [
        {title: name, **{a: f"{means[name, a].mean:.2%}" for a in arrangements if (name, a) in means}}
        for name in dict.fromkeys(name for name, _ in means)
    ]


STAGE = Stage("corruptions", (Corruption, CorruptedImage, CorruptionError, Flips), plan, collect)
