"""Rewrites of a top-down network that change no parameter, so that it trains and is saved as before.

They work on the graphs of a `TopDownNetwork`: the top graph, and the graphs of its up-blocks.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from torch import Tensor, fx, nn

from bu2td.nn import ConvUnit, Merge, Upsample, is_hooked
from bu2td.optimization.cost_model import Chooser
from bu2td.optimization.formats import Formats, choose_formats, lay_out, lay_out_for_maps
from bu2td.optimization.kernels import GlobalAvgPool, SplitMerge, UpsampledConv2d, WinogradConv2d, can_read_low
from bu2td.optimization.places import Place
from bu2td.runtime import TopDownNetwork

#: Activations that take their input's memory, also under autograd.
_IN_PLACE = (nn.ReLU, nn.ReLU6, nn.LeakyReLU)
_CONVS = (nn.Conv2d, nn.BatchNorm2d)
#: Merges of fewer channels stay whole: two convolutions so narrow take as long as one over the concatenation. Time
#: a network with ``force={"r1_merge": True}`` against one with False to see it on another machine.
NARROW = 32


class Shapes(fx.Interpreter):
    """Runs a network on a meta image and keeps the shape of every result by the path of its node or module."""

    def __init__(self, module: fx.GraphModule, prefix: str = "", found: dict[str, tuple[int, ...]] | None = None):
        super().__init__(module)
        self.extra_traceback = False
        self.prefix, self.found = prefix, {} if found is None else found

    def run_node(self, n: fx.Node) -> Any:
        """Run one node."""
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.found[self.prefix + n.name] = tuple(result.shape)
        return result

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Run a submodule, inside too where it is a graph."""
        part = self.fetch_attr(target)
        if isinstance(part, fx.GraphModule):
            return Shapes(part, f"{self.prefix}{target}.", self.found).run(*args, **kwargs)
        result = super().call_module(target, args, kwargs)
        if isinstance(result, Tensor):
            self.found[f"{self.prefix}{target}"] = tuple(result.shape)
        return result


def simplify(network: TopDownNetwork, shapes: dict[str, tuple[int, ...]], choose: Chooser) -> None:
    """Make the rewrites that a chooser chooses, in place.

    Args:
        network: without checkpointing; it is changed.
        shapes: what `Shapes` found for one image.
        choose: decides.
    """
    formats = choose_formats(network, shapes, choose)
    lay_out_for_maps(network, formats, choose)
    _schedule(network, choose)
    for coarser, stage in pairwise(network.stages.levels):
        factor = coarser.reduction // stage.reduction
        part = network.get_submodule(stage.upsampling) if stage.upsampling else None
        if isinstance(part, fx.GraphModule):
            _read_low(part, str(stage.upsampling), factor, shapes, choose, formats[stage.reduction])
        if stage.merge is not None:
            _split_merge(network, stage.merge, factor, shapes, choose, formats[stage.reduction])
    if choose.training:
        _use_winograd(network, shapes, choose, formats)
        _pool_channels_last(network, choose, formats)
    _act_in_place(network, choose)
    lay_out(network, formats)
    network.graph.lint()
    network.recompile()


# --- the lateral right before its merge ---------------------------------------------------------------


def _schedule(network: TopDownNetwork, choose: Chooser) -> None:
    """Let the upsampling read its size from the pyramid's image, and move the lateral behind it."""
    nodes = {node.name: node for node in network.graph.nodes}
    for stage in network.stages.levels:
        parts = [nodes[name] for name in (stage.lateral, stage.upsampling, stage.merge) if name is not None]
        if len(parts) < 3 or not _keeps_size(network, str(parts[0].target)):
            continue
        lateral, up, merge = parts
        if choose("schedule", lateral.name):
            up.replace_input_with(lateral, lateral.args[0])
            merge.prepend(lateral)


def _keeps_size(network: nn.Module, target: str) -> bool:
    conv: Any = getattr(network.get_submodule(target), "conv", None)
    return conv is not None and can_read_low(conv)


# --- convolutions that read an upsampled map ----------------------------------------------------------


def _is_nearest(module: nn.Module | None) -> bool:
    return isinstance(module, Upsample) and module.mode == "nearest" and not is_hooked(module)


