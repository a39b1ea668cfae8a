"""The tracer: a model's forward -> the torch.fx graph of everything that it calls.

It keeps as leaves what must stay whole, as converters say, and what torch.fx itself keeps. Beyond torch.fx it
answers what the forward asks of its values (see `bu2td.capture.values`), and knows where each node was written.
"""

from __future__ import annotations

import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from bu2td.capture.guards import passing_answer
from bu2td.capture.namespaces import holds_proxy, own_names
from bu2td.capture.outputs import plain
from bu2td.capture.proxy import Proxy
from bu2td.capture.values import Unknown, Values
from bu2td.errors import Bu2tdError, CaptureError, ExampleInputError, first_line
from bu2td.graph import is_torch_source
from bu2td.ops import converter_for_type


@dataclass(frozen=True, eq=False)
class Traced:
    """What tracing a model in one mode gives.

    Attributes:
        root: its one submodule ``model`` is the model.
        graph: of everything that the forward calls; its output is what the forward returns, in tuples and dicts.
        values: what its nodes compute.
        training: the mode.
        notes: where the forward goes another way at other image sizes.
    """

    root: nn.Module
    graph: fx.Graph
    values: Values
    training: bool
    notes: tuple[str, ...]


def trace(model: nn.Module, source: nn.Module, images: Tensor, training: bool) -> Traced:
    """Trace a model in a mode, in which it is left.

    Args:
        model: on the meta device.
        source: whose copy it is.
        images: meta images of the size that it works on.
        training: the mode.

    Raises:
        CaptureError: the forward cannot be followed.
        ExampleInputError: it does not run on such images.
    """
    model.train(training)
    root = _Root(model)
    tracer = _Tracer(root, source, images)
    try:
        with (
            warnings.catch_warnings(),
            own_names(model, tracer),
            _entered_by_name(model, tracer),
            _own_tensors(tracer),
        ):
            warnings.simplefilter("ignore")
            graph = tracer.trace(root)
    except Exception as error:
        failed, place = tracer.failure
        raise _unfollowed(place if failed is error else type(model).__name__, error, tracer) from error
    return Traced(root, graph, tracer.values, training, tuple(tracer.notes))


