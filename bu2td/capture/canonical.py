"""Part of capture: a traced graph -> its canonical form, and where nodes come from."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from bu2td.errors import CaptureError, ModelOutputError
from bu2td.graph.source import source_line
from bu2td.nn import ScaledSiLU

_ACTIVATIONS: dict[str, Callable[..., nn.Module]] = {
    "relu": lambda inplace=False: nn.ReLU(inplace),
    "relu6": lambda inplace=False: nn.ReLU6(inplace),
    "silu": lambda inplace=False: nn.SiLU(inplace),
    "hardswish": lambda inplace=False: nn.Hardswish(inplace),
    "hardsigmoid": lambda inplace=False: nn.Hardsigmoid(inplace),
    "leaky_relu": lambda negative_slope=0.01, inplace=False: nn.LeakyReLU(negative_slope, inplace),
    "elu": lambda alpha=1.0, inplace=False: nn.ELU(alpha, inplace),
    "selu": lambda inplace=False: nn.SELU(inplace),
    "celu": lambda alpha=1.0, inplace=False: nn.CELU(alpha, inplace),
    "mish": lambda inplace=False: nn.Mish(inplace),
    "hardtanh": lambda min_val=-1.0, max_val=1.0, inplace=False: nn.Hardtanh(min_val, max_val, inplace),
    "gelu": lambda approximate="none": nn.GELU(approximate),
    "sigmoid": lambda: nn.Sigmoid(),
    "tanh": lambda: nn.Tanh(),
    "softplus": lambda beta=1.0, threshold=20.0: nn.Softplus(beta, threshold),
    "logsigmoid": lambda: nn.LogSigmoid(),
}


def _max_pool(
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> nn.Module:
    return nn.MaxPool2d(kernel_size, stride, padding, dilation, return_indices, ceil_mode)


_POOLS: dict[str, Callable[..., nn.Module]] = {
    "max_pool2d": _max_pool,
    "avg_pool2d": nn.AvgPool2d,
    "adaptive_avg_pool2d": nn.AdaptiveAvgPool2d,
    "adaptive_max_pool2d": nn.AdaptiveMaxPool2d,
}


#: Activations that people write as clamps, by their bounds.
_CLAMPS: dict[Any, type[nn.Module]] = {(0, None): nn.ReLU, (0, 6): nn.ReLU6}


_VALUE_BY_VALUE = ("clamp", "pow", "abs", "relu")


#: Poolings over the whole map, where the window is as large as the map.
_WHOLE = {"avg_pool2d": nn.AdaptiveAvgPool2d, "max_pool2d": nn.AdaptiveMaxPool2d}


_DROPOUTS: dict[str, Callable[..., nn.Module]] = {
    "dropout": lambda p=0.5, training=True, inplace=False: nn.Dropout(p, inplace),
    "dropout2d": lambda p=0.5, training=True, inplace=False: nn.Dropout2d(p, inplace),
}


_AS_MODULE = {**_ACTIVATIONS, **_POOLS, **_DROPOUTS}


_OUT_OF_PLACE: dict[Any, Any] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}


_METHODS_OUT_OF_PLACE = ("add_", "sub_", "mul_", "div_", "relu_", "sigmoid_", "clamp_", "tanh_")


#: Modules in which a function of this name means something else than torch's.
_TORCH_MODULES = ("torch", "torch.nn.functional", "torch._C._nn", "torch.functional", "_operator")


def _function_name(node: fx.Node) -> str | None:
    """The bare name of a torch function or tensor method, ``_`` of in-place variants removed."""
    if node.op == "call_method":
        return str(node.target).removesuffix("_")
    if node.op == "call_function" and callable(node.target):
        module = getattr(node.target, "__module__", None)
        if module in _TORCH_MODULES or module is None:
            return getattr(node.target, "__name__", "").removesuffix("_")
    return None


def canonicalise(root: nn.Module, traced: fx.Graph, training: bool) -> fx.GraphModule:
    """Build the canonical graph out of a traced one.

    Needs: the traced root, whose one submodule ``model`` is the network, and its graph.
    Returns: a graph module with the network's own module paths. Functional activations, poolings and dropout
        are modules, in-place arithmetic is out of place, identities and dead code are gone.
    Guarantees: it computes what the traced graph computes, and returns one tensor.

    Raises:
        CaptureError: the forward makes tensors of its own.
        ModelOutputError: it returns anything else than one tensor (auxiliary outputs aside).
    """
    modules = dict(root.named_modules())
    graph = fx.Graph()
    env: dict[fx.Node, Any] = {}
    kept: dict[str, Any] = {}
    inplace_arithmetic: dict[fx.Node, fx.Node] = {}

    def lookup(node: fx.Node) -> Any:
        # A value that was changed in place is read in its latest version.
        while node in inplace_arithmetic:
            node = inplace_arithmetic[node]
        return env[node]

    for node in traced.nodes:
        args = fx.map_arg(node.args, lookup)
        kwargs = fx.map_arg(node.kwargs, lookup)
        if node.op == "placeholder":
            new = graph.placeholder("x")
        elif node.op == "output":
            new = graph.output(_single_output(args[0], training))
        elif node.op == "call_function" and hasattr(node.target, "_fields"):
            env[node] = node.target(*args, **kwargs)  # a named tuple of outputs stays one
            continue
        elif node.op == "get_attr":
            target = str(node.target).removeprefix("model.")
            if target.startswith("_tensor_constant"):
                raise CaptureError(
                    f"the forward makes a tensor of its own, of shape {tuple(_attribute(root, target).shape)}, at "
                    f"{source_line(next(iter(node.users)))}; register it as a buffer of the module"
                )
            kept[target] = _attribute(root, str(node.target))
            new = graph.get_attr(target)
        elif node.op == "call_module":
            module = modules[str(node.target)]
            if isinstance(module, nn.Identity):
                env[node] = args[0]
                continue
            target = str(node.target).removeprefix("model.")
            kept[target] = module
            new = graph.call_module(target, args, kwargs)
        else:
            same = _identity(node, args)
            if same is not None:
                env[node] = same
                continue
            new = _canonical_call(graph, node, args, kwargs, kept)
            if node.op == "call_method" and node.target in _METHODS_OUT_OF_PLACE:
                inplace_arithmetic[node.args[0]] = node
        env[node] = new
        new.meta["path"] = _path(node)
        if "line" in node.meta:
            new.meta["line"] = node.meta["line"]
    _name_activations(graph, kept)
    _flatten_growing_concats(graph)
    graph.eliminate_dead_code(lambda n: n.op in ("placeholder", "output"))
    used = {str(n.target) for n in graph.nodes if n.op in ("call_module", "get_attr")}
    module = fx.GraphModule({k: v for k, v in kept.items() if k in used}, graph)
    module.graph.lint()
    return module


def _name_activations(graph: fx.Graph, kept: dict[str, Any]) -> None:
    """Make modules of activations written by hand, ``x * sigmoid(x)`` say."""
    for node in list(graph.nodes):
        source, module = _self_gated(node, kept)
        if module is not None:
            target = _free_name(f"{node.meta.get('path', '')}.{type(module).__name__.lower()}".strip("."), kept)
            kept[target] = module
            with graph.inserting_before(node):
                new = graph.call_module(target, (source,))
            new.meta = dict(node.meta)
            node.replace_all_uses_with(new)


def _self_gated(node: fx.Node, kept: dict[str, Any]) -> tuple[Any, nn.Module | None]:
    """The x that a value is an activation of, and which; None where it is none.

    x sigmoid(x) is SiLU, x sigmoid(c x) its scaled form, x tanh(softplus(x)) Mish, relu6(x + 3) / 6
    Hardsigmoid and x relu6(x + 3) / 6 Hardswish.
    """

    def read_by(value: Any, kind: type[nn.Module]) -> Any:
        """What a module of this kind reads, if the value is its output."""
        is_call = isinstance(value, fx.Node) and value.op == "call_module"
        return value.args[0] if is_call and isinstance(kept[str(value.target)], kind) else None

    def shifted(value: Any) -> Any:
        """The x of relu6(x + 3)."""
        terms = _operands(read_by(value, nn.ReLU6), "add")
        return next((x for x, three in terms if three == 3 and isinstance(x, fx.Node)), None)

    dividend = _sixfold(node)
    if shifted(dividend) is not None:
        return shifted(dividend), nn.Hardsigmoid()
    for x, gate in _operands(dividend, "mul"):
        if isinstance(x, fx.Node) and shifted(gate) is x:
            return x, nn.Hardswish()
    for x, gate in _operands(node, "mul"):
        if not isinstance(x, fx.Node):
            continue
        if read_by(gate, nn.Sigmoid) is x:
            return x, nn.SiLU()
        if read_by(gate, nn.Hardsigmoid) is x:
            return x, nn.Hardswish()
        if read_by(read_by(gate, nn.Tanh), nn.Softplus) is x:
            return x, nn.Mish()
        for inner, scale in _operands(read_by(gate, nn.Sigmoid), "mul"):
            if inner is x and isinstance(scale, int | float):
                return x, ScaledSiLU(scale)
    return None, None


def _operands(value: Any, name: str) -> list[tuple[Any, Any]]:
    """Both orders of the operands of a sum or product; none if the value is not one."""
    is_call = isinstance(value, fx.Node) and value.op in ("call_function", "call_method")
    if is_call and _function_name(value) in (name, f"{name}tiply") and len(value.args) == 2 and not value.kwargs:
        return [(value.args[0], value.args[1]), (value.args[1], value.args[0])]
    return []


def _sixfold(node: fx.Node) -> Any:
    """The v of v / 6 or v * (1 / 6)."""
    if _function_name(node) in ("truediv", "div") and len(node.args) == 2 and node.args[1] == 6:
        return node.args[0]
    return next((v for v, sixth in _operands(node, "mul") if sixth == 1 / 6), None)


def _flatten_growing_concats(graph: fx.Graph) -> None:
    """Write ``x = cat([x, f(x)])``, repeated, as the concat of all parts that it is.

    Only where every part is computed from one of them: what parallel branches join stays a value.
    """
    growing: set[fx.Node] = set()
    for node in graph.nodes:
        parts = _concatenated(node)
        if not any(map(_concatenated, [*parts, *node.users])):
            continue
        first = next((p for p in parts if _all_computed_from(p, parts, node)), None)
        if first is None or len(parts) < 2:
            continue
        growing.add(node)
        if first in growing and _dimension(first) == _dimension(node):
            flat = [inner for p in parts for inner in (_concatenated(p) if p is first else [p])]
            node.args, node.kwargs = (flat, _dimension(node)), {}


def _concatenated(node: fx.Node) -> list[fx.Node]:
    """The parts of a concat; none for other operations."""
    parts = node.args[0] if node.args and _function_name(node) in ("cat", "concat") else ()
    is_list = isinstance(parts, list | tuple) and all(isinstance(p, fx.Node) for p in parts)
    return list(parts) if is_list else []  # type: ignore[arg-type]


def _dimension(node: fx.Node) -> Any:
    return node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)


def _all_computed_from(source: fx.Node, parts: list[fx.Node], end: fx.Node) -> bool:
    """Whether all parts are a value or computed from it, in a graph that is in order."""
    reached, node = {source}, source.next
    while node is not end:
        if not reached.isdisjoint(node.all_input_nodes):
            reached.add(node)
        node = node.next
    return reached.issuperset(parts)


def _canonical_call(graph: fx.Graph, node: fx.Node, args: Any, kwargs: Any, kept: dict[str, Any]) -> fx.Node:
    name = _function_name(node)
    if name in _AS_MODULE and args and isinstance(args[0], fx.Node):
        try:
            settings = {k: v for k, v in kwargs.items() if k not in ("input", "self")}
            module = _AS_MODULE[name](*args[1:], **settings)
        except (TypeError, ValueError):
            module = None
        if module is not None and not _nodes_in((args[1:], settings)):
            target = _free_name(f"{_path(node)}.{name}".strip("."), kept)
            kept[target] = module
            return graph.call_module(target, (args[0],))
    if name in ("clamp", "clamp_min") and not _nodes_in((args[1:], kwargs)):
        bounds = {**dict(zip(("min", "max"), args[1:], strict=False)), **kwargs}
        act = _CLAMPS.get((bounds.get("min"), bounds.get("max")))
        if act is not None:
            target = _free_name(f"{_path(node)}.{name}".strip("."), kept)
            kept[target] = act()
            return graph.call_module(target, (args[0],))
    if name in _WHOLE and _is_own_size(node, args, kwargs):
        target = _free_name(f"{_path(node)}.{name}".strip("."), kept)
        kept[target] = _WHOLE[name](1)
        return graph.call_module(target, (args[0],))
    if node.op == "call_method":
        target = str(node.target)
        if target in _METHODS_OUT_OF_PLACE:
            target = target.removesuffix("_")
        if target == "view" and not any(isinstance(a, torch.dtype) for a in args):
            target = "reshape"  # the same, and it also works on channels_last tensors
        return graph.call_method(target, args, kwargs)
    return graph.call_function(_OUT_OF_PLACE.get(node.target, node.target), args, kwargs)


def _nodes_in(values: Any) -> list[fx.Node]:
    """The nodes in nested arguments."""
    found: list[fx.Node] = []
    fx.map_arg(values, lambda n: found.append(n) or n)  # type: ignore[func-returns-value]
    return found


def _free_name(base: str, kept: dict[str, Any]) -> str:
    target, count = base, 1
    while target in kept:
        target, count = f"{base}_{count}", count + 1
    return target


def _is_own_size(node: fx.Node, args: Any, kwargs: Any) -> bool:
    """Whether a pooling's only setting is a window that is read from the size of what it pools."""
    settings = [*args[1:], *(v for k, v in kwargs.items() if k not in ("input", "self"))]
    windows = [s for s in settings if _nodes_in(s)]
    sources = _nodes_in(windows)
    while any(n.op == "call_function" and n.target in (getattr, operator.getitem) for n in sources):
        sources = [n.args[0] if n.target in (getattr, operator.getitem) else n for n in sources]  # type: ignore[misc]
    sizes = [n.args[0] if (n.op, n.target) == ("call_method", "size") else n for n in sources]
    own = [args[0]]  # and what it is made of value by value: a generalised mean pools x.clamp(..).pow(p)
    while _function_name(own[-1]) in _VALUE_BY_VALUE and isinstance(own[-1].args[0], fx.Node):
        own.append(own[-1].args[0])
    plain = len(windows) == 1 and all(s in (None, 0, 1) for s in settings if not _nodes_in(s))
    return plain and all(source in own for source in sizes)


