"""Whether the weights of a network are trained, by their values alone.

New weights are draws: every parameter holds one value throughout, or independent draws of one distribution,
whatever the library or the user who drew them. Training leaves four kinds of signs, and each is looked for with
tests that draws fail once in a million times or less:

scales
    offsets of norms (or gains, where norms have no offsets) hold more than one value, and are not draws of one
    distribution for all layers.
statistics
    running means or variances of norms have moved, and not in the few steps that a trial of the model takes.
biases
    of convolutions and linear layers are neither constant, nor uniform within the bound of PyTorch's own
    initialisation, nor draws of one distribution for all layers.
weights
    of some output or input channels are larger, or shifted, against those of others; neighbours in a kernel are
    alike; one direction stands out of the matrix (its largest singular value, against that of independent draws);
    values are as flat as uniform ones, but end blurred.

A sign counts where a quarter of the layers have it, that of weights also where all of them have a little. Only
samples are looked at, so that a network of any size takes some milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special
from torch import Tensor, nn

Array = NDArray[np.float64]

_SHARE = 0.25  # of the layers
_LAYERS = 10  # whose weights are looked at, spread over the network
_ROWS, _VALUES = 64, 192  # of a weight: output channels, and values of each
_VECTOR = 256  # values of a vector, at most
_LEAST = 64  # values of a weight that says anything
_DENSE = 512  # values of a weight whose edges say anything
_CHANNELS = 8  # channels, at least, that are compared
_STEPS = 10  # forward passes in train mode that do not count as training
_RARE = 1e-6  # probability of draws, for all vectors together
_ALIKE = 1e-3  # the same for a single one
_TINY = 1e-5  # deviation of biases that are drawn next to zero
_FAR, _NEAR = 6.0, 4.0  # standard deviations: what no draw reaches, and how much one weight counts among all
_EDGE = 8  # largest values that show whether an edge is sharp
_FLAT = 2.15  # kurtosis: that of uniform draws is 1.8, that of normal ones 3


def signs_of_training(model: nn.Module) -> str:
    """What says that the weights of a network are trained.

    Args:
        model: a live network on any device.

    Returns:
        The sign, in words; empty where there is none, or where there are no values (meta).
    """
    found = _look(model)
    if _moved(found.offsets, found.gains):
        return f"the {'offsets' if found.offsets else 'gains'} of its norms are not as new"
    if _share(found.statistics) >= _SHARE:
        return "the running statistics of its norms have moved"
    if _learned(found.biases, found.weights):
        return "its biases are neither constant nor draws"
    if _structured(found.weights):
        return "its weights are no independent draws of one distribution"
    return ""


@dataclass
class _Found:
    """The values that are looked at: vectors of modules that only scale and shift, of layers, and weights."""

    offsets: list[Array] = field(default_factory=list)
    gains: list[Array] = field(default_factory=list)
    biases: list[tuple[Array, float]] = field(default_factory=list)
    statistics: list[bool] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)


def _look(model: nn.Module) -> _Found:
    found = _Found()
    for module in model.modules():
        own = {name: p.detach() for name, p in module._parameters.items() if p is not None and _has_values(p)}
        weights = [p for p in own.values() if sum(n > 1 for n in p.shape) > 1]
        vectors = {name: p.flatten() for name, p in own.items() if sum(n > 1 for n in p.shape) == 1}
        alone = not weights and not any(True for child in module.children() for _ in child.parameters())
        found.weights += [w for w in weights if w.numel() >= _LEAST and w.shape[0] >= _CHANNELS]
        for name, vector in vectors.items():
            values = _array(vector[:_VECTOR])
            if weights and "bias" in name:
                found.biases.append((values, 1 / math.sqrt(weights[0][0].numel())))
            elif alone:
                (found.offsets if "bias" in name or "beta" in name else found.gains).append(values)
        found.statistics += _statistics(module)
    return found


def _has_values(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and not tensor.is_meta


def _array(tensor: Tensor) -> Array:
    return tensor.detach().cpu().to(torch.float64).numpy()


def _statistics(module: nn.Module) -> Iterator[bool]:
    """Whether a module's running statistics have moved, if it has such."""
    mean, variance, steps = (
        dict(module._buffers).get(name) for name in ("running_mean", "running_var", "num_batches_tracked")
    )
    if mean is None or variance is None or not _has_values(mean) or not _has_values(variance):
        return
    tried = steps is not None and not steps.is_meta and 0 < int(steps) < _STEPS
    moved = bool((mean[:_VECTOR] != 0).any()) or bool((variance[:_VECTOR] != 1).any())
    yield moved and not tried