def _read_low(
    part: fx.GraphModule, path: str, factor: int, shapes: dict[str, tuple[int, ...]], choose: Chooser, last: bool
) -> None:
    """Let convolutions of an up-block read at low resolution; an upsampling that nobody reads then goes."""
    for node in list(part.graph.nodes):
        if node.op != "call_module" or not _is_nearest(part.get_submodule(str(node.target))):
            continue
        source, like = node.args
        small, large = shapes[f"{path}.{source.name}"], shapes[f"{path}.{node.name}"]
        for user in list(node.users):
            conv = _readable_low(part, user, _divides(small, large, factor), choose)
            if conv is None:
                continue
            place = Place.of("upsample_conv", conv, small[-2:], factor=factor, last=last)
            if choose("upsample_conv", f"{path}.{user.target}", place=place):
                part.set_submodule(str(user.target), UpsampledConv2d(conv, factor))
                user.args = (source, like)
        if not node.users:
            part.graph.erase_node(node)
            part.delete_submodule(str(node.target))
    part.graph.lint()
    part.recompile()


def _readable_low(part: fx.GraphModule, user: fx.Node, divides: bool, choose: Chooser) -> Any:
    """The convolution that a reader of an upsampling calls, if it may read at low resolution."""
    conv: Any = part.get_submodule(str(user.target)) if user.op == "call_module" else None
    if conv is None or not can_read_low(conv):
        return None
    if sum(n.op == "call_module" and n.target == user.target for n in part.graph.nodes) > 1:
        return None
    if not divides and conv.kernel_size != (1, 1):
        return None
    # 0.6 to 1.0 times the speed in a training step (bench/choices.py)
    return None if choose.training and _is_small_depthwise(conv) else conv


def _is_small_depthwise(conv: nn.Conv2d) -> bool:
    return conv.groups == conv.in_channels > 1 and max(conv.kernel_size) < 5


def _divides(small: tuple[int, ...], large: tuple[int, ...], factor: int) -> bool:
    return [s * factor for s in small[-2:]] == [*large[-2:]]


# --- merges -------------------------------------------------------------------------------------------


