"""Part of rewrite: a piece of the plan -> a graph module of its own."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, fx, nn

from bu2td.errors import ImageSizeError, UnsupportedOperationError
from bu2td.graph import GraphView
from bu2td.graph.edited import Edited
from bu2td.ir import FrozenMap, LevelPlan, Piece, Projection, is_feature_map, is_spatial
from bu2td.nn import Part
from bu2td.ops import Change, Rebuilt, blaming, resized_deeply
from bu2td.rewrite.inplace import settle_inplace
from bu2td.rewrite.units import UnitBuilder


@dataclass(frozen=True)
class MapLimit:
    """A layer that cannot work on every map.

    Attributes:
        kind: its class.
        path: where it is in the bottom-up network.
        reduction: of the map.
        multiple: what the map's sides must be multiples of; None: it works at one size only.
    """

    kind: str
    path: str
    reduction: int
    multiple: int | None


@dataclass(frozen=True)
class Place:
    """Where a piece is emitted to.

    Attributes:
        name: in the top-down network.
        image_size: (H, W) of the bottom-up network's image.
        reduction: of the level that it is part of; None in the head and before the pyramid.
        source: reduction of the bottom-up level whose blocks they are.
    """

    name: str
    image_size: tuple[int, int]
    reduction: int | None = None
    source: int | None = None

    @classmethod
    def of(cls, level: LevelPlan, name: str, image_size: tuple[int, int]) -> Place:
        """The place of a level's piece."""
        return cls(name, image_size, level.reduction, level.source)

    def reduction_of(self, was: Fraction | None) -> Fraction | None:
        """What becomes of a reduction of the bottom-up network; None where the place has none."""
        if self.reduction is None or self.source is None or was is None:
            return None
        return self.reduction * max(Fraction(1), was / self.source)  # more than 1 in an excursion

    def map_size(self, reduction: Fraction | None) -> tuple[int, int] | None:
        """(H, W) of the map at a reduction."""
        if reduction is None:
            return None
        height, width = (math.ceil(size / reduction) for size in self.image_size)
        return height, width


@dataclass(frozen=True)
class EmittedPiece:
    """A piece as a module ``(x)``, or ``(x, like)`` where it upsamples.

    Attributes:
        origins: its parameters and buffers -> their names in the bottom-up network.
        limits: of the images that it works on.
    """

    module: fx.GraphModule
    origins: FrozenMap[str, str]
    limits: tuple[MapLimit, ...]


def emit_piece(view: GraphView, units: UnitBuilder, piece: Piece, place: Place) -> EmittedPiece:
    """Emit one piece.

    Needs: the view of the graph that the piece was planned of.
    Returns: `EmittedPiece`.
    Guarantees: modules keep their bottom-up paths; an activation works in place only where nobody else reads.

    Raises:
        ConverterError: a converter failed.
        UnsupportedOperationError: a size is read at another resolution.
        ImageSizeError: the blocks do not work on the maps of this level.
    """
    emitter = _PieceEmitter(view, units, piece, place)
    module = emitter.emit()
    return EmittedPiece(module, FrozenMap(emitter.origins), tuple(emitter.limits))


class _Calls:
    """The graph that is emitted, and the modules that it calls."""

    def __init__(self, view: GraphView) -> None:
        self.view = view
        self.graph = fx.Graph()
        self.modules: dict[str, Any] = {}

    def add(self, name: str, module: nn.Module, *args: fx.Node | None) -> fx.Node:
        """Call a new module, under a name that neither the piece nor the bottom-up network has: ``name2``, say."""
        names = itertools.chain([name], (f"{name}{i}" for i in itertools.count(2)))
        free = next(n for n in names if n not in self.modules and not self.view.has(n))
        self.modules[free] = module
        return self.graph.call_module(free, args)


