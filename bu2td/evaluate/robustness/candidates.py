"""Candidates for adversarial images in big batches, and the smallest that fooled the model, image by image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

#: Pixel values in one forward pass: small enough for a processor's cache, large enough to fill a GPU.
_VALUES = {"cpu": 2**18, "cuda": 2**22}


def norms(differences: Tensor) -> Tensor:
    """L2 norm of each image's difference: (M, C, H, W) -> (M,)."""
    return differences.flatten(1).norm(dim=1)


def spread(values: Tensor, like: Tensor) -> Tensor:
    """(M,) -> (M, 1, 1, 1), as many dimensions as `like` has."""
    return values.reshape(-1, *(1,) * (like.ndim - 1))


class Search:
    """The smallest adversarial image found so far for every image of a batch.

    Candidates come with the row of the image that they belong to, so that a forward pass holds whatever is still
    worth a look, from one image or from many.

    Args:
        model: images in [0, 1] -> logits; a Foolbox model.
        images: (N, C, H, W).
        labels: (N,), the true classes.

    Attributes:
        best: (N, C, H, W), the nearest adversarial image found, the image itself where there is none.
        distance: (N,), its L2 distance; inf where there is none, 0 where the image itself is misclassified.
        converged: (N,) of bool, see `bu2td.evaluate.robustness.base.SearchAttack`.
        chunk: how many candidates one forward pass takes.
    """

    def __init__(self, model: Any, images: Tensor, labels: Tensor) -> None:
        self.model, self.images, self.labels = model, images, labels
        self.best = images.clone()
        self.distance = torch.full((len(images),), torch.inf, device=images.device)
        self.converged = torch.ones(len(images), dtype=torch.bool, device=images.device)
        values = _VALUES.get(images.device.type, _VALUES["cpu"])
        self.chunk = max(len(images), values // max(images[0].numel(), 1), 1)
        rows = torch.arange(len(images), device=images.device)
        self.distance[self.adversarial(images, rows)] = 0

    def open_rows(self) -> Tensor:
        """Rows of the images without an adversarial image so far."""
        return self.distance.isinf().nonzero()[:, 0]

    def hit_rows(self) -> Tensor:
        """Rows of the images that were right and have an adversarial image now."""
        return ((self.distance > 0) & self.distance.isfinite()).nonzero()[:, 0]

    @torch.no_grad()
    def adversarial(self, candidates: Tensor, rows: Tensor) -> Tensor:
        """Whether candidates (M, C, H, W) of the images `rows` (M,) are misclassified: (M,) of bool."""
        if not len(rows):
            return torch.zeros(0, dtype=torch.bool, device=rows.device)
        classes = [self.model(part).argmax(-1) for part in candidates.split(self.chunk)]
        return torch.cat(classes) != self.labels[rows]

    def record(self, candidates: Tensor, rows: Tensor, adversarial: Tensor) -> None:
        """Keep those of the adversarial candidates that are nearer than what was found before."""
        distance = norms(candidates - self.images[rows])
        nearer = (adversarial & (distance < self.distance[rows])).nonzero()[:, 0]
        if not len(nearer):
            return
        index = rows[nearer]
        self.distance.scatter_reduce_(0, index, distance[nearer], "amin")
        equal = nearer[
            distance[nearer] == self.distance[index]
        ]  # several candidates of an image: one of the nearest
        first = torch.full_like(self.labels, len(rows)).scatter_reduce_(0, rows[equal], equal, "amin")
        chosen = first[first < len(rows)]
        self.best[rows[chosen]] = candidates[chosen]

    def offer(self, candidates: Tensor, rows: Tensor) -> Tensor:
        """Try the candidates that are nearer than what was found before; keep the nearest that fool the model.

        Returns:
            (M,) of bool: tried, and misclassified.
        """
        hits = norms(candidates - self.images[rows]) < self.distance[rows]
        hits[hits.clone()] = self.adversarial(candidates[hits], rows[hits])
        self.record(candidates, rows, hits)
        return hits

    def along(
        self, path: Callable[[Tensor, Tensor], Tensor], rows: Tensor, grid: Sequence[float], bisections: int
    ) -> None:
        """Walk from images along paths until the model is fooled, then halve the last step again and again.

        Args:
            path: rows (M,) and positions (M,) -> candidates; position 0 is the image itself.
            rows: where to start from.
            grid: positions to try, ascending.
            bisections: how often the step to the first hit is halved.
        """
        lower, upper = torch.zeros_like(self.distance), torch.full_like(self.distance, torch.inf)
        steps = torch.tensor(list(grid), dtype=self.distance.dtype, device=rows.device)
        start = 0
        left = rows
        while len(left) and start < len(steps):
            part = steps[start : start + max(1, self.chunk // len(left))]
            every = left.repeat_interleave(len(part))
            hits = self.adversarial(path(every, part.repeat(len(left))), every).reshape(len(left), -1)
            found, first = hits.any(1), hits.int().argmax(1)
            before = torch.cat([steps.new_zeros(1) if start == 0 else steps[start - 1 : start], part])
            upper[left[found]], lower[left[found]] = part[first[found]], before[first[found]]
            left, start = left[~found], start + len(part)
        rows = rows[upper[rows].isfinite()]
        if not len(rows):
            return
        for _ in range(bisections):
            middle = (lower[rows] + upper[rows]) / 2
            hits = self.adversarial(path(rows, middle), rows)
            upper[rows] = torch.where(hits, middle, upper[rows])
            lower[rows] = torch.where(hits, lower[rows], middle)
        self.offer(path(rows, upper[rows]), rows)
