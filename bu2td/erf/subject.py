"""A network whose receptive fields are measured: one flat graph, its levels, and runnable copies of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, fx, nn

from bu2td.analyse import analyse, whole_reduction
from bu2td.capture import capture
from bu2td.errors import (
    ModelOutputError,
    NoReductionError,
    NotAModelError,
    OptionError,
    TopologyError,
    nearest,
    shown,
)
from bu2td.graph import flatten, last_nodes, paused_collector
from bu2td.ir import Analysis, Capture, Dims, is_feature_map, reduction_of
from bu2td.ops import copied
from bu2td.probe import probe
from bu2td.runtime import TopDownNetwork


def names_of(layers: Any) -> list[str]:
    """Layers as they are asked for: one name, or several.

    Raises:
        OptionError: it is neither.
    """
    found = [layers] if isinstance(layers, str) else list(layers) if isinstance(layers, Sequence) else []
    if not found or not all(isinstance(layer, str) for layer in found):
        raise OptionError(f"layers={shown(layers)} must be the name of a layer, or a list of such names")
    return found


@dataclass(frozen=True)
class Subject:
    """A bottom-up or top-down network as one graph on the meta device.

    Attributes:
        source: the network itself, never written to.
        graph_module: its flat graph, in eval mode, with meta tensors.
        dims: kinds, sizes and strides of all dimensions of every value, by node name.
        levels: the node that holds the output of every level (``r16``), coarse to fine.
        image_shape: of the images that it was made for.
    """

    source: nn.Module
    graph_module: fx.GraphModule
    dims: Mapping[str, Dims]
    levels: Mapping[str, str]
    image_shape: tuple[int, int, int, int]

    @property
    def title(self) -> str:
        """Which network it is, in words."""
        if isinstance(self.source, TopDownNetwork):
            return f"top-down {self.source.plan.model}"
        return f"bottom-up {type(self.source).__name__}"

    def nodes_of(self, layers: str | Sequence[str]) -> dict[str, str]:
        """Layers as asked for -> nodes: levels, nodes of the graph, or module paths that are called once.

        Raises:
            OptionError: a layer is unknown, or is no map of positions.
        """
        if isinstance(layers, str) and layers == "levels":
            return dict(self.levels)
        known = self.names()
        found = {}
        for layer in names_of(layers):
            if layer not in known:
                raise OptionError(
                    f"there is no layer {shown(layer)} in the {self.title}.{nearest(str(layer), known)} Its levels "
                    f"are {', '.join(self.levels)}"
                )
            self.axes(known[layer], layer)
            found[layer] = known[layer]
        return found

    def names(self) -> dict[str, str]:
        """What may be asked for, and its node: module paths (of a container: its last operation), nodes, levels."""
        paths: dict[str, str] = {}
        for node in self.graph_module.graph.nodes:
            if self.dims.get(node.name) is not None:
                path = str(node.target) if node.op == "call_module" else node.meta.get("path", "")
                parts = path.split(".")
                paths |= {".".join(parts[:i]): node.name for i in range(1, len(parts) + 1) if parts[0]}
        nodes = {n.name: n.name for n in self.graph_module.graph.nodes if self.dims.get(n.name) is not None}
        return {**paths, **nodes, **self.levels}

    def axes(self, node: str, layer: str = "") -> tuple[int, int]:
        """The dimensions that count rows and columns in a node's value.

        Raises:
            OptionError: it has none, or counts both in one.
        """
        value = self.dims.get(node)
        kinds = [getattr(d, "kind", "") for d in value] if isinstance(value, tuple) else []
        if sorted(k for k in kinds if k in ("height", "width", "token", "mixed")) != ["height", "width"]:
            raise OptionError(
                f"layer {layer or node!r} has no rows and columns, so that it has no receptive field of its own; "
                f"choose a layer that returns a feature map"
            )
        return kinds.index("height"), kinds.index("width")

    def runnable(self, device: torch.device, dtype: torch.dtype | None = None) -> fx.GraphModule:
        """The graph with copies of the network's own weights, in eval mode, with frozen parameters."""
        twin: Any = copied(self.source, lambda tensor: tensor.to(device, copy=True)).requires_grad_(False).eval()
        turned = isinstance(self.source, TopDownNetwork)
        flat = flatten(twin, copied=False) if turned else self._bottom_up(twin)
        return flat.to(dtype or _precision(flat)).eval()

    def _bottom_up(self, twin: nn.Module) -> fx.GraphModule:
        """The captured graph over the modules of a copied network; captured functions stay as they are."""
        modules = dict(twin.named_modules(remove_duplicate=False))
        root: dict[str, Any] = {}
        for node in self.graph_module.graph.nodes:
            target = str(node.target)
            if node.op == "call_module":
                root[target] = modules.get(target) or self.graph_module.get_submodule(target)
            elif node.op == "get_attr":
                owner, _, name = target.rpartition(".")
                root[target] = getattr(modules[owner], name)
        return fx.GraphModule(root, self.graph_module.graph)


