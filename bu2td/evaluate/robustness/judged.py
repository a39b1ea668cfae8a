"""What the parts of a stage say about things (frequencies, severities) and images, side by side."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from bu2td.evaluate.parts import Found, load_all
from bu2td.evaluate.schema import ARRANGEMENTS
from bu2td.evaluate.stages import Context

Network = tuple[str, int]


@dataclass(frozen=True)
class Judged:
    """A value for every thing and image; nan where a part is missing.

    Attributes:
        things: what was measured, sorted.
        positions: of the images among the test images, sorted.
        values: (things, positions), float64.
    """

    things: tuple[tuple[float, ...], ...]
    positions: tuple[int, ...]
    values: np.ndarray = field(repr=False)

    def known(self, index: int) -> np.ndarray:
        """The values of a thing that are there."""
        return self.values[index][~np.isnan(self.values[index])]


def joined(parts: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Judged:
    """Put parts together: (things (T, ...), positions (N,), values (T, N)); those that overlap agree."""
    parts = list(parts)
    things = tuple(sorted({tuple(one) for own, _, _ in parts for one in own.tolist()}))
    positions = tuple(sorted({int(p) for _, own, _ in parts for p in own}))
    row, column = ({one: i for i, one in enumerate(every)} for every in (things, positions))
    values = np.full((len(things), len(positions)), np.nan)
    for own, places, found in parts:
        values[np.ix_([row[tuple(one)] for one in own.tolist()], [column[int(p)] for p in places])] = found
    return Judged(things, positions, values)


def by_network(context: Context, stage: str, pattern: str) -> dict[Network, list[Found]]:
    """The parts of a stage that are there, by network in the order of a report.

    Args:
        context: of the run.
        stage: whose parts.
        pattern: of their names below ``ARRANGEMENT-REPEAT/``.
    """
    found: dict[Network, list[Found]] = defaultdict(list)
    for name, part in load_all(context.run.parts(stage), f"*/{pattern}"):
        arrangement, _, repeat = name.split("/")[0].rpartition("-")
        if arrangement in ARRANGEMENTS and repeat.isdigit():
            found[arrangement, int(repeat)].append(part)
    return dict(sorted(found.items(), key=lambda item: (ARRANGEMENTS.index(item[0][0]), item[0][1])))
