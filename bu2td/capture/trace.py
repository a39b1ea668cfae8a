"""The stage: a model is traced in train and in eval mode, and one of the two graphs is kept.

Plain tracing bakes ``self.training`` in. Where the two graphs differ only by dropout, that of train mode is the one
that behaves as the model does in both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx, nn

from bu2td.capture.canonical import Canonical, canonicalise
from bu2td.capture.checks import check_convolutions, check_images, check_layers, check_model, unwrapped
from bu2td.capture.fingerprint import fingerprint, identity, same_but_dropout
from bu2td.capture.images import Nominal, nominal_images
from bu2td.capture.makers import is_drawn
from bu2td.capture.scripted import unscript
from bu2td.capture.tracer import trace
from bu2td.errors import Bu2tdError, CaptureError, ExampleInputError, ModelOutputError
from bu2td.graph import shapes_of, source_line, undisturbed
from bu2td.ir import Capture, FrozenMap
from bu2td.ops import meta_copy


@undisturbed()
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
    twin = meta_copy(model)
    unscript(twin)
    try:
        found, nominal = _at_its_size(twin, model, example_inputs)
    except (CaptureError, ExampleInputError, ModelOutputError):
        check_layers(model)  # a network without convolutions is told so first
        raise
    check_convolutions(model, found.graph_module)
    return Capture(
        graph_module=found.graph_module.eval(),
        source=model,
        image_shape=nominal.shape,
        constants=_constants(model, found),
        fingerprint=fingerprint(found.graph_module),
        identity=identity(found.graph_module),
        tensors=found.tensors,
        notes=(*wrapping, *found.notes, *nominal.notes, *_frozen(model, found.graph_module)),
    )


def _at_its_size(twin: nn.Module, model: nn.Module, example_inputs: Tensor | None) -> tuple[Canonical, Nominal]:
    """The canonical graph of a copy of the model, and the images that it runs on: the first of the likely ones.

    Raises:
        Bu2tdError: that of the likeliest images, if it runs on none.
    """
    first: Bu2tdError | None = None
    for nominal in nominal_images(model, example_inputs):
        try:
            found = _graph(twin, model, nominal.images)
            nominal = nominal.read_by(found.graph_module)
            if nominal.assumed or nominal.guessed:
                _check_run(found.graph_module, (2, *nominal.shape[1:]))
        except ExampleInputError as error:
            first = first or error
        else:
            return found, nominal
    assert first is not None
    raise first


def _frozen(model: nn.Module, graph_module: fx.GraphModule) -> tuple[str, ...]:
    """What to say of parameters that the model does not train, while it trains others."""
    used = {name for name, _ in graph_module.named_parameters()}
    own = [(name, p) for name, p in model.named_parameters() if name in used]
    frozen = [name for name, p in own if not p.requires_grad]
    if not frozen or len(frozen) == len(own):
        return ()
    named = f"{', '.join(frozen[:3])}{', ..' if len(frozen) > 3 else ''}"
    return (
        f"{len(frozen)} of {len(own)} parameters are frozen in the model ({named}); in the converted network those "
        f"behind the pyramid are new, and trained",
    )


def _check_run(graph_module: fx.GraphModule, shape: tuple[int, ...]) -> None:
    """Check that a graph runs on images of a size, and returns one row for each.

    Raises:
        ExampleInputError: it does not.
    """
    shapes = shapes_of(graph_module, shape)
    output: Any = next(n for n in reversed(graph_module.graph.nodes) if n.op == "output").args[0]
    found = shapes[output.name]
    if isinstance(found, tuple) and found[:1] != shape[:1]:
        raise ExampleInputError(
            f"the model makes an output of shape {found} of {shape[0]} images of {shape[2]}x{shape[3]}: it takes "
            f"images of another size; pass example_inputs with the channels and size that the model expects"
        )


def _graph(twin: nn.Module, model: nn.Module, images: Tensor) -> Canonical:
    """The canonical graph of a copy of the model, and notes on where the copy does otherwise."""
    evaluated = canonicalise(trace(twin, model, images, training=False), model)
    try:
        trained = canonicalise(trace(twin, model, images, training=True), model)
    except (CaptureError, ModelOutputError, ExampleInputError) as error:
        reason = str(error).partition("\n")[0]
        return evaluated.noting(f"the forward of train mode is not followed ({reason}); {_EVAL_IN_BOTH}")
    choices = range(1, len(evaluated.others) + 1)
    for choice in (0, *choices):  # of several outputs, the one that is trained
        if choice:
            evaluated = canonicalise(trace(twin, model, images, training=False), model, choice)
        if same_but_dropout(trained.graph_module, evaluated.graph_module):
            return trained.noting(*evaluated.chosen)
    if choices:
        evaluated = canonicalise(trace(twin, model, images, training=False), model)
    return evaluated.noting(*evaluated.chosen, _difference(trained, evaluated))


_EVAL_IN_BOTH = "the top-down network computes the eval-mode forward in both"


def _difference(trained: Canonical, evaluated: Canonical) -> str:
    """What to say of a forward that differs between train and eval mode: what it draws, and other outputs."""
    note = f"the forward differs between train and eval mode; {_EVAL_IN_BOTH}"
    drawn = [node for node in trained.graph_module.graph.nodes if is_drawn(node)]
    kept = {node.meta.get("line") for node in evaluated.graph_module.graph.nodes if is_drawn(node)}
    lost = [source_line(node) for node in drawn if node.meta.get("line") not in kept]
    if lost:
        note += f": what it draws at random while training is left out, at {', '.join(dict.fromkeys(lost[:6]))}"
    return f"{note} (auxiliary heads are dropped)" if trained.others or trained.chosen else note


def _constants(model: nn.Module, found: Canonical) -> FrozenMap[str, float]:
    """Parameters of the model that hold one value throughout, by their names in the graph."""
    own = {name for name, _ in found.graph_module.named_parameters()}
    constants: dict[str, float] = {}
    weights: Mapping[str, Tensor] = {**dict(model.named_parameters()), **found.tensors}
    for name, parameter in weights.items():
        if name not in own or parameter.is_meta or parameter.numel() == 0:
            continue
        flat = parameter.detach().reshape(-1)
        first = flat[0]
        # Weights of convolutions differ in their first few values; only then is the rest looked at.
        if bool((flat[:8] == first).all()) and bool((flat == first).all()):
            constants[name] = float(first)
    return FrozenMap(constants)