def subject(model: Any, example_inputs: Tensor | None = None) -> Subject:
    """Look at a network.

    Args:
        model: a live bottom-up network, its analysis, a `TopDownNetwork`, or a `Subject`, which is returned.
        example_inputs: an image batch, for a live network; see `bu2td.analyze`.

    Raises:
        OptionError: ``example_inputs`` beside what has been looked at already.
        TopologyError: the network runs at one image size only.
        Bu2tdError: as `bu2td.analyze`, but that the network needs no trunk and no logits.
    """
    if isinstance(model, Subject | Analysis) and example_inputs is not None:
        raise OptionError("example_inputs is given to bu2td.analyze, whose result is looked at here")
    if isinstance(model, Subject):
        return model
    if isinstance(model, TopDownNetwork):
        return _top_down(model, example_inputs)
    if isinstance(model, Analysis):
        return _bottom_up(model)
    with paused_collector():
        captured = capture(model, example_inputs)
        try:
            dims = probe(captured)
        except (TopologyError, NoReductionError) as error:
            height, width = captured.image_shape[2:]
            raise TopologyError(
                f"{type(captured.source).__name__} runs on images of {height}x{width} only; receptive fields are "
                f"computed on a canvas of any size, on which it must run too{_binding(error)}"
            ) from error
        try:
            return _bottom_up(analyse(captured, dims))
        except (TopologyError, NoReductionError, ModelOutputError):
            return _trunkless(captured, dims)


def _binding(error: Exception) -> str:
    """The operation that an error of the probe names."""
    _, found, where = str(error).partition("the operation that binds the size is ")
    return f". The operation that binds the size is {where}" if found else ""


def _bottom_up(analysis: Analysis) -> Subject:
    captured, levels = analysis.capture, _bottom_up_levels(analysis)
    return Subject(captured.source, captured.graph_module, analysis.dims, levels, captured.image_shape)


def _trunkless(captured: Capture, dims: Mapping[str, Dims]) -> Subject:
    """A network without a trunk, or without logits: its last map of every reduction counts as a level."""
    levels: dict[Fraction, str] = {}
    for node in captured.graph_module.graph.nodes:
        reduction = reduction_of(dims[node.name])
        if node.op != "output" and is_feature_map(dims[node.name]) and reduction is not None and reduction != 1:
            levels[reduction] = node.name
    named = {f"r{reduction}": levels[reduction] for reduction in sorted(levels, reverse=True)}
    return Subject(captured.source, captured.graph_module, dims, named, captured.image_shape)


def _bottom_up_levels(analysis: Analysis) -> dict[str, str]:
    view = analysis.view
    levels = {}
    for level in analysis.levels:
        if level.blocks:
            levels[f"r{level.reduction}"] = level.blocks[-1].exit
            continue
        inside = [
            name
            for name in analysis.stem.nodes
            if is_feature_map(view.dims[name]) and whole_reduction(view, name) == level.reduction
        ]
        if inside:  # else the level is the image itself
            levels[f"r{level.reduction}"] = inside[-1]
    return levels


def _top_down(network: TopDownNetwork, example_inputs: Tensor | None) -> Subject:
    shape = network.plan.image_shape if example_inputs is None else tuple(example_inputs.shape)
    n, channels, height, width = shape
    flat = flatten(network)
    images = (max(n, 2), channels, height, width)
    dims = probe(Capture(flat, flat, images, {}, ""))
    last = last_nodes(flat)
    levels = {f"r{stage.reduction}": last[stage.output] for stage in network.stages.levels}
    return Subject(network, flat, dims, levels, images)


def check_weights(model: nn.Module) -> None:
    """Refuse a network whose weights are on the meta device.

    Raises:
        NotAModelError: they are.
    """
    if any(t.is_meta for t in [*model.parameters(), *model.buffers()]):
        raise NotAModelError(
            f"{type(model).__name__} has no weights, it is on the meta device; gradients need a network that runs: "
            f"build it on another device"
        )


def _precision(module: nn.Module) -> torch.dtype:
    """Single precision; double where the weights are."""
    found = {p.dtype for p in module.parameters()}
    return torch.float64 if torch.float64 in found else torch.float32
