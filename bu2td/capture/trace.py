"""Pass 1, capture: a model -> its canonical torch.fx graph on the meta device.

The tracer keeps as leaves what must stay whole: torch.nn and torchvision.ops modules, everything with a
converter, timm's no-trace registry less its composite blocks, and stochastic modules (drop path, drop
block, stochastic depth), which a plain trace loses.

Plain tracing bakes ``self.training`` in. The model is therefore traced in train and in eval mode; where
the two differ only by dropout, the train graph is the one that behaves as the model does in both.

Canonical means: functional activations, poolings and dropout are modules, in-place arithmetic is out of
place, identities and dead code are gone. The graph still computes what the model computes.
"""

from __future__ import annotations

import hashlib
import inspect
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from bu2td.capture.canonical import canonicalise
from bu2td.errors import (
    CaptureError,
    DimensionalityError,
    ExampleInputError,
    ModelInputError,
    ModelOutputError,
    NoConvolutionError,
    NotAModelError,
    WrappedModelError,
)
from bu2td.graph.source import is_torch_source
from bu2td.ir.bottom_up import Capture
from bu2td.ops.registry import converter_for_type
from bu2td.ops.roles import Role
from bu2td.ops.surgery import meta_copy

_WRAPPERS = ("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel")


def capture(model: Any, example_inputs: Tensor | None = None) -> Capture:
    """Trace a model into a canonical graph.

    Needs: a live module whose forward takes one image batch (N, C, H, W) and returns logits.
    Returns: its `Capture`; the model itself is not touched, in no mode, parameter or buffer.
    Guarantees: every node of the graph is one of placeholder, call_module, call_function, call_method,
        get_attr, output; all parameters and buffers are on the meta device.

    Raises:
        NotAModelError, WrappedModelError, DimensionalityError, NoConvolutionError, CaptureError,
        ModelInputError, ModelOutputError, ExampleInputError: see `bu2td.errors`.
    """
    model, notes = _checked(model)
    _check_images(example_inputs)
    twin = meta_copy(model)
    images = _likely_images(model, example_inputs)
    evaluated = canonicalise(*_trace(twin, images, training=False), training=False)
    try:
        trained: fx.GraphModule | None = canonicalise(*_trace(twin, images, training=True), training=True)
    except (CaptureError, ModelOutputError):
        trained = None
    if trained is not None and _same_but_dropout(trained, evaluated):
        graph_module = trained
    else:
        graph_module = evaluated
        notes.append(
            "the forward differs between train and eval mode; the top-down network computes the "
            "eval-mode forward in both (auxiliary heads are dropped)"
        )
    shape, shape_notes = _image_shape(model, example_inputs, graph_module)
    return Capture(
        graph_module=graph_module.eval(),
        source=model,
        image_shape=shape,
        constants=_constants(model, graph_module),
        fingerprint=_fingerprint(graph_module),
        notes=(*notes, *shape_notes),
    )


