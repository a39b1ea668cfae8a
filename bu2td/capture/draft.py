"""A traced graph on its way to the canonical one, and how rewrites read and write it."""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx, nn

from bu2td.capture.tracer import Traced
from bu2td.capture.values import Unknown
from bu2td.errors import CaptureError

#: Where torch keeps its functions; elsewhere one of the same name may do something else.
_TORCH_MODULES = ("torch", "torch.nn.functional", "torch._C._nn", "torch.functional", "_operator")


class Draft:
    """A traced graph whose calls and reads have the paths that they have in the model.

    Tensors that the forward makes, or keeps where a model registers none, are buffers of the graph.

    Attributes:
        graph: the graph. What a rewrite leaves without a reader may stay; nodes know their ``path``, the innermost
            module whose forward holds them, and the ``line`` of it.
        parts: what the nodes call or read by its path: modules, parameters and buffers.
        tensors: what the model has under another name, or not at all: parameters and buffers of the graph by path.
        training: whether the model was traced in train mode.
    """

    def __init__(self, traced: Traced, source: nn.Module) -> None:
        self.graph = traced.graph
        self.traced = traced
        self.parts: dict[str, Any] = {}
        self.tensors: dict[str, Tensor] = {}
        self.training = traced.training
        self._paths: set[str] = set()  # of the parts, and of the modules around them
        self._named: Mapping[str, Tensor] = {**dict(source.named_parameters()), **dict(source.named_buffers())}
        self._source = source
        traced.values.parts = self.parts
        modules = dict(traced.root.named_modules(remove_duplicate=False))
        for node in self.graph.nodes:
            line = {"line": node.meta["line"]} if "line" in node.meta else {}
            node.meta = {"path": _path(node), **line}
        for node in self.graph.nodes:
            if node.op in ("call_module", "get_attr"):
                traced.values.paths[node] = path = str(node.target)
                part = modules[path] if path in modules else attrgetter(path)(traced.root)
                node.target = path.removeprefix("model.")
                if isinstance(part, Tensor) and node.target not in self._named:
                    part = self._made(node, path, part)
                self._take(str(node.target), part)

    def _made(self, node: fx.Node, path: str, tensor: Tensor) -> Tensor:
        """A buffer for a tensor that the forward makes, or that the model keeps as it keeps no buffer."""
        if path.startswith("model."):
            real = _kept_by(self._source, str(node.target))
        else:
            real, reader = tensor, next(iter(node.users), node)
            node.target = self.free(reader.meta["path"], "constant")
        self.tensors[str(node.target)] = real.detach()
        return torch.empty_like(real, device="meta")

    def _take(self, path: str, part: Any) -> None:
        self.parts[path] = part
        while path:
            self._paths.add(path)
            path = path.rpartition(".")[0]

    def module(self, node: Any) -> nn.Module | None:
        """The module that a node calls; None for anything else."""
        is_call = isinstance(node, fx.Node) and node.op == "call_module"
        return self.parts[str(node.target)] if is_call else None

    def free(self, path: str, name: str) -> str:
        """A path for something new in a module: its name, with a number behind it if that is taken."""
        base = f"{path}.{name}".strip(".")
        target, count = base, 1
        while target in self._paths:
            target, count = f"{base}_{count}", count + 1
        return target

    def value(self, node: Any) -> Any:
        """What a node computes at the model's own size; an `Unknown` where that is not known."""
        return self.traced.values.of(node)[0]

    def number(self, value: Any) -> Any:
        """An argument with the numbers of the graph in it written out, where they are the same at all sizes."""

        def written(node: fx.Node) -> Any:
            own, other = self.traced.values.of(node)
            known = isinstance(own, int | float | torch.Size) and not isinstance(other, Unknown) and own == other
            return own if known else node

        return fx.map_arg(value, written)

    def weight(self, node: Any) -> tuple[str, Any]:
        """The path of the parameter or buffer that a node reads, and it; ("", None) for anything else."""
        if isinstance(node, fx.Node) and node.op == "get_attr":
            return str(node.target), self.parts[str(node.target)]
        return "", None

    def original(self, path: str) -> Tensor | None:
        """A parameter or buffer with its values in the model; None if the graph has made it."""
        return self.tensors.get(path, self._named.get(path))

    def call_instead(
        self,
        node: fx.Node,
        name: str,
        module: nn.Module,
        source: fx.Node,
        tensors: Mapping[str, Tensor | None] = MappingProxyType({}),
    ) -> None:
        """Let a new module compute a node's value out of another, and leave the node without a reader.

        Args:
            node: the node.
            name: of the module, in the module whose forward holds the node.
            module: the module.
            source: what it reads.
            tensors: its parameters and buffers with their values, where they are known.
        """
        target = self.free(node.meta["path"], name)
        self._take(target, module)
        self.tensors |= {f"{target}.{key}": tensor for key, tensor in tensors.items() if tensor is not None}
        with self.graph.inserting_before(node):
            new = self.graph.call_module(target, (source,))
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new)

    def compute_instead(self, node: fx.Node, function: Any, *args: Any, **kwargs: Any) -> None:
        """Let a function, or a method by its name, compute a node's value; the node is gone."""
        make = self.graph.call_method if isinstance(function, str) else self.graph.call_function
        with self.graph.inserting_before(node):
            new = make(function, args, kwargs)
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new)
        self.graph.erase_node(node)

    def graph_module(self) -> fx.GraphModule:
        """The graph with its modules: nodes named by what they call, and without those that nobody reads."""
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        for node in self.graph.nodes:
            args, kwargs = fx.map_arg((node.args, node.kwargs), copies.__getitem__)
            copies[node] = new = graph.create_node(node.op, node.target, args, kwargs)
            new.meta = dict(node.meta)
        graph.eliminate_dead_code(lambda n: n.op in ("placeholder", "output"))
        used = {str(n.target) for n in graph.nodes if n.op in ("call_module", "get_attr")}
        module = fx.GraphModule({k: v for k, v in self.parts.items() if k in used}, graph)
        module.graph.lint()
        return module


