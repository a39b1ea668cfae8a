"""Receptive fields of every value of a graph: which pixels of the image each position depends on.

The image is a canvas, by default a virtual one larger than any field, so that nothing that is said of the
centre depends on a border. The graph runs on it on the meta device, which makes its size free; the sizes of
all values, whatever their padding or ceil mode, are therefore the graph's own. Then the converters' rules
(`bu2td.Converter.interval`) carry intervals of pixels from node to node, once per axis.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import fx

from bu2td.errors import ConverterError, ExampleInputError, OptionError, shown
from bu2td.graph import shapes_of, source_line
from bu2td.graph.view import read_nodes
from bu2td.ir import Dim, Dims, TensorDims, flat, is_tensor, map_dims
from bu2td.nn import Pyramid
from bu2td.ops import NoRuleError, Site, blaming, converter_for
from bu2td.ops.fields import Field, Ints, nothing, pixels, spans
from bu2td.probe import pooled_maps

#: Where a virtual canvas starts: 2^6 * 3 * 5 * 7, which common strides divide; half of it where tokens are counted,
#: whose number is its area. There it is only as long as that along one axis at a time, and along the other one as
#: long as the model's own image: fields along one axis do not depend on the size of the other.
_CANVAS = 6720
_DOUBLINGS = 8

#: Window of a pyramid's level in pixels, of its factor and sigma; None: the taps that it really has.
PyramidField = Callable[[int, float], int]


@dataclass(frozen=True)
class Line:
    """The field of a map along one axis.

    Attributes:
        lo, hi: first and last pixel per position, hull over channels; ``lo > hi`` where there is none.
        gated: through a global gate every position depends on the whole image besides.
    """

    lo: Ints
    hi: Ints
    gated: bool


@dataclass(frozen=True)
class Intervals:
    """Fields of all values of a graph.

    Attributes:
        canvas: (H, W) of the image.
        dims: dimensions of all values by node name, of their sizes on the canvas; a number of tokens is that of a
            canvas that is long along one axis only.
        lines: for "height" and "width", by node name, the field of every value that has one such dimension.
        gated: nodes behind a global gate, values without positions included.
        unknown: node name -> the operation without a rule that it depends on.
    """

    canvas: tuple[int, int]
    dims: Mapping[str, Dims]
    lines: Mapping[str, Mapping[str, Line]]
    gated: frozenset[str]
    unknown: Mapping[str, str] = field(default_factory=dict)


def intervals(
    graph_module: fx.GraphModule,
    dims: Mapping[str, Dims],
    image_shape: tuple[int, ...],
    *,
    borders: bool = False,
    gates_aside: bool = False,
    pyramid_field: PyramidField | None = None,
) -> Intervals:
    """Propagate receptive fields through a captured or flattened graph.

    Needs: a graph on the meta device and its probe at ``image_shape`` (N, C, H, W).
    Returns: `Intervals`, on the image itself with ``borders``, else on a canvas that the fields of all centre
        positions leave free at its border. On that canvas pools to a fixed number of positions are gates, which
        see all of it; on the image itself they are windows, unless ``gates_aside``.
    Guarantees: an operation without a rule is named, and whatever depends on it has no field.

    Raises:
        ExampleInputError: the graph does not run on any canvas.
        ConverterError: a converter's rule returns a field of another shape than its value.
        OptionError: ``pyramid_field`` returns no number of pixels.
    """
    batch, channels, height, width = (max(image_shape[0], 2), *image_shape[1:])
    at_image = {name: tuple(d.size for d in v) if is_tensor(v) else None for name, v in dims.items()}
    pooled = pooled_maps(graph_module, at_image)
    if borders:
        return _propagate(graph_module, dims, (batch, channels, height, width), pooled, gates_aside, pyramid_field)
    kinds = {d.kind for value in dims.values() for d in flat(value)}
    counted = bool(kinds & {"token", "mixed"})
    side = _CANVAS // 2 if counted else _CANVAS
    found: Intervals | None = None
    failure: ExampleInputError | None = None
    for _ in range(_DOUBLINGS):
        try:
            if counted:
                tall, wide = (batch, channels, side, width), (batch, channels, height, side)
                found = _united(
                    _propagate(graph_module, dims, tall, pooled, True, pyramid_field, ("height",)),
                    _propagate(graph_module, dims, wide, pooled, True, pyramid_field, ("width",)),
                )
            else:
                square = (batch, channels, side, side)
                found = _propagate(graph_module, dims, square, pooled, True, pyramid_field)
        except ExampleInputError as error:
            failure = error
        else:
            if not _touching(found):
                return found
        side *= 2
    if found is None:
        assert failure is not None
        raise failure
    growing = dict.fromkeys(_touching(found), "a field that grows with the image")
    return replace(found, unknown={**growing, **found.unknown})


def _touching(found: Intervals) -> list[str]:
    """The values whose fields reach the border of the canvas in the middle quarter of their positions."""
    names = []
    for side, lines in zip(found.canvas, found.lines.values(), strict=True):
        for name, line in lines.items():
            n = len(line.lo)
            middle = slice(n * 3 // 8, max(n * 5 // 8, n * 3 // 8 + 1))
            lo, hi = line.lo[middle], line.hi[middle]
            if bool(((lo <= hi) & ((lo <= 0) | (hi >= side - 1))).any()):
                names.append(name)
    return names


def _resized(dims: TensorDims, shape: Sequence[int]) -> TensorDims:
    """Dimensions with the sizes that they have on the canvas."""
    return tuple(Dim(d.kind, n, d.stride) for d, n in zip(dims, shape, strict=True))


def _propagate(
    graph_module: fx.GraphModule,
    dims: Mapping[str, Dims],
    shape: tuple[int, int, int, int],
    pooled: Mapping[str, tuple[int, int]],
    virtual: bool,
    pyramid_field: PyramidField | None,
    kinds: Sequence[str] = ("height", "width"),
) -> Intervals:
    numbers: dict[str, Any] = {}
    shapes = shapes_of(graph_module, shape, pooled, quick=True, numbers=numbers)
    sized = {name: map_dims(_resized, value, shapes.get(name)) for name, value in dims.items()}
    modules = dict(graph_module.named_modules())
    sites = {}
    for node in graph_module.graph.nodes:
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        sites[node] = Site(node, module, sized, numbers, virtual)
    unknown: dict[str, str] = {}
    gated: set[str] = set()
    lines = {}
    for kind in kinds:
        axis = 2 if kind == "height" else 3
        walk = _Walk(sites, pooled if virtual else {}, axis, kind, pyramid_field)
        lines[kind] = walk.run()
        unknown |= walk.unknown
        gated |= walk.gated
    return Intervals(shape[2:], sized, lines, frozenset(gated), unknown)


def _united(tall: Intervals, wide: Intervals) -> Intervals:
    """Heights of a tall canvas and widths of a wide one."""
    dims = {name: map_dims(_with_heights, wide.dims[name], value) for name, value in tall.dims.items()}
    return Intervals(
        (tall.canvas[0], wide.canvas[1]),
        dims,
        {**tall.lines, **wide.lines},
        tall.gated | wide.gated,
        {**tall.unknown, **wide.unknown},
    )


def _with_heights(wide: TensorDims, tall: TensorDims) -> TensorDims:
    """The dimensions of ``wide``, heights those of ``tall``."""
    return tuple(a if a.kind == "height" else b for a, b in zip(tall, wide, strict=True))


class _Walk:
    """Carries the fields along one axis through the graph."""

    def __init__(
        self,
        sites: Mapping[fx.Node, Site],
        pooled: Mapping[str, tuple[int, int]],
        axis: int,
        kind: str,
        pyramid_field: PyramidField | None,
    ) -> None:
        self.sites = sites
        self.pooled = pooled
        self.axis = axis
        self.kind = kind
        self.pyramid_field = pyramid_field
        self.fields: dict[str, Any] = {}
        self.unknown: dict[str, str] = {}
        self.gated: set[str] = set()

    def run(self) -> dict[str, Line]:
        lines = {}
        last = {source: node for node in self.sites for source in node.all_input_nodes}
        for node, site in self.sites.items():
            if node.op != "output" and site.value is not None:
                found = self._field(node, site)
                if found is not None:
                    self.fields[node.name] = found
                    if any(part.gated for part in _parts(found)):
                        self.gated.add(node.name)
                    line = self._line(found, site.value)
                    if line is not None:
                        lines[node.name] = line
            for source in node.all_input_nodes:
                if last[source] is node:
                    self.fields.pop(source.name, None)
        return lines

    def _field(self, node: fx.Node, site: Site) -> Any:
        if node.op == "placeholder":
            return pixels(site.value[self.axis].size, self.axis, len(site.value))
        if node.op == "get_attr":
            return nothing(len(site.value))
        reads = [n for n in read_nodes(node, self._lends(site)) if site.dims.get(n.name) is not None]
        causes = [self.unknown[n.name] for n in reads if n.name in self.unknown]
        if causes:
            self.unknown[node.name] = causes[0]
            return None
        inputs = [part for n in reads for part in _parts(self.fields.get(n.name))]
        if all(part.empty for part in inputs):
            gated = any(part.gated for part in inputs)
            return map_dims(lambda dims: nothing(len(dims), gated), site.value)
        if node.name in self.pooled:
            return map_dims(lambda dims: nothing(len(dims), True), site.value)
        found = self._rule(site)
        if found is None:
            self.unknown[node.name] = f"{_named(site)} ({node.name})"
            return None
        _check(found, site)
        return found

    def _lends(self, site: Site) -> tuple[int, ...]:
        return converter_for(site.node, site.module).lends(site)

    def _rule(self, site: Site) -> Any:
        converter = converter_for(site.node, site.module)
        if isinstance(site.module, Pyramid) and self.pyramid_field is not None:
            image, pyramid = self.fields[site.source()], site.module
            return tuple(_counted(image, self.axis, pyramid, r, self.pyramid_field) for r in pyramid.reductions)
        where = f"{site.node.name} at {source_line(site.node)}"
        try:
            with blaming(converter, "carry receptive fields through", where):
                return converter.interval(site, self.fields)
        except NoRuleError:
            return None

    def _line(self, found: Any, value: Dims) -> Line | None:
        if not isinstance(found, Field):
            return None
        axes = [i for i, d in enumerate(value) if d.kind == self.kind]
        if len(axes) != 1:
            return None
        lo, hi = found.along(axes[0])
        if len(lo) != value[axes[0]].size:
            lo, hi = (np.repeat(a, value[axes[0]].size) for a in (lo, hi))
        return Line(lo, hi, found.gated)


def _named(site: Site) -> str:
    return type(site.module).__name__ if site.module is not None else site.name


def _parts(found: Any) -> list[Field]:
    if found is None:
        return []
    return [found] if isinstance(found, Field) else [part for inner in found for part in _parts(inner)]


def _check(found: Any, site: Site) -> None:
    several = not isinstance(found, Field)
    for part, dims in zip(found if several else [found], site.value if several else [site.value], strict=True):
        if isinstance(part, Field) and is_tensor(dims):
            sizes = [d.size for d in dims]
            fits = part.lo.ndim == len(sizes) and all(
                n in (1, size) for n, size in zip(part.lo.shape, sizes, strict=False)
            )
            if not fits:
                raise ConverterError(
                    f"the interval rule of {_named(site)} ({site.node.name}) returns a field of shape "
                    f"{part.lo.shape} for a value of shape {tuple(sizes)}; every dimension must be as long or 1"
                )


def _counted(image: Field, axis: int, pyramid: Pyramid, factor: int, window: PyramidField) -> Field:
    """The field of a pyramid's level, whose positions see windows of a size that the caller chose."""
    size = image.lo.shape[axis]
    out = -(-size // factor)
    if factor == 1 or size == 1:
        return image
    try:
        count = window(factor, pyramid.sigma)
    except Exception as error:
        raise OptionError(f"pyramid_field failed for factor {factor} ({type(error).__name__}: {error})") from error
    if not (isinstance(count, int) and count >= 1):
        raise OptionError(
            f"pyramid_field returned {shown(count)} for factor {factor} and sigma {pyramid.sigma:g}; it must "
            f"return a number of pixels, an int of at least 1"
        )
    i = np.arange(out, dtype=np.int64)
    start = ((2 * i + 1) * size - count * out) // (2 * out)
    return spans(image, axis, start, start + count)
