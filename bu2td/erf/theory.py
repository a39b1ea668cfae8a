"""Theoretical receptive fields: the pixels that each position of each layer can depend on, exactly.

Equation 1 of the paper (Lelekas et al., 2020, section 3.2),

    r_i = r_(i-1) + (k_i - 1) m_(i-1),    m_i = m_(i-1) s_i,

holds on a chain of windows. Here intervals of pixels are carried through the whole graph instead
(`bu2td.erf.intervals`), and size r, jump m and offset are read off them, so that branches, upsampling and
misaligned strides are exact too. On a chain both are the same, and ``padding`` is that of Araujo et al. (2019),
"Computing receptive fields of convolutional neural networks".
"""

from __future__ import annotations

import operator
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
from torch import Tensor, fx, nn

from bu2td.erf.intervals import Intervals, Line, PyramidField, intervals
from bu2td.erf.plot import plot_fields
from bu2td.erf.subject import Subject, names_of, subject
from bu2td.erf.table import Table, extent
from bu2td.errors import OptionError, TopologyError, nearest, shown
from bu2td.ir import Analysis, flat, format_table, is_tensor, reduction_of
from bu2td.ops import Role, Site, converter_for

Pair = tuple[Any, Any]


@dataclass(frozen=True)
class Fields(Table):
    """Theoretical receptive fields of the layers of one network. All lengths are pixels of the full-size image.

    Pairs are (height, width). Each of ``rows`` is a dict:

        name: the level ("r16"), the module's path, or the node of the graph.
        node: the node of the captured graph; two calls of one module are two nodes.
        op: class of the module, or name of the function.
        reduction: of the layer against the image; None where it has no positions.
        size: sides of the field: last minus first pixel plus 1, the largest over the positions away from the
            borders. None where there is none: behind a global pool, or behind an unknown operation.
        jump: distance between the fields of neighbouring positions.
        offset: centre of the field of position 0, where pixel j has its centre at j + 1/2, extrapolated from
            the inside of the map.
        padding: pixels by which the field of position 0 begins outside the image (Araujo et al.); None where
            fields of neighbouring positions are not one jump apart.
        aligned: whether all branches that meet at the last add or concat have the same centres.
        merged: the distinct sizes that meet there, in ascending order; empty without one.
        gated: through a global gate (squeeze and excitation, attention, norms with statistics over the map), or
            a pool to a fixed number of positions, the layer depends on the whole image besides. ``size`` is the
            field without it.
        unknown: the first operation before the layer that has no interval rule; else "".

    With ``borders`` there are two more: ``height`` and ``width`` list the first and last pixel, clipped to the
    image, of every row and column of the map (None: it depends on no pixel), for the image of `image_size`.

    Attributes:
        title: which network.
        image_size: (H, W) of the images that the network was made for.
    """

    title: str
    rows: list[dict[str, Any]]
    image_size: tuple[int, int]

    def __str__(self) -> str:
        columns = ("name", "op", "reduction", "size", "jump", "offset", "padding", "merged")
        table = [{**{c: _shown(c, row[c]) for c in columns}, "notes": _notes(row)} for row in self.rows]
        return f"{self.title}, theoretical receptive fields in pixels\n{format_table(table)}"

    def to_dict(self) -> dict[str, Any]:
        """Title, image size and rows, as JSON-ready data."""
        return {"model": self.title, "image_size": list(self.image_size), "rows": self.rows}

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw field size against depth and write the figure, .png or .svg.

        Raises:
            MissingPackageError: matplotlib is not installed.
            FileError: the file cannot be written.
        """
        plot_fields(self.title, self.rows, self.image_size, path)


def theory(
    model: nn.Module | Analysis | Subject,
    *,
    example_inputs: Tensor | None = None,
    layers: str | Sequence[str] = "levels",
    borders: bool = False,
    pyramid_field: PyramidField | None = None,
) -> Fields:
    """Compute the theoretical receptive field of every layer, exact to the pixel.

    Args:
        model: a live bottom-up network, its analysis, or a `TopDownNetwork`.
        example_inputs: an image batch (N, C, H, W) that fixes channels and image size, as for `bu2td.analyze`.
        layers: "levels" (the first convolution, the output of every level, the head), "all", or a list of level
            names, module paths (of a container: its last operation) and nodes of the graph.
        borders: also list the field of every position of the model's own image size.
        pyramid_field: side in pixels of the window that a position of a pyramid image sees, as a function of
            factor and sigma, to count it otherwise than by its taps. It is not asked for factor 1.

    Returns:
        `Fields`, rows in the order of the graph.

    Raises:
        OptionError: a layer is unknown, or has no rows and columns; ``example_inputs`` beside an analysis;
            ``borders`` is no flag; or ``pyramid_field`` returns no number of pixels.
        NotAModelError: not a network.
        TopologyError: nothing in the network has rows and columns, or it runs at one image size only.
        Bu2tdError: as `bu2td.analyze`, but that the network needs no trunk.

    Source: Lelekas et al. (2020), equation 1; Araujo et al. (2019).
    """
    if pyramid_field is not None and not callable(pyramid_field):
        raise OptionError(f"pyramid_field={shown(pyramid_field)} must be a function of factor and sigma")
    if not isinstance(borders, int):
        raise OptionError(f"borders={shown(borders)} must be True or False")
    looked_at = subject(model, example_inputs)
    graph, dims, shape = looked_at.graph_module, looked_at.dims, looked_at.image_shape
    names = _named(looked_at, layers)
    found = intervals(graph, dims, shape, pyramid_field=pyramid_field)
    if not any(found.lines.values()) and not found.unknown:
        raise TopologyError(
            f"nothing in the {looked_at.title} has rows and columns, so that nothing has a receptive field"
        )
    table = _Table(looked_at, found)
    rows = [table.row(name, node) for name, node in names]
    if borders:
        clipped = intervals(graph, dims, shape, borders=True, pyramid_field=pyramid_field)
        for row in rows:
            for kind in ("height", "width"):
                row[kind] = _positions(clipped.lines[kind].get(row["node"]))
    return Fields(looked_at.title, rows, (shape[2], shape[3]))


# --- which layers -------------------------------------------------------------------------------------


def _named(looked_at: Subject, layers: str | Sequence[str]) -> list[tuple[str, fx.Node]]:
    """The layers that are asked for as (name, node), in the order of the graph."""
    values = [n for n in looked_at.graph_module.graph.nodes if _is_value(n, looked_at)]
    every = _module_names(values)
    if isinstance(layers, str) and layers == "all":
        return [(every[node], node) for node in values]
    if isinstance(layers, str) and layers == "levels":
        return _levels(looked_at, values, every)
    known = _known(looked_at, values, every)
    asked = names_of(layers)
    for layer in asked:
        if layer not in known:
            raise OptionError(
                f"there is no layer {shown(layer)} in the {looked_at.title}.{nearest(str(layer), known)} layers is "
                f"'levels', 'all' or a list of names; its levels are {', '.join(looked_at.levels)}"
            )
        looked_at.axes(known[layer].name, layer)
    order = {node: i for i, node in enumerate(values)}
    return sorted(((layer, known[layer]) for layer in asked), key=lambda item: order[item[1]])


def _known(looked_at: Subject, values: Sequence[fx.Node], every: Mapping[fx.Node, str]) -> dict[str, fx.Node]:
    """What may be asked for: containers (their last operation), nodes, modules, levels; a later one goes before."""
    known: dict[str, fx.Node] = {}
    for node in values:
        parts = (str(node.target) if node.op == "call_module" else node.meta.get("path", "")).split(".")
        known |= {".".join(parts[:i]): node for i in range(1, len(parts) + 1)}
    nodes = {node.name: node for node in values}
    known |= {**nodes, **{name: node for node, name in every.items()}}
    return known | {name: nodes[node] for name, node in looked_at.levels.items()}


def _is_value(node: fx.Node, looked_at: Subject) -> bool:
    calls = node.op in ("call_module", "call_function", "call_method")
    return calls and is_tensor(looked_at.dims.get(node.name))


def _module_names(nodes: Sequence[fx.Node]) -> dict[fx.Node, str]:
    """Module paths; parts of a module's value; the graph's own names for functions and second calls."""
    names: dict[fx.Node, str] = {}
    taken: set[str] = set()
    for node in nodes:
        path = node.name
        if node.op == "call_module":
            path = str(node.target)
        elif node.target is operator.getitem and isinstance(node.args[1], int):
            source: Any = node.args[0]
            path = f"{source.target if source.op == 'call_module' else source.name}[{node.args[1]}]"
        names[node] = path if path not in taken else node.name
        taken.add(path)
    return names


def _levels(
    looked_at: Subject, values: Sequence[fx.Node], every: Mapping[fx.Node, str]
) -> list[tuple[str, fx.Node]]:
    """First convolution, levels, head."""
    chosen = {node: name for name, node in looked_at.levels.items()}
    modules = dict(looked_at.graph_module.named_modules())
    found = []
    first = True
    for node in values:
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        conv = first and converter_for(node, module).role == Role.CONV
        if node.name in chosen:
            found.append((chosen[node.name], node))
        elif conv:
            found.append((every[node], node))
        first = first and not conv
    output: Any = next(n for n in reversed(looked_at.graph_module.graph.nodes) if n.op == "output").args[0]
    if output.name not in chosen and output in every:
        found.append(("head", output))
    return found


# --- what is said of a layer --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Measure:
    """Size, jump, offset and padding along one axis, and the centres over one period of positions."""

    size: int
    jump: float
    offset: float
    padding: int | None
    centres: tuple[float, ...]


class _Table:
    def __init__(self, looked_at: Subject, found: Intervals) -> None:
        self.looked_at = looked_at
        self.found = found
        self.modules = dict(looked_at.graph_module.named_modules())
        strides = [d.stride for v in found.dims.values() for d in flat(v) if d.stride is not None]
        self.coarsest = max(strides, default=1)
        self.measures: dict[str, tuple[_Measure, _Measure] | None] = {}
        self.joins: dict[str, fx.Node] = {}
        for node in looked_at.graph_module.graph.nodes:
            self._follow(node)

    def measured(self, name: str) -> tuple[_Measure, _Measure] | None:
        """What is measured of a value along both axes; None where it has no field."""
        if name not in self.measures:
            lines = [self.found.lines[kind].get(name) for kind in ("height", "width")]
            strides = {d.kind: d.stride for d in flat(self.found.dims[name])}
            periods = [ceil(self.coarsest / (strides.get(kind) or 1)) for kind in ("height", "width")]
            both = [_measure(line, period) for line, period in zip(lines, periods, strict=True)]
            self.measures[name] = (both[0], both[1]) if both[0] and both[1] else None
        return self.measures[name]

    def _branches(self, node: fx.Node) -> list[fx.Node]:
        """The inputs of a node that have a field."""
        return [n for n in node.all_input_nodes if n.name in self.found.dims and self.measured(n.name)]

    def _follow(self, node: fx.Node) -> None:
        """Note the last add or concat before a node, or the node itself."""
        if self.found.dims.get(node.name) is None:
            return
        branches = self._branches(node)
        module = self.modules.get(str(node.target)) if node.op == "call_module" else None
        role = converter_for(node, module).role_at(Site(node, module, self.found.dims)) if len(branches) > 1 else ""
        if role in (Role.ADD, Role.CONCAT):
            self.joins[node.name] = node
        else:
            before = [self.joins[n.name] for n in branches if n.name in self.joins]
            if before:
                self.joins[node.name] = before[0]

    def row(self, name: str, node: fx.Node) -> dict[str, Any]:
        """The row of a layer."""
        value = self.found.dims[node.name]
        measures = self.measured(node.name)
        unknown = self.found.unknown.get(node.name, "")
        if unknown:
            measures = None
        pairs: dict[str, Any] = dict.fromkeys(("size", "jump", "offset", "padding"))
        if measures is not None:
            pairs = {key: (getattr(measures[0], key), getattr(measures[1], key)) for key in pairs}
            if None in pairs["padding"]:
                pairs["padding"] = None
        stride = reduction_of(value)
        reduction: int | float | None = None
        if stride is not None:
            reduction = int(stride) if stride.denominator == 1 else float(stride)
        merged, aligned = self._merged(node) if measures is not None else ([], True)
        module = self.modules.get(str(node.target)) if node.op == "call_module" else None
        target: Any = node.target
        named = type(module).__name__ if module is not None else target
        return {
            "name": name,
            "node": node.name,
            "op": named if isinstance(named, str) else getattr(named, "__name__", str(named)),
            "reduction": reduction,
            **pairs,
            "aligned": aligned,
            "merged": merged,
            "gated": node.name in self.found.gated,
            "unknown": unknown,
        }

    def _merged(self, node: fx.Node) -> tuple[list[Pair], bool]:
        join = self.joins.get(node.name)
        if join is None:
            return [], True
        measures = [m for n in self._branches(join) if (m := self.measured(n.name))]
        sizes = {(height.size, width.size) for height, width in measures}
        centres = {(height.centres, width.centres) for height, width in measures}
        return sorted(sizes), len(centres) == 1


def _measure(line: Line | None, period: int) -> _Measure | None:
    """Read a field off the positions around the centre of the canvas."""
    if line is None:
        return None
    start = len(line.lo) // 2
    around = slice(start, min(start + period + 1, len(line.lo)))
    lo, hi = line.lo[around], line.hi[around]
    if len(lo) < 2 or bool((lo > hi).any()):
        return None
    centres = (lo + hi + 1) / 2
    jump = float(centres[-1] - centres[0]) / (len(lo) - 1)
    place = np.arange(start, start + len(lo))
    begins = lo - jump * place
    regular = bool((begins == begins[0]).all()) and float(begins[0]).is_integer()
    inside = slice(0, -1)
    return _Measure(
        size=int((hi - lo).max()) + 1,
        jump=jump,
        offset=float((centres - jump * place)[inside].mean()),
        padding=-int(begins[0]) if regular else None,
        centres=tuple(centres.tolist()),
    )


def _positions(line: Line | None) -> list[Pair | None] | None:
    if line is None:
        return None
    return [(a, b) if a <= b else None for a, b in zip(line.lo.tolist(), line.hi.tolist(), strict=True)]


def _shown(column: str, value: Any) -> Any:
    """A cell of the table: equal pairs as one number."""
    if column == "merged":
        return "{" + ", ".join(extent(size) for size in value) + "}" if value else ""
    if isinstance(value, tuple):
        return extent(value)
    return value


def _notes(row: Mapping[str, Any]) -> str:
    """What a reader must know of a row."""
    if row["unknown"]:
        return f"unknown: {row['unknown']} has no rule"
    notes = ["not aligned"] if not row["aligned"] else []
    if row["gated"]:
        notes.append("with gates the whole image" if row["size"] else "the whole image")
    return "; ".join(notes)
