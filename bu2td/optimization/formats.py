"""The memory format of a network's maps, level by level, and of its weights.

Convolutions read and write channels-last maps as they lie. Weights in another format than their maps are copied in
every pass, slowly: forward, and twice backward. And a map that was reshaped (a shuffle of channels) has no format
of its own: there a convolution takes that of its weights. So weights are laid out as their maps are.

By the cost model, which looks at convolutions and batch norms, a network has one format; what is measured decides
level by level, and a map is copied where it passes into a level of another format.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from torch import nn

from bu2td.ir import Stage
from bu2td.nn import Pyramid
from bu2td.optimization.cost_model import Chooser
from bu2td.optimization.kernels import Layout, lay_out_weights
from bu2td.optimization.places import CHANNELS_LAST, Pair, Place
from bu2td.runtime import TopDownNetwork

#: Reduction of a level -> whether its maps are channels-last.
Formats = Mapping[int, bool]


def choose_formats(network: TopDownNetwork, shapes: Mapping[str, tuple[int, ...]], choose: Chooser) -> Formats:
    """Let a chooser choose the format of every level, before anything else is rewritten."""
    pyramid = network.stages.pyramid
    reductions = [stage.reduction for stage in network.stages.levels]
    if not isinstance(network.get_submodule(pyramid), Pyramid):
        return dict.fromkeys(reductions, False)
    # Files of earlier versions name the pyramid alone.
    if not choose.training or (choose.given is not None and (CHANNELS_LAST, pyramid) in choose.given):
        return dict.fromkeys(reductions, choose(CHANNELS_LAST, pyramid))
    convs: dict[int, list[Place]] = {}
    norms: dict[int, list[Pair]] = {}
    for stage in network.stages.levels:
        found = _modules(network, stage, shapes, nn.Conv2d)
        convs[stage.reduction] = [Place.of(CHANNELS_LAST, module, shape[-2:]) for module, shape in found]
        found = _modules(network, stage, shapes, nn.BatchNorm2d)
        norms[stage.reduction] = [(shape[1], math.prod(shape[2:])) for _, shape in found]
    chosen = {}
    for stage in network.stages.levels:
        own = [stage.reduction] if choose.measures else reductions
        parts = [place for reduction in own for place in convs[reduction]]
        beside = [norm for reduction in own for norm in norms[reduction]]
        chosen[stage.reduction] = choose(
            CHANNELS_LAST, stage.image, parts=parts, norms=beside, sure=_fill_vectors(parts)
        )
    return chosen


def _fill_vectors(places: Sequence[Place]) -> bool:
    """Whether the channels of most values fill vectors of eight; the model knows no others."""
    values = {False: 0, True: 0}
    for place in places:
        wasted = -place.outputs % 8
        values[4 * wasted <= place.outputs] += place.outputs * math.prod(place.size)
    return values[True] >= values[False]


def _modules(
    network: nn.Module, stage: Stage, shapes: Mapping[str, tuple[int, ...]], kind: type[nn.Module]
) -> Iterator[tuple[nn.Module, tuple[int, ...]]]:
    """Modules of a kind in a level, and the shapes of their results."""
    for name in stage.calls:
        for path, module in network.get_submodule(name).named_modules(prefix=name):
            shape = shapes.get(path, shapes.get(path.rpartition(".")[0]))
            if isinstance(module, kind) and shape is not None and len(shape) == 4:
                yield module, shape


def lay_out_for_maps(network: TopDownNetwork, formats: Formats, choose: Chooser) -> None:
    """Lay the weights of channels-last levels out as their maps."""
    last = [stage for stage in network.stages.levels if formats[stage.reduction]]
    if not last or (choose.training and not choose("weights", network.stages.pyramid)):
        return
    names = [name for stage in last for name in stage.calls]
    for name in names if len(last) < len(formats) else [""]:
        lay_out_weights(network.get_submodule(name))


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