def _share(signs: Sequence[bool]) -> float:
    return sum(signs) / len(signs) if signs else 0.0


# --- vectors ------------------------------------------------------------------------------------------


def _moved(offsets: Sequence[Array], gains: Sequence[Array]) -> bool:
    """Whether scales are neither constant nor draws; gains drawn as offsets are do not start at one."""
    vectors = offsets or gains
    varied = [v for v in vectors if not _is_constant(v)]
    if not varied or len(varied) < _SHARE * len(vectors):
        return False
    if not offsets:
        return not _drawn_alike(varied)
    scales = [v for v in gains if not _is_constant(v)]
    if not scales or not _drawn_alike(varied) or not _drawn_alike(scales):
        return True
    gain, offset = float(np.concatenate(scales).mean()), float(np.concatenate(varied).mean())
    return abs(gain - 1) < abs(gain - offset)


def _learned(biases: Sequence[tuple[Array, float]], weights: Sequence[Tensor]) -> bool:
    """Whether biases are neither constant, nor drawn as PyTorch does, nor as the weights, nor next to zero."""
    odd = [values for values, bound in biases if not _is_constant(values) and not _is_default(values, bound)]
    if len(odd) < max(2, _SHARE * len(biases)):
        return False
    if not _drawn_alike(odd):
        return True
    deviation = float(np.concatenate(odd).std())
    among = [float(_sample(weight).std()) for weight in weights[:_LAYERS]]
    as_weights = bool(among) and 0.8 < deviation / max(float(np.median(among)), 1e-30) < 1.25
    return not as_weights and deviation > _TINY


def _is_constant(values: Array) -> bool:
    return bool((values == values[0]).all())


def _is_default(values: Array, bound: float) -> bool:
    """Whether they may be uniform draws from -bound to bound."""
    scaled = np.sort(values / bound)
    return bool(np.abs(scaled).max() <= 1.01) and _kolmogorov((scaled + 1) / 2)[1] > _ALIKE


def _drawn_alike(vectors: Sequence[Array]) -> bool:
    """Whether vectors may be draws of one uniform or normal distribution: Bartlett's test, and Kolmogorov's."""
    pooled = np.sort(np.concatenate(vectors))
    pooled = pooled - pooled.mean()
    deviation = float(pooled.std())
    if deviation == 0 or len(pooled) < _CHANNELS or _bartlett([v for v in vectors if len(v) > 1]) < _RARE:
        return False
    normal = _kolmogorov(special.ndtr(pooled / deviation))[1]
    uniform = _kolmogorov(np.clip((pooled / (deviation * math.sqrt(3)) + 1) / 2, 0, 1))[1]
    return max(normal, uniform) > _RARE


def _bartlett(vectors: Sequence[Array]) -> float:
    """Probability of variances as different as these, of normal draws of one variance."""
    freedom = np.array([len(v) - 1 for v in vectors], dtype=float)
    variances = np.array([v.var(ddof=1) for v in vectors])
    if len(vectors) < 2:
        return 1.0
    if not variances.all():
        return 0.0
    total = freedom.sum()
    spread = total * math.log((freedom * variances).sum() / total) - (freedom * np.log(variances)).sum()
    correction = 1 + ((1 / freedom).sum() - 1 / total) / (3 * (len(vectors) - 1))
    return float(special.chdtrc(len(vectors) - 1, spread / correction))


def _kolmogorov(levels: Array) -> tuple[float, float]:
    """Distance of sorted values of a distribution function to the uniform, and its probability (Stephens, 1970)."""
    n = len(levels)
    steps = np.arange(1, n + 1) / n
    distance = float(max((steps - levels).max(), (levels - steps).max() + 1 / n))
    return distance, float(special.kolmogorov(distance * (math.sqrt(n) + 0.12 + 0.11 / math.sqrt(n))))