def _kept_by(source: nn.Module, path: str) -> Tensor:
    """A tensor that a model keeps as an attribute.

    Raises:
        CaptureError: it keeps none in the mode that it is in.
    """
    try:
        found: Tensor = attrgetter(path)(source)
    except AttributeError as error:
        raise CaptureError(
            f"the forward reads {path}, a tensor that the module computes when it goes to eval mode and keeps as "
            f"no buffer; compute it in the forward, or register it as a buffer"
        ) from error
    return found


def _path(node: fx.Node) -> str:
    """Path of the innermost module whose forward holds a node as traced."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [str(entry[0] if isinstance(entry, tuple) else entry) for entry in stack.values()]
    if node.op == "call_module" and paths and paths[-1] == str(node.target):
        paths.pop()
    return paths[-1].removeprefix("model").removeprefix(".") if paths else ""


def function_name(node: fx.Node) -> str:
    """The bare name of a torch function or tensor method, ``_`` of in-place variants removed; else ""."""
    if node.op == "call_method":
        return str(node.target).removesuffix("_")
    if node.op == "call_function" and callable(node.target):
        module = getattr(node.target, "__module__", None)
        if module in _TORCH_MODULES or module is None:
            return getattr(node.target, "__name__", "").removesuffix("_")
    return ""


def settings(node: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call but for the tensor that it works on: by position, and by keyword."""
    return node.args[1:], {k: v for k, v in node.kwargs.items() if k not in ("input", "self")}


def nodes_in(values: Any) -> list[fx.Node]:
    """The nodes in nested arguments."""
    found: list[fx.Node] = []
    fx.map_arg(values, lambda n: found.append(n) or n)  # type: ignore[func-returns-value]
    return found
