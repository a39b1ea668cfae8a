"""How faithful a heat map is to the object and to the network: pointing game, deletion and insertion.

* **Pointing game** (Zhang et al., 2018): does the hottest pixel lie on the object? If several pixels are equally
  hot, the share of them that does counts (what drawing one at random gives on average). With a tolerance a pixel
  also lies on the object if one of the object's pixels is at most so many pixels away. It is played with maps that
  point somewhere at images that have an object.
* **Deletion** (Petsiuk et al., 2018): pixels are replaced, hottest first, by a baseline (0: black); the probability
  (softmax) of the class is drawn over the share of replaced pixels, and the area below is the score: the lower, the
  better the map names what the network looks at.
* **Insertion**: the same from a blurred image, into which the pixels of the image are put, hottest first: the
  higher the area, the better. The blur is Gaussian. By default its standard deviation is an eighth of the image's
  shorter side: the 5 pixels of the paper, made for photographs of 224 pixels, scale down to less than one pixel on
  a small image and leave it as readable as it was.

Curves have ``steps + 1`` points, the first for no pixel and the last for all; areas are by the trapezoid rule over
shares from 0 to 1. Equally hot pixels come in a random order, the same for every image and network of a seed. A
heat map of zeros points nowhere and orders no pixels: it has no score (nan).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from scipy import ndimage
from torch import Tensor, nn

from bu2td.errors import OptionError
from bu2td.evaluate.blur import gaussian_blur
from bu2td.evaluate.checks import check_count, check_images, check_labels, check_number, logits_of, place_of
from bu2td.evaluate.explain.localise import check_heat, check_masks


@dataclass(frozen=True)
class Curves:
    """The probability of a class while pixels are replaced.

    Attributes:
        shares: of replaced pixels (S + 1,), from 0 to 1, float64.
        probability: by image (N, S + 1), float64; nan for a heat map of zeros.
        auc: the area below each image's curve (N,), float64.
    """

    shares: Tensor
    probability: Tensor
    auc: Tensor


def pointing_game(heat: Tensor, masks: Tensor, *, tolerance: float = 0.0) -> Tensor:
    """Whether the maximum of each heat map lies on the object.

    Args:
        heat: (N, H, W) in [0, 1].
        masks: (N, H, W), bool: the object.
        tolerance: pixels around the object that count as object (Euclidean distance between pixel centres).

    Returns:
        (N,), float64: 1 for a hit, 0 for a miss, the share of hits where several pixels are equally hot; nan for a
        heat map of zeros or an image without an object.

    Raises:
        OptionError: shapes or values are wrong.
    """
    heat = check_heat(heat)
    masks = check_masks(masks, heat)
    check_number("tolerance", tolerance, 0, sum(heat.shape[1:]), "a number of pixels from 0 to height plus width")
    flat, there = heat.flatten(1), masks.flatten(1).any(1)
    if tolerance:
        near = [ndimage.distance_transform_edt(~mask.numpy()) <= tolerance for mask in masks]
        masks = torch.stack([torch.from_numpy(mask) for mask in near])
    hottest = flat == flat.amax(1, keepdim=True)
    hits = (hottest & masks.flatten(1)).sum(1).double() / hottest.sum(1)
    return hits.masked_fill(~there | (flat.amax(1) == 0), torch.nan)


def deletion(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    heat: Tensor,
    *,
    steps: int = 20,
    baseline: float = 0.0,
    seed: int = 0,
    batch_size: int = 64,
) -> Curves:
    """Replace pixels by a baseline, hottest first; lower areas are better.

    Args:
        model: maps images in [0, 1] to logits (N, K); runs in eval mode where its weights are.
        images: (N, C, H, W) in [0, 1].
        targets: the class whose probability is followed (N,).
        heat: (N, H, W) in [0, 1].
        steps: in how many parts of equal size the pixels are replaced, at most H * W.
        baseline: the value of a deleted pixel, in [0, 1].
        seed: of the order of equally hot pixels.
        batch_size: how many images run at once.

    Returns:
        The `Curves`.

    Raises:
        Bu2tdError: images, targets or heat maps do not fit, or the model does not run on the images.
    """
    check_number("baseline", baseline, 0, 1, "a pixel value in [0, 1]")
    check_images(images)
    end = torch.full_like(images, baseline)
    return _curves(model, images, end, targets, heat, steps=steps, seed=seed, batch_size=batch_size)


def insertion(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    heat: Tensor,
    *,
    steps: int = 20,
    blur: float | None = None,
    seed: int = 0,
    batch_size: int = 64,
) -> Curves:
    """Put pixels into a blurred image, hottest first; higher areas are better.

    Args:
        model, images, targets, heat, steps, seed, batch_size: as for `deletion`.
        blur: standard deviation in pixels; by default an eighth of the shorter side.

    Returns:
        The `Curves`.

    Raises:
        Bu2tdError: as `deletion`, or the blur is no positive number.
    """
    check_images(images)
    sigma = min(images.shape[2:]) / 8 if blur is None else blur
    check_number("blur", sigma, 1e-3, max(images.shape[2:]), "a number of pixels up to the image's side, above 0")
    start = gaussian_blur(images.detach(), sigma)
    return _curves(model, start, images, targets, heat, steps=steps, seed=seed, batch_size=batch_size)


def _curves(
    model: nn.Module,
    start: Tensor,
    end: Tensor,
    targets: Any,
    heat: Tensor,
    *,
    steps: int,
    seed: int,
    batch_size: int,
) -> Curves:
    """Probabilities while the pixels of ``start`` are replaced by those of ``end``, hottest first."""
    check_count("steps", steps)
    check_count("batch_size", batch_size)
    check_count("seed", seed, 0)
    heat = check_heat(heat)
    n, _, height, width = start.shape
    if tuple(heat.shape) != (n, height, width):
        raise OptionError(f"heat maps must be {(n, height, width)} for these images, found {tuple(heat.shape)}")
    if steps > height * width:
        raise OptionError(f"steps={steps} must be at most the {height * width} pixels of an image")
    targets = check_labels(targets, n, None, "targets").cpu()
    place = place_of(model)
    bounds = [round(step * height * width / steps) for step in range(steps + 1)]
    found = []
    for at in range(0, n, batch_size):
        part = slice(at, at + batch_size)
        a, b = start[part].to(place), end[part].to(place)
        ranks = ranking(heat[part], seed).to(place)[:, None]
        points = [_probability(model, torch.where(ranks < bound, b, a), targets[part]) for bound in bounds]
        found.append(torch.stack(points, 1))
    probability = torch.cat(found).masked_fill(heat.flatten(1).amax(1, keepdim=True) == 0, torch.nan)
    shares = torch.tensor(bounds, dtype=torch.float64) / (height * width)
    return Curves(shares, probability, torch.trapezoid(probability, shares, dim=1))


def _probability(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    logits = logits_of(model, images, len(images))
    targets = check_labels(targets, len(images), logits.shape[1], "targets")
    return logits.double().softmax(1).gather(1, targets[:, None])[:, 0]


def ranking(heat: Tensor, seed: int = 0) -> Tensor:
    """The place of every pixel (N, H, W) in the order of its heat map, hottest 0; ties in a seeded random order."""
    n, height, width = heat.shape
    shuffled = torch.randperm(height * width, generator=torch.Generator().manual_seed(seed))
    order = shuffled[heat.flatten(1)[:, shuffled].argsort(dim=1, descending=True, stable=True)]
    places = torch.arange(height * width).expand(n, -1)
    return torch.empty_like(order).scatter_(1, order, places).view(n, height, width)
