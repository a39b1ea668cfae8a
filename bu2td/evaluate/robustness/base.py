"""What our own Foolbox attack classes share: attacks that it lacks, or whose own cannot be used as they are.

They minimise the L2 distance (AutoAttack does not), image by image: what one image of a batch yields does not
depend on the others (the random numbers that it gets do). Images without success come back as they were.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from bu2td.errors import MissingPackageError, OptionError
from bu2td.evaluate.robustness.candidates import Search
from bu2td.packages import advice

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Foolbox imports scipy's functions by their old names
        import eagerpy as ep
        import foolbox.attacks as fa  # noqa: F401
        from foolbox import PyTorchModel  # noqa: F401
        from foolbox.attacks.base import (
            FixedEpsilonAttack,
            MinimizationAttack,
            get_criterion,
            raise_if_kwargs,
            verify_input_bounds,
        )
        from foolbox.attacks.gradient_descent_base import GDOptimizer  # noqa: F401 (as fa and PyTorchModel: imported from here, where a missing package is named)
        from foolbox.criteria import Misclassification
        from foolbox.distances import l2
except ImportError as error:
    raise MissingPackageError(
        f"attacks need foolbox ({error}). Run: {advice('evaluate')}, or pip install foolbox"
    ) from error


class SearchAttack(MinimizationAttack):
    """An attack that offers candidates to a `Search`; untargeted, in L2. A subclass writes `improve`.

    Attributes:
        converged: (N,) of bool, whether the search for each image of the last run had come to rest; False: what was
            found is an upper bound only. Attacks without a walk have come to rest at their end.
    """

    distance = l2
    converged: Tensor

    def run(
        self, model: Any, inputs: Any, criterion: Any, *, early_stop: float | None = None, **kwargs: Any
    ) -> Any:
        """Perturb images (N, C, H, W); the labels (N,) or a `Misclassification` are the criterion.

        Raises:
            OptionError: the criterion is another one.
        """
        raise_if_kwargs(kwargs)
        images, restore = ep.astensor_(inputs)
        verify_input_bounds(images, model)
        criterion = get_criterion(criterion)
        if not isinstance(criterion, Misclassification):
            raise OptionError(f"{type(self).__name__} takes labels or Misclassification, found {criterion!r}")
        search = Search(model, images.raw, criterion.labels.raw.long())
        self.improve(search)
        self.converged = search.converged
        return restore(ep.astensor(search.best))

    @abstractmethod
    def improve(self, search: Search) -> None:
        """Find adversarial images for the open rows of the search."""


class PathAttack(SearchAttack):
    """Walk along a path from every image: `steps` equal steps, then bisection."""

    def __init__(self, steps: int, bisections: int) -> None:
        self.steps, self.bisections = steps, bisections

    def walk(self, search: Search, path: Any) -> None:
        """Walk from all open rows; `path` as `Search.along` takes it."""
        grid = [(i + 1) / self.steps for i in range(self.steps)]
        search.along(path, search.open_rows(), grid, self.bisections)


def draw_until_adversarial(search: Search, noise: Tensor, draws: int) -> Tensor:
    """Draw uniform noise images anew, in place, where they do not fool the model; returns rows without success."""
    rows = search.open_rows()
    for i in range(draws):
        if i:
            noise[rows] = torch.rand_like(noise[rows])
        rows = rows[~search.adversarial(noise[rows], rows)]
        if not len(rows):
            break
    return rows


class SmallestEpsilon(SearchAttack):
    """Minimise with an attack of a fixed size: ascending sizes up to the first hit, then bisection, per image.

    Foolbox 3 runs such attacks at given sizes only. The inner attack's `run` must take one epsilon per image.

    Args:
        attack: of which size is asked for as an eagerpy tensor (N,).
        smallest, largest: sizes, as root mean square over pixel values: L2 / sqrt(C H W).
        steps: how many sizes, in a geometric series.
        bisections: of the interval below the first hit.
    """

    def __init__(
        self, attack: FixedEpsilonAttack, smallest: float, largest: float, steps: int, bisections: int
    ) -> None:
        self.attack = attack
        self.smallest, self.largest, self.steps, self.bisections = smallest, largest, steps, bisections

    def improve(self, search: Search) -> None:
        """Grow until hit, then bisect."""
        root = search.images[0].numel() ** 0.5
        ratio = (self.largest / self.smallest) ** (1 / max(self.steps - 1, 1))
        upper, lower = torch.zeros_like(search.distance), torch.zeros_like(search.distance)
        targets = rows = search.open_rows()
        size = self.smallest * root
        for _ in range(self.steps):
            hits = self._try(search, rows, torch.full_like(search.distance, size)[rows])
            upper[rows[hits]] = size
            rows = rows[~hits]
            lower[rows] = size
            size *= ratio
            if not len(rows):
                break
        rows = targets[upper[targets] > 0]
        for _ in range(self.bisections if len(rows) else 0):
            middle = (lower[rows] + upper[rows]) / 2
            hits = self._try(search, rows, middle)
            upper[rows] = torch.where(hits, middle, upper[rows])
            lower[rows] = torch.where(hits, lower[rows], middle)

    def _try(self, search: Search, rows: Tensor, sizes: Tensor) -> Tensor:
        if not len(rows):
            return torch.zeros(0, dtype=torch.bool, device=rows.device)
        criterion = Misclassification(search.labels[rows])
        found = self.attack.run(search.model, search.images[rows], criterion, epsilon=ep.astensor(sizes))  # type: ignore[arg-type]
        return search.offer(found.clamp(0, 1), rows)
