"""What a value of a graph is: dimensions, and what they count."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, TypeGuard

#: What a dimension of a tensor is: it moves with the batch, the image height, the image width, both
#: (tokens), several of them at once (mixed), or never (channel; constants such as 1 included).
DimKind = Literal["batch", "height", "width", "token", "mixed", "channel"]


@dataclass(frozen=True)
class Dim:
    """One dimension of one tensor: its kind, its size at the probe, its stride against the image."""

    kind: DimKind
    size: int
    stride: Fraction | None = None


#: The dimensions of one tensor.
TensorDims = tuple[Dim, ...]

#: Dimensions of a node's value: ``TensorDims | tuple[Dims, ...] | None``, for a tensor, for several, and for
#: anything else. It is no such type to the checker: nearly all readers know that theirs is one tensor.
Dims = Any


def is_tensor(value: Dims) -> TypeGuard[TensorDims]:
    """Whether a value is one tensor (of one dimension at least)."""
    return isinstance(value, tuple) and bool(value) and isinstance(value[0], Dim)


def map_dims(function: Callable[..., Any], value: Dims, *beside: Any) -> Any:
    """Apply a function to every tensor of a value, and keep the structure of the value.

    Args:
        function: takes the dimensions of a tensor, and what the others have in its place.
        beside: further values of the same structure, of whatever a tensor stands for in them.
    """
    if value is None:
        return None
    if is_tensor(value) or not value:
        return function(value, *beside)
    return tuple(map_dims(function, *parts) for parts in zip(value, *beside, strict=True))


def tensors(value: Dims) -> Iterator[TensorDims]:
    """The dimensions of every tensor of a value."""
    if is_tensor(value) or value == ():
        yield value
    else:
        for part in value or ():
            yield from tensors(part)


def flat(value: Dims) -> Iterator[Dim]:
    """All dimensions of all tensors of a value."""
    return (d for dims in tensors(value) for d in dims)


def is_spatial(value: Dims) -> bool:
    """Whether a value is a tensor (or several) with a height or width left."""
    return any(d.kind in ("height", "width", "token", "mixed") for d in flat(value))


def reduction_of(value: Dims) -> Fraction | None:
    """The reduction of a feature map (one height, one width, equal strides) or of several like it, else None."""
    if is_tensor(value):
        return _map_stride(value)
    found = {_map_stride(dims) for dims in tensors(value)}
    return found.pop() if len(found) == 1 else None


def _map_stride(dims: TensorDims) -> Fraction | None:
    plane = [d for d in dims if d.kind in ("height", "width")]
    if len(plane) != 2 or plane[0].kind == plane[1].kind or plane[0].stride != plane[1].stride:
        return None
    return plane[0].stride


def is_feature_map(value: Dims) -> bool:
    """Whether a value is a clean (N, C, H, W) map."""
    return (
        is_tensor(value)
        and [d.kind for d in value] == ["batch", "channel", "height", "width"]
        and reduction_of(value) is not None
    )