class _Operands:
    """What emitted nodes read: the values that stand for bottom-up nodes, at the resolution of the reader."""

    def __init__(self, view: GraphView, units: UnitBuilder, piece: Piece, calls: _Calls) -> None:
        self.view = view
        self.units = units
        self.piece = piece
        self.calls = calls
        self.edited = Edited(view, piece.nodes, piece.exit, piece.edits)
        self.values = {piece.entry: calls.graph.placeholder("x")}
        self._like = calls.graph.placeholder("like") if piece.factor > 1 else None
        self._upsampled: dict[str, fx.Node] = {}

    def read(self, operand: str, reader: str) -> fx.Node:
        """What a reader ("": the exit) gets for an operand that no projection stands in for."""
        value = self._value(operand)
        if not self.edited.upsampled(operand, reader):
            return value
        producer = self.edited.producer(operand)
        if producer not in self._upsampled:
            width = next(size for size in self.piece.sizes[producer] if size is not None)
            self._upsampled[producer] = self._upsample(value, width)
        return self._upsampled[producer]

    def shortcut(self, built: Projection) -> fx.Node:
        """Emit a projection, for the join that reads it."""
        path = self.view.nodes[built.join].meta.get("path", "")
        name = f"{path}.projection" if path else "projection"
        value = self.calls.add(name, self.units.unit(built.unit), self._value(built.source))
        if self.edited.upsampled(built.operand, built.join):
            value = self._upsample(value, built.unit.out_channels)
        if is_feature_map(self.view.dims[built.operand]):
            return value
        return self.calls.graph.call_method("permute", (value, 0, 2, 3, 1))  # the join is channels-last

    def _upsample(self, value: fx.Node, width: int) -> fx.Node:
        return self.calls.add("upsample", self.units.upsample(width, self.piece.factor), value, self._like)

    def _value(self, name: str) -> fx.Node:
        producer = self.edited.producer(name)
        if producer not in self.values and self.view.dims[producer] is None:
            self.values[producer] = self._size_of_entry(producer)
        return self.values[producer]

    def _size_of_entry(self, name: str) -> fx.Node:
        """A size that the bottom-up network reads before the piece begins, read from the piece's entry."""
        view, node = self.view, self.view.nodes[name]
        for source in (self.edited.producer(n.name) for n in node.all_input_nodes):
            if source in self.values or view.dims[source] is None:
                continue
            if view.reduction(source) != view.reduction(self.piece.entry):
                raise UnsupportedOperationError(
                    f"{view.where(name)} reads the size of a map at another resolution than the level that uses "
                    f"it; read sizes from the tensor that they are used on"
                )
            self.values[source] = self.values[self.piece.entry]
        return self.calls.graph.node_copy(node, lambda n: self._value(n.name))