def _checked(model: Any) -> tuple[nn.Module, list[str]]:
    notes: list[str] = []
    if isinstance(model, nn.Module) and hasattr(model, "_orig_mod"):
        model = model._orig_mod
        notes.append("the model was compiled; its original module is converted")
    if not isinstance(model, nn.Module):
        found = f"the class {model.__name__}" if isinstance(model, type) else f"{type(model)}"
        remedy = "call it first" if callable(model) else "build the model first"
        raise NotAModelError(
            f"convert and analyze take a live torch.nn.Module, found {found}; {remedy}, for example "
            f"bu2td.convert(timm.create_model('resnet18'))"
        )
    if type(model).__name__ in _WRAPPERS:
        raise WrappedModelError(
            f"the model is wrapped in {type(model).__name__}; pass the module inside, model.module, "
            f"and wrap the converted network"
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise CaptureError("a TorchScript module cannot be traced; pass the eager module that it was made from")
    modules = list(model.modules())
    for module in modules:
        if isinstance(module, nn.modules.lazy.LazyModuleMixin) and module.has_uninitialized_params():
            raise NotAModelError(
                f"{type(module).__name__} is lazy and has no weights yet; run the model once first"
            )
        _check_weights(module)
    if not any(isinstance(m, nn.Conv2d) or _is_conv(m) for m in modules):
        others = sorted({type(m).__name__ for m in modules if isinstance(m, nn.Conv1d | nn.Conv3d)})
        if others:
            raise DimensionalityError(
                f"{type(model).__name__} convolves in {', '.join(others)}; only networks of 2-d "
                f"convolutions over images (N, C, H, W) can be converted"
            )
        raise NoConvolutionError(
            f"{type(model).__name__} has no 2-d convolution; only convolutional networks can be turned upside down"
        )
    return model, notes


def _check_weights(module: nn.Module) -> None:
    """Refuse weights that are computed from others by a hook or parametrisation."""
    hooks = [type(h) for h in module._forward_pre_hooks.values() if type(h).__module__.startswith("torch.nn.utils")]
    if hooks or nn.utils.parametrize.is_parametrized(module):
        what = hooks[0].__name__ if hooks else "a parametrization"
        raise CaptureError(
            f"the weight of a {type(module).__name__} is computed by {what}; undo it before converting "
            f"(torch.nn.utils.parametrize.remove_parametrizations, or remove_weight_norm, remove_spectral_norm)"
        )


def _is_conv(module: nn.Module) -> bool:
    converter = converter_for_type(type(module))
    return converter is not None and converter.role == Role.CONV


def _check_images(example_inputs: Any) -> None:
    if example_inputs is None:
        return
    if not isinstance(example_inputs, Tensor):
        raise ExampleInputError(f"example_inputs must be one tensor (N, C, H, W), found {type(example_inputs)}")
    shape = tuple(example_inputs.shape)
    if len(shape) != 4 or not example_inputs.is_floating_point():
        raise ExampleInputError(
            f"example_inputs must be a floating point image batch (N, C, H, W), found shape {shape} of "
            f"{example_inputs.dtype}"
        )
    if min(shape) < 1:
        raise ExampleInputError(f"example_inputs is empty: its shape is {shape}")


def _image_shape(
    model: nn.Module, example_inputs: Tensor | None, graph_module: fx.GraphModule
) -> tuple[tuple[int, int, int, int], list[str]]:
    """The shape of an image batch: the example's, else the configuration's, else 1 x C x 224 x 224.

    Without an example, C is what the convolution that reads the image reads.
    """
    if example_inputs is not None:
        n, c, h, w = example_inputs.shape
        return (n, c, h, w), []
    channels = _image_channels(graph_module)
    for name in ("pretrained_cfg", "default_cfg"):
        config: Any = getattr(model, name, None)
        size = config.get("input_size") if hasattr(config, "get") else None
        if size is not None:
            c, h, w = size
            return (1, channels or int(c), int(h), int(w)), []
    channels = channels or 3
    note = f"no example_inputs and no input size in the model's configuration: 1x{channels}x224x224 is assumed"
    return (1, channels, 224, 224), [note]


def _likely_images(model: nn.Module, example_inputs: Tensor | None) -> Tensor:
    """Meta images (2, C, H, W) of the size that the model most likely takes, for what tracing must know."""
    size: Any = example_inputs.shape[1:] if example_inputs is not None else None
    config: Any = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    if size is None and hasattr(config, "get"):
        size = config.get("input_size")
    channels = next((width for m in model.modules() if (width := input_width(m)) is not None), 3)
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    return torch.empty((2, *(size or (channels, 224, 224))), device="meta", dtype=dtype)


def input_width(module: nn.Module) -> int | None:
    """How many channels a module must read, as its converter says."""
    converter = converter_for_type(type(module))
    return None if converter is None else converter.input_width(module)


def _image_channels(graph_module: fx.GraphModule) -> int | None:
    """Input channels of the convolution that reads the image itself, if there is one."""
    image = next(n for n in graph_module.graph.nodes if n.op == "placeholder")
    for user in image.users:
        reader = graph_module.get_submodule(str(user.target)) if user.op == "call_module" else None
        width = None if reader is None else input_width(reader)
        if width is not None:
            return width
    return None


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
    """Traces a model; ``images`` are what it most likely takes."""

    proxy_buffer_attributes = True

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.images = images
        self.measuring = False

    def create_proxy(self, *args: Any, **kwargs: Any) -> Any:
        """Note the line of the model's own code; a fraction of the time of a whole stack trace."""
        proxy = super().create_proxy(*args, **kwargs)
        frame: Any = sys._getframe(1)
        while frame is not None and frame.f_code.co_filename != __file__:
            if not is_torch_source(frame.f_code.co_filename):
                break
            frame = frame.f_back
        if frame is not None and frame.f_code.co_filename != __file__:
            proxy.node.meta["line"] = f"{frame.f_code.co_filename}:{frame.f_lineno}"
        return proxy

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
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
            if not hasattr(error, "_bu2td_path"):
                error._bu2td_path = f"{self.path_of_module(m)} ({type(m).__name__})"  # type: ignore[attr-defined]
            raise


def _trace(model: nn.Module, images: Tensor, training: bool) -> tuple[nn.Module, fx.Graph]:
    _check_signature(model)
    model.train(training)
    root = _Root(model)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return root, _Tracer(images).trace(root)
    except Exception as error:
        raise _capture_error(model, error) from error


def _check_signature(model: nn.Module) -> None:
    try:
        parameters = list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):
        return
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    takes = [p for p in parameters if p.kind in positional]
    required = [p.name for p in parameters if p.default is p.empty and p.kind in positional]
    required += [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    any_number = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    if len(required) > 1:
        raise ModelInputError(
            f"{type(model).__name__}.forward needs {len(required)} inputs ({', '.join(required)}); "
            f"only networks with one image input (N, C, H, W) can be converted"
        )
    if not takes and not any_number:
        raise ModelInputError(
            f"{type(model).__name__}.forward takes no input; it must take one image batch (N, C, H, W)"
        )


def _capture_error(model: nn.Module, error: Exception) -> CaptureError:
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename != __file__ and not is_torch_source(frame.filename)
    ]
    where = f"{frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line}" if frames else "unknown"
    path = getattr(error, "_bu2td_path", type(model).__name__).removeprefix("model.")
    path = path.removeprefix("model (").removesuffix(")") if path.startswith("model (") else path
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return CaptureError(
        f"torch.fx cannot follow the forward of {path}: {reason}\n  at {where}\n"
        f"Make the control flow independent of tensor values, or keep the module whole by registering "
        f"a converter for its class (bu2td.register_converter)"
    )