def _split_merge(
    network: TopDownNetwork, name: str, factor: int, shapes: dict[str, tuple[int, ...]], choose: Chooser, last: bool
) -> None:
    node = next(n for n in network.graph.nodes if n.name == name)
    merge: Any = network.get_submodule(name)
    if not _can_split(merge):
        return
    x, lateral = node.args
    low = _low_source(network, x)
    size = shapes[lateral.name][-2:]
    if low is not None:
        small = shapes[_outermost(low, x)]
        low = low if _divides(small, (*small[:2], *size), factor) or merge.conv.kernel_size == (1, 1) else None
    factor = factor if low is not None else 1
    read = tuple(side // factor for side in size)
    place = Place.of("merge", merge.conv, read, factor=factor, join=merge.join, last=last)
    if not choose("merge", name, place=place, sure=merge.conv.out_channels >= NARROW):
        return
    network.set_submodule(name, SplitMerge(merge, factor))
    if low is not None:
        _drop_upsampling(network, x, node)


def _can_split(merge: nn.Module | None) -> bool:
    if (
        type(merge) is not Merge
        or is_hooked(merge)
        or merge.join == "add"
        or (merge.preactivation and merge.beside())
    ):
        return False
    conv: Any = merge.conv
    return can_read_low(conv) and conv.groups == 1 and tuple(conv.dilation) == (1, 1)


def _low_source(network: TopDownNetwork, x: fx.Node) -> fx.Node | None:
    """The node that holds the map before its upsampling, in the top graph or at the end of an up-block."""
    if x.op != "call_module" or len(x.users) > 1:
        return None
    part = network.get_submodule(str(x.target))
    if _is_nearest(part):
        return x.args[0]  # type: ignore[return-value]
    if isinstance(part, fx.GraphModule):
        last = next(n for n in reversed(part.graph.nodes) if n.op == "output").args[0]
        if last.op == "call_module" and len(last.users) == 1 and _is_nearest(part.get_submodule(last.target)):
            return last.args[0]
    return None


def _outermost(low: fx.Node, x: fx.Node) -> str:
    return low.name if low.graph is x.graph else f"{x.target}.{low.name}"


def _drop_upsampling(network: TopDownNetwork, x: fx.Node, merge: fx.Node) -> None:
    part: Any = network.get_submodule(str(x.target))
    if isinstance(part, Upsample):
        merge.args = (x.args[0], merge.args[1])
        network.graph.erase_node(x)
        network.delete_submodule(str(x.target))
        return
    output = next(n for n in reversed(part.graph.nodes) if n.op == "output")
    last = output.args[0]
    output.args = (last.args[0],)
    part.graph.erase_node(last)
    part.delete_submodule(last.target)
    part.recompile()


# --- minimal filtering --------------------------------------------------------------------------------


def is_square(conv: nn.Module) -> bool:
    """Whether a convolution is one that minimal filtering has a form for."""
    if type(conv) is not nn.Conv2d or not can_read_low(conv) or conv.kernel_size != (3, 3):
        return False
    return conv.groups == 1 and tuple(conv.dilation) == (1, 1)


def _use_winograd(
    network: TopDownNetwork, shapes: dict[str, tuple[int, ...]], choose: Chooser, formats: Formats
) -> None:
    last = {name: formats[stage.reduction] for stage in network.stages.levels for name in stage.calls}
    split = {path for path, module in network.named_modules() if isinstance(module, SplitMerge)}
    for path, module in list(network.named_modules()):
        above = path.rpartition(".")[0]
        conv: Any = module.conv if path in split else module
        shape = shapes.get(path, shapes.get(above))
        if above in split or shape is None or not is_square(conv):
            continue
        inner = conv.in_channels // 2 if path in split else conv.in_channels
        in_level = last.get(path.partition(".")[0], False)
        place = Place.of("winograd", conv, shape[-2:], inner=inner, last=in_level)
        if not choose("winograd", path, place=place):
            continue
        if isinstance(module, SplitMerge):
            module.winograd = True
        else:
            network.set_submodule(path, WinogradConv2d(conv))


# --- pooling ------------------------------------------------------------------------------------------


def _pool_channels_last(network: TopDownNetwork, choose: Chooser, formats: Formats) -> None:
    """Replace the global average pooling of the head, which reads the finest level's map.

    Those of levels (squeeze-and-excite) are many and their maps small: a function of autograd's own takes longer.
    """
    if not formats[network.stages.levels[-1].reduction]:
        return
    inside = {name for stage in network.stages.levels for name in stage.calls}
    for name, part in network.named_children():
        if not isinstance(part, fx.GraphModule) or name in inside:
            continue
        for node in part.graph.nodes:
            keepdim = _global_mean(part, node)
            target = str(node.target) if node.op == "call_module" else _free(part, f"{node.name}_pool")
            if keepdim is None or not choose("pool", f"{name}.{target}"):
                continue
            if node.op == "call_method":
                node.op, node.target, node.args, node.kwargs = "call_module", target, node.args[:1], {}
            part.set_submodule(target, GlobalAvgPool(keepdim))
        part.graph.lint()
        part.recompile()


def _free(part: nn.Module, name: str) -> str:
    """A name that the modules of a graph leave free."""
    return name if not hasattr(part, name) else _free(part, f"{name}_")


def _global_mean(part: fx.GraphModule, node: fx.Node) -> bool | None:
    """Whether a global average pooling keeps its two dimensions; None for any other node."""
    if node.op == "call_module":
        pool: Any = part.get_submodule(str(node.target))
        found = type(pool) is nn.AdaptiveAvgPool2d and pool.output_size in (1, (1, 1)) and not is_hooked(pool)
        return True if found else None
    if node.op != "call_method" or node.target != "mean" or set(node.kwargs) - {"keepdim"}:
        return None
    where = [*node.args[1:]]
    keepdim = where.pop() if len(where) == 2 else node.kwargs.get("keepdim", False)
    axes = sorted(where[0]) if len(where) == 1 and isinstance(where[0], list | tuple) else []
    return bool(keepdim) if axes in ([2, 3], [-2, -1]) else None


# --- activations --------------------------------------------------------------------------------------


def _act_in_place(network: TopDownNetwork, choose: Chooser) -> None:
    for path, module in network.named_modules():
        if isinstance(module, ConvUnit | SplitMerge):
            pairs = [(before, name) for (_, before), (name, _) in pairwise(module.in_order())]
        elif isinstance(module, fx.GraphModule):
            pairs = _calls_in_a_row(module)
        else:
            continue
        for before, name in pairs:
            act = module.get_submodule(name)
            if _may_work_in_place(act, before) and choose("in_place", f"{path}.{name}".lstrip(".")):
                setattr(act, "inplace", True)  # noqa: B010


def _calls_in_a_row(module: fx.GraphModule) -> list[tuple[nn.Module, str]]:
    """Every module of a graph that alone reads what another one made: that one, and its own path."""
    found = []
    for node in module.graph.nodes:
        sources = node.all_input_nodes
        if node.op != "call_module" or len(sources) != 1 or len(sources[0].users) != 1:
            continue
        if sources[0].op == "call_module":
            found.append((module.get_submodule(str(sources[0].target)), str(node.target)))
    return found


def _may_work_in_place(act: nn.Module, before: nn.Module) -> bool:
    """Whether an activation may overwrite what a module made: nobody needs that for a gradient."""
    return type(act) in _IN_PLACE and getattr(act, "inplace", None) is False and isinstance(before, _CONVS)
