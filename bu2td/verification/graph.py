"""Verify: the emitted network, measured afresh -> a report.

It knows nothing of how the network was made. It flattens the network into one graph, probes that
graph on meta tensors as any bottom-up network is probed, and checks the invariants of a top-down network
(design, section 6) against the levels that the network claims to have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from torch import fx, nn

from bu2td.errors import Bu2tdError, VerificationError
from bu2td.graph import flatten, last_nodes, shapes_of
from bu2td.ir import Capture, Dims, is_spatial, reduction_of
from bu2td.nn import Pyramid, TransposedUpsample, Upsample, reduced
from bu2td.ops import Role, converter_for
from bu2td.probe import probe
from bu2td.verification.likeness import Expectation, Measured, compare


@dataclass(frozen=True)
class LevelClaim:
    """What a level is to be: the submodule that makes its output, its reduction and width."""

    node: str
    reduction: int
    width: int


@dataclass(frozen=True)
class Beside:
    """The network that a network was made of, and what may be expected of the two."""

    bottom_up: Measured
    expected: Expectation


@dataclass(frozen=True)
class Report:
    """What was measured; ``checks`` maps the name of each check to what it found, ``notes`` are what is odd."""

    checks: Mapping[str, str]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "checks", MappingProxyType(dict(self.checks)))

    def __str__(self) -> str:
        width = max(map(len, self.checks), default=0)
        return "\n".join(f"{name.ljust(width)}  {found}" for name, found in self.checks.items())


def verify_graph(
    network: fx.GraphModule,
    levels: tuple[LevelClaim, ...],
    image_shape: tuple[int, int, int, int],
    num_classes: int,
    sizes: Sequence[tuple[int, int]],
    flat: fx.GraphModule | None = None,
    beside: Beside | None = None,
    per_pixel: bool = False,
) -> Report:
    """Check an emitted network on meta tensors.

    Needs: the network (on any device), its levels coarse to fine, the shape of an image batch, and image sizes
        to try; ``flat`` is what `flatten` makes of the network, if it is at hand; ``beside`` is the bottom-up
        network to compare it with; ``per_pixel``: whether it has logits for every pixel.
    Returns: a `Report`.
    Guarantees: the logits have the right shape at several image sizes; every level has its resolution and
        width and sees the pyramid image of its own reduction; nothing outside the pyramid, gates and excursions
        reduces resolution; every parameter is on a path to the logits.

    Raises:
        VerificationError: names the first invariant that does not hold, and where.
        TopologyError: the network runs, but is not the bottom-up one upside down (see `likeness.compare`).
    """
    flat = flat or flatten(network)
    shapes = _check_sizes(flat, levels, image_shape[1], num_classes, sizes, per_pixel)
    dims = _probe(flat, image_shape, shapes)
    _check_levels(flat, dims, levels)
    _check_monotonous(flat, dims, levels)
    reached = _check_parameters(network, flat)
    notes: tuple[str, ...] = ()
    if beside is not None:
        outputs = {level.reduction: name for level, name in zip(levels, _level_nodes(flat, levels), strict=True)}
        notes = compare(beside.bottom_up, Measured.of(network, flat, dims), outputs, beside.expected)
    return Report(
        {
            "logits": f"(N, {num_classes}{', H, W' * per_pixel}) at {', '.join(f'{h}x{w}' for h, w in sizes)}",
            "levels": ", ".join(f"r{level.reduction}: {level.width}" for level in levels),
            "resolution": "never reduced outside pyramid, gates and excursions",
            "parameters": f"{reached:,} tensors, all on a path to the logits",
        },
        notes,
    )


def fault(what: str) -> VerificationError:
    """An invariant that does not hold."""
    return VerificationError(
        f"the network is not a valid top-down network: {what}. This is a fault of the conversion, not of "
        f"your model; please report it together with the model"
    )


def _run_shapes(flat: fx.GraphModule, shape: tuple[int, ...], quick: bool) -> dict[str, Any]:
    try:
        return shapes_of(flat, shape, quick=quick)
    except Bu2tdError as error:
        reason = str(error).partition("\nPass example_inputs")[0]
        raise fault(reason.replace("the model does not run", "it does not run")) from error


def _logits(flat: fx.GraphModule) -> str:
    output = next(n for n in reversed(flat.graph.nodes) if n.op == "output")
    return output.args[0].name


def _check_sizes(
    flat: fx.GraphModule,
    levels: tuple[LevelClaim, ...],
    channels: int,
    num_classes: int,
    sizes: Sequence[tuple[int, int]],
    per_pixel: bool,
) -> dict[str, Any]:
    """Run the sizes; returns the shapes of all values at the first, for two images."""
    at_first: dict[str, Any] = {}
    for i, (h, w) in enumerate(sizes):
        shapes = _run_shapes(flat, (2, channels, h, w), quick=i > 0)
        found, wanted = shapes[_logits(flat)], (2, num_classes, *((h, w) if per_pixel else ()))
        if found != wanted:
            raise fault(f"logits are {found} instead of {wanted} for an image of {h}x{w}")
        for level, node in zip(levels, _level_nodes(flat, levels), strict=True):
            expected = (2, level.width, reduced(h, level.reduction), reduced(w, level.reduction))
            if shapes[node] != expected:
                raise fault(
                    f"level r{level.reduction} is {shapes[node]} instead of {expected} for an image of {h}x{w}"
                )
        at_first = at_first or shapes
    return at_first


def _level_nodes(flat: fx.GraphModule, levels: tuple[LevelClaim, ...]) -> list[str]:
    """The last node of the flat graph that belongs to each level's claimed submodule."""
    last = last_nodes(flat)
    missing = [level.node for level in levels if level.node not in last]
    if missing:
        raise fault(f"the outputs of levels {missing} are nowhere in the graph")
    return [last[level.node] for level in levels]


