"""What the values of a graph in the making are: numbers, sizes and types, for images of two sizes.

A forward asks questions whose answers are constants of the network: how many channels a map has, whether a shortcut
fits. They are answered by what the graph traced so far computes, on meta images of the model's own size and of
another one, in height, width and number of images. A node is computed when it is first asked for, and once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx, nn

from bu2td.ops import converter_for_type

#: Parameters and buffers up to this many elements have their real values: flags and tables, no weights.
_SMALL = 1024


class Unknown:
    """Stands for a value that cannot be computed on meta tensors: never an answer."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error


class Values:
    """The values of the nodes of a traced graph.

    Attributes:
        paths: what nodes call or read in the root, where their targets say that no more.
        parts: what nodes call or read that are not in the root.

    Args:
        root: what is traced, on the meta device; its submodule ``model`` is a copy of the source.
        source: the model itself, for the values of its flags.
        images: meta images of the model's own size.
    """

    def __init__(self, root: nn.Module, source: nn.Module, images: Tensor) -> None:
        n, channels, height, width = images.shape
        other = images.new_empty((n + 1, channels, 2 * height, 2 * width))
        self._root = root
        self._source = source
        self._images = (images, other)
        self.paths: dict[fx.Node, str] = {}
        self.parts: Mapping[str, Any] = {}
        self._found: tuple[dict[fx.Node, Any], dict[fx.Node, Any]] = ({}, {})

    def of(self, node: fx.Node) -> tuple[Any, Any]:
        """The values of a node for images of the model's own size, and of the other; or `Unknown`."""
        for found, images in zip(self._found, self._images, strict=True):
            for each in _missing(node, found):
                found[each] = self._compute(each, found, images)
        return self._found[0][node], self._found[1][node]

    def _compute(self, node: fx.Node, found: dict[fx.Node, Any], images: Tensor) -> Any:
        if node.op == "placeholder":
            return images
        inputs = [found[n] for n in node.all_input_nodes]
        unknown = next((value for value in inputs if isinstance(value, Unknown)), None)
        if unknown is not None:
            return unknown
        args, kwargs = fx.map_arg((node.args, node.kwargs), found.__getitem__)
        if any(tensor.is_meta for tensor in _tensors((args, kwargs))):
            args, kwargs = on_meta((args, kwargs))
        try:
            with torch.no_grad():
                return self._result(node, args, kwargs)
        except Exception as error:  # whatever the model's own code raises on such images
            return Unknown(error)

    def _result(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        target: Any = node.target
        if node.op in ("call_module", "get_attr"):
            path = self.paths.get(node, target)
            part = self.parts[path] if path in self.parts and node not in self.paths else self._attribute(path)
            return part if node.op == "get_attr" else _called(part, on_meta(args), on_meta(kwargs))
        if node.op == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        return target(*args, **kwargs)

    def _attribute(self, path: str) -> Any:
        """A module, parameter or buffer; a small tensor with the values that it has in the model."""
        own = attrgetter(path)(self._root)
        if not isinstance(own, Tensor) or own.numel() > _SMALL or not path.startswith("model."):
            return own
        real = attrgetter(path.removeprefix("model."))(self._source)
        return real.detach().clone()


def _called(module: nn.Module, args: Any, kwargs: Any) -> Any:
    """What a module returns; where its converter states that, it does not run."""
    converter = converter_for_type(type(module))
    if converter is not None and not kwargs and all(isinstance(arg, Tensor) for arg in args):
        stated = converter.empty_output(module, *args, proof=True)
        if stated is not None:
            return stated
    return module(*args, **kwargs)


def _missing(node: fx.Node, found: dict[fx.Node, Any]) -> list[fx.Node]:
    """The nodes that must be computed before a node, and it, in order."""
    needed, stack = set[fx.Node](), [node]
    while stack:
        at = stack.pop()
        if at not in found and at not in needed:
            needed.add(at)
            stack += at.all_input_nodes
    return sorted(needed)


def on_meta(value: Any) -> Any:
    """Nested arguments with all tensors on the meta device, but for those without dimensions."""
    return _mapped(value, lambda tensor: tensor if tensor.is_meta or not tensor.dim() else tensor.to("meta"))


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: _mapped(each, change) for key, each in value.items()}
    if isinstance(value, list | tuple) and not hasattr(value, "_fields") and not isinstance(value, torch.Size):
        return type(value)(_mapped(each, change) for each in value)
    return value


def _tensors(value: Any) -> Iterable[Tensor]:
    found: list[Tensor] = []
    _mapped(value, lambda tensor: found.append(tensor) or tensor)  # type: ignore[func-returns-value]
    return found
