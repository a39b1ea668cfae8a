"""Pass 6, rewrite: a plan -> the graph of the top-down network, on the meta device.

The top graph has one call per pyramid, lateral, transition, upsampling, merge, level and head. Every level
is a GraphModule of its own whose modules keep their bottom-up paths, ``r16.layer3.1.conv1``.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, fx, nn

from bu2td import nn as td_nn
from bu2td.arrange.edits import alive_nodes
from bu2td.errors import UnsupportedOperationError
from bu2td.graph.view import GraphView
from bu2td.ir.bottom_up import Analysis
from bu2td.ir.plan import LevelPlan, Piece, Plan, UnitSpec
from bu2td.ir.values import is_feature_map, is_spatial
from bu2td.ops.converter import Change
from bu2td.ops.registry import OPAQUE, converter_for_type
from bu2td.ops.roles import Role
from bu2td.ops.surgery import resized_deeply


@dataclass(frozen=True)
class MapLimit:
    """A layer that cannot work on every map: its sides must be multiples of a number; None: one size only."""

    kind: str
    path: str
    reduction: int
    multiple: int | None


@dataclass(frozen=True)
class Emitted:
    """The emitted network: submodules by name, the top graph, where parameters come from, and limits.

    ``origins`` maps a parameter or buffer of the emitted network to its name in the bottom-up network.
    """

    modules: dict[str, nn.Module]
    graph: fx.Graph
    origins: dict[str, str]
    limits: tuple[MapLimit, ...] = ()


def rewrite(analysis: Analysis, plan: Plan) -> Emitted:
    """Emit the top-down network of a plan.

    Needs: the `Analysis` that the plan was made of.
    Returns: `Emitted`, on the meta device, in train mode.
    Guarantees: no module, parameter or buffer is shared with the bottom-up network or between two places.

    Raises:
        UnsupportedOperationError: a converter failed to rebuild an operation.
    """
    emitter = _Emitter(analysis, plan)
    emitter.top()
    return Emitted(emitter.modules, emitter.graph, emitter.origins, tuple(emitter.limits))


#: Functions whose result is a view.
_VIEWS = ("getitem", "chunk", "split", "flatten", "reshape", "squeeze", "unsqueeze", "transpose", "permute")


class _Emitter:
    def __init__(self, analysis: Analysis, plan: Plan) -> None:
        self.view = analysis.view
        self.plan = plan
        self.options = plan.options
        self.modules: dict[str, nn.Module] = {}
        self.graph = fx.Graph()
        self.origins: dict[str, str] = {}
        self.limits: list[MapLimit] = []

    # -- the top graph -----------------------------------------------------------------------------

    def top(self) -> None:
        """Emit pyramid, levels coarse to fine, and head."""
        plan, options = self.plan, self.options
        image = self.graph.placeholder("x")
        pyramid = td_nn.Pyramid(plan.ladder, options.pyramid, options.sigma)
        self.modules["pyramid"] = pyramid
        if plan.input is not None:
            image = self._call("prepare", self._piece(plan.input, "prepare"), image)
        images = self.graph.call_module("pyramid", (image,))
        levels: list[fx.Node] = []
        for i, level in enumerate(plan.levels):
            picture = self.graph.call_function(operator.getitem, (images, i))
            picture.name = f"{level.name}_image"
            features = levels[-1] if levels else None
            factor = plan.levels[i - 1].reduction // level.reduction if i else 1
            levels.append(self._level(level, picture, features, factor))
        self.modules["head"] = self._piece(plan.head, "head")
        self.graph.output(self.graph.call_module("head", (levels[-1],)))
        self.graph.lint()
        for limit in self.limits:
            if limit.multiple is None:
                pyramid.size = plan.image_shape[2:]
            else:
                known = pyramid.multiples.get(limit.reduction, 1)
                pyramid.multiples[limit.reduction] = math.lcm(known, limit.multiple)

    def _call(self, name: str, module: nn.Module, *args: fx.Node) -> fx.Node:
        self.modules[name] = module
        return self.graph.call_module(name, args)

    def _level(self, level: LevelPlan, picture: fx.Node, features: fx.Node | None, factor: int) -> fx.Node:
        name = level.name
        lateral = picture
        if level.lateral is not None:
            lateral = self._call(f"{name}_lateral", self._unit(level.lateral, td_nn.Lateral), picture)
        if features is None:
            return self._body(level, lateral)
        if level.transition is not None:
            unit = self._unit(level.transition, td_nn.Transition)
            features = self._call(f"{name}_transition", unit, features)
        if level.up is not None:
            module = self._piece(level.up, f"{name}_up", level)
            features = self._call(f"{name}_up", module, features, lateral)
        else:
            width = level.merge_width
            features = self._call(f"{name}_up", self._upsample(width, factor), features, lateral)
        assert level.merge is not None
        merge = self._unit(level.merge, td_nn.Merge, join=self.options.merge)
        features = self._call(f"{name}_merge", merge, features, lateral)
        for i, dropout in enumerate(level.dropouts):
            site = self.view.site(dropout)
            module = self.view.converter(dropout).rebuild(site, Change({})).module
            suffix = f"_{i}" if i else ""
            features = self._call(f"{name}_dropout{suffix}", module, features)
        return self._body(level, features)

    def _body(self, level: LevelPlan, features: fx.Node) -> fx.Node:
        if level.body is None:
            return features
        return self._call(level.name, self._piece(level.body, level.name, level), features)

    # -- new units ---------------------------------------------------------------------------------

    def _unit(self, unit: UnitSpec, kind: type[Any], **settings: Any) -> nn.Module:
        conv = self._dense(unit)
        norm_width = unit.in_channels if unit.preactivation else unit.out_channels
        norm = act = None
        if unit.norm is not None:
            converter, site = self.view.converter(unit.norm), self.view.site(unit.norm)
            norm = converter.unit(site, norm_width)
        if unit.act is not None:
            act = self._act(unit.act, norm_width)
        return kind(conv, norm, act, preactivation=unit.preactivation, **settings)

    def _dense(self, unit: UnitSpec) -> nn.Module:
        converter, site = self.view.converter(unit.conv), self.view.site(unit.conv)
        return converter.dense(site, unit.in_channels, unit.out_channels, unit.kernel)

    def _act(self, name: str, width: int) -> nn.Module:
        sizes = {name: (None, width, None, None)}
        site = self.view.site(name)
        return self.view.converter(name).rebuild(site, Change(sizes, inplace=True)).module

    def _upsample(self, width: int, factor: int) -> nn.Module:
        if self.options.upsample == "transpose":
            with torch.device("meta"):
                return td_nn.TransposedUpsample(width, factor)
        return td_nn.Upsample(self.options.upsample)

    # -- pieces ------------------------------------------------------------------------------------

    def _piece(self, piece: Piece, prefix: str, level: LevelPlan | None = None) -> fx.GraphModule:
        return _PieceEmitter(self, piece, prefix, level).emit()


class _PieceEmitter:
    """Emits one piece as a GraphModule ``(x)``, or ``(x, like)`` where it upsamples."""

    def __init__(self, outer: _Emitter, piece: Piece, prefix: str, level: LevelPlan | None) -> None:
        self.outer = outer
        self.view = outer.view
        self.piece = piece
        self.prefix = prefix
        self.level = level
        self.modules: dict[str, Any] = {}
        self.graph = fx.Graph()
        self.env: dict[str, fx.Node] = {}
        self.upsampled: dict[str, fx.Node] = {}
        self.like: fx.Node | None = None

    def emit(self) -> fx.GraphModule:
        piece, view = self.piece, self.view
        self.env[piece.entry] = self.graph.placeholder("x")
        if piece.factor > 1:
            self.like = self.graph.placeholder("like")
        if piece.entry_adapter is not None:
            self.env[piece.entry] = self._new(
                "entry_adapter", self.outer._dense(piece.entry_adapter), self.env[piece.entry]
            )
        outside = {name for name, place in piece.edits.bypass.items() if place == piece.entry} - {*piece.nodes}
        self.env |= dict.fromkeys(outside, self.env[piece.entry])
        projected = {p.join: p for p in piece.edits.projections}
        alive = alive_nodes(view, piece.nodes, piece.exit, piece.edits)
        for name in piece.nodes:
            if name in piece.edits.bypass:
                if piece.edits.bypass[name] in self.env:  # else it is dead code behind a dropped projection
                    self.env[name] = self.env[piece.edits.bypass[name]]
                continue
            if name not in alive:
                continue
            self.env[name] = self._node(name, projected.get(name))
        result = self._read(piece.exit, "")
        if piece.exit_adapter is not None:
            result = self._new("exit_adapter", self.outer._dense(piece.exit_adapter), result)
        self.graph.output(result)
        self._settle_inplace()
        self.graph.lint()
        module = fx.GraphModule(self.modules, self.graph, class_name=_class_name(self.prefix))
        return module

    def _origin(self, name: str) -> str:
        """The producer whose value a node's readers really get."""
        while name in self.piece.edits.bypass:
            name = self.piece.edits.bypass[name]
        return name

    def _read(self, name: str, reader: str) -> fx.Node:
        """What a reader gets for a value: itself, or its upsampled version."""
        origin = self._origin(name)
        if name not in self.env and self.view.dims[name] is None:
            self.env[name] = self._size_of_entry(name)
        value = self.env[name]
        if reader in self.piece.edits.upsample.get(origin, ()):
            if origin not in self.upsampled:
                self.upsampled[origin] = self._upsample(origin, value)
            return self.upsampled[origin]
        return value

    def _size_of_entry(self, name: str) -> fx.Node:
        """A size that the bottom-up network reads before the piece begins, read from the piece's entry."""
        node, piece, view = self.view.nodes[name], self.piece, self.view
        for source in node.all_input_nodes:
            if source.name in self.env:
                continue
            if view.dims[source.name] is None:
                self.env[source.name] = self._size_of_entry(source.name)
            elif view.reduction(source.name) == view.reduction(piece.entry):
                self.env[source.name] = self.env[piece.entry]
            else:
                raise UnsupportedOperationError(
                    f"{view.where(name)} reads the size of a map at another resolution than the level that uses "
                    f"it; read sizes from the tensor that they are used on"
                )
        return self.graph.node_copy(node, lambda n: self.env[n.name])

    def _upsample(self, origin: str, value: fx.Node, width: int | None = None) -> fx.Node:
        width = width or _feature_width(self.piece.sizes[origin])
        count = sum(t.startswith("upsample") for t in self.modules)
        module = self.outer._upsample(width, self.piece.factor)
        target = f"upsample{count + 1}" if count else "upsample"
        self.modules[target] = module
        return self.graph.call_module(target, (value, self.like))

    def _node(self, name: str, projection: Any) -> fx.Node:
        view, edits = self.view, self.piece.edits
        node = view.nodes[name]
        site = view.site(name)
        converter = view.converter(name)
        shortcut = self._projection(projection, name) if projection is not None else None

        def read(source: fx.Node) -> fx.Node:
            if shortcut is not None and source.name == projection.operand:
                return shortcut
            value = self._read(source.name, name)
            if name in edits.pools and is_spatial(view.dims[source.name]):
                size = edits.pools[name]
                value = self._new(f"{_safe(name)}_pool", nn.AdaptiveAvgPool2d(size), value)
            return value

        reduction = self._reduction(name)
        change = Change(
            sizes=self.piece.sizes,
            stride_one=name in edits.stride_one,
            keep_resolution=name not in edits.excursions,
            kernel=edits.kernels.get(name),
            inplace=True,
            map_size=self._map_size(reduction),
        )
        try:
            rebuilt = converter.rebuild(site, change)
        except Exception as error:
            raise UnsupportedOperationError(
                f"the converter {type(converter).__qualname__} failed to rebuild {view.where(name)}: {error}"
            ) from error
        args = fx.map_arg(rebuilt.args if rebuilt.args is not None else node.args, read)
        kwargs = fx.map_arg(rebuilt.kwargs if rebuilt.kwargs is not None else node.kwargs, read)
        if node.op == "call_module":
            target = str(node.target)
            module = rebuilt.module
            if module is None or converter is OPAQUE:
                module = resized_deeply(view.module(name))
            if target in self.modules:
                target = f"{target}_again_{len(self.modules)}"
            self.modules[target] = module.to("meta")
            self._trace(target, str(node.target), module)
            multiple = converter.size_multiple(module)
            if multiple != 1 and reduction is not None:
                kind = type(module).__name__
                self.outer.limits.append(MapLimit(kind, view.path(name), int(reduction), multiple))
            return self.graph.call_module(target, args, kwargs)
        if node.op == "get_attr":
            return self._attribute(str(node.target), rebuilt.parameter)
        new = self.graph.create_node(node.op, node.target, args, kwargs, name=_role_name(view, name))
        return new

    def _reduction(self, name: str) -> Fraction | None:
        """The reduction at which an operation that looks around reads its map here; None in the head."""
        sources = self.view.inputs(name)
        was = self.view.reduction(sources[0]) if sources else None
        if self.level is None or self.level.source is None or was is None:
            return None
        return self.level.reduction * max(Fraction(1), was / self.level.source)  # more than 1 in an excursion

    def _map_size(self, reduction: Fraction | None) -> tuple[int, int] | None:
        if reduction is None:
            return None
        height, width = (math.ceil(size / reduction) for size in self.outer.plan.image_shape[2:])
        return height, width

    def _attribute(self, target: str, value: Tensor | None) -> fx.Node:
        old: Any = self.view.graph_module
        for part in target.split("."):
            old = getattr(old, part)
        tensor: Any = value if value is not None else torch.empty_like(old)
        tensor = tensor.to(old.dtype)
        if isinstance(old, nn.Parameter):
            tensor = nn.Parameter(tensor, old.requires_grad)
        self.modules[target] = tensor
        self.outer.origins[f"{self.prefix}.{target}"] = target
        return self.graph.get_attr(target)

    def _projection(self, projection: Any, join: str) -> fx.Node:
        unit = self.outer._unit(projection.unit, td_nn.ConvUnit)
        source = self._read(projection.source, "projection")
        value = self._new(f"{_prefix_of(self.view, join)}projection", unit, source)
        if join in self.piece.edits.upsample.get(projection.operand, ()):
            value = self._upsample(projection.operand, value, projection.unit.out_channels)
        if is_feature_map(self.view.dims[projection.operand]):
            return value
        return self.graph.call_method("permute", (value, 0, 2, 3, 1))  # the join is channels-last

    def _new(self, name: str, module: nn.Module, *args: fx.Node) -> fx.Node:
        self.modules[name] = module
        return self.graph.call_module(name, args)

    def _trace(self, target: str, source: str, module: nn.Module) -> None:
        for name, _ in [*module.named_parameters(), *module.named_buffers()]:
            self.outer.origins[f"{self.prefix}.{target}.{name}"] = f"{source}.{name}"

    def _settle_inplace(self) -> None:
        """Let an activation work in place only on a value that it alone reads."""
        for node in self.graph.nodes:
            module = self.modules.get(str(node.target)) if node.op == "call_module" else None
            if module is None or not getattr(module, "inplace", False):
                continue
            source = node.args[0]
            makes_its_own = source.op in ("call_module", "call_function") and not self._may_alias(source)
            module.inplace = makes_its_own and len(source.users) == 1

    def _may_alias(self, node: fx.Node) -> bool:
        """Whether a value may share memory with what its node read."""
        if node.op == "call_function":
            return getattr(node.target, "__name__", "") in _VIEWS
        owner = self.modules[str(node.target)]
        converter = converter_for_type(type(owner))
        return isinstance(owner, td_nn.Upsample) or converter is None or converter.role in (Role.DROPOUT, Role.PASS)


def _feature_width(sizes: Any) -> int:
    return next(s for s in sizes if s is not None)


def _class_name(prefix: str) -> str:
    return "Level_" + prefix if prefix != "head" else "Head"


def _safe(name: str) -> str:
    return name.replace(".", "_")


def _prefix_of(view: GraphView, join: str) -> str:
    path = view.nodes[join].meta.get("path", "")
    return f"{path}." if path else ""


def _role_name(view: GraphView, name: str) -> str:
    """A readable name for a function's value: the module that it belongs to and what it does."""
    node = view.nodes[name]
    path = view.nodes[name].meta.get("path", "")
    what = getattr(node.target, "__name__", str(node.target)).strip("_")
    return _safe(f"{path}.{what}" if path else what)
