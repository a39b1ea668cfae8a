"""Scenes to segment: several objects of a data set on a textured background, and measures of predicted maps."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from bu2td.evaluate.data.sets import load_data

#: Objects of a scene, the side of each in pixels, and how many times a texture is finer than its coarsest part.
OBJECTS, SIDES, OCTAVES = (2, 3), (14, 26), (3, 6, 12, 24, 48)
#: A pixel of an object is brighter than this.
INK = 0.2
#: What is added to every pixel has this standard deviation.
NOISE = 0.05


@dataclass(frozen=True)
class Scenes:
    """Images (N, 1, H, W) in [0, 1], and the class of every pixel (N, H, W): 0 is background."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Objects:
    """What scenes are made of: images (N, 1, h, w) in [0, 1], labels (N,), the names of the classes."""

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]


def load_objects(name: str, test: bool) -> Objects:
    """Objects of a data set, such as "digits"; those of test scenes are in no training scene."""
    data = load_data(name)
    pairs = (
        [data.test[i] for i in range(len(data.test))] if test else [data.train[i] for i in range(len(data.train))]
    )
    return Objects(torch.stack([i for i, _ in pairs]), torch.tensor([label for _, label in pairs]), data.classes)


def make_scenes(objects: Objects, count: int, size: int, seed: int) -> Scenes:
    """Compose scenes; the same seed makes the same ones."""
    generator = torch.Generator().manual_seed(seed)
    images = texture(count, size, generator)
    labels = torch.zeros(count, size, size, dtype=torch.long)
    for image, label in zip(images, labels, strict=True):
        for _ in range(number(*OBJECTS, generator)):
            chosen = number(0, len(objects.labels) - 1, generator)
            side = number(*SIDES, generator)
            one = F.interpolate(objects.images[chosen, None], size=side, mode="bilinear", antialias=True)[0, 0]
            top, left = (number(0, size - side, generator) for _ in range(2))
            place = (slice(top, top + side), slice(left, left + side))
            ink = one > INK
            image[0][place] = torch.where(ink, one, image[0][place])
            label[place] = torch.where(ink, objects.labels[chosen] + 1, label[place])
    noise = NOISE * torch.randn(images.shape, generator=generator)
    return Scenes((images + noise).clamp(0, 1), labels)


def texture(count: int, size: int, generator: torch.Generator) -> Tensor:
    """Noise of several octaves, each of a weight of its own in every image: (count, 1, size, size) in [0, 0.5]."""
    total = torch.zeros(count, 1, size, size)
    for grid in OCTAVES:
        part = torch.rand(count, 1, grid, grid, generator=generator)
        weight = torch.rand(count, 1, 1, 1, generator=generator)
        total += weight * F.interpolate(part, size=size, mode="bilinear")
    low, high = total.amin((2, 3), keepdim=True), total.amax((2, 3), keepdim=True)
    return 0.5 * (total - low) / (high - low)


def number(low: int, high: int, generator: torch.Generator) -> int:
    """A whole number from low to high."""
    return int(torch.randint(low, high + 1, (), generator=generator))


# --- measures -----------------------------------------------------------------------------------------


def mean_iou(predicted: Tensor, labels: Tensor, classes: int) -> float:
    """Intersection over union of every class over all pixels (N, H, W), averaged over the classes that occur."""
    pairs = torch.bincount((labels * classes + predicted).flatten(), minlength=classes**2).view(classes, classes)
    both = pairs.diagonal()
    either = pairs.sum(0) + pairs.sum(1) - both
    return float((both / either)[either > 0].mean())


def boundary_f1(predicted: Tensor, labels: Tensor, classes: int, tolerance: int = 1) -> float:
    """Boundary F1 (Csurka et al., 2013): per image and class that occurs in either map, then the mean.

    Precision is the share of predicted boundary pixels with a true one at most ``tolerance`` rows and columns away,
    recall the share of true ones with a predicted one.
    """
    scores = [_f1(predicted == c, labels == c, tolerance) for c in range(1, classes)]
    found = torch.cat(scores)
    return float(found[~found.isnan()].mean())


def outline_f1(predicted: Tensor, labels: Tensor, tolerance: int = 1) -> float:
    """The same for objects against background, whatever their classes."""
    return float(_f1(predicted > 0, labels > 0, tolerance).nanmean())


def _f1(predicted: Tensor, true: Tensor, tolerance: int) -> Tensor:
    """Boundary F1 of every mask (N, H, W); nan where both are empty."""
    ours, theirs = outline(predicted), outline(true)
    precision = _share(ours, _grown(theirs, tolerance))
    recall = _share(theirs, _grown(ours, tolerance))
    score = 2 * precision * recall / (precision + recall).clamp(min=1e-12)
    return score.where(ours.flatten(1).any(1) | theirs.flatten(1).any(1), torch.nan)


def outline(masks: Tensor) -> Tensor:
    """The pixels of masks (N, H, W) with a pixel around them that is none; the image's border is no boundary."""
    return masks & _grown(~masks, 1)


def _grown(masks: Tensor, by: int) -> Tensor:
    return F.max_pool2d(masks[:, None].float(), 2 * by + 1, stride=1, padding=by)[:, 0] > 0


def _share(of: Tensor, inside: Tensor) -> Tensor:
    return (of & inside).sum((1, 2)) / of.sum((1, 2)).clamp(min=1)
