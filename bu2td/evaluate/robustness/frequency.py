"""Which spatial frequencies a classifier is sensitive to (Yin et al., 2019, "A Fourier perspective on model
robustness in computer vision").

A frequency (k, m) is k cycles per height and m cycles per width. Its basis perturbation is the real image

    U_km(y, x) = (cos t + sin t) / sqrt(H W),    t = 2 pi (k y / H + m x / W),

whose Fourier transform is zero but at (k, m) and (-k, -m), and whose L2 norm is 1 (section 3 there; the phase is
that of the authors' code). U_km and U_-k-m differ in their phase alone, so that one of every such pair is measured
and stands for both. The radius of a frequency is in cycles per image, along the longer side where an image is not
square: side * sqrt((k / H)^2 + (m / W)^2).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from bu2td.errors import OptionError
from bu2td.evaluate.checks import check_count, check_images, check_labels, check_number, frozen, predict_classes

#: What a filter leaves: the frequencies up to a radius, or those above it and the mean.
KEPT = ("low", "high")
#: A radius such as that of (3, 4) is a whole number but for rounding.
_EPSILON = 1e-9
#: Pixels of a batch that runs at once, by default: 256 images of 32 x 32.
_PIXELS = 256 * 32 * 32


# --- frequencies --------------------------------------------------------------------------------------


def frequencies(height: int, width: int, step: int = 1) -> np.ndarray:
    """Every `step`-th frequency of the plane, one of each pair (k, m), (-k, -m).

    Args:
        height: of the images.
        width: of the images.
        step: along both axes, so that a map costs step^2 times less.

    Returns:
        (F, 2), int64: k from 0 up, and -height/2 where that is whole; m on either side of 0. (0, 0) is the first.

    Raises:
        OptionError: the step leaves nothing but (0, 0).
    """
    check_count("step", step)
    if step > max(height, width) // 2:
        raise OptionError(
            f"every {step}th frequency of images of {height}x{width} is (0, 0) alone: give a step of at most "
            f"{max(max(height, width) // 2, 1)}"
        )
    found: dict[tuple[int, int], None] = {}
    for k in _axis(height, step):
        for m in _axis(width, step):
            if mirrored((k, m), height, width) not in found:
                found[k, m] = None
    return np.array(sorted(found, key=lambda one: (one != (0, 0), *one)), dtype=np.int64)


def _axis(size: int, step: int) -> list[int]:
    """Multiples of the step among -size/2 .. (size - 1)/2; 0 and those above it first."""
    half = [k for k in range(0, size) if k % step == 0 and k <= (size - 1) // 2]
    return half + [-k for k in range(1, size // 2 + 1) if k % step == 0]


def mirrored(frequency: tuple[int, int], height: int, width: int) -> tuple[int, int]:
    """The frequency (-k, -m), which is (k, m) itself for 0 and for half of an even side."""
    k, m = (-int(f) % n for f, n in zip(frequency, (height, width), strict=True))
    return k - height * (k > (height - 1) // 2), m - width * (m > (width - 1) // 2)


def radii_of(chosen: np.ndarray, height: int, width: int) -> np.ndarray:
    """The radius of frequencies (F, 2) -> (F,), in cycles per longer side."""
    return max(height, width) * np.hypot(chosen[:, 0] / height, chosen[:, 1] / width)


def bands_of(height: int, width: int) -> list[tuple[float, float]]:
    """Bands [low, high) of radii: the mean alone, then octaves up to the corner of the plane.

    Half of the longer side is a border of octaves, as it is the highest frequency of a pyramid level of reduction
    1; a level of reduction 2 ends one octave lower, and so on.
    """
    top = max(height, width) / 2
    borders = [top / 2**j for j in range(32) if top / 2**j > 1 + _EPSILON]
    edges = [0.0, 1.0, *reversed(borders), 2 * top]
    return list(itertools.pairwise(edges))


def in_band(radii: np.ndarray, low: float, high: float) -> np.ndarray:
    """Which radii lie in [low, high)."""
    return (radii >= low - _EPSILON) & (radii < high - _EPSILON)


def basis(chosen: np.ndarray, height: int, width: int) -> Tensor:
    """The basis perturbations of frequencies (F, 2) -> (F, H, W), float64, each of L2 norm 1."""
    k, m = (torch.as_tensor(chosen[:, axis])[:, None, None] for axis in (0, 1))
    y = torch.arange(height)[None, :, None]
    x = torch.arange(width)[None, None, :]
    # k y and m x are reduced to one turn as whole numbers, so that no large angle is rounded
    turns = (k * y % height).double() / height + (m * x % width).double() / width
    return (torch.cos(2 * math.pi * turns) + torch.sin(2 * math.pi * turns)) / math.sqrt(height * width)


# --- sensitivity --------------------------------------------------------------------------------------


def norm_for(norm: float, height: int, width: int) -> float:
    """The L2 norm for images of a size, from that for images of 32 x 32.

    It grows with the square root of the number of pixels, so that the contrast of the waves (their root mean
    square over the pixels, norm / 32) is the same for all sizes.
    """
    return norm * math.sqrt(height * width) / 32


def basis_errors(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    chosen: np.ndarray,
    norm: float,
    *,
    numbers: Sequence[int] | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    device: str | torch.device | None = None,
) -> np.ndarray:
    """Which images a model gets wrong under which basis perturbations.

    An image X becomes X + r v U_km (Yin et al., section 3), where r is 1 or -1 at random, for every channel by
    itself. As there, v is the norm in every channel (sqrt(C) v over all of them), and the result is not clipped to
    [0, 1]: it would be another perturbation, a weaker one of more frequencies.

    Args:
        model: maps images to logits; measured in eval mode and left as it was.
        images: (N, C, H, W) in [0, 1].
        labels: (N,).
        chosen: frequencies (F, 2).
        norm: v, the L2 norm per channel, for the images as they are (`norm_for`).
        numbers: of the images (N,), which draw the signs; by default from 0. The signs of an image depend on seed,
            number and frequency alone: every model meets the same perturbations, in whatever batches.
        seed: of the signs.
        batch_size: perturbed images that run at once; by default 256 of 32 x 32, fewer of larger ones.
        device: where to run; None: where the model is.

    Returns:
        (F, N), bool: True where the class is wrong.

    Raises:
        OptionError: norm, seed, labels or device make no sense.
        ExampleInputError, NonFiniteError: bad images.
        DataError: a label without a logit.
        ModelOutputError: the model does not return logits (N, K).
    """
    check_images(images)
    labels = check_labels(labels, len(images), None)
    if not isinstance(chosen, np.ndarray) or chosen.dtype.kind != "i" or chosen.ndim != 2 or chosen.shape[1] != 2:
        raise OptionError(
            f"frequencies must be whole numbers (F, 2), as `frequencies` gives them; found {chosen!r}"
        )
    check_number("norm", norm, 0, 1e6, "an L2 norm from 0 up")
    check_count("seed", seed, 0)
    count, channels, height, width = images.shape
    size = check_count("batch_size", batch_size) if batch_size is not None else _batch_size(height, width)
    signs = _signs(chosen, (channels, height, width), list(range(count) if numbers is None else numbers), seed)
    wrong = np.empty((len(chosen), count), dtype=bool)
    pairs = [(f, n) for f in range(len(chosen)) for n in range(count)]
    with frozen(model, device) as place:
        waves, x = (norm * basis(chosen, height, width)).float().to(place), images.to(place, torch.float32)
        for start in range(0, len(pairs), size):
            f, n = (torch.tensor(axis) for axis in zip(*pairs[start : start + size], strict=True))
            change = signs[f, n].to(place)[:, :, None, None] * waves[f.to(place)][:, None]
            found = predict_classes(model, x[n.to(place)] + change, labels[n], size)
            wrong[f.numpy(), n.numpy()] = (found != labels[n]).numpy()
    return wrong


def _batch_size(height: int, width: int) -> int:
    return max(1, _PIXELS // (height * width))


def _signs(chosen: np.ndarray, shape: tuple[int, int, int], numbers: Sequence[int], seed: int) -> Tensor:
    """1 or -1 for every frequency, image and channel: (F, N, C), float32."""
    channels, height, width = shape
    every = []
    for number in numbers:
        drawn = np.random.default_rng([seed, number]).integers(0, 2, (height, width, channels), dtype=np.int8)
        every.append(drawn[chosen[:, 0] % height, chosen[:, 1] % width])
    return torch.from_numpy(np.stack(every, 1)).float() * 2 - 1


# --- spectra and filters ------------------------------------------------------------------------------


def spectrum_radii(height: int, width: int) -> np.ndarray:
    """The whole radius nearest to that of each place of a discrete Fourier transform: (H, W), int64."""
    return np.rint(_radius_map(height, width)).astype(np.int64)


def _radius_map(height: int, width: int) -> np.ndarray:
    k, m = (np.fft.fftfreq(n) for n in (height, width))
    return max(height, width) * np.hypot(k[:, None], m[None, :])


def radial_power(changes: np.ndarray) -> np.ndarray:
    """How the power of images is shared out among the radii.

    The power at (k, m) is |F(k, m)|^2, summed over the channels; its sum is H W times the sum of squares of the
    pixels (Parseval), so that the shares are those of the squared L2 norm.

    Args:
        changes: (N, C, H, W), none of them zero everywhere.

    Returns:
        (N, R + 1), float64: the share of the power at radii that round to 0, 1, ..., R; each row has the sum 1.
    """
    height, width = changes.shape[2:]
    radii = spectrum_radii(height, width).ravel()
    power = np.abs(np.fft.fft2(changes.astype(np.float64))) ** 2
    flat = power.sum(1).reshape(len(changes), -1)
    summed = np.stack([np.bincount(radii, row) for row in flat]) if len(flat) else np.zeros((0, radii.max() + 1))
    return summed / summed.sum(1, keepdims=True)


def white_power(height: int, width: int) -> np.ndarray:
    """The shares (R + 1,) that white noise has on average: those of the places at each radius."""
    return np.bincount(spectrum_radii(height, width).ravel()) / (height * width)


def filter_radii(height: int, width: int) -> list[int]:
    """Radii for `keep_frequencies`: 0, half octaves as whole numbers, and one beyond every frequency."""
    top = max(height, width) / 2
    halves = {round(top / 2 ** (j / 2)) for j in range(64)} - {0}
    return [0, *sorted(halves), math.ceil(_radius_map(height, width).max())]


def keep_frequencies(images: Tensor, kept: str, radius: float) -> Tensor:
    """Ideal filters in the Fourier domain.

    Args:
        images: (N, C, H, W) in [0, 1].
        kept: "low": the frequencies of at most this radius; "high": those above it, and the mean, so that both
            have the brightness of the image. Without clipping, low + high = image + its mean (per channel).
        radius: of the cut, in cycles per longer side.

    Returns:
        (N, C, H, W), clipped to [0, 1].

    Raises:
        OptionError: there is no such filter.
    """
    return _unclipped(images, kept, radius).clamp(0, 1)


def _unclipped(images: Tensor, kept: str, radius: float) -> Tensor:
    if kept not in KEPT:
        raise OptionError(f"kept = {kept!r}: expected {' or '.join(KEPT)}")
    mask = torch.from_numpy(_radius_map(*images.shape[2:]) <= radius + _EPSILON).to(images.device)
    low = torch.fft.ifft2(torch.fft.fft2(images.double()) * mask).real
    if kept == "high":
        low = images.double() - low + images.double().mean((2, 3), keepdim=True)
    return low.to(images.dtype)


def filtered_right(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    kept: str,
    radii: Sequence[float],
    *,
    batch_size: int | None = None,
    device: str | torch.device | None = None,
) -> np.ndarray:
    """Which images a model still classifies correctly when they are filtered.

    Args:
        model, images, labels, batch_size, device: as `basis_errors`.
        kept, radii: as `keep_frequencies`.

    Returns:
        (R, N), bool.

    Raises:
        Bu2tdError: as `basis_errors` and `keep_frequencies`.
    """
    check_images(images)
    labels = check_labels(labels, len(images), None)
    size = check_count("batch_size", batch_size) if batch_size is not None else _batch_size(*images.shape[2:])
    right = []
    with frozen(model, device) as place:
        x = images.to(place, torch.float32)
        for radius in radii:
            found = predict_classes(model, keep_frequencies(x, kept, radius), labels, size)
            right.append((found == labels).numpy())
    return np.stack(right)