class _Root(nn.Module):
    """Calls the model with one argument, so that optional arguments keep their defaults."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Any:
        return plain(self.model(x))


class _DependsOnSizeError(Exception):
    """A number that the forward needs depends on the size of the image."""


class _UnansweredError(Exception):
    """What the forward asks depends on the values of tensors."""


class _Tracer(fx.Tracer):
    """Traces a model.

    Attributes:
        values: what has been traced so far computes.
        measuring: a part of the graph is being run, which must not be traced.
        failure: the last exception, and the innermost module in whose forward it was raised, for messages.
        unfit: why the model does not run on the images, once a question showed that.
        notes: questions whose answers depend on the size of the image.
    """

    proxy_buffer_attributes = True

    def __init__(self, root: _Root, source: nn.Module, images: Tensor) -> None:
        super().__init__(autowrap_modules=())  # type: ignore[arg-type]  # `own_names` sees to them
        self.model, self.source = root.model, source
        self.values = Values(root, source, images)
        self.images = images
        self.measuring = False
        self.failure: tuple[Exception | None, str] = (None, "")
        self.unfit: Exception | None = None
        self.notes: dict[str, None] = {}
        self._entering: nn.Module | None = None

    def create_proxy(self, *args: Any, **kwargs: Any) -> Any:
        """Note the line of the model's own code, in a fraction of the time of a whole stack trace."""
        proxy = super().create_proxy(*args, **kwargs)
        file, line = _place(sys._getframe(1))
        if _is_foreign(file):
            proxy.node.meta["line"] = f"{file}:{line}"
        return proxy

    def create_arg(self, a: Any) -> Any:
        """An argument of a node; a parameter or buffer that the model does not register is refused."""
        if isinstance(a, nn.Parameter) and all(a is not p for p in self.root.parameters()):
            raise _UnansweredError(
                f"the forward reads weights of shape {tuple(a.shape)} that belong to no module of the model: they "
                f"are made in the forward, or kept in a plain list or dict (use nn.ModuleList, nn.ParameterDict)"
            )
        return super().create_arg(a)

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        """Whether a module stays whole: as its converter says, else as torch.fx does."""
        converter = converter_for_type(type(module))
        return super().is_leaf_module(module, qualified_name) if converter is None else converter.leaf

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """A proxy for a node."""
        return Proxy(node, self)

    # -- questions ---------------------------------------------------------------------------------

    def to_bool(self, obj: fx.Proxy) -> bool:
        """The truth of a value, for ``if`` and ``assert``."""
        return bool(self.answer(obj, bool))

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """The parts of a value of several, ``for part in x.chunk(4, 1)``; their number is part of the graph."""
        return iter([obj[i] for i in range(self.answer(obj, len))])  # type: ignore[index]

    def answer(self, obj: fx.Proxy, question: Callable[[Any], Any]) -> Any:
        """What a function says of a value, if it is the same for images of any size.

        A truth that depends on the size is that of the model's own size, and noted unless a guard asks.
        """
        own, other = self._both(obj, question)
        place = _place(sys._getframe(1))
        if isinstance(own, Unknown):
            passing = passing_answer(*place) if question is bool else None
            if passing is not None:
                return passing
            raise self._no_answer(own, question)
        if isinstance(other, Unknown) or own == other:
            return own
        if question is not bool:
            raise _DependsOnSizeError(
                f"it needs a number that depends on the image: {own} for {tuple(self.images.shape)}, {other} for "
                f"one more image of twice the size"
            )
        if passing_answer(*place) is None:
            self.notes.setdefault(self._fork(place, own))
        return own

    def number(self, obj: fx.Proxy, kind: Callable[[Any], Any]) -> Any:
        """A number made of a value: a constant if it is the same at all sizes, else a value of the graph."""
        own, other = self._both(obj, kind)
        if not isinstance(own, Unknown) and not isinstance(other, Unknown) and own == other:
            return own
        return self.create_proxy("call_function", kind, (obj,), {})

    def kind(self, obj: fx.Proxy) -> type | None:
        """The class of a value; None where it is not known."""
        own, _ = self._both(obj, lambda value: value)
        return None if isinstance(own, Unknown) else type(own)

    def _both(self, obj: fx.Proxy, question: Callable[[Any], Any]) -> list[Any]:
        """What a function says of a value at both sizes."""
        self.measuring = True
        try:
            return [_asked(value, question) for value in self.values.of(obj.node)]
        finally:
            self.measuring = False

    def _no_answer(self, unknown: Unknown, question: Callable[[Any], Any]) -> Exception:
        reason = str(unknown.error)
        if isinstance(unknown.error, TypeError) and question is len:
            return unknown.error
        if isinstance(unknown.error, RuntimeError | ValueError | IndexError) and "meta" not in reason:
            self.unfit = unknown.error
        return _UnansweredError("its control flow depends on the values of tensors, or on what needs them")

    def _fork(self, place: tuple[str, int], taken: bool) -> str:
        size = "x".join(map(str, self.images.shape[2:]))
        return (
            f"what {place[0]}:{place[1]} asks depends on the size of the image; the network goes the way of {size} "
            f"images ({taken}) at all sizes"
        )

    # -- calls -------------------------------------------------------------------------------------

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """An attribute that the forward reads, as a proxy if it is a parameter."""
        return attr_val if self.measuring else super().getattr(attr, attr_val, parameter_proxy_cache)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Trace a module's call, noting where it fails. What the forward itself makes is followed inside."""
        if self.measuring or (self.submodule_paths is not None and m not in self.submodule_paths):
            return forward(*args, **kwargs)
        inner = m.module if isinstance(m, nn.DataParallel) else getattr(m, "_orig_mod", None)
        if inner is not None:  # runs as what it wraps does
            return inner(*args, **kwargs)
        if (args or kwargs) and not holds_proxy((args, kwargs)):  # None, or a number: no value of the graph
            return forward(*args, **kwargs)
        try:
            return super().call_module(m, self._entered(m, forward), args, kwargs)
        except Exception as error:
            if self.failure[0] is not error:
                path, kind = self.path_of_module(m), type(m).__name__
                self.failure = (error, kind if path == "model" else f"{path.removeprefix('model.')} ({kind})")
            raise

    def _entered(self, module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        def enter(*args: Any, **kwargs: Any) -> Any:
            self._entering = module
            return forward(*args, **kwargs)

        return enter

    def called_by_name(self, module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """``module.forward(x)``: what ``module(x)`` is, unless that is just being done."""
        if self.measuring:
            return forward(*args, **kwargs)
        if self._entering is module:
            self._entering = None
            return forward(*args, **kwargs)
        return self.call_module(module, forward, args, kwargs)


@contextmanager
def _entered_by_name(model: nn.Module, tracer: _Tracer) -> Iterator[None]:
    """Let ``module.forward(x)`` be traced as ``module(x)`` is."""
    named = [m for m in model.modules() if "forward" not in vars(m) and not isinstance(m, torch.jit.ScriptModule)]
    try:
        for module in named:
            vars(module)["forward"] = _by_name(module, tracer)
        yield
    finally:
        for module in named:
            vars(module).pop("forward", None)


@contextmanager
def _own_tensors(tracer: _Tracer) -> Iterator[None]:
    """Let a forward that is followed see the values of tensors that its module keeps as mere attributes."""
    model, source = tracer.model, dict(tracer.source.named_modules())
    before: list[tuple[dict[str, Any], str, Tensor]] = []
    try:
        for name, module in model.named_modules():
            if name not in source or tracer.is_leaf_module(module, name):
                continue
            for key, value in vars(module).items():
                real = vars(source[name]).get(key)
                if isinstance(value, Tensor) and isinstance(real, Tensor):
                    before.append((vars(module), key, value))
                    vars(module)[key] = real.detach().clone()
        yield
    finally:
        for attributes, key, value in before:
            attributes[key] = value


def _by_name(module: nn.Module, tracer: _Tracer) -> Callable[..., Any]:
    own = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        return tracer.called_by_name(module, own, args, kwargs)

    return forward


def _asked(value: Any, question: Callable[[Any], Any]) -> Any:
    if isinstance(value, Unknown):
        return value
    try:
        return question(value)
    except Exception as error:  # a tensor whose elements are not there, or what has no such answer
        return Unknown(error)


def _place(frame: Any) -> tuple[str, int]:
    """The innermost line of the model's own code; one of this file where there is none."""
    while frame.f_code is not trace.__code__ and not _is_foreign(frame.f_code.co_filename):
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno


_HERE = __file__.rpartition("tracer")[0]


def _is_foreign(file: str) -> bool:
    """Whether a source file is neither torch's nor one of this stage: the model's own code."""
    return not file.startswith(_HERE) and not is_torch_source(file)


def _unfollowed(path: str, error: Exception, tracer: _Tracer) -> Bu2tdError:
    """What it means that a forward cannot be followed."""
    if isinstance(error, Bu2tdError):
        return error
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_foreign(frame.filename)]
    where = f"{frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line}" if frames else "unknown"
    if tracer.unfit is not None:
        return ExampleInputError(
            f"the model does not run on an image of shape {tuple(tracer.images.shape)}: "
            f"{first_line(tracer.unfit)}\n"
            f"  asked for in {path} at {where}\n"
            f"Pass example_inputs with the channels and size that the model expects"
        )
    return CaptureError(
        f"the forward of {path} cannot be followed: {first_line(error)}\n  at {where}\n{_remedy(error, where)}"
    )


def _remedy(error: Exception, where: str) -> str:
    if isinstance(error, _DependsOnSizeError):
        return (
            "Let the forward compute with sizes as they are (x.shape, without int or range), or make it a setting"
        )
    if any(folder in where for folder in ("site-packages", "dist-packages", "unknown")):
        return "The line is a library's: look for a setting of the model that goes another way"
    return (
        "Make the control flow independent of tensor values, or keep the module whole by registering "
        "a converter for its class (bu2td.register_converter)"
    )
