"""Experiment 2: attacks on trained networks, and which input of the pyramid is vulnerable."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bu2td.evaluate.parts import Found, Part, load_all
from bu2td.evaluate.robustness.branches import branch_accuracy
from bu2td.evaluate.robustness.curves import Perturbations, join, robustness_rows, summarise
from bu2td.evaluate.robustness.registry import ATTACKS, GROUPS, Attack, find_attack
from bu2td.evaluate.robustness.smallest import smallest_perturbations
from bu2td.evaluate.schema import Branch, CurvePoint, ImageDistance, Robustness, write_table
from bu2td.evaluate.stages import Answer, Context, Stage, digest, digest_model
from bu2td.evaluate.train.model import Classifier
from bu2td.runtime import TopDownNetwork

_ARRAYS = ("distance", "clean", "images", "dropped")
_NAME = re.compile(r"(\w+)-(\d+)/(.+)-(\d+)-(\d+)")


def attack_names(words: Iterable[str]) -> list[str]:
    """Attacks by name, groups spelled out.

    Raises:
        OptionError: there is no such attack or group.
    """
    names = [name for word in words for name in GROUPS.get(word, (word,))]
    return [find_attack(name).name for name in dict.fromkeys(names)]


def plan(context: Context) -> list[Part]:
    """A part per network, attack and batch of images."""
    settings = context.settings
    positions, images, labels = context.sample(settings.attack_samples)
    size, parts = settings.attack_batch_size, []
    for arrangement, repeat in context.networks(settings.attack_arrangements, settings.attack_runs):
        model = context.classifier(arrangement, repeat)
        weights, seed = digest_model(model), settings.seed + repeat
        for attack in map(find_attack, attack_names(settings.attacks)):
            for start in range(0, len(positions), size):
                chosen = slice(start, start + size)
                batch = (images[chosen], labels[chosen])
                mark = {
                    "weights": weights,
                    "images": digest(batch),
                    "attack": attack.describe(settings.attack_budget),
                    "repeats": 1 if attack.deterministic else settings.attack_repeats,
                    "seed": seed,
                }
                name = f"{arrangement}-{repeat}/{attack.name}-{start:06d}-{start + len(batch[0]):06d}"
                work = partial(_attacked, model, batch, positions[chosen], attack, settings, seed, start // size)
                parts.append(Part(name, mark, work))
    return parts


def _attacked(
    model: Classifier,
    batch: tuple[Tensor, Tensor],
    positions: Sequence[int],
    attack: Attack,
    settings: Any,
    seed: int,
    number: int,
) -> Found:
    found = smallest_perturbations(
        model,
        *batch,
        attack,
        repeats=settings.attack_repeats,
        budget=settings.attack_budget,
        seed=seed,
        batch_size=settings.attack_batch_size,
        start_batch=number,
    )
    return Found(arrays={**vars(found), "positions": torch.tensor(positions).numpy()})


def collect(context: Context) -> Answer:
    """Tables of all attacks that are there."""
    found = _found(context)
    results = {network: {a: p for a, (p, _) in own.items()} for network, own in found.items()}
    table, curves = robustness_rows(results)
    write_table(Robustness, table, context.run.path)
    write_table(CurvePoint, curves, context.run.path)
    distances = [
        ImageDistance(*network, attack, int(image), float(distance))
        for network, own in found.items()
        for attack, (one, images) in own.items()
        for image, distance in zip(images, one.distance, strict=True)
    ]
    write_table(ImageDistance, distances, context.run.path)
    write_table(Branch, _branches(context, results), context.run.path)
    used = [name for name in ATTACKS if any(name in own for own in found.values())]
    context.run.note(attacks=[find_attack(name).describe(context.settings.attack_budget) for name in used])
    arrangements = list(dict.fromkeys(a for a, _ in results))
    rows = [{"attack": name, **{a: _median(results, a, name) for a in arrangements}} for name in used]
    return {"median L2 of the smallest perturbation": rows}


def _found(context: Context) -> dict[tuple[str, int], dict[str, tuple[Perturbations, list[int]]]]:
    """What is there, by network and attack: batches in their order, as far as they follow upon one another."""
    batches: dict[tuple[str, int], dict[str, list[tuple[int, int, Found]]]] = {}
    for name, part in load_all(context.run.parts(STAGE.name)):
        match = _NAME.fullmatch(name)
        if match is not None:
            own = batches.setdefault((match[1], int(match[2])), {}).setdefault(match[3], [])
            own.append((int(match[4]), -int(match[5]), part))
    found: dict[tuple[str, int], dict[str, tuple[Perturbations, list[int]]]] = {}
    for network, attacks in sorted(batches.items()):
        for attack in (name for name in ATTACKS if name in attacks):
            end, chosen = 0, []
            for start, last, part in sorted(attacks[attack], key=lambda batch: batch[:2]):
                if start == end:
                    chosen.append(part)
                    end = -last
            if chosen:
                joined = join([Perturbations(*(part.arrays[name] for name in _ARRAYS)) for part in chosen])
                positions = [int(p) for part in chosen for p in part.arrays["positions"]]
                found.setdefault(network, {})[attack] = (joined, positions)
    return found


def _branches(context: Context, results: Mapping[tuple[str, int], Mapping[str, Perturbations]]) -> list[Branch]:
    rows = []
    for (arrangement, repeat), perturbations in results.items():
        classifier = context.classifier(arrangement, repeat)
        if isinstance(classifier.network, TopDownNetwork):
            for name, one in perturbations.items():
                _, images, labels = context.sample(len(one))
                size = context.settings.attack_batch_size
                found = branch_accuracy(classifier, images, torch.as_tensor(one.images), labels, batch_size=size)
                rows += [Branch(arrangement, repeat, name, scale=1.0, **row) for row in found]
    return rows


def _median(found: Mapping[Any, Mapping[str, Perturbations]], arrangement: str, name: str) -> str:
    medians = [
        summarise(own[name], 1.0)["median_l2"] for (a, _), own in found.items() if a == arrangement and name in own
    ]
    known = [m for m in medians if math.isfinite(m)]
    return f"{sum(known) / len(known):.3f}" if known and len(known) == len(medians) else "none found for half"


STAGE = Stage("robustness", (Robustness, ImageDistance, CurvePoint, Branch), plan, collect)
