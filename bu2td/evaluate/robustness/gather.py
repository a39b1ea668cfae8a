"""The part files of the robustness experiment: how images are cut into batches, and what is there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bu2td.errors import RunFolderError
from bu2td.evaluate.parts import Found, load_all
from bu2td.evaluate.robustness.curves import ARRAYS, Perturbations, join
from bu2td.evaluate.robustness.registry import ATTACKS
from bu2td.evaluate.schema import Branch

#: Before the attack's name in the name of a part: the check of more steps, the study of branches.
MORE, BRANCHES = "more-steps-", "branches-"
_NAME = re.compile(r"(\w+)-(\d+)/(.+)-(\d{6})-(\d{6})")
_FILE = re.compile(r"(.+)-(\d{6})-(\d{6})\.npz")

Network = tuple[str, int]


def part_name(network: Network, work: str, start: int, end: int) -> str:
    """The name of the part of images start to end - 1."""
    return f"{_folder(network)}/{work}-{start:06d}-{end:06d}"


def _folder(network: Network) -> str:
    return f"{network[0]}-{network[1]}"


def cuts(folder: Path, network: Network, work: str, count: int, size: int) -> list[tuple[int, int]]:
    """Cut images 0 to count - 1 into batches [start, end): those that are there, then new ones.

    A run whose number of images grows keeps its batches, whatever their sizes. Processes that do the new ones at
    the same time cut alike, for a batch that one of them has finished is the one that the others would have cut.

    Args:
        folder: of the stage.
        network: arrangement and repeat.
        work: an attack's name, with what stands before it.
        count: how many images are asked for; a batch that is there may go beyond.
        size: of new batches.
    """
    there: dict[int, int] = {}
    for path in (folder / _folder(network)).glob(f"{work}-*.npz"):
        match = _FILE.fullmatch(path.name)
        if match is not None and match[1] == work:
            there[int(match[2])] = max(int(match[3]), there.get(int(match[2]), 0))
    found, start = [], 0
    while start < count:
        end = there.get(start, min(start + size, count))
        found.append((start, end))
        start = end
    return found


@dataclass(frozen=True)
class Attacked:
    """What one attack came to on one network; `perturbations` without its images.

    Attributes:
        perturbations: of the first images that were drawn.
        positions: of these in the test set.
        attack: the attack with its settings, and how often it was run.
    """

    perturbations: Perturbations
    positions: tuple[int, ...]
    attack: Mapping[str, Any]


@dataclass
class Gathered:
    """All parts that are there, by network and attack, attacks in the order of tables."""

    attacks: dict[Network, dict[str, Attacked]] = field(default_factory=dict)
    more: dict[Network, dict[str, Attacked]] = field(default_factory=dict)
    branches: dict[Network, dict[str, list[Branch]]] = field(default_factory=dict)


def gather(folder: Path) -> Gathered:
    """Read what is there.

    Args:
        folder: of the stage.

    Raises:
        RunFolderError: parts of one network are of different weights, or an attack was run with different settings
            on different networks, so that no table can hold both.
    """
    batches: dict[Network, dict[str, list[tuple[int, int, Found]]]] = {}
    for name, part in load_all(folder):
        match = _NAME.fullmatch(name)
        if match is not None:
            slim = Found(part.rows, {k: v for k, v in part.arrays.items() if k != "images"}, part.mark)
            own = batches.setdefault((match[1], int(match[2])), {}).setdefault(match[3], [])
            own.append((int(match[4]), int(match[5]), slim))
    check_alike(folder, {n: {w: _chain(b) for w, b in own.items()} for n, own in batches.items()})
    found = Gathered()
    for network, works in sorted(batches.items()):
        for attack in ATTACKS:
            for prefix, home in (("", found.attacks), (MORE, found.more)):
                parts = _chain(works.get(f"{prefix}{attack}", []))
                if parts:
                    home.setdefault(network, {})[attack] = _attacked(parts)
            rows = [part.of(Branch) for part in _chain(works.get(f"{BRANCHES}{attack}", []))]
            if rows:
                found.branches.setdefault(network, {})[attack] = _summed(rows)
    return found


def _chain(batches: list[tuple[int, int, Found]]) -> list[Found]:
    """Batches that follow upon one another from image 0 on, as `cuts` lays them."""
    longest = {start: (end, part) for start, end, part in sorted(batches, key=lambda batch: batch[:2])}
    found, start = [], 0
    while start in longest:
        start, part = longest[start]
        found.append(part)
    return found


def _attacked(parts: list[Found]) -> Attacked:
    def one(part: Found) -> Perturbations:
        arrays = {name: part.arrays[name] for name in ARRAYS if name != "images"}
        return Perturbations(**arrays, images=np.zeros((len(arrays["distance"]), 0)))

    positions = tuple(int(p) for part in parts for p in part.arrays["positions"])
    return Attacked(join([one(part) for part in parts]), positions, _settings(parts[0]))


def _settings(part: Found) -> dict[str, Any]:
    return {**part.mark["attack"], "repeats": part.mark["repeats"]}


def _summed(batches: list[list[Branch]]) -> list[Branch]:
    """Rows of several batches as those of all their images."""
    found = []
    for rows in zip(*batches, strict=True):
        samples = sum(row.samples for row in rows)
        right = sum(round(row.accuracy * row.samples) for row in rows if row.samples)
        failures = sum(row.failures for row in rows)
        changes = {
            "samples": samples,
            "failures": failures,
            "accuracy": right / samples if samples else float("nan"),
        }
        found.append(Branch(**{**vars(rows[0]), **changes}))
    return found


def check_alike(folder: Path, parts: Mapping[Network, Mapping[str, list[Found]]]) -> None:
    """Refuse results that do not belong together.

    Raises:
        RunFolderError: as `gather`.
    """
    settings: dict[str, tuple[Network, Any]] = {}
    for network, works in parts.items():
        weights = {part.mark.get("weights") for own in works.values() for part in own}
        if len(weights) > 1:
            raise RunFolderError(
                f"{folder / _folder(network)} holds results of different weights of one network; "
                f"--overwrite moves the results of this stage aside"
            )
        for work, own in works.items():
            for part in own if not work.startswith(BRANCHES) else ():
                other, first = settings.setdefault(work, (network, _settings(part)))
                if first != _settings(part):
                    raise RunFolderError(
                        f"{folder}: {work} was run with different settings on {_folder(other)} ({first}) and "
                        f"{_folder(network)} ({_settings(part)}); --overwrite moves the results of this stage aside"
                    )


def check_planned(folder: Path, wanted: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse to run an attack with other settings than those of results that are there, before any work is done.

    Args:
        folder: of the stage.
        wanted: what is planned: the attack with its settings, and how often it is run, by the name of the work.

    Raises:
        RunFolderError: there are such results.
    """
    for name, part in load_all(folder, "*/*-000000-*"):  # the first batch speaks for all of its kind
        match = _NAME.fullmatch(name)
        if match is not None and match[3] in wanted:
            now = dict(wanted[match[3]])
            there = {key: part.mark.get(key) for key in now}
            if there != now:
                raise RunFolderError(
                    f"{folder / name} was made with {there}, not with {now}, so that no table can hold both. Give "
                    f"the settings of then, name another folder with -o, or move the results of this stage aside "
                    f"with --overwrite"
                )
