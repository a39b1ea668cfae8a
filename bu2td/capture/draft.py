"""A traced graph on its way to the canonical one, and how rewrites read and write it."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

from torch import fx, nn

from bu2td.errors import CaptureError
from bu2td.graph import source_line

#: Where torch keeps its functions; elsewhere one of the same name may do something else.
_TORCH_MODULES = ("torch", "torch.nn.functional", "torch._C._nn", "torch.functional", "_operator")


class Draft:
    """A traced graph whose calls and reads have the paths that they have in the model.

    Attributes:
        graph: the graph. What a rewrite leaves without a reader may stay; nodes know their ``path``, the innermost
            module whose forward holds them, and the ``line`` of it.
        parts: what the nodes call or read by its path: modules, parameters and buffers.
        training: whether the model was traced in train mode.

    Raises:
        CaptureError: the forward makes tensors of its own.
    """

    def __init__(self, root: nn.Module, traced: fx.Graph, training: bool) -> None:
        self.graph = traced
        self.parts: dict[str, Any] = {}
        self.training = training
        self._paths: set[str] = set()  # of the parts, and of the modules around them
        modules = dict(root.named_modules(remove_duplicate=False))
        for node in traced.nodes:
            line = {"line": node.meta["line"]} if "line" in node.meta else {}
            node.meta = {"path": _path(node), **line}
            if node.op in ("call_module", "get_attr"):
                path = str(node.target)
                part = modules[path] if path in modules else attrgetter(path)(root)
                node.target = str(node.target).removeprefix("model.")
                if node.target.startswith("_tensor_constant"):
                    raise CaptureError(
                        f"the forward makes a tensor of its own, of shape {tuple(part.shape)}, at "
                        f"{source_line(next(iter(node.users)))}; register it as a buffer of the module"
                    )
                self._take(node.target, part)

    def _take(self, path: str, part: Any) -> None:
        self.parts[path] = part
        while path:
            self._paths.add(path)
            path = path.rpartition(".")[0]

    def module(self, node: Any) -> nn.Module | None:
        """The module that a node calls; None for anything else."""
        is_call = isinstance(node, fx.Node) and node.op == "call_module"
        return self.parts[str(node.target)] if is_call else None

    def call_instead(self, node: fx.Node, name: str, module: nn.Module, source: fx.Node) -> None:
        """Let a new module compute a node's value out of another, and leave the node without a reader.

        Args:
            node: the node.
            name: of the module, in the module whose forward holds the node.
            module: the module.
            source: what it reads.
        """
        base = f"{node.meta['path']}.{name}".strip(".")
        target, count = base, 1
        while target in self._paths:
            target, count = f"{base}_{count}", count + 1
        self._take(target, module)
        with self.graph.inserting_before(node):
            new = self.graph.call_module(target, (source,))
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new)

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
