"""A converted network beside the bottom-up network that it was made of: is it that network, turned upside down?

Both are measured as they are, by probing; how the one was made of the other is not known here. All that is taken
for granted is that a layer keeps its name: ``r16.layer3.1.conv1`` is ``layer3.1.conv1``. What would be silly though
it runs is found: resolutions at which the bottom-up network works and the top-down network does not, levels whose
layers all went to a coarser one, levels without layers, features as narrow as an image in front of the head.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from torch import fx, nn

from bu2td.errors import TopologyError
from bu2td.graph import owner_of, source_line
from bu2td.ir import Dims, is_feature_map, is_spatial, reduction_of
from bu2td.nn import ConvUnit, Merge, Pyramid, TransposedUpsample, Upsample
from bu2td.ops import Role, converter_for

#: Of so many layers at one resolution, and more than such a share of them at a coarser one, a level was swallowed.
_LAYERS, _SHARE = 8, Fraction(2, 3)

#: A merge so many times as wide as its level is told of.
_WIDE = 4

#: How many layers a message names.
_NAMED = 3


@dataclass(frozen=True)
class Measured:
    """A network as a graph on the meta device, and the dimensions of all of its values.

    Attributes:
        units: names of the conv units that top-down networks add to blocks.
        merges: those that merge.
    """

    graph_module: fx.GraphModule
    dims: Mapping[str, Dims]
    units: frozenset[str] = frozenset()
    merges: frozenset[str] = frozenset()

    @classmethod
    def of(cls, network: nn.Module, flat: fx.GraphModule, dims: Mapping[str, Dims]) -> Measured:
        """A top-down network, of which ``flat`` is the graph."""
        units = {name: module for name, module in network.named_modules() if isinstance(module, ConvUnit)}
        merges = frozenset(name for name, unit in units.items() if isinstance(unit, Merge))
        return cls(flat, dims, frozenset(units), merges)


@dataclass(frozen=True)
class Expectation:
    """What may be expected of a conversion.

    Attributes:
        ordered: every level has the layers that the bottom-up network has at its resolution.
        whole: the top-down network has a level for every resolution of the bottom-up network.
        free: widths are the network's, not given by hand.
    """

    ordered: bool = True
    whole: bool = True
    free: bool = True


@dataclass(frozen=True)
class _Layer:
    """A layer that works on a map, and where."""

    node: str
    name: str
    reduction: Fraction
    width: int
    where: str


def compare(
    bottom_up: Measured, top_down: Measured, outputs: Mapping[int, str], expected: Expectation
) -> tuple[str, ...]:
    """Compare a converted network with the network that it was made of.

    Needs: both networks; ``outputs`` are the nodes of the top-down one that end its levels, by reduction.
    Returns: what a user should know.
    Guarantees: every level has layers, and layers stand at the resolutions at which they stood.

    Raises:
        TopologyError: names the layers that would stand at another resolution, or the level that would be none.
    """
    layers = _that_stay(bottom_up)
    if expected.whole:
        _check_ladder(layers, list(outputs))
        _check_width(bottom_up, layers, top_down, outputs, expected)
    if expected.whole and expected.ordered:
        _check_places(layers, list(_layers(top_down)))
    _check_weights(bottom_up, top_down, outputs)
    return tuple(_wide_merges(top_down, outputs)) if expected.free else ()


# -- the findings --------------------------------------------------------------------------------------


def _check_ladder(layers: Sequence[_Layer], ladder: Sequence[int]) -> None:
    """Every resolution at which layers work is a level."""
    missing = [layer for layer in layers if layer.reduction not in ladder]
    if not missing:
        return
    finest = min(layer.reduction for layer in missing)
    raise TopologyError(
        f"at 1/{finest} of the image this network has layers ({_list(missing, finest)}), but no single tensor that "
        f"all of it passes: paths of other resolutions run beside them, from before 1/{finest} to behind it. A "
        f"top-down network would have no level there. Take the path that skips 1/{finest} out of the network, or "
        f"end it there"
    )


def _check_places(before: Sequence[_Layer], after: Sequence[_Layer]) -> None:
    """The layers of a resolution are not those of a coarser one."""
    places: dict[str, Fraction] = {}
    for layer in after:
        name = _own_name(layer.name)
        places[name] = min(layer.reduction, places.get(name, layer.reduction))
    for reduction in sorted({layer.reduction for layer in before}):
        own = [layer for layer in before if layer.reduction == reduction]
        moved = [layer for layer in own if places.get(layer.name, reduction) > reduction]
        if len(own) >= _LAYERS and len(moved) > _SHARE * len(own):
            raise TopologyError(
                f"{len(moved)} of the {len(own)} layers at 1/{reduction} of the image ({_list(moved, reduction)}) "
                f"stand in one block with layers of a coarser resolution: a path runs beside all of them, from "
                f"before them to behind 1/{reduction}. A top-down network would run them at "
                f"1/{places[moved[0].name]}. Take this path out of the network, or end it at 1/{reduction}"
            )


def _check_width(
    bottom_up: Measured,
    layers: Sequence[_Layer],
    top_down: Measured,
    outputs: Mapping[int, str],
    expected: Expectation,
) -> None:
    """The features in front of the head are no image."""
    image = next(n.name for n in bottom_up.graph_module.graph.nodes if n.op == "placeholder")
    colours, finest = _width(bottom_up.dims[image]), min(outputs)
    width = _width(top_down.dims[outputs[finest]])
    reduced = next((layer for layer in layers if layer.reduction > 1), None)
    own = any(
        layer.reduction == finest and layer.width == width and _looks_around(bottom_up, layer) for layer in layers
    )
    if expected.free and reduced is not None and not own and width <= colours and 2 * width < reduced.width:
        raise TopologyError(
            f"the finest features of the top-down network would be {width} wide, as an image is, where the layers "
            f"of this network begin with {reduced.width} ({reduced.where}): what it does to the image before is "
            f"neither a preparation nor a stem. Leave it out of the model, and do it to the images"
        )


def _looks_around(measured: Measured, layer: _Layer) -> bool:
    """Whether a layer has a window larger than 1x1."""
    weights: Any = measured.graph_module
    for step in layer.name.split("."):
        weights = getattr(weights, step)
    shape = getattr(weights, "weight", weights).shape
    return len(shape) == 4 and max(shape[2:]) > 1


def _check_weights(bottom_up: Measured, top_down: Measured, outputs: Mapping[int, str]) -> None:
    """A level that has blocks has weights in them, which the bottom-up network has as well."""
    known = {str(n.target) for n in bottom_up.graph_module.graph.nodes}
    nodes = {n.name: n for n in top_down.graph_module.graph.nodes}
    before: set[str] = set()
    for reduction in sorted(outputs, reverse=True):
        above = _ancestors(nodes, outputs[reduction])
        block = [n for n in (nodes[name] for name in above - before) if _is_of_a_block(top_down, n)]
        before |= above
        own = [n for n in block if _own_name(str(n.target)) in known]
        if block and not any(_has_weights(top_down, n) for n in own):
            named = ", ".join(sorted(str(n.target if n.op == "call_module" else n.name) for n in block)[:_NAMED])
            raise TopologyError(
                f"level r{reduction} of the top-down network would have no weights of its own, only {named}: the "
                f"layers that belong to it stand elsewhere"
            )


def _wide_merges(top_down: Measured, outputs: Mapping[int, str]) -> Iterator[str]:
    """Merges that are much wider than what their level makes."""
    nodes = {n.name: n for n in top_down.graph_module.graph.nodes}
    before: set[str] = set()
    for reduction in sorted(outputs, reverse=True):
        above = _ancestors(nodes, outputs[reduction])
        own = [nodes[n] for n in above - before if str(nodes[n].target).rpartition(".")[0] in top_down.merges]
        before |= above
        merged = max((_width(top_down.dims[n.name]) for n in own), default=0)
        width = _width(top_down.dims[outputs[reduction]])
        if merged >= _WIDE * width:
            yield f"the merge of r{reduction} is {merged} wide, as its first block is, the level {width}"


# -- measuring -----------------------------------------------------------------------------------------


def _layers(measured: Measured) -> Iterator[_Layer]:
    """The layers with weights that work on maps, in order."""
    modules = dict(measured.graph_module.named_modules())
    for node in measured.graph_module.graph.nodes:
        value = measured.dims.get(node.name)
        name = _weights(node, modules)
        if name and is_feature_map(value) and (reduction := reduction_of(value)):
            yield _Layer(node.name, name, reduction, _width(value), f"{name} at {source_line(node)}")


def _that_stay(bottom_up: Measured) -> list[_Layer]:
    """The layers of a bottom-up network without excursions, which return to a finer resolution."""
    finest = _finest_behind(bottom_up)
    return [layer for layer in _layers(bottom_up) if finest[layer.node] >= layer.reduction]


def _weights(node: fx.Node, modules: Mapping[str, nn.Module]) -> str:
    """The name of a layer's weights, "" for what is no layer."""
    if node.op == "call_module":
        module = modules[str(node.target)]
        layer = converter_for(node, module).role.layer and any(True for _ in module.parameters())
        return str(node.target) if layer else ""
    if node.op != "call_function" or not converter_for(node, None).role.layer:
        return ""
    return next((str(n.target) for n in node.all_input_nodes if n.op == "get_attr"), "")