def _probe(
    flat: fx.GraphModule, image_shape: tuple[int, int, int, int], shapes: dict[str, Any]
) -> Mapping[str, Dims]:
    capture = Capture(flat, flat, (2, *image_shape[1:]), {}, "")
    try:
        return probe(capture, shapes)
    except Bu2tdError as error:
        raise fault(str(error)) from error


def _check_levels(flat: fx.GraphModule, dims: Mapping[str, Dims], levels: tuple[LevelClaim, ...]) -> None:
    outputs = _level_nodes(flat, levels)
    images = _pyramid_images(flat)
    for level, output in zip(levels, outputs, strict=True):
        value = dims[output]
        if reduction_of(value) != level.reduction:
            raise fault(f"level r{level.reduction} works at reduction {reduction_of(value)}")
        if value[1].size != level.width:
            raise fault(f"level r{level.reduction} is {value[1].size} wide instead of {level.width}")
    before: set[str] = set()
    for level, output in zip(levels, outputs, strict=True):
        above = _ancestors(flat, output)
        own = [name for name in images if name in above and name not in before]
        found = {reduction_of(dims[name]) for name in own}
        if found != {level.reduction}:
            raise fault(
                f"level r{level.reduction} is fed from pyramid images of reduction "
                f"{sorted(map(str, found)) or 'none'}"
            )
        before |= above
    if outputs[-1] not in _ancestors(flat, _logits(flat)):
        raise fault(f"the head does not read level r{levels[-1].reduction}")


def _pyramid_images(flat: fx.GraphModule) -> list[str]:
    modules = dict(flat.named_modules())
    found = []
    for node in flat.graph.nodes:
        if node.op == "call_module" and isinstance(modules[str(node.target)], Pyramid):
            found += [user.name for user in node.users]
    return found


