"""Foolbox attacks that start from an adversarial image far away and walk towards the original.

Foolbox 3's own give up a whole batch where one image has no start, or need far more queries.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from bu2td.evaluate.robustness.base import Misclassification, SearchAttack, draw_until_adversarial, ep, fa
from bu2td.evaluate.robustness.candidates import Search, norms, spread

#: Random images that are tried as a start where salt and pepper has found none.
_DRAWS = 50
#: A walk has come to rest if the second half of its questions brought it nearer by less than this share.
_REST = 0.01
#: Steps of the boundary attack below which nothing is said of that.
_SETTLED = 2000


def find_starts(search: Search, steps: int) -> Tensor:
    """Find an adversarial image for as many open rows as possible, however far away.

    Args:
        search: gets the images.
        steps: of salt-and-pepper noise; images without success get uniform noise.

    Returns:
        Rows that have one now.
    """
    rows = search.open_rows()
    if len(rows):
        salt = fa.SaltAndPepperNoiseAttack(steps=steps, channel_axis=1)
        search.offer(salt.run(search.model, search.images[rows], Misclassification(search.labels[rows])), rows)
        noise = torch.rand_like(search.images)
        draw_until_adversarial(search, noise, _DRAWS)
        search.offer(noise[search.open_rows()], search.open_rows())
    return search.hit_rows()


class PointwiseAttack(SearchAttack):
    """Undo an adversarial image's changes value by value, as far as it stays adversarial (Schott et al., 2019).

    Foolbox 3 asks one value at a time, over and over. Here whole groups of values are undone at once, halved where
    that fails, until every value that is left is needed; then each is moved towards the original by bisection.

    Args:
        start_steps: of the salt-and-pepper noise that gives the start.
        passes: how often all values are looked at in either part, unless nothing improves before.
        bisections: per value.
    """

    def __init__(self, start_steps: int = 200, passes: int = 3, bisections: int = 8) -> None:
        self.start_steps, self.passes, self.bisections = start_steps, passes, bisections

    def improve(self, search: Search) -> None:
        """Start, undo, shrink."""
        rows = find_starts(search, self.start_steps)
        if not len(rows):
            return
        state = search.best[rows].flatten(1)
        clean = search.images[rows].flatten(1)
        for step in (self._undo, self._shrink):
            left = torch.arange(len(rows), device=rows.device)
            for _ in range(self.passes):
                before = (state - clean).norm(dim=1)
                step(search, rows, state, clean, left)
                left = left[((state - clean).norm(dim=1) < 0.99 * before)[left]]
                if not len(left):
                    break
        search.offer(state.reshape(len(rows), *search.images.shape[1:]), rows)

    def _ask(self, search: Search, flat: Tensor, rows: Tensor) -> Tensor:
        return search.adversarial(flat.reshape(len(rows), *search.images.shape[1:]), rows)

    def _undo(self, search: Search, rows: Tensor, state: Tensor, clean: Tensor, left: Tensor) -> None:
        """Set groups of values back, in place; a group that cannot be is halved and asked again."""
        changed = (state != clean).cpu()
        # Per image a stack of (values, whether their other half, next on the stack, is still to be asked).
        stacks: dict[int, list[tuple[Tensor, bool]]] = {}
        for i in left.tolist():
            values = changed[i].nonzero()[:, 0]
            stacks[i] = [(values[torch.randperm(len(values))], False)] if len(values) else []
        while active := [i for i, stack in stacks.items() if stack]:
            groups = [stacks[i].pop() for i in active]
            index = torch.tensor(active).repeat_interleave(torch.tensor([len(values) for values, _ in groups]))
            index, column = index.to(state.device), torch.cat([values for values, _ in groups]).to(state.device)
            trial = state.clone()
            trial[index, column] = clean[index, column]
            chosen = torch.tensor(active, device=state.device)
            hits = self._ask(search, trial[chosen], rows[chosen])
            state[chosen[hits]] = trial[chosen[hits]]
            for i, (values, is_first), hit in zip(active, groups, hits.tolist(), strict=True):
                if not hit:
                    _push_halves(stacks[i], values)
                elif is_first:  # undone, so that the other half alone is now the group that failed
                    _push_halves(stacks[i], stacks[i].pop()[0])

    def _shrink(self, search: Search, rows: Tensor, state: Tensor, clean: Tensor, left: Tensor) -> None:
        """Move one value after the other towards the original, in place."""
        changed = (state != clean).cpu()
        orders = {
            i: values[torch.randperm(len(values))]
            for i in left.tolist()
            if len(values := changed[i].nonzero()[:, 0])
        }
        for turn in range(max((len(order) for order in orders.values()), default=0)):
            active = [i for i, order in orders.items() if len(order) > turn]
            index = torch.tensor(active, device=state.device)
            column = torch.tensor([int(orders[i][turn]) for i in active], device=state.device)
            bad, good = clean[index, column], state[index, column]
            for _ in range(self.bisections):
                middle = (bad + good) / 2
                trial = state[index]
                trial[torch.arange(len(index), device=index.device), column] = middle
                hits = self._ask(search, trial, rows[index])
                good, bad = torch.where(hits, middle, good), torch.where(hits, bad, middle)
            state[index, column] = good


def _push_halves(stack: list[tuple[Tensor, bool]], values: Tensor) -> None:
    if len(values) > 1:
        half = len(values) // 2
        stack.append((values[half:], False))
        stack.append((values[:half], True))


class Watched(Misclassification):
    """Writes down, question by question, how near the nearest adversarial image so far is."""

    def __init__(self, labels: Tensor, images: Tensor) -> None:
        super().__init__(labels)
        self.images = images
        self.nearest = [torch.full((len(images),), torch.inf, device=images.device)]

    def __call__(self, perturbed: Any, outputs: Any) -> Any:
        """Judge perturbed images (N, C, H, W) by the model's outputs for them: (N,) of bool."""
        hits = super().__call__(perturbed, outputs)
        distance = norms(ep.astensor(perturbed).raw - self.images)
        self.nearest.append(torch.where(ep.astensor(hits).raw, distance, torch.inf).minimum(self.nearest[-1]))
        return hits

    def at_rest(self) -> Tensor:
        """Whether the second half of the questions brought next to nothing: (N,)."""
        return self.nearest[-1] >= (1 - _REST) * self.nearest[len(self.nearest) // 2]


class _Inward(SearchAttack):
    """A Foolbox attack that needs a start for every image: run on those that have one."""

    inner: Any
    start_steps: int
    settled = True

    def improve(self, search: Search) -> None:
        """Find starts, then let the attack go on from them."""
        self._go_on(search, find_starts(search, self.start_steps))

    def _go_on(self, search: Search, rows: Tensor) -> None:
        if not len(rows):
            return
        starts = search.best[rows]
        criterion = Watched(search.labels[rows], search.images[rows])
        try:
            found = self.inner.run(search.model, search.images[rows], criterion, starting_points=starts)
        except (AssertionError, ValueError):
            # An image on the very boundary was judged otherwise in this batch: without it, the others go on.
            if len(rows) > 1:
                self._go_on(search, rows[: len(rows) // 2])
                self._go_on(search, rows[len(rows) // 2 :])
            else:
                search.converged[rows] = False
            return
        search.offer(found.clamp(0, 1), rows)
        search.converged[rows] = criterion.at_rest() & self.settled


class BoundaryAttack(_Inward):
    """Foolbox's boundary attack (Brendel et al., 2018) from starts that are there.

    The lengths of its steps follow from the last 1000 steps, so that a walk of less than twice as many may stand
    still far from the border: it never counts as converged.

    Args:
        steps: of the walk (Foolbox: 25,000).
        start_steps: of the salt-and-pepper noise that gives the start.
    """

    def __init__(self, steps: int = 5000, start_steps: int = 200) -> None:
        self.steps, self.start_steps = steps, start_steps
        self.inner, self.settled = fa.BoundaryAttack(steps=steps), steps >= _SETTLED

    def _go_on(self, search: Search, rows: Tensor) -> None:
        with warnings.catch_warnings():  # averages over queues that have just been emptied
            warnings.filterwarnings("ignore", "Mean of empty slice", RuntimeWarning)
            super()._go_on(search, rows)


class _HopSkipJump(fa.HopSkipJumpAttack):
    """Foolbox's attack with gradients normalised image by image; its own norm goes over the whole batch."""

    def approximate_gradients(self, is_adversarial: Any, x_advs: Any, steps: int, delta: Any) -> Any:
        points, radius = x_advs.raw, delta.raw
        noise = torch.randn(steps, *points.shape, device=points.device, dtype=points.dtype)
        noise /= noise.flatten(2).norm(dim=2).clamp_min(1e-12).reshape(steps, -1, 1, 1, 1)
        moved = (points + spread(radius, points) * noise).clamp(0, 1)
        noise = (moved - points) / spread(radius + 1e-8, points)
        votes = torch.stack([is_adversarial(ep.astensor(part)).raw for part in moved]).to(points.dtype) * 2 - 1
        mean = votes.mean(0)
        weights = torch.where(mean.abs() == 1, votes, votes - mean)
        gradient = (weights.reshape(steps, -1, 1, 1, 1) * noise).mean(0)
        return ep.astensor(gradient / spread(norms(gradient) + 1e-12, gradient))


class HopSkipJumpAttack(_Inward):
    """Foolbox's HopSkipJump (Chen et al., 2020) from starts that are there.

    Args:
        steps: of the walk (Foolbox: 64).
        queries: for the first gradient; the square root of the step's number times as many later.
        start_steps: of the salt-and-pepper noise that gives the start.
    """

    def __init__(self, steps: int = 20, queries: int = 100, start_steps: int = 200) -> None:
        self.steps, self.queries, self.start_steps = steps, queries, start_steps
        self.inner = _HopSkipJump(steps=steps, initial_gradient_eval_steps=queries)
