"""The stage: the dimensions of a captured graph by the first step that settles all strides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import fx

from bu2td.errors import Bu2tdError, ExampleInputError, NoReductionError, TopologyError
from bu2td.graph import shapes_of
from bu2td.ir import Capture, Dims, flat
from bu2td.ops import converter_for
from bu2td.probe.steps import measured


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
    first: Mapping[str, Dims] = {}
    try:
        for found in measured(graph_module, shapes, base):
            if _all_whole(found.values()):
                return found
            first = first or found
    except ExampleInputError as error:
        raise _bound_to_size(graph_module, shapes, base, error) from error
    return first


def _all_whole(values: Iterable[Dims]) -> bool:
    """Whether every stride among the dimensions is a whole number, or one over a whole number."""
    strides = {d.stride for value in values for d in flat(value) if d.stride is not None}
    return all(1 in (stride.numerator, stride.denominator) for stride in strides)


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