def _finest_behind(measured: Measured) -> dict[str, Fraction]:
    """The finest resolution of all that is computed from a value, itself included."""
    found: dict[str, Fraction] = {}
    none = Fraction(10**9)
    for node in reversed(measured.graph_module.graph.nodes):
        own = reduction_of(measured.dims.get(node.name)) if node.op != "output" else None
        found[node.name] = min([own or none, *(found[user.name] for user in node.users)])
    return found


def _is_of_a_block(measured: Measured, node: fx.Node) -> bool:
    """Whether a node is neither the pyramid, nor what prepares the image, nor a unit that top-down networks add."""
    owner = owner_of(node)
    if node.op not in ("call_module", "call_function", "call_method", "get_attr") or owner in ("", "prepare"):
        return False
    if node.op != "call_module":
        return owner not in measured.units
    module = measured.graph_module.get_submodule(str(node.target))
    added = isinstance(module, Pyramid | Upsample | TransposedUpsample) or owner in measured.units
    return not added and converter_for(node, module).role != Role.DROPOUT


def _has_weights(measured: Measured, node: fx.Node) -> bool:
    if node.op == "call_module":
        return any(True for _ in measured.graph_module.get_submodule(str(node.target)).parameters())
    return node.op == "get_attr"


def _ancestors(nodes: Mapping[str, fx.Node], name: str) -> set[str]:
    seen, stack = {name}, [name]
    while stack:
        for source in nodes[stack.pop()].all_input_nodes:
            if source.name not in seen:
                seen.add(source.name)
                stack.append(source.name)
    return seen


def _own_name(path: str) -> str:
    """The name of a layer in the bottom-up network."""
    return path.partition(".")[2].partition("_again_")[0]


def _width(value: Dims) -> int:
    return next((d.size for d in value if d.kind == "channel"), 0) if is_spatial(value) else 0


def _list(layers: Sequence[_Layer], reduction: Fraction) -> str:
    named = [layer.where for layer in layers if layer.reduction == reduction]
    return "; ".join(named[:_NAMED]) + (f"; and {len(named) - _NAMED} more" if len(named) > _NAMED else "")
