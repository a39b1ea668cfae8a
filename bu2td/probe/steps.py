"""The kind, size and stride of every dimension of every value, out of four runs of a graph.

The graph runs four times on meta tensors, at (B, H, W), (B+1, H, W), (B, H+D, W) and
(B, H, W+D). A dimension that moves with B is a batch dimension, one that moves with H a height, one
that moves with both H and W counts tokens, one that never moves counts channels. A height of cumulative
stride s is ``floor((H + c) / s) + d`` for constants c and d, so it grows by exactly D / s where s divides
D: the stride is D / growth, whatever the padding, ceil mode, layout or view arithmetic on the way. D is a
highly composite number, large enough for every stride, and meta tensors make its size free. Where s does not
divide D, growth is D / s rounded up or down; D / growth is then no whole number t while s and t stay below
sqrt(D), since D / s and D / t lie more than 1 apart. So a fraction tells that a D of other factors is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

from torch import fx

from bu2td.errors import ExampleInputError
from bu2td.graph import shapes_of
from bu2td.ir import Dim, Dims, FrozenMap
from bu2td.probe.pooled import pooled_maps

#: 2^7 * 3^3 * 5 * 7; 2^13 * 3^3 * 5 * 7 for layers that are bound to multiples of a block size; and
#: 2^10 * 3^6 * 5^3 * 7^2 for strides with other factors. The first are small, so that products of whole maps
#: (attention over all positions) keep fewer than 2^63 elements.
_STEPS = (120960, 64 * 120960, 2**10 * 3**6 * 5**3 * 7**2)


def measured(
    graph_module: fx.GraphModule, shapes: Mapping[str, Any], base: tuple[int, int, int, int]
) -> Iterator[FrozenMap[str, Dims]]:
    """The dimensions of all values by node name, as each step shows them that the graph runs with: one at least.

    Args:
        graph_module: the graph.
        shapes: of its values at the base point.
        base: an image shape.

    Raises:
        ExampleInputError: it runs with none.
    """
    batch, channels, height, width = base
    pooled = pooled_maps(graph_module, shapes)
    more = shapes_of(graph_module, (batch + 1, channels, height, width), pooled, quick=True)
    ran = False
    for step in _STEPS:
        try:
            taller = shapes_of(graph_module, (batch, channels, height + step, width), pooled, quick=True)
            wider = shapes_of(graph_module, (batch, channels, height, width + step), pooled, quick=True)
        except ExampleInputError:
            if step == _STEPS[-1] and not ran:
                raise
        else:
            ran = True
            dims = {n: _dims(shape, more[n], taller[n], wider[n], step) for n, shape in shapes.items()}
            yield FrozenMap(dims)


def _dims(base: Any, more: Any, taller: Any, wider: Any, step: int) -> Dims:
    if base is None:
        return None
    if isinstance(base, list):
        return tuple(_dims(b, m, t, w, step) for b, m, t, w in zip(base, more, taller, wider, strict=True))
    return tuple(_dim(b, m - b, t - b, w - b, step) for b, m, t, w in zip(base, more, taller, wider, strict=True))


def _dim(size: int, by_batch: int, by_height: int, by_width: int, step: int) -> Dim:
    if by_batch and (by_height or by_width):
        return Dim("mixed", size)
    if by_batch:
        return Dim("batch", size)
    if by_height and by_width:
        return Dim("token", size)
    if by_height:
        return Dim("height", size, Fraction(step, by_height))
    if by_width:
        return Dim("width", size, Fraction(step, by_width))
    return Dim("channel", size)
