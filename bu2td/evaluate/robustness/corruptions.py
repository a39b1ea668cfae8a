"""Common corruptions without an adversary, in five severities (after Hendrycks and Dietterich, 2019).

They are made here on purpose: their own package corrupts photographs of fixed sizes, one image at a time, on the
host. Their data sets themselves are read by `bu2td.evaluate.data.corrupted`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bu2td.errors import OptionError, nearest
from bu2td.evaluate.blur import gaussian_blur
from bu2td.evaluate.checks import check_count, check_images, check_labels, frozen, predict_classes
from bu2td.packages import imported

#: Strengths of the severities 1 to 5.
#: gaussian-noise: standard deviation in pixel values; impulse-noise: share of values that become 0 or 1;
#: gaussian-blur: standard deviation as a share of the shorter side (at 32 px: 0.5, 0.75, 1, 1.5, 2 px);
#: contrast: factor on the contrast; pixelate: factor on both sides.
SEVERITIES: dict[str, tuple[float, ...]] = {
    "gaussian-noise": (0.08, 0.12, 0.18, 0.26, 0.38),
    "impulse-noise": (0.03, 0.06, 0.09, 0.17, 0.27),
    "gaussian-blur": (1 / 64, 3 / 128, 1 / 32, 3 / 64, 1 / 16),
    "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),
    "pixelate": (0.6, 0.5, 0.4, 0.3, 0.25),
}
CORRUPTIONS = tuple(SEVERITIES)


def _random(images: Tensor, name: str, seed: int, start: int, draw: Callable[[Any], np.ndarray]) -> Tensor:
    """Random numbers (N, C, H, W) that depend on corruption, seed and number of the image alone."""
    generators = (
        np.random.default_rng([seed, CORRUPTIONS.index(name), start + index]) for index in range(len(images))
    )
    return torch.from_numpy(np.stack([draw(generator) for generator in generators])).to(images)


def _gaussian_noise(images: Tensor, strength: float, seed: int, start: int) -> Tensor:
    shape = tuple(images.shape[1:])
    noise = _random(images, "gaussian-noise", seed, start, lambda rng: rng.standard_normal(shape, dtype=np.float32))
    return images + strength * noise


def _impulse_noise(images: Tensor, strength: float, seed: int, start: int) -> Tensor:
    shape = tuple(images.shape[1:])
    draws = _random(images, "impulse-noise", seed, start, lambda rng: rng.random(shape, dtype=np.float32))
    noisy = torch.where(draws < strength / 2, 0.0, images)
    return torch.where(draws >= 1 - strength / 2, 1.0, noisy)


def _gaussian_blur(images: Tensor, strength: float, seed: int, start: int) -> Tensor:
    return gaussian_blur(images, strength * min(images.shape[2:]))


def _contrast(images: Tensor, strength: float, seed: int, start: int) -> Tensor:
    if images.shape[1] not in (1, 3):
        raise OptionError(f"contrast needs images of 1 or 3 channels, found {images.shape[1]}")
    functional = imported("torchvision.transforms.v2.functional", why="this corruption needs it:")
    return torch.stack([functional.adjust_contrast(image, strength) for image in images])


def _pixelate(images: Tensor, strength: float, seed: int, start: int) -> Tensor:
    height, width = (max(1, round(strength * side)) for side in images.shape[2:])
    blocks = F.adaptive_avg_pool2d(images, (height, width))
    return F.interpolate(blocks, images.shape[2:], mode="nearest-exact")


_APPLY: dict[str, Callable[[Tensor, float, int, int], Tensor]] = {
    "gaussian-noise": _gaussian_noise,
    "impulse-noise": _impulse_noise,
    "gaussian-blur": _gaussian_blur,
    "contrast": _contrast,
    "pixelate": _pixelate,
}


def corrupt(images: Tensor, name: str, severity: int, seed: int = 0, start: int = 0) -> Tensor:
    """Corrupt images.

    Args:
        images: (N, C, H, W), floating point, in [0, 1].
        name: one of `CORRUPTIONS`.
        severity: 1 (mild) to 5; 0 returns the images as they are.
        seed: of the noise. An image gets the same random numbers at every severity, in every batch and on every
            device; torch's and numpy's global generators are not touched.
        start: number of the first image, so that a part of a set is corrupted as in the whole.

    Returns:
        (N, C, H, W) in [0, 1].

    Raises:
        OptionError: unknown corruption or severity.
        ExampleInputError, NonFiniteError: bad images.
        MissingPackageError: torchvision is not installed.
    """
    check_images(images)
    _check(name, severity)
    check_count("seed", seed, 0)
    check_count("start", start, 0)
    if severity == 0:
        return images
    return _APPLY[name](images, SEVERITIES[name][severity - 1], seed, start).clamp(0, 1)


def _check(name: str, severity: int) -> None:
    if name not in SEVERITIES:
        raise OptionError(
            f"unknown corruption {name!r}.{nearest(str(name), SEVERITIES)} Known: {', '.join(SEVERITIES)}"
        )
    if isinstance(severity, bool) or not isinstance(severity, int) or not 0 <= severity <= 5:
        raise OptionError(f"severity must be a whole number from 0 (clean) to 5, found {severity!r}")


def corruption_accuracy(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    corruptions: Sequence[str] = CORRUPTIONS,
    severities: Sequence[int] = (0, 1, 2, 3, 4, 5),
    seed: int = 0,
    batch_size: int = 256,
    device: str | torch.device | None = None,
) -> list[dict[str, Any]]:
    """Accuracy on corrupted images.

    Args:
        model: maps images in [0, 1] to logits; measured in eval mode and left as it was.
        images: (N, C, H, W) in [0, 1].
        labels: (N,).
        corruptions: which ones.
        severities: how severe, 0 to 5; 0 is the clean images.
        seed: of the noise (`corrupt`).
        batch_size: images per batch; does not change what the noise is.
        device: where to run; None: where the model is.

    Returns:
        One row per corruption and severity with `corruption`, `severity`, `samples` (N) and `accuracy` (of all N).

    Raises:
        OptionError: unknown corruption, severity or device, or bad labels.
        ExampleInputError: bad images.
        DataError: a label without a logit.
        ModelOutputError, NonFiniteError: the model does not return finite logits (N, K).
        MissingPackageError: torchvision is not installed.
    """
    for name in corruptions:
        for severity in severities:
            _check(name, severity)
    rows = []
    for name in corruptions:
        right = corrupted_right(
            model, images, labels, name, severities=severities, seed=seed, batch_size=batch_size, device=device
        )
        rows += [
            {"corruption": name, "severity": severity, "samples": len(images), "accuracy": float(own.mean())}
            for severity, own in zip(severities, right, strict=True)
        ]
    return rows


def corrupted_right(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    name: str,
    *,
    severities: Sequence[int] = (0, 1, 2, 3, 4, 5),
    seed: int = 0,
    start: int = 0,
    batch_size: int = 256,
    device: str | torch.device | None = None,
) -> np.ndarray:
    """Which images are classified correctly under a corruption.

    Args:
        name: of the corruption.
        start: number of the first image, as `corrupt`; the rest as `corruption_accuracy`.

    Returns:
        (S, N), bool.

    Raises:
        Bu2tdError: as `corruption_accuracy`.
    """
    check_images(images)
    labels = check_labels(labels, len(images), None)
    check_count("batch_size", batch_size)
    right = np.empty((len(severities), len(images)), dtype=bool)
    with frozen(model, device) as place:
        for index, severity in enumerate(severities):
            for first in range(0, len(images), batch_size):
                part = slice(first, first + batch_size)
                batch = corrupt(images[part].to(place, torch.float32), name, severity, seed, start + first)
                right[index, part] = (
                    predict_classes(model, batch, labels[part], batch_size) == labels[part]
                ).numpy()
    return right
