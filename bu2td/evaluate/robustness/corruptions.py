"""Common corruptions without an adversary, in five severities (after Hendrycks and Dietterich, 2019)."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bu2td.errors import MissingPackageError, OptionError, nearest
from bu2td.evaluate.checks import check_count, check_images, check_labels, frozen, predict_classes

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


def _functional() -> Any:
    try:
        return importlib.import_module("torchvision.transforms.v2.functional")
    except ImportError as error:
        raise MissingPackageError(
            f"corruptions need torchvision ({error}). Run: pip install 'bu2td[evaluate]' (or torchvision)"
        ) from error


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
    side = min(images.shape[2:])
    sigma = strength * side
    radius = min(math.ceil(3 * sigma), side - 1)
    if radius < 1:
        return images
    return _functional().gaussian_blur(images, kernel_size=[2 * radius + 1] * 2, sigma=[sigma, sigma])


def _contrast(images: Tensor, strength: float, seed: int, start: int) -> Tensor:
    if images.shape[1] not in (1, 3):
        raise OptionError(f"contrast needs images of 1 or 3 channels, found {images.shape[1]}")
    return torch.stack([_functional().adjust_contrast(image, strength) for image in images])


def _pixelate(images: Tensor, strength: float, seed: int, start: int) -> Tensor:
    height, width = (max(1, round(strength * side)) for side in images.shape[2:])
    functional = _functional()
    blocks = torch.nn.functional.adaptive_avg_pool2d(images, (height, width))
    mode = importlib.import_module("torchvision.transforms").InterpolationMode.NEAREST_EXACT
    return functional.resize(blocks, list(images.shape[2:]), interpolation=mode)


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
        OptionError: unknown corruption or severity, or bad images.
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
        corruptions, severities: which ones; severity 0 is the clean images.
        seed: of the noise (`corrupt`).
        batch_size: images per batch; does not change what the noise is.
        device: where to run; None: where the model is.

    Returns:
        One row per corruption and severity with `corruption`, `severity`, `samples` (N) and `accuracy` (of all N).

    Raises:
        OptionError: unknown corruption, severity or device, bad images or labels.
        ModelOutputError, NonFiniteError: the model does not return finite logits (N, K).
        MissingPackageError: torchvision is not installed.
    """
    check_images(images)
    labels = check_labels(labels, len(images), None)
    check_count("batch_size", batch_size)
    jobs = [(name, severity) for name in corruptions for severity in severities]
    for name, severity in jobs:
        _check(name, severity)
    rows = []
    with frozen(model, device) as place:
        for name, severity in jobs:
            right = 0
            for start in range(0, len(images), batch_size):
                part = slice(start, start + batch_size)
                batch = corrupt(images[part].to(place, torch.float32), name, severity, seed, start)
                right += int((predict_classes(model, batch, labels[part], batch_size) == labels[part].cpu()).sum())
            rows.append(
                {"corruption": name, "severity": severity, "samples": len(images), "accuracy": right / len(images)}
            )
    return rows