# --- weights ------------------------------------------------------------------------------------------


def _structured(weights: Sequence[Tensor]) -> bool:
    """Whether a quarter of some weights, or all of them together, are no draws."""
    count = min(len(weights), _LAYERS)
    chosen = sorted({round(i * (len(weights) - 1) / max(count - 1, 1)) for i in range(count)})
    found = [_oddities(_sample(weights[i]), _is_precise(weights[i])) for i in chosen]
    known = np.array([row for row in found if row])
    if not len(known):
        return False
    if (known > _FAR).any(1).mean() >= _SHARE:
        return True
    together = np.clip(known, -_NEAR, _NEAR).sum(0) / math.sqrt(len(known))
    return bool((together > _FAR).any())


def _is_precise(weight: Tensor) -> bool:
    return weight.dtype in (torch.float32, torch.float64)


def _sample(weight: Tensor) -> Array:
    """Some of a weight's output and input channels, as (outputs, inputs, taps, neighbours)."""
    columns = max(_VALUES // max(weight[0, 0].numel(), 1), 1)
    values = _array(weight[:_ROWS, :columns])
    return values.reshape(*values.shape[:2], -1, values.shape[-1] if values.ndim > 2 else 1)


def _oddities(weight: Array, sharp: bool) -> list[float]:
    """By how many standard deviations a weight differs from independent draws of one distribution, test by test.

    Args:
        weight: of `_sample`.
        sharp: its values are precise enough to tell whether a distribution has sharp edges.
    """
    centred = weight - weight.mean()
    squares = centred**2
    power = float(squares.mean())
    fourth = float((squares**2).mean())
    if power == 0 or len(np.unique(weight[:_CHANNELS])) < weight[:_CHANNELS].size * (0.9 if sharp else 0.01):
        return []  # a constant, or a pattern (an identity, mostly zeros): neither drawn nor learned value by value
    excess = max(fourth - power**2, 1e-3 * power**2)
    found = []
    for axes in ((1, 2, 3), (0, 2, 3)):
        count = math.prod(weight.shape[axis] for axis in axes)
        found.append(_spread(centred.mean(axes), power / count))
        found.append(_spread(squares.mean(axes), excess / count))
    beside = centred[..., 1:] * centred[..., :-1]
    found.append(float(beside.mean()) / power * math.sqrt(beside.size) if beside.size else 0.0)
    found.append(_standing_out(centred.reshape(len(centred), -1), power))
    flat = fourth < _FLAT * power**2 and sharp and weight.size >= _DENSE
    found.append(_blur(weight) if flat else 0.0)
    return found


def _spread(values: Array, variance: float) -> float:
    """How much more values of channels differ than their variance lets expect."""
    freedom = len(values) - 1
    if freedom + 1 < _CHANNELS:
        return 0.0
    return float((((values - values.mean()) ** 2).sum() / variance - freedom) / math.sqrt(2 * freedom))


def _standing_out(matrix: Array, power: float) -> float:
    """How far the largest singular value lies beyond the edge, in what such values vary by (Johnstone, 2001)."""
    rows, columns = sorted(matrix.shape)
    if rows < _CHANNELS:
        return 0.0
    gram = matrix @ matrix.T if len(matrix) == rows else matrix.T @ matrix
    largest = float(np.linalg.eigvalsh(gram)[-1]) / power
    a, b = math.sqrt(columns - 1), math.sqrt(rows)
    level = (largest - (a + b) ** 2) / ((a + b) * (1 / a + 1 / b) ** (1 / 3))
    return (level + 1.21) / 1.27  # mean and deviation of the Tracy-Widom distribution


def _blur(weight: Array) -> float:
    """Whether the largest of uniform values are further apart than where their distribution ends sharply."""
    largest = np.partition(np.abs(weight), weight.size - 1 - _EDGE, axis=None)[-1 - _EDGE :]
    gap = float(largest.max() - largest.min()) / float(largest.max()) * weight.size
    return (gap - _EDGE) / (2 * math.sqrt(_EDGE))  # gaps of draws have a gamma distribution, with a longer tail
