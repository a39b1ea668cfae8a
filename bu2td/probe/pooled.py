"""The nodes of a head that bind the size of their map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import fx

from bu2td.ops import Role, Site, converter_for


def pooled_maps(graph_module: fx.GraphModule, shapes: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Nodes of a head that read their map pooled to a size, so that other image sizes pass, and that size."""
    return _flattened_maps(graph_module, shapes) | _covered_maps(graph_module, shapes)


def _flattened_maps(graph_module: fx.GraphModule, shapes: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Nodes that flatten a whole map (N, C, H, W) -> (N, C H W), and the (H, W) that they bind.

    In a head that does so the map is pooled to its size first, so that other image sizes pass; a map that was
    pooled already stays as it is. Where maps are computed from what is flattened, it is no head.
    """
    found = {}
    inside = _before_maps(graph_module, shapes)
    for node in graph_module.graph.nodes:
        if node in inside:
            continue
        source = node.args[0] if node.args else None
        before = shapes.get(source.name) if isinstance(source, fx.Node) else None
        after = shapes[node.name] if node.op != "output" else None
        if (
            isinstance(before, tuple)
            and isinstance(after, tuple)
            and len(before) == 4
            and after == (before[0], before[1] * before[2] * before[3])
        ):
            found[node.name] = before[2:]
    return found


def _before_maps(graph_module: fx.GraphModule, shapes: Mapping[str, Any]) -> set[fx.Node]:
    """The nodes from which maps of more than one position are computed."""
    inside: set[fx.Node] = set()
    for node in reversed(graph_module.graph.nodes):
        for user in node.users:
            made = shapes.get(user.name)
            if user in inside or (isinstance(made, tuple) and len(made) == 4 and max(made[2:]) > 1):
                inside.add(node)
    return inside


def _covered_maps(graph_module: fx.GraphModule, shapes: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Windows of a head that cover a whole map, and its (H, W): ``AvgPool2d(7)`` in place of a global pool.

    All that follows is computed from them, and nothing behind them looks around.
    """
    modules = dict(graph_module.named_modules())
    found: dict[str, tuple[int, int]] = {}
    open_reads: set[fx.Node] = set()
    for node in reversed(graph_module.graph.nodes):
        open_reads.discard(node)
        alone = not open_reads
        open_reads |= {n for n in node.all_input_nodes if n.op != "get_attr"}
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        converter = converter_for(node, module)
        if module is None or not converter.role.windowed:
            continue
        window = converter.kernel(Site(node, module, {}))
        if window == (1, 1):
            continue
        source: Any = node.args[0]
        before, after = shapes[source.name], shapes[node.name]
        covers = after[2:] == (1, 1) and covers_all(converter.role, window, before[2:])
        if not (alone and covers and not converter.pads(Site(node, module, {}))):
            break
        found[node.name] = before[2:]
    return found


def covers_all(role: Role, window: Sequence[int], size: Sequence[int]) -> bool:
    """Whether a window holds a whole map: of a convolution it is of its size, a pooling cuts what hangs over."""
    if role is Role.POOL:
        return all(w >= n for w, n in zip(window, size, strict=True))
    return tuple(window) == tuple(size)
