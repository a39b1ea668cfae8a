"""The stage: a captured graph -> the kind, size and stride of every dimension of every value.

Derivation. The graph runs four times on meta tensors, at (B, H, W), (B+1, H, W), (B, H+D, W) and
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

from bu2td.errors import Bu2tdError, ExampleInputError, NoReductionError, TopologyError
from bu2td.graph.run import shapes_of
from bu2td.ir.bottom_up import Capture
from bu2td.ir.frozen import FrozenMap
from bu2td.ir.values import Dim, Dims
from bu2td.ops.registry import converter_for
from bu2td.probe.pooled import pooled_maps

#: 2^7 * 3^3 * 5 * 7; 2^13 * 3^3 * 5 * 7 for layers that are bound to multiples of a block size; and
#: 2^10 * 3^6 * 5^3 * 7^2 for strides with other factors. The first are small, so that products of whole maps
#: (attention over all positions) keep fewer than 2^63 elements.
_STEPS = (120960, 64 * 120960, 2**10 * 3**6 * 5**3 * 7**2)


def probe(capture: Capture, shapes: dict[str, Any] | None = None) -> Mapping[str, Dims]:
    """Measure the dimensions of every value in a captured graph.

    Needs: a `Capture` (parameters on meta); ``shapes`` at its image shape, if the graph ran there before.
    Returns: node name -> a tuple of `Dim` for a tensor, a tuple of those for several, None for others.
    Guarantees: the model's own image size is the base point, so ``size`` is what the model sees.

    Raises:
        ExampleInputError: the graph does not run on the image size.
        ModelInputError: the graph does not read an image.
        CaptureError: it makes tensors on a device of its own choice.
        NoReductionError, TopologyError: it runs at one image size only.
    """
    n, channels, height, width = capture.image_shape
    base = (max(n, 2), channels, height, width)
    graph_module = capture.graph_module
    shapes = shapes or shapes_of(graph_module, base)
    first: dict[str, Dims] = {}
    try:
        for found in _measured(graph_module, shapes, base):
            if _all_whole(found.values()):
                return FrozenMap(found)
            first = first or found
    except ExampleInputError as error:
        raise _bound_to_size(graph_module, shapes, base, error) from error
    return FrozenMap(first)


def _measured(
    graph_module: fx.GraphModule, shapes: Mapping[str, Any], base: tuple[int, int, int, int]
) -> Iterator[dict[str, Dims]]:
    """The dimensions of all values, as each step shows them that the graph runs with: one at least.

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
            yield {n: _dims(shape, more[n], taller[n], wider[n], step) for n, shape in shapes.items()}


def _all_whole(values: Any) -> bool:
    """Whether every stride among the dimensions is a whole number, or one over a whole number."""
    if isinstance(values, Dim):
        return values.stride is None or 1 in (values.stride.numerator, values.stride.denominator)
    return values is None or all(map(_all_whole, values))


def _bound_to_size(
    graph_module: fx.GraphModule, shapes: Mapping[str, Any], base: tuple[int, ...], error: Exception
) -> Bu2tdError:
    """The error of a network that runs at its own image size only."""
    modules = dict(graph_module.named_modules())
    shaped = [
        shapes[n.name]
        for n in graph_module.graph.nodes
        if n.op == "call_module" and converter_for(n, modules[str(n.target)]).role.windowed
    ]
    maps = {s[2:] for s in shaped if isinstance(s, tuple) and len(s) == 4 and s[2] * s[3] > 1}
    if len(maps) <= 1:
        found = ", ".join(f"{h}x{w}" for h, w in maps) or "none"
        return NoReductionError(
            f"the convolutions of this network make features of one resolution only ({found} for an image of "
            f"{base[2]}x{base[3]}): there is nothing to turn upside down"
        )
    where = str(error).partition("\n")[2].partition("\n")[0].strip()
    return TopologyError(
        f"this network runs only at its own image size {base[2]}x{base[3]}, so its layers cannot be moved to "
        f"another resolution; the operation that binds the size is {where}"
    )


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