def _identity(node: fx.Node, args: Any) -> Any:
    """The value that a node hands on as it is; None if it computes something."""
    name = _function_name(node)
    if name == "contiguous":
        return args[0]
    if name in ("cat", "concat") and isinstance(args[0], list | tuple) and len(args[0]) == 1:
        return args[0][0]
    if name == "add" and args[:1] == (0,) and isinstance(args[1], fx.Node):
        return args[1]  # sum() starts with 0
    return None


def _single_output(output: Any, training: bool) -> Any:
    """The logits of an output: the tensor itself, or the first of a tuple with auxiliary outputs.

    Auxiliary outputs are those of a named tuple whose first field is the logits, or of train mode alone.
    """
    if isinstance(output, fx.Node):
        return output
    if isinstance(output, tuple | list) and output and isinstance(output[0], fx.Node):
        names = getattr(output, "_fields", None)
        auxiliary = names[0] in ("logits", "out", "output") if names else training or len(output) == 1
        if auxiliary:
            return output[0]
    found = f"a dict with keys {sorted(output)}" if isinstance(output, dict) else f"a {type(output).__name__}"
    found += f" of {len(output)} values" if isinstance(output, tuple | list) else ""
    raise ModelOutputError(
        f"the model returns {found}; a network that returns one tensor of logits (N, classes) is "
        f"needed (wrap it in a module that selects them)"
    )


def _attribute(root: nn.Module, target: str) -> Any:
    owner: Any = root
    for part in target.split("."):
        owner = getattr(owner, part)
    return owner


def _path(node: fx.Node) -> str:
    """Path of the innermost module whose forward holds the node."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [str(entry[0] if isinstance(entry, tuple) else entry) for entry in stack.values()]
    if node.op == "call_module" and paths and paths[-1] == str(node.target):
        paths.pop()
    return paths[-1].removeprefix("model").removeprefix(".") if paths else ""
