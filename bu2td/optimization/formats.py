"""The memory format of a network's maps, level by level, and of its weights.

Convolutions read and write channels-last maps as they lie. Weights in another format than their maps are copied in
every pass, slowly: forward, and twice backward. Where a level has many weights and small maps (the coarse ones, in
small batches) that costs more than the format saves; where maps are large it is nothing. So weights are laid out
as their maps are: for inference always, in training where the copies would take a part of the step that counts
(sharding and many a ``parameter.view(-1)`` ask for contiguous weights, so that they stay so where that is free).

By the cost model a network has one format; what is measured decides level by level, and a map is copied where it
passes into a level of another format.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from bu2td.ir import Stage
from bu2td.nn import Pyramid
from bu2td.optimization.cost_model import Chooser
from bu2td.optimization.kernels import Layout
from bu2td.optimization.places import Form, Place, plain_form
from bu2td.runtime import TopDownNetwork

RULE = "channels_last"
#: How often the bytes of a weight are moved by its copies in one pass, at the rate of other bytes.
COPIES = 2

#: Reduction of a level -> whether its maps are channels-last.
Formats = Mapping[int, bool]


def choose_formats(network: TopDownNetwork, shapes: Mapping[str, tuple[int, ...]], choose: Chooser) -> Formats:
    """Let a chooser choose the format of every level, before anything else is rewritten."""
    pyramid = network.stages.pyramid
    reductions = [stage.reduction for stage in network.stages.levels]
    if not isinstance(network.get_submodule(pyramid), Pyramid):
        return dict.fromkeys(reductions, False)
    # Files of earlier versions name the pyramid alone.
    if not choose.training or (choose.given is not None and (RULE, pyramid) in choose.given):
        return dict.fromkeys(reductions, choose(RULE, pyramid))
    found = {stage.reduction: _convolutions(network, stage, shapes) for stage in network.stages.levels}
    every = [place for places in found.values() for place in places]
    return {
        stage.reduction: choose(RULE, stage.image, parts=found[stage.reduction] if choose.measures else every)
        for stage in network.stages.levels
    }


def _convolutions(network: nn.Module, stage: Stage, shapes: Mapping[str, tuple[int, ...]]) -> list[Place]:
    found = []
    for name in stage.calls:
        for path, module in network.get_submodule(name).named_modules(prefix=name):
            shape = shapes.get(path, shapes.get(path.rpartition(".")[0]))
            if isinstance(module, nn.Conv2d) and shape is not None and len(shape) == 4:
                found.append(Place.of(RULE, module, shape[-2:]))
    return found


def lay_out_weights(
    network: TopDownNetwork, shapes: Mapping[str, tuple[int, ...]], formats: Formats, choose: Chooser
) -> None:
    """Lay the weights of channels-last levels out as their maps, before the convolutions get other forms."""
    last = [stage for stage in network.stages.levels if formats[stage.reduction]]
    if not last:
        return
    if not choose.training:
        _laid_out(network)
        return
    forms = [plain_form(place, place.size) for stage in last for place in _convolutions(network, stage, shapes)]
    copied = sum(place.weights for place in forms)
    rest = Form(sum(form.macs for form in forms), sum(form.maps for form in forms))
    if not choose("weights", network.stages.pyramid, replace(rest, weights=COPIES * copied), rest):
        return
    names = [name for stage in last for name in stage.calls]
    for name in names if len(last) < len(formats) else [""]:
        _laid_out(network.get_submodule(name))


def _laid_out(module: nn.Module) -> None:
    """Lay weights over two dimensions out channels-last; `nn.Module.to` would try those over three, too."""
    for tensor in [*module.parameters(), *module.buffers()]:
        if tensor.dim() == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)


def lay_out(network: TopDownNetwork, formats: Formats) -> None:
    """Give every level its format: its image of the pyramid, and what it reads of the coarser level."""
    pyramid: Any = network.get_submodule(network.stages.pyramid)
    if not any(formats.values()):
        return
    pyramid.channels_last = True if all(formats.values()) else tuple(r for r, last in formats.items() if last)
    nodes = {node.name: node for node in network.graph.nodes}
    for coarser, stage in pairwise(network.stages.levels):
        last = formats[stage.reduction]
        if last == formats[coarser.reduction]:
            continue
        source, name = nodes[coarser.output], f"r{stage.reduction}_layout"
        users = list(source.users)
        network.add_submodule(name, Layout(last))
        with network.graph.inserting_after(source):
            new = network.graph.create_node("call_module", name, (source,), name=name)
        for user in users:
            if user.op != "output":
                user.replace_input_with(source, new)