def _signature(graph_module: fx.GraphModule) -> Iterator[tuple[Any, ...]]:
    """What each node does, with dropout left out and nodes named by their position."""
    modules = dict(graph_module.named_modules())
    index: dict[fx.Node, int] = {}
    count = 0
    for node in graph_module.graph.nodes:
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, nn.modules.dropout._DropoutNd):
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


def _same_but_dropout(a: fx.GraphModule, b: fx.GraphModule) -> bool:
    return list(_signature(a)) == list(_signature(b))


def _fingerprint(graph_module: fx.GraphModule) -> str:
    text = "\n".join(repr(entry) for entry in _signature(graph_module))
    text = re.sub(r" at 0x[0-9a-f]+", "", text)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _constants(model: nn.Module, graph_module: fx.GraphModule) -> dict[str, float]:
    """Parameters of the model that hold one value throughout, by their names in the graph."""
    own = {name for name, _ in graph_module.named_parameters()}
    found: dict[str, float] = {}
    for name, parameter in model.named_parameters():
        if name not in own or parameter.is_meta or parameter.numel() == 0:
            continue
        flat = parameter.detach().reshape(-1)
        first = flat[0]
        # Weights of convolutions differ in their first few values; only then is the rest looked at.
        if bool((flat[:8] == first).all()) and bool((flat == first).all()):
            found[name] = float(first)
    return found
