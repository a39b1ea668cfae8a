"""Receptive fields as arrays of intervals, and the handful of ways in which operations move them.

Along one axis of the image, every element of a tensor depends on some pixels; kept is their hull, the
smallest interval that holds them all. A hull of unions is the hull of the hulls, so that windows, sums and
concatenations of hulls are exact. Axes are independent: an element's field is the product of the two
intervals.

A `Field` has one array dimension per dimension of its tensor, of length 1 where the interval does not change
along it: the height intervals of a map (N, C, H, W) are an array (1, 1, H, 1), whatever C and W are.
Operations that only move data (views, permutes, slices) move these arrays just as they move the data.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

#: Ends of an empty interval: neutral in minima and maxima.
NOTHING = (1 << 40, -(1 << 40))

#: Windows from here on are reduced in one pass instead of tap by tap.
_LARGE = 24


@dataclass(frozen=True)
class Field:
    """Intervals of image pixels, ends included, along one axis; ``lo > hi`` where there are none.

    Attributes:
        lo, hi: one dimension per dimension of the tensor, of its size or of size 1.
        gated: beside these pixels every element depends on the whole image, through a global gate.
    """

    lo: Ints
    hi: Ints
    gated: bool = False

    @property
    def empty(self) -> bool:
        """Whether no element depends on any pixel (gates aside)."""
        return not bool((self.lo <= self.hi).any())

    def part(self, axis: int, index: slice) -> Field:
        """A slice along a dimension; where nothing changes along it, the whole."""
        if self.lo.shape[axis] == 1:
            return self
        at = (slice(None),) * (axis % self.lo.ndim) + (index,)
        return Field(self.lo[at], self.hi[at], self.gated)

    def without(self, axis: int) -> Field:
        """The field without a dimension of length 1."""
        return Field(self.lo.squeeze(axis), self.hi.squeeze(axis), self.gated)

    def along(self, axis: int) -> tuple[Ints, Ints]:
        """The hull over all other dimensions, as two arrays of one dimension."""
        others = tuple(i for i in range(self.lo.ndim) if i != axis % self.lo.ndim)
        return self.lo.min(axis=others), self.hi.max(axis=others)


def nothing(rank: int, gated: bool = False) -> Field:
    """The field of a tensor that depends on no pixel: a parameter, or a gate left aside."""
    shape = (1,) * rank
    return Field(np.full(shape, NOTHING[0]), np.full(shape, NOTHING[1]), gated)


def pixels(size: int, axis: int, rank: int) -> Field:
    """The field of the image itself: pixel i depends on pixel i."""
    shape = [1] * rank
    shape[axis] = size
    line = np.arange(size, dtype=np.int64).reshape(shape)
    return Field(line, line)


def hull(fields: Iterable[Field], rank: int) -> Field:
    """The hull of several fields, their dimensions aligned from the right."""
    parts = [lift(field, rank) for field in fields]
    lo, hi = parts[0].lo, parts[0].hi
    for part in parts[1:]:
        lo, hi = np.minimum(lo, part.lo), np.maximum(hi, part.hi)
    return Field(lo, hi, any(part.gated for part in parts))


def lift(field: Field, rank: int) -> Field:
    """The field with dimensions of length 1 in front of it."""
    missing = rank - field.lo.ndim
    if missing == 0:
        return field
    shape = (1,) * missing + field.lo.shape
    return Field(field.lo.reshape(shape), field.hi.reshape(shape), field.gated)


def mix(field: Field, axes: Iterable[int], positions: Collection[int]) -> Field:
    """Let every element depend on all elements along some dimensions, which become 1 long.

    ``positions`` are the dimensions that count positions of the image: what is mixed over all of those is
    global, and left aside as a gate.
    """
    for axis in axes:
        if field.lo.shape[axis] > 1 and axis % field.lo.ndim in positions:
            return nothing(field.lo.ndim, gated=True)
        if field.lo.shape[axis] > 1:
            lo, hi = field.lo.min(axis=axis, keepdims=True), field.hi.max(axis=axis, keepdims=True)
            field = Field(lo, hi, field.gated)
    return field


def tapped(field: Field, axis: int, taps: Iterable[Ints]) -> Field:
    """New positions along a dimension: each reads one old position per tap; taps outside read nothing."""
    size = field.lo.shape[axis]
    if size == 1:
        return field
    shape = [1] * field.lo.ndim
    shape[axis] = -1
    lo = hi = None
    for tap in taps:
        inside = (tap >= 0) & (tap < size)
        index = np.where(inside, tap, 0)
        new_lo, new_hi = field.lo.take(index, axis), field.hi.take(index, axis)
        if not inside.all():
            mask = inside.reshape(shape)
            new_lo, new_hi = np.where(mask, new_lo, NOTHING[0]), np.where(mask, new_hi, NOTHING[1])
        lo = new_lo if lo is None else np.minimum(lo, new_lo)
        hi = new_hi if hi is None else np.maximum(hi, new_hi)
    assert lo is not None
    assert hi is not None
    return Field(lo, hi, field.gated)


def spans(field: Field, axis: int, start: Ints, stop: Ints) -> Field:
    """New positions along a dimension: position i reads the old positions start[i] to stop[i] - 1."""
    size = field.lo.shape[axis]
    if size == 1:
        return field
    start, stop = np.clip(start, 0, size), np.clip(stop, 0, size)
    longest = int((stop - start).max(initial=0))
    if longest <= _LARGE:
        taps = (np.where(start + t < stop, start + t, -1) for t in range(max(longest, 1)))
        return tapped(field, axis, taps)
    pairs = np.stack([start, np.maximum(stop, start + 1)], 1).reshape(-1)
    pad = [(0, 0)] * field.lo.ndim
    pad[axis] = (0, 2)  # an index one behind the end must exist
    every = [slice(None)] * field.lo.ndim
    every[axis] = slice(None, None, 2)
    lo = np.minimum.reduceat(np.pad(field.lo, pad, constant_values=NOTHING[0]), pairs, axis)[tuple(every)]
    hi = np.maximum.reduceat(np.pad(field.hi, pad, constant_values=NOTHING[1]), pairs, axis)[tuple(every)]
    return Field(lo, hi, field.gated)


def windows(
    field: Field,
    axis: int,
    size: int,
    kernel: int,
    stride: int = 1,
    before: int = 0,
    dilation: int = 1,
    mode: str = "zeros",
    after: int | None = None,
) -> Field:
    """Slide a window along a dimension, as a convolution or pool does.

    Args:
        size: number of new positions.
        before, after: padding in front of and behind the old ones; by default the same.
        mode: what the padding reads: "zeros" nothing, "reflect", "replicate" or "circular" real positions.
    """
    n = field.lo.shape[axis]
    if n == 1:
        return field
    start = np.arange(size, dtype=np.int64) * stride - before
    if mode in ("zeros", "constant"):
        if dilation == 1:
            return spans(field, axis, start, start + kernel)
        return tapped(field, axis, (start + t * dilation for t in range(kernel)))
    last = n - 1 + (before if after is None else after)
    taps = (start + t * dilation for t in range(kernel))
    return tapped(field, axis, (np.where(tap <= last, padded_index(tap, n, mode), -1) for tap in taps))


def padded_index(index: Ints, size: int, mode: str) -> Ints:
    """The positions that padded positions repeat; -1 where they repeat none."""
    if mode == "reflect":
        index = np.abs(index)
        return np.where(index < size, index, 2 * (size - 1) - index)
    if mode in ("replicate", "edge"):
        return np.clip(index, 0, size - 1)
    if mode == "circular":
        return index % size
    return np.where((index >= 0) & (index < size), index, -1)


def transposed(
    field: Field, axis: int, size: int, kernel: int, stride: int, padding: int = 0, dilation: int = 1
) -> Field:
    """Slide a transposed convolution's window: position o reads i where o = i stride - padding + t dilation."""
    place = np.arange(size, dtype=np.int64) + padding

    def tap(t: int) -> Ints:
        index = place - t * dilation
        return np.where(index % stride == 0, index // stride, -1)

    return tapped(field, axis, (tap(t) for t in range(kernel)))


def bins(field: Field, axis: int, size: int) -> Field:
    """Pool to a number of positions as adaptive pools do: floor(i n / m) to ceil((i + 1) n / m)."""
    n = field.lo.shape[axis]
    i = np.arange(size, dtype=np.int64)
    return spans(field, axis, i * n // size, -(-(i + 1) * n // size))


def resampled(
    field: Field,
    axis: int,
    size: int,
    mode: str,
    align_corners: bool = False,
    antialias: bool = False,
    scale: float | None = None,
) -> Field | None:
    """Resample a dimension as ``torch.nn.functional.interpolate`` does; None for an unknown mode.

    Args:
        size: number of new positions.
        scale: the written scale factor, where positions follow it instead of the ratio of the sizes.
    """
    n = field.lo.shape[axis]
    if n == 1:
        return field
    if mode == "area":
        return bins(field, axis, size)
    step = 1 / scale if scale else n / size
    i = np.arange(size, dtype=np.int64)
    if mode in ("nearest", "nearest-exact"):
        shift = 0.5 if mode == "nearest-exact" else 0.0
        if scale is None and mode == "nearest":
            return tapped(field, axis, [i * n // size])
        return tapped(field, axis, [np.minimum(np.floor((i + shift) * step).astype(np.int64), n - 1)])
    reach = {"linear": 1, "bilinear": 1, "bicubic": 2}.get(mode)
    if reach is None:
        return None
    if antialias:
        widened = max(step, 1.0) * reach
        centre = (i + 0.5) * step
        first, last = np.floor(centre - widened + 0.5), np.floor(centre + widened + 0.5)
        start, stop = first.astype(np.int64), last.astype(np.int64)
        # A tap whose distance is exactly the reach has no weight.
        start = np.where(start + 0.5 <= centre - widened + 1e-9, start + 1, start)
        stop = np.where(stop - 0.5 >= centre + widened - 1e-9, stop - 1, stop)
        return spans(field, axis, start, stop)
    if align_corners:
        numerator, denominator = i * (n - 1), max(size - 1, 1)
    elif scale is None:
        numerator, denominator = (2 * i + 1) * n - size, 2 * size
    else:
        numerator, denominator = np.round(((i + 0.5) * step - 0.5) * (1 << 30)).astype(np.int64), 1 << 30
    if reach == 1:
        numerator = np.maximum(numerator, 0)
    left = numerator // denominator
    between = numerator % denominator != 0
    if reach == 1:
        return tapped(field, axis, [np.minimum(left, n - 1), np.where(between, np.minimum(left + 1, n - 1), -1)])
    around = [np.clip(left + t, 0, n - 1) for t in (-1, 0, 1, 2)]
    return tapped(field, axis, [tap if t == 1 else np.where(between, tap, -1) for t, tap in enumerate(around)])


def groups(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Cut two shapes of equal product into the smallest runs of equal product; an empty tensor is one run."""
    if 0 in before:
        return [([*range(len(before))], [*range(len(after))])]
    found = []
    i = j = 0
    while i < len(before) and j < len(after):
        ins, outs = [i], [j]
        i, j = i + 1, j + 1
        while (a := prod(before[k] for k in ins)) != (b := prod(after[k] for k in outs)):
            if a < b:
                ins.append(i)
                i += 1
            else:
                outs.append(j)
                j += 1
        found.append((ins, outs))
    if found:
        found[-1][0].extend(range(i, len(before)))
        found[-1][1].extend(range(j, len(after)))
    return found


def viewed(field: Field, before: Sequence[int], after: Sequence[int]) -> Field:
    """The field of a tensor of shape ``before`` seen with shape ``after``; only what varies is written out."""
    inner, shape = list(field.lo.shape), [1] * len(after)
    for ins, outs in groups(before, after):
        if any(inner[i] > 1 for i in ins):
            for i in ins:
                inner[i] = before[i]
            for o in outs:
                shape[o] = after[o]
    lo, hi = (np.broadcast_to(a, inner).reshape(shape) for a in (field.lo, field.hi))
    return Field(lo, hi, field.gated)


def transpose(field: Field, order: Sequence[int]) -> Field:
    """The field of a tensor whose dimensions are permuted."""
    return Field(field.lo.transpose(order), field.hi.transpose(order), field.gated)


def written_out(field: Field, axis: int, size: int) -> Field:
    """The field with a dimension written out at its size."""
    return Field(np.repeat(field.lo, size, axis), np.repeat(field.hi, size, axis), field.gated)


def compressed(field: Field, axes: Iterable[int]) -> Field:
    """The field with length 1 along those dimensions in which nothing changes."""
    lo, hi = field.lo, field.hi
    for axis in axes:
        if lo.shape[axis] > 1:
            first_lo, first_hi = lo.take([0], axis), hi.take([0], axis)
            if bool((lo == first_lo).all()) and bool((hi == first_hi).all()):
                lo, hi = first_lo, first_hi
    return Field(lo, hi, field.gated)


def joined(fields: Sequence[Field], sizes: Sequence[int], axis: int) -> Field:
    """Fields of tensors that are concatenated; ``sizes`` are theirs along the dimension."""
    rank = fields[0].lo.ndim
    if all(f.lo.shape[axis] == 1 for f in fields) and _alike(fields):
        return replace(fields[0], gated=any(f.gated for f in fields))
    shape = [max(f.lo.shape[i] for f in fields) for i in range(rank)]

    def whole(array: Ints, size: int) -> Ints:
        return np.broadcast_to(array, [size if i == axis else n for i, n in enumerate(shape)])

    lo = np.concatenate([whole(f.lo, s) for f, s in zip(fields, sizes, strict=True)], axis)
    hi = np.concatenate([whole(f.hi, s) for f, s in zip(fields, sizes, strict=True)], axis)
    return Field(lo, hi, any(f.gated for f in fields))


def _alike(fields: Sequence[Field]) -> bool:
    first = fields[0]
    return all(
        f is first
        or (f.lo.shape == first.lo.shape and np.array_equal(f.lo, first.lo) and np.array_equal(f.hi, first.hi))
        for f in fields
    )


def grouped(field: Field, count: int, per_group: int) -> Field:
    """Mix channels (dimension 1) inside each of ``count`` groups, each of which makes ``per_group`` new ones."""
    channels = field.lo.shape[1]
    if channels == 1:
        return field

    def reduced(array: Ints, ufunc: Any) -> Ints:
        parts = array.reshape(array.shape[0], count, channels // count, *array.shape[2:])
        found = ufunc.reduce(parts, axis=2)
        return np.repeat(found, per_group, axis=1) if count > 1 else found

    return compressed(Field(reduced(field.lo, np.minimum), reduced(field.hi, np.maximum), field.gated), [1])
