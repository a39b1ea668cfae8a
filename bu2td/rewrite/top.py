"""Stage 5, rewrite: a plan -> the graph of the top-down network, on the meta device.

The top graph has one call per pyramid, lateral, transition, upsampling, merge, level and head. Every level
is a GraphModule of its own whose modules keep their bottom-up paths, ``r16.layer3.1.conv1``.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import fx, nn

from bu2td import nn as td_nn
from bu2td.graph import GraphView
from bu2td.ir import Analysis, FrozenMap, LevelPlan, Piece, Plan, Stage, Stages
from bu2td.rewrite.piece import MapLimit, Place, emit_piece
from bu2td.rewrite.units import UnitBuilder


@dataclass(frozen=True)
class Emitted:
    """The emitted network.

    Attributes:
        modules: by name.
        graph: the top graph, which calls them.
        stages: which node of the top graph is what.
        origins: parameter or buffer -> its name in the bottom-up network.
        limits: of the images that it works on.
    """

    modules: Mapping[str, nn.Module]
    graph: fx.Graph
    stages: Stages
    origins: Mapping[str, str]
    limits: tuple[MapLimit, ...] = ()


def rewrite(analysis: Analysis, plan: Plan) -> Emitted:
    """Emit the top-down network of a plan.

    Needs: the `Analysis` that the plan was made of.
    Returns: `Emitted`, on the meta device, in train mode.
    Guarantees: no module, parameter or buffer is shared with the bottom-up network or between two places.

    Raises:
        ConverterError: a converter failed to rebuild an operation.
    """
    emitter = _Emitter(analysis.view, plan)
    stages = emitter.top()
    modules, origins = FrozenMap(emitter.modules), FrozenMap(emitter.origins)
    return Emitted(modules, emitter.graph, stages, origins, tuple(emitter.limits))


class _Emitter:
    def __init__(self, view: GraphView, plan: Plan) -> None:
        self.view = view
        self.plan = plan
        self.units = UnitBuilder(view, plan.options)
        self.modules: dict[str, nn.Module] = {}
        self.graph = fx.Graph()
        self.origins: dict[str, str] = {}
        self.limits: list[MapLimit] = []
        self.stages: list[Stage] = []

    def top(self) -> Stages:
        """Emit pyramid, levels coarse to fine, and head; returns which node is what."""
        plan, options = self.plan, self.plan.options
        image = self.graph.placeholder("x")
        self.modules["pyramid"] = pyramid = td_nn.Pyramid(plan.ladder, options.pyramid, options.sigma)
        if plan.input is not None:
            image = self._piece(plan.input, "prepare", None, image)
        images = self.graph.call_module("pyramid", (image,))
        features: fx.Node | None = None
        coarser = plan.ladder[0]
        for i, level in enumerate(plan.levels):
            picture = self.graph.call_function(operator.getitem, (images, i))
            picture.name = f"{level.name}_image"
            features = self._level(level, picture, features, coarser // level.reduction)
            coarser = level.reduction
        assert features is not None
        head = self._piece(plan.head, "head", None, features)
        self.graph.output(head)
        self.graph.lint()
        _limit(pyramid, self.limits, plan.image_shape[2:])
        return Stages(images.name, tuple(self.stages), head.name)

    def _level(self, level: LevelPlan, picture: fx.Node, features: fx.Node | None, factor: int) -> fx.Node:
        """Emit a level, and note which of its nodes is what; returns the node of its features."""
        parts: dict[str, fx.Node] = {}
        dropouts: list[fx.Node] = []
        lateral = picture
        if level.lateral is not None:
            unit = self.units.unit(level.lateral, td_nn.Lateral)
            lateral = parts["lateral"] = self._call(f"{level.name}_lateral", unit, picture)
        if features is None:
            features = lateral
        else:
            parts |= self._merged(level, features, lateral, factor)
            dropouts = self._dropouts(level, parts["merge"])
            features = [parts["merge"], *dropouts][-1]
        if level.body is not None:
            features = parts["body"] = self._piece(level.body, level.name, level, features)
        names = {part: node.name for part, node in parts.items()}
        dropped = tuple(node.name for node in dropouts)
        self.stages.append(Stage(level.reduction, picture.name, features.name, dropouts=dropped, **names))
        return features

    def _merged(self, level: LevelPlan, features: fx.Node, lateral: fx.Node, factor: int) -> dict[str, fx.Node]:
        """Transition, upsampling or up-block, and merge."""
        name, units, parts = level.name, self.units, dict[str, fx.Node]()
        if level.transition is not None:
            transition = units.unit(level.transition, td_nn.Transition)
            features = parts["transition"] = self._call(f"{name}_transition", transition, features)
        if level.up is not None:
            features = self._piece(level.up, f"{name}_up", level, features, lateral)
        else:
            features = self._call(f"{name}_up", units.upsample(level.merge_width, factor), features, lateral)
        assert level.merge is not None
        merge = units.unit(level.merge, td_nn.Merge, join=self.plan.options.merge)
        return {**parts, "upsampling": features, "merge": self._call(f"{name}_merge", merge, features, lateral)}

    def _dropouts(self, level: LevelPlan, features: fx.Node) -> list[fx.Node]:
        nodes = [features]
        for i, dropout in enumerate(level.dropouts):
            module = self.units.like(dropout, level.merge_width)
            nodes.append(self._call(f"{level.name}_dropout{f'_{i}' if i else ''}", module, nodes[-1]))
        return nodes[1:]

    def _piece(self, piece: Piece, name: str, level: LevelPlan | None, *args: fx.Node) -> fx.Node:
        _, _, height, width = self.plan.image_shape
        place = Place.of(level, name, (height, width)) if level else Place(name, (height, width))
        emitted = emit_piece(self.view, self.units, piece, place)
        self.origins |= {f"{name}.{own}": origin for own, origin in emitted.origins.items()}
        self.limits += emitted.limits
        return self._call(name, emitted.module, *args)

    def _call(self, name: str, module: nn.Module, *args: fx.Node) -> fx.Node:
        self.modules[name] = module
        return self.graph.call_module(name, args)


def _limit(pyramid: td_nn.Pyramid, limits: Iterable[MapLimit], size: tuple[int, int]) -> None:
    """Tell a pyramid which images it may take."""
    for limit in limits:
        if limit.multiple is None:
            pyramid.size = size
        else:
            known = pyramid.multiples.get(limit.reduction, 1)
            pyramid.multiples[limit.reduction] = math.lcm(known, limit.multiple)
