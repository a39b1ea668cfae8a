"""The stage: a model is traced in train and in eval mode, and one of the two graphs is kept.

Plain tracing bakes ``self.training`` in. Where the two graphs differ only by dropout, that of train mode is the one
that behaves as the model does in both.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn

from bu2td.capture.canonical import canonicalise
from bu2td.capture.checks import check_images, check_model, unwrapped
from bu2td.capture.fingerprint import fingerprint, same_but_dropout
from bu2td.capture.images import image_shape, likely_images
from bu2td.capture.tracer import trace
from bu2td.errors import CaptureError, ModelOutputError
from bu2td.ir import Capture, FrozenMap
from bu2td.ops import meta_copy


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
    model, wrapping = unwrapped(model)
    check_model(model)
    check_images(example_inputs)
    graph_module, modes = _graph(meta_copy(model), likely_images(model, example_inputs))
    shape, assumed = image_shape(model, example_inputs, graph_module)
    return Capture(
        graph_module=graph_module.eval(),
        source=model,
        image_shape=shape,
        constants=_constants(model, graph_module),
        fingerprint=fingerprint(graph_module),
        notes=(*wrapping, *modes, *assumed),
    )


def _graph(twin: nn.Module, images: Tensor) -> tuple[fx.GraphModule, tuple[str, ...]]:
    """The canonical graph of a copy of the model, and a note where the copy runs otherwise in train mode."""
    evaluated = canonicalise(*trace(twin, images, training=False), training=False)
    try:
        trained = canonicalise(*trace(twin, images, training=True), training=True)
    except (CaptureError, ModelOutputError):
        trained = None
    if trained is not None and same_but_dropout(trained, evaluated):
        return trained, ()
    note = (
        "the forward differs between train and eval mode; the top-down network computes the "
        "eval-mode forward in both (auxiliary heads are dropped)"
    )
    return evaluated, (note,)


def _constants(model: nn.Module, graph_module: fx.GraphModule) -> FrozenMap[str, float]:
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
    return FrozenMap(found)