class _PieceEmitter:
    """Emits node after node, each rebuilt by its converter."""

    def __init__(self, view: GraphView, units: UnitBuilder, piece: Piece, place: Place) -> None:
        self.view = view
        self.units = units
        self.piece = piece
        self.place = place
        self.calls = _Calls(view)
        self.operands = _Operands(view, units, piece, self.calls)
        self.origins: dict[str, str] = {}
        self.limits: list[MapLimit] = []

    def emit(self) -> Part:
        piece, calls, operands = self.piece, self.calls, self.operands
        if piece.entry_adapter is not None:
            adapter = self.units.dense(piece.entry_adapter)
            operands.values[piece.entry] = calls.add("entry_adapter", adapter, operands.values[piece.entry])
        for name in piece.nodes:
            if name in operands.edited.alive:
                operands.values[name] = self._node(name)
        result = operands.read(piece.exit, "")
        if piece.exit_adapter is not None:
            result = calls.add("exit_adapter", self.units.dense(piece.exit_adapter), result)
        if self._moved and piece.edits.excursions:
            self._measured(result)  # what comes back by fixed factors must meet the map that it left
        calls.graph.output(result)
        settle_inplace(calls.graph, calls.modules)
        calls.graph.lint()
        title = "Head" if self.place.name == "head" else f"Level_{self.place.name}"
        return Part(calls.modules, calls.graph, class_name=title)

    # -- nodes -------------------------------------------------------------------------------------

    def _node(self, name: str) -> fx.Node:
        view, node = self.view, self.view.nodes[name]
        built = next((p for p in self.piece.edits.projections if p.join == name), None)
        shortcut = self.operands.shortcut(built) if built else None
        reduction = self._reduction(name)
        rebuilt = self._rebuilt(name, reduction)

        def read(source: fx.Node) -> fx.Node:
            if shortcut is not None and built is not None and source.name == built.operand:
                return shortcut
            value = self.operands.read(source.name, name)
            size = self.piece.edits.pools.get(name)
            if size is not None and is_spatial(view.dims[source.name]):
                value = self.calls.add(f"{_safe(name)}_pool", nn.AdaptiveAvgPool2d(size), value)
            return value

        args = fx.map_arg(node.args if rebuilt.args is None else rebuilt.args, read)
        kwargs = fx.map_arg(node.kwargs if rebuilt.kwargs is None else rebuilt.kwargs, read)
        if node.op == "call_module":
            return self.calls.graph.call_module(self._module(name, rebuilt.module, reduction), args, kwargs)
        if node.op == "get_attr":
            return self._attribute(str(node.target), rebuilt.parameter)
        return self.calls.graph.create_node(node.op, node.target, args, kwargs, name=_readable(view, name))

    def _rebuilt(self, name: str, reduction: Fraction | None) -> Rebuilt:
        edits, converter = self.piece.edits, self.view.converter(name)
        change = Change(
            sizes=self.piece.sizes,
            stride_one=name in edits.stride_one,
            keep_resolution=name not in edits.excursions,
            kernel=edits.kernels.get(name),
            inplace=True,
            map_size=self._map_read(name) or self.place.map_size(reduction),
        )
        with blaming(converter, "rebuild", self.view.where(name)):
            return converter.rebuild(self.view.site(name), change)

    def _map_read(self, name: str) -> tuple[int, int] | None:
        """(H, W) of the map that a window reads beside the level's own, where it may be larger than that.

        It may at a level that is coarser than the one that the blocks come from.
        """
        view = self.view
        window = self._moved and name in self.piece.edits.excursions and view.role(name).windowed
        return self._measured(self.operands.read(view.inputs(name)[0], name)) if window else None

    @property
    def _moved(self) -> bool:
        """Whether the blocks stand at a coarser level than the one that they come from."""
        place = self.place
        return place.reduction is not None and place.source is not None and place.reduction > place.source

    def _measured(self, value: fx.Node) -> tuple[int, int]:
        """(H, W) of a value that is emitted, for images of the model's own size."""
        place, graph = self.place, fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        graph.graph_copy(self.calls.graph, copies)
        graph.output(copies[value])
        assert place.reduction is not None
        sides = [place.map_size(Fraction(place.reduction * f)) for f in (self.piece.factor, 1)]
        images = [torch.empty(1, self.piece.entry_width, *side, device="meta") for side in sides if side]
        inputs = sum(node.op == "placeholder" for node in graph.nodes)
        try:
            with torch.no_grad():
                found = fx.GraphModule(self.calls.modules, graph).eval()(*images[:inputs])
        except RuntimeError as error:
            sizes = " and ".join("x".join(map(str, image.shape[2:])) for image in images)
            raise ImageSizeError(
                f"the blocks of r{place.source} do not work at r{place.reduction}, on maps of {sizes}: {error}. "
                f"They go to a coarser map and back by fixed factors; pass example_inputs whose sides are "
                f"multiples of {2 * place.reduction}, or choose another arrangement"
            ) from error
        return int(found.shape[-2]), int(found.shape[-1])

    def _reduction(self, name: str) -> Fraction | None:
        """The reduction at which an operation that looks around reads its map here; None in the head."""
        sources = self.view.inputs(name)
        return self.place.reduction_of(self.view.reduction(sources[0]) if sources else None)

    def _module(self, name: str, module: nn.Module | None, reduction: Fraction | None) -> str:
        """Add the module of a node; returns its target."""
        view, converter, path = self.view, self.view.converter(name), str(self.view.nodes[name].target)
        if module is None:
            module = resized_deeply(view.module(name))
        target = f"{path}_again_{len(self.calls.modules)}" if path in self.calls.modules else path
        self.calls.modules[target] = module.to("meta")
        for own, _ in [*module.named_parameters(), *module.named_buffers()]:
            self.origins[f"{target}.{own}"] = f"{path}.{own}"
        multiple = converter.size_multiple(module)
        if multiple != 1 and reduction is not None:
            self.limits.append(MapLimit(type(module).__name__, view.path(name), int(reduction), multiple))
        return target

    def _attribute(self, target: str, value: Tensor | None) -> fx.Node:
        old: Any = self.view.graph_module
        for part in target.split("."):
            old = getattr(old, part)
        tensor: Any = value if value is not None else torch.empty_like(old)
        tensor = tensor.to(old.dtype)
        if isinstance(old, nn.Parameter):
            tensor = nn.Parameter(tensor, old.requires_grad)
        self.calls.modules[target] = tensor
        self.origins[target] = target
        return self.calls.graph.get_attr(target)


def _safe(name: str) -> str:
    return name.replace(".", "_")


def _readable(view: GraphView, name: str) -> str:
    """A readable name for a function's value: the module that it belongs to and what it does."""
    path, what = view.path(name), view.site(name).name.strip("_")
    return _safe(f"{path}.{what}" if path else what)
