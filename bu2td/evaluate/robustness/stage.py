"""Experiment 2: attacks on trained networks, and which input of the pyramid is vulnerable."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bu2td.evaluate.parts import Found, Part, load, path_of
from bu2td.evaluate.robustness.branches import SCALES, branch_accuracy
from bu2td.evaluate.robustness.curves import Perturbations, robustness_rows, strongest, summarise
from bu2td.evaluate.robustness.gather import (
    BRANCHES,
    MORE,
    Attacked,
    Gathered,
    Network,
    check_planned,
    cuts,
    gather,
    part_name,
)
from bu2td.evaluate.robustness.masking import FACTOR, IMAGES, black_box, more_steps, unbounded
from bu2td.evaluate.robustness.registry import (
    ATTACKS,
    AUTOATTACK,
    STRONGEST,
    TITLES,
    Attack,
    attack_names,
    find_attack,
)
from bu2td.evaluate.robustness.smallest import smallest_perturbations
from bu2td.evaluate.schema import (
    Branch,
    CurvePoint,
    ImageDistance,
    Masking,
    RobustAccuracy,
    Robustness,
    write_table,
)
from bu2td.evaluate.stages import Answer, Context, Stage, digest, digest_model
from bu2td.evaluate.train.model import Classifier
from bu2td.runtime import TopDownNetwork

#: A perturbation on a radius may be this share larger: rounding, and the factor of a second look.
_ON_RADIUS = 1.002


def plan(context: Context) -> list[Part]:
    """A part per network, attack and batch of images; some attacks once more with more steps, on a few images."""
    settings, folder = context.settings, context.run.parts(STAGE.name)
    works = [(name, find_attack(name), _count(context)) for name in attack_names(settings.attacks)]
    works += [
        (f"{MORE}{name}", attack.longer(FACTOR), min(count, IMAGES))
        for name, attack, count in works
        if attack.steps
    ]
    check_planned(folder, {name: _settings(attack, settings) for name, attack, _ in works})
    parts = []
    networks = context.networks(settings.attack_arrangements, settings.attack_runs)
    if not networks:
        return []
    batches = {
        (network, name): cuts(folder, network, name, count, settings.attack_batch_size)
        for network in networks
        for name, _, count in works
    }
    positions, images, labels = context.sample(max(cut[-1][1] for cut in batches.values()))
    for network in networks:
        model = context.classifier(*network)
        weights, seed = digest_model(model), settings.seed + network[1]
        for name, attack, _ in works:
            for start, end in batches[network, name]:
                batch = (images[start:end], labels[start:end])
                mark = {"weights": weights, "images": digest(batch), **_settings(attack, settings), "seed": seed}
                work = partial(_attacked, model, batch, positions[start:end], attack, settings, seed, start)
                parts.append(Part(part_name(network, name, start, end), mark, work))
    return parts


def _count(context: Context) -> int:
    """How many test images are attacked: as many as one asked for, or all (0)."""
    size = len(context.data.test)
    return min(context.settings.attack_samples or size, size)


def _settings(attack: Attack, settings: Any) -> dict[str, Any]:
    return {"attack": attack.describe(settings.attack_budget), "repeats": attack.runs(settings.attack_repeats)}


def _attacked(
    model: Classifier,
    batch: tuple[Tensor, Tensor],
    positions: list[int],
    attack: Attack,
    settings: Any,
    seed: int,
    start: int,
) -> Found:
    found = smallest_perturbations(
        model,
        *batch,
        attack,
        repeats=settings.attack_repeats,
        budget=settings.attack_budget,
        seed=seed,
        batch_size=len(batch[0]),
        start_batch=start,  # any number that no other batch has
    )
    return Found(arrays={**vars(found), "positions": np.array(positions)})


def plan_branches(context: Context) -> list[Part]:
    """A part per batch of perturbations in L2 of a top-down network."""
    settings, folder, parts = context.settings, context.run.parts(STAGE.name), []
    attacks = [name for name in attack_names(settings.attacks) if find_attack(name).norm == "l2"]
    networks = context.networks(settings.attack_arrangements, settings.attack_runs)
    batches = {
        (network, name): cuts(folder, network, name, _count(context), settings.attack_batch_size)
        for network in networks
        for name in attacks
    }
    _, images, labels = context.sample(max((cut[-1][1] for cut in batches.values()), default=1))
    for network in networks:
        model = context.classifier(*network)
        if not isinstance(model.network, TopDownNetwork):
            continue
        weights = digest_model(model)
        for name in attacks:
            for start, end in batches[network, name]:
                path = path_of(part_name(network, name, start, end), folder)
                if not path.exists():  # another shard has it
                    continue
                perturbed = torch.as_tensor(load(path).arrays["images"])
                chosen = (images[start:end], labels[start:end])
                mark = {"weights": weights, "perturbations": digest([*chosen, perturbed]), "scales": SCALES}
                work = partial(_branches, model, network, name, path, *chosen)
                parts.append(Part(part_name(network, f"{BRANCHES}{name}", start, end), mark, work))
    return parts


def _branches(model: Classifier, network: Network, attack: str, path: Any, images: Tensor, labels: Tensor) -> Found:
    arrays = load(path).arrays
    failures = int((arrays["clean"] & np.isinf(arrays["distance"])).sum())
    perturbed = torch.as_tensor(arrays["images"])
    rows = branch_accuracy(model, images, perturbed, labels, scales=SCALES, batch_size=len(images))
    return Found(tuple(Branch(*network, attack, failures=failures, **row) for row in rows))


def collect(context: Context) -> Answer:
    """Tables of all attacks that are there."""
    there, folder = gather(context.run.parts(STAGE.name)), context.run.path
    results = {network: _in_l2(there.attacks[network]) for network in there.attacks}
    shared = [name for name in ATTACKS if all(name in own for own in results.values())]
    for own in results.values():
        own |= _strongest({name: own[name] for name in shared})
    table, curves = robustness_rows(results)
    write_table(Robustness, table, folder)
    write_table(CurvePoint, curves, folder)
    distances = [
        ImageDistance(*network, name, image, float(distance))
        for network, own in results.items()
        for name, one in own.items()
        for image, distance in zip(_positions(there, network), one.distance, strict=False)
    ]
    write_table(ImageDistance, distances, folder)
    branches = [row for own in there.branches.values() for rows in own.values() for row in rows]
    write_table(Branch, branches, folder)
    write_table(RobustAccuracy, _robust_accuracy(there), folder)
    write_table(Masking, _masking(there, results), folder)
    used = {name: one.attack for own in there.attacks.values() for name, one in own.items()}
    context.run.note(attacks=[used[name] for name in ATTACKS if name in used], strongest=shared)
    return {"median L2 of the smallest perturbation": _medians(results)}


def _in_l2(own: Mapping[str, Attacked]) -> dict[str, Perturbations]:
    return {name: one.perturbations for name, one in own.items() if find_attack(name).norm == "l2"}


def _positions(there: Gathered, network: Network) -> tuple[int, ...]:
    """Of all images that any attack has seen; every attack has seen the first ones of these."""
    return max((one.positions for one in there.attacks[network].values()), key=len)


def _strongest(own: Mapping[str, Perturbations]) -> dict[str, Perturbations]:
    """The smallest perturbations under all attacks, the white-box and the black-box ones.

    Args:
        own: attacks in L2 that every network went through, so that none is at a disadvantage.

    Returns:
        By name; nothing where there is one attack.
    """
    found = {}
    for name, kinds in STRONGEST.items():
        some = {attack: one for attack, one in own.items() if find_attack(attack).group in kinds}
        if some and len(own) > 1:
            found[name] = strongest(some)
    return found


def _robust_accuracy(there: Gathered) -> list[RobustAccuracy]:
    rows = []
    for network, own in there.attacks.items():
        for name in (name for name in AUTOATTACK if name in own):
            settings, distance = own[name].attack["settings"], own[name].perturbations.distance
            for radius in (settings["smallest"] * 2**k for k in range(settings["radii"])):
                share = float((distance > radius * _ON_RADIUS).mean())
                rows.append(RobustAccuracy(*network, name, find_attack(name).norm, radius, len(distance), share))
    return rows


def _masking(there: Gathered, results: Mapping[Network, Mapping[str, Perturbations]]) -> list[Masking]:
    rows = []
    for network, own in results.items():
        for name, more in there.more.get(network, {}).items():
            if name in own:
                rows.append(Masking(*network, f"more-steps:{name}", **more_steps(own[name], more.perturbations)))
        white, black = own.get("strongest-white-box"), own.get("strongest-black-box")
        if white is not None and black is not None:
            rows.append(Masking(*network, "black-box", **black_box(white, black)))
        if white is not None:
            rows.append(Masking(*network, "unbounded", **unbounded(white)))
    return rows


def _medians(results: Mapping[Network, Mapping[str, Perturbations]]) -> list[dict[str, Any]]:
    names = [name for name in TITLES if any(name in own for own in results.values())]
    arrangements = dict.fromkeys(a for a, _ in results)
    return [{"attack": name, **{a: _median(results, a, name) for a in arrangements}} for name in names]


def _median(results: Mapping[Network, Mapping[str, Perturbations]], arrangement: str, name: str) -> str:
    medians = [
        summarise(own[name], 1.0)["median_l2"]
        for (a, _), own in results.items()
        if a == arrangement and name in own
    ]
    if not medians:
        return "not run"
    known = [m for m in medians if math.isfinite(m)]
    return f"{sum(known) / len(known):.3f}" if known and len(known) == len(medians) else "none found for half"


STAGE = Stage(
    "robustness",
    (Robustness, ImageDistance, CurvePoint, Branch, RobustAccuracy, Masking),
    plan,
    collect,
    then=plan_branches,
)
