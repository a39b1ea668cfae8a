"""AutoAttack (Croce, Hein, 2020), from its own code, as an attack of ours."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bu2td.evaluate.robustness.base import SearchAttack
from bu2td.evaluate.robustness.candidates import Search, norms
from bu2td.packages import imported

#: Its targeted attacks go for this many classes besides the right one, where there are as many.
_TARGETS = 9
#: The targeted DLR loss is a ratio that needs so many logits.
_DLR_CLASSES = 4


class AutoAttack(SearchAttack):
    """The standard version at growing radii, each on the images that withstood the one before.

    APGD on cross-entropy, targeted APGD on DLR (left out for fewer than four classes), targeted FAB, Square (left
    out in L2 for images whose sides its first tiles do not fit, such as 12 px; 16, 28, 32 and 224 px fit).
    What is found at a radius is on or inside it, not the smallest: the distances say at which radii an image holds.
    The code is that of the authors (package pyautoattack, which RobustBench uses).

    Args:
        norm: "L2" or "Linf".
        radii: how many.
        smallest: the first radius; each further one is twice the last.
        iterations: of APGD and FAB (standard: 100).
        queries: of Square (standard: 5000).
    """

    norm: str

    def __init__(self, radii: int, smallest: float, iterations: int = 100, queries: int = 5000) -> None:
        self.package = imported("pyautoattack", "'bu2td[autoattack]'", "AutoAttack needs its authors' package:")
        self.radii = [smallest * 2**k for k in range(radii)]
        self.iterations, self.queries = iterations, queries

    def improve(self, search: Search) -> None:
        """Go through the radii."""
        search.converged[:] = False
        for radius in self.radii:
            rows = search.open_rows()
            if not len(rows):
                return
            found = self._at(radius, search.model, search.images[rows], search.labels[rows])
            hits = search.adversarial(found, rows)
            search.best[rows[hits]] = found[hits]
            search.distance[rows[hits]] = norms(found - search.images[rows])[hits]

    def _at(self, radius: float, model: Any, images: Tensor, labels: Tensor) -> Tensor:
        seed = int(torch.randint(2**31, (1,)))
        attack = self.package.AutoAttack(
            model, norm=self.norm, eps=radius, seed=seed, version="standard", device=str(images.device)
        )
        with torch.no_grad():
            classes = model(images[:1]).shape[-1]
        if classes < _DLR_CLASSES:
            attack.attacks_to_run.remove("apgd-t")
        if self.norm == "L2" and not _tiled(*images.shape[2:]):
            attack.attacks_to_run.remove("square")
        attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = min(_TARGETS, classes - 1)
        attack.apgd.n_iter = attack.apgd_targeted.n_iter = attack.fab.n_iter = self.iterations
        attack.square.n_queries = self.queries
        found: Tensor = attack.run_standard_evaluation(images, labels, batch_size=len(images))[0]
        return found.detach().clamp(0, 1)


def _tiled(height: int, width: int) -> bool:
    """Whether the tiles of Square's first step in L2 lie inside the image: squares of a fifth of its height."""
    side = height // 5
    edge = (height - 5 * side) // 2
    return side > 0 and all(edge + size // side * side <= size for size in (height, width))


class AutoAttackL2(AutoAttack):
    """In L2; arguments as `AutoAttack`."""

    norm = "L2"


class AutoAttackLinf(AutoAttack):
    """In the greatest change of a pixel value; arguments as `AutoAttack`."""

    norm = "Linf"