def _reads(node: fx.Node, modules: Mapping[str, nn.Module]) -> list[fx.Node]:
    """The nodes whose values a node reads; what only lends its size is none of them."""
    module = modules.get(str(node.target)) if node.op == "call_module" else None
    return [source for source in node.all_input_nodes if not _is_like(node, source, module)]


def _ancestors(flat: fx.GraphModule, name: str) -> set[str]:
    nodes = {n.name: n for n in flat.graph.nodes}
    modules = dict(flat.named_modules())
    return _closure(name, lambda n: [i.name for i in _reads(nodes[n], modules)])


def _closure(start: str, step: Callable[[str], list[str]]) -> set[str]:
    seen, stack = {start}, [start]
    while stack:
        for name in step(stack.pop()):
            if name not in seen:
                seen.add(name)
                stack.append(name)
    return seen


def _check_monotonous(flat: fx.GraphModule, dims: Mapping[str, Dims], levels: tuple[LevelClaim, ...]) -> None:
    """No value that was reduced may reach a level's output, unless the block itself resampled it back."""
    modules = dict(flat.named_modules())
    outputs = set(_level_nodes(flat, levels))
    reduced: dict[str, str] = {}
    for node in flat.graph.nodes:
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, Pyramid) or not is_spatial(dims.get(node.name)):
            continue
        for source in _reads(node, modules):
            if not is_spatial(dims.get(source.name)):
                continue
            if _is_coarser(dims, node, source) and not _from_pyramid(source, modules):
                reduced[node.name] = node.name
            elif source.name in reduced and not (_resamples(node, module) or _rearranges_back(dims, node, source)):
                reduced[node.name] = reduced[source.name]
        if node.name in reduced and (node.name in outputs or _is_upsampling(module)):
            raise fault(f"{reduced[node.name]} reduces resolution on the way to {node.name}")


def _is_coarser(dims: Mapping[str, Dims], node: fx.Node, source: fx.Node) -> bool:
    mine, theirs = reduction_of(dims.get(node.name)), reduction_of(dims.get(source.name))
    return mine is not None and theirs is not None and mine > theirs


def _is_upsampling(module: nn.Module | None) -> bool:
    return isinstance(module, Upsample | TransposedUpsample)


def _resamples(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether a block may have resampled a value back here."""
    if _is_upsampling(module):
        return False
    # Attention has the positions of its queries, wherever its keys and values come from.
    return converter_for(node, module).role in (Role.RESAMPLE, Role.OPAQUE, Role.ATTENTION)


def _rearranges_back(dims: Mapping[str, Dims], node: fx.Node, source: fx.Node) -> bool:
    """Whether a view lays positions out again that another view had put aside, as patches of pixels."""
    views = node.op == "call_method" and node.target in ("view", "reshape", "unflatten", "flatten")
    return views and _is_coarser(dims, source, node)


def _from_pyramid(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    return node.op == "call_module" and isinstance(modules.get(str(node.target)), Pyramid)


def _is_like(node: fx.Node, source: fx.Node, module: nn.Module | None) -> bool:
    """Whether a source only lends its size."""
    return _is_upsampling(module) and source is not node.args[0]


def _check_parameters(network: fx.GraphModule, flat: fx.GraphModule) -> int:
    """Every parameter belongs to a node that reaches the logits."""
    live = _ancestors(flat, _logits(flat))
    reached: set[str] = set()
    for node in flat.graph.nodes:
        if node.name not in live:
            continue
        if node.op == "call_module":
            part = flat.get_submodule(str(node.target))
            reached |= {f"{node.target}.{name}" for name, _ in part.named_parameters()}
        elif node.op == "get_attr":
            reached.add(str(node.target))
    dead = [name for name, _ in network.named_parameters() if name not in reached]
    if dead:
        raise fault(
            f"{len(dead)} parameters are not on a path to the logits: {', '.join(dead[:5])}"
            f"{', ...' if len(dead) > 5 else ''}"
        )
    return len(reached)
