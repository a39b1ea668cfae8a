"""What a value of a graph is: dimensions, and what they count."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

#: What a dimension of a tensor is: it moves with the batch, the image height, the image width, both
#: (tokens), several of them at once (mixed), or never (channel; constants such as 1 included).
DimKind = Literal["batch", "height", "width", "token", "mixed", "channel"]


@dataclass(frozen=True)
class Dim:
    """One dimension of one tensor: its kind, its size at the probe, its stride against the image."""

    kind: DimKind
    size: int
    stride: Fraction | None = None


#: Dimensions of a node's value: a tuple of Dim for a tensor, a tuple of Values for several, else None.
Dims = Any


def is_tensor(value: Dims) -> bool:
    """Whether a value is one tensor."""
    return isinstance(value, tuple) and bool(value) and isinstance(value[0], Dim)


def is_spatial(value: Dims) -> bool:
    """Whether a value is a tensor (or several) with a height or width left."""
    if value is None:
        return False
    if not is_tensor(value):
        return any(is_spatial(v) for v in value)
    return any(d.kind in ("height", "width", "token", "mixed") for d in value)


def reduction_of(value: Dims) -> Fraction | None:
    """The reduction of a feature map (one height, one width, equal strides), else None."""
    if not is_tensor(value):
        if value is None or not isinstance(value, tuple):
            return None
        found = {reduction_of(v) for v in value}
        return found.pop() if len(found) == 1 else None
    strides = [d.stride for d in value if d.kind in ("height", "width")]
    kinds = [d.kind for d in value if d.kind in ("height", "width")]
    if sorted(kinds) == ["height", "width"] and strides[0] == strides[1]:
        return strides[0]
    return None


def is_feature_map(value: Dims) -> bool:
    """Whether a value is a clean (N, C, H, W) map."""
    return (
        is_tensor(value)
        and [d.kind for d in value] == ["batch", "channel", "height", "width"]
        and reduction_of(value) is not None
    )
