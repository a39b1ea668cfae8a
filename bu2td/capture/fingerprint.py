"""What a canonical graph does, so that two can be compared: in one process, or by what a file says of one."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from typing import Any

from torch import fx

from bu2td.capture.forms import DROPOUTS
from bu2td.settings import settings


def same_but_dropout(a: fx.GraphModule, b: fx.GraphModule) -> bool:
    """Whether two graphs do the same in eval mode: dropout apart, all their operations are equal."""
    return list(_signature(a)) == list(_signature(b))


def fingerprint(graph_module: fx.GraphModule) -> str:
    """A short text that graphs share which do the same but for dropout, whatever their weights."""
    return _digest(_signature(graph_module))


def identity(graph_module: fx.GraphModule) -> str:
    """A short text that graphs share which are the same: by all names, shapes and settings, dropout's too."""
    modules = dict(graph_module.named_modules())
    rows: list[Any] = [
        (node.op, node.name, str(node.target), node.args, node.kwargs) for node in _nodes(graph_module)
    ]
    for node in _nodes(graph_module):
        if node.op == "call_module":
            inside = modules[str(node.target)].named_modules(prefix=str(node.target))
            rows += [(path, type(part).__name__, sorted(settings(part).items())) for path, part in inside]
    rows += [(name, tuple(t.shape)) for name, t in graph_module.state_dict(keep_vars=True).items()]
    return _digest(rows)


def _nodes(graph_module: fx.GraphModule) -> list[fx.Node]:
    return list(graph_module.graph.nodes)


def _digest(rows: Iterable[Any]) -> str:
    text = re.sub(r" at 0x[0-9a-f]+", "", "\n".join(map(repr, rows)))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _signature(graph_module: fx.GraphModule) -> Iterator[tuple[Any, ...]]:
    """What each node does, with dropout left out and nodes named by their position."""
    modules = dict(graph_module.named_modules())
    index: dict[fx.Node, int] = {}
    count = 0
    for node in graph_module.graph.nodes:
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, DROPOUTS):
            index[node] = index[node.args[0]]
            continue
        index[node] = count
        count += 1
        what: Any = str(node.target)
        if module is not None:
            shapes = {k: tuple(v.shape) for k, v in module.state_dict(keep_vars=True).items()}
            what = (type(module).__name__, sorted(shapes.items()))
        yield (
            node.op,
            what,
            repr(fx.map_arg(node.args, lambda n: index[n])),
            repr(fx.map_arg(node.kwargs, lambda n: index[n])),
        )
