"""The tracer: a model's forward -> the torch.fx graph of everything that it calls.

It keeps as leaves what must stay whole, as converters say, and what torch.fx itself keeps. Beyond torch.fx it
knows of how many parts a value consists, so that a forward may unpack them, and where each node was written.
"""

from __future__ import annotations

import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from bu2td.errors import CaptureError
from bu2td.graph import is_torch_source
from bu2td.ops import converter_for_type


def trace(model: nn.Module, images: Tensor, training: bool) -> tuple[nn.Module, fx.Graph]:
    """Trace a model in a mode, in which it is left.

    Returns:
        A root whose one submodule ``model`` is the model, and its graph.

    Raises:
        CaptureError: the forward cannot be followed.
    """
    model.train(training)
    root, tracer = _Root(model), _Tracer(images)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return root, tracer.trace(root)
    except Exception as error:
        failed, place = tracer.failure
        raise _unfollowed(place if failed is error else type(model).__name__, error) from error


class _Root(nn.Module):
    """Calls the model with one argument, so that optional arguments keep their defaults."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Any:
        return self.model(x)


class _Proxy(fx.Proxy):
    """A proxy that knows its length where the tracer does, as ``list(proxy)`` asks for it."""

    def __len__(self) -> int:
        tracer: Any = self.tracer
        count = tracer.count(self)
        return super().__len__() if count is None else count  # the first raises


class _Tracer(fx.Tracer):
    """Traces a model.

    Attributes:
        images: what the model most likely takes.
        measuring: a part of the graph is being run, which must not be traced.
        failure: the last exception, and the innermost module in whose forward it was raised, for messages.
    """

    proxy_buffer_attributes = True

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.images = images
        self.measuring = False
        self.failure: tuple[Exception | None, str] = (None, "")

    def create_proxy(self, *args: Any, **kwargs: Any) -> Any:
        """Note the line of the model's own code, in a fraction of the time of a whole stack trace.

        A call of a module has none: it comes through this tracer, and its path tells where it is.
        """
        proxy = super().create_proxy(*args, **kwargs)
        frame: Any = sys._getframe(1)
        while is_torch_source(frame.f_code.co_filename):
            frame = frame.f_back
        if _is_foreign(frame.f_code.co_filename):
            proxy.node.meta["line"] = f"{frame.f_code.co_filename}:{frame.f_lineno}"
        return proxy

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        """Whether a module stays whole: as its converter says, else as torch.fx does."""
        converter = converter_for_type(type(module))
        return super().is_leaf_module(module, qualified_name) if converter is None else converter.leaf

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """A proxy for a node."""
        return _Proxy(node, self)

    def iter(self, obj: Any) -> Iterator[Any]:
        """The parts of a value of several, ``for part in x.chunk(4, 1)``; their number is part of the graph."""
        count = self.count(obj)
        return super().iter(obj) if count is None else iter([obj[i] for i in range(count)])

    def count(self, obj: fx.Proxy) -> int | None:
        """How many tensors or numbers a value consists of, whatever the image size; None where it is one tensor."""
        larger = self.images.new_empty((*self.images.shape[:2], *(2 * n for n in self.images.shape[2:])))
        counts: set[int | None] = set()
        self.measuring = True
        try:
            for images in (self.images, larger):
                value = self._measure(obj.node, images)
                counts.add(len(value) if isinstance(value, tuple | list) else None)
        except Exception:  # whatever the model's own code raises on such images
            return None
        finally:
            self.measuring = False
        return counts.pop() if len(counts) == 1 else None

    def _measure(self, node: fx.Node, images: Tensor) -> Any:
        """Run what has been traced so far, as far as a node needs it."""
        needed, stack = {node}, [node]
        while stack:
            before = set(stack.pop().all_input_nodes) - needed
            needed |= before
            stack += before
        interpreter = fx.Interpreter(self.root, graph=self.graph)
        interpreter.args_iter = iter([images])
        with torch.no_grad():
            for each in self.graph.nodes:
                if each in needed:
                    interpreter.env[each] = interpreter.run_node(each)
        return interpreter.env[node]

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """An attribute that the forward reads, as a proxy if it is a parameter."""
        return attr_val if self.measuring else super().getattr(attr, attr_val, parameter_proxy_cache)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Trace a module's call, noting where it fails."""
        if self.measuring:
            return forward(*args, **kwargs)
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception as error:
            if self.failure[0] is not error:
                path, kind = self.path_of_module(m), type(m).__name__
                self.failure = (error, kind if path == "model" else f"{path.removeprefix('model.')} ({kind})")
            raise


def _is_foreign(file: str) -> bool:
    """Whether a source file is neither torch's nor this one: the model's own code."""
    return file != __file__ and not is_torch_source(file)


def _unfollowed(path: str, error: Exception) -> CaptureError:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_foreign(frame.filename)]
    where = f"{frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line}" if frames else "unknown"
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return CaptureError(
        f"torch.fx cannot follow the forward of {path}: {reason}\n  at {where}\n"
        f"Make the control flow independent of tensor values, or keep the module whole by registering "
        f"a converter for its class (bu2td.register_converter)"
    )
