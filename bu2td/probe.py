"""Pass 2, probe: a captured graph -> the kind, size and stride of every dimension of every value.

Derivation. The graph runs four times on meta tensors, at (B, H, W), (B+1, H, W), (B, H+D, W) and
(B, H, W+D). A dimension that moves with B is a batch dimension, one that moves with H a height, one
that moves with both H and W counts tokens, one that never moves counts channels. A height of cumulative
stride s is ``floor((H + c) / s) + d`` for constants c and d, so it grows by exactly D / s where s divides
D: the stride is D / growth, whatever the padding, ceil mode, layout or view arithmetic on the way. D is a
highly composite number, large enough for every stride, and meta tensors make its size free. Where s does not
divide D, growth is D / s rounded up or down; D / growth is then no whole number t while s and t stay below
sqrt(D), since D / s and D / t lie more than 1 apart. So a fraction tells that a D of other factors is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bu2td.canonical import source_line
from bu2td.converter import Site, converter_for
from bu2td.errors import (
    Bu2tdError,
    CaptureError,
    ExampleInputError,
    ModelInputError,
    NoReductionError,
    TopologyError,
)
from bu2td.nn import Pyramid
from bu2td.plan import Capture, Dim, Value

#: 2^7 * 3^3 * 5 * 7; 2^13 * 3^3 * 5 * 7 for layers that are bound to multiples of a block size; and
#: 2^10 * 3^6 * 5^3 * 7^2 for strides with other factors. The first are small, so that products of whole maps
#: (attention over all positions) keep fewer than 2^63 elements.
_STEPS = (120960, 64 * 120960, 2**10 * 3**6 * 5**3 * 7**2)


def probe(capture: Capture, shapes: dict[str, Any] | None = None) -> Mapping[str, Value]:
    """Measure the dimensions of every value in a captured graph.

    Needs: a `Capture` (parameters on meta); ``shapes`` at its image shape, if the graph ran there before.
    Returns: node name -> a tuple of `Dim` for a tensor, a tuple of those for several, None for others.
    Guarantees: the model's own image size is the base point, so ``size`` is what the model sees.

    Raises:
        ExampleInputError: the graph does not run on the image size.
        ModelInputError: the graph does not read an image.
        CaptureError: it makes tensors on a device of its own choice.
        NoReductionError, TopologyError: it runs at one image size only.
    """
    n, channels, height, width = capture.image_shape
    base = (max(n, 2), channels, height, width)
    graph_module = capture.graph_module
    shapes = shapes or shapes_of(graph_module, base)
    pooled = pooled_maps(graph_module, shapes)
    found: dict[str, Value] | None = None
    try:
        more = shapes_of(graph_module, (base[0] + 1, *base[1:]), pooled, quick=True)
        for step in _STEPS:
            try:
                taller = shapes_of(graph_module, (*base[:2], height + step, width), pooled, quick=True)
                wider = shapes_of(graph_module, (*base[:3], width + step), pooled, quick=True)
            except ExampleInputError:
                if step == _STEPS[-1] and found is None:
                    raise
                continue
            finer = {n: _dims(shape, more[n], taller[n], wider[n], step) for n, shape in shapes.items()}
            found = finer if found is None or _all_whole(finer.values()) else found
            if _all_whole(found.values()):
                break
    except ExampleInputError as error:
        raise _bound_to_size(graph_module, shapes, base, error) from error
    assert found is not None
    return found


def _all_whole(values: Any) -> bool:
    """Whether every stride among the dimensions is a whole number, or one over a whole number."""
    if isinstance(values, Dim):
        return values.stride is None or 1 in (values.stride.numerator, values.stride.denominator)
    return values is None or all(map(_all_whole, values))


def pooled_maps(graph_module: fx.GraphModule, shapes: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Nodes of a head that read their map pooled to a size, so that other image sizes pass, and that size."""
    return _flattened_maps(graph_module, shapes) | _covered_maps(graph_module, shapes)


def _flattened_maps(graph_module: fx.GraphModule, shapes: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Nodes that flatten a whole map (N, C, H, W) -> (N, C H W), and the (H, W) that they bind.

    In a head that does so the map is pooled to its size first, so that other image sizes pass; a map that was
    pooled already stays as it is.
    """
    found = {}
    for node in graph_module.graph.nodes:
        source = node.args[0] if node.args else None
        before = shapes.get(source.name) if isinstance(source, fx.Node) else None
        after = shapes[node.name] if node.op != "output" else None
        if (
            isinstance(before, tuple)
            and isinstance(after, tuple)
            and len(before) == 4
            and after == (before[0], before[1] * before[2] * before[3])
        ):
            found[node.name] = before[2:]
    return found


def _covered_maps(graph_module: fx.GraphModule, shapes: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Windows of a head that cover a whole map, and its (H, W): ``AvgPool2d(7)`` in place of a global pool.

    All that follows is computed from them, and nothing behind them looks around.
    """
    modules = dict(graph_module.named_modules())
    found: dict[str, tuple[int, int]] = {}
    open_reads: set[fx.Node] = set()
    for node in reversed(graph_module.graph.nodes):
        open_reads.discard(node)
        alone = not open_reads
        open_reads |= {n for n in node.all_input_nodes if n.op != "get_attr"}
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        converter = converter_for(node, module)
        if module is None or converter.role not in ("conv", "pool"):
            continue
        window = converter.kernel(Site(node, module, {}))
        if window == (1, 1):
            continue
        source: Any = node.args[0]
        before, after = shapes[source.name], shapes[node.name]
        covers = after[2:] == (1, 1) and window == before[2:]
        if not (alone and covers and getattr(module, "padding", 0) in (0, (0, 0), "valid")):
            break
        found[node.name] = window
    return found


def _bound_to_size(
    graph_module: fx.GraphModule, shapes: Mapping[str, Any], base: tuple[int, ...], error: Exception
) -> Bu2tdError:
    """The error of a network that runs at its own image size only."""
    modules = dict(graph_module.named_modules())
    shaped = [
        shapes[n.name]
        for n in graph_module.graph.nodes
        if n.op == "call_module" and converter_for(n, modules[str(n.target)]).role in ("conv", "pool")
    ]
    maps = {s[2:] for s in shaped if isinstance(s, tuple) and len(s) == 4 and s[2] * s[3] > 1}
    if len(maps) <= 1:
        found = ", ".join(f"{h}x{w}" for h, w in maps) or "none"
        return NoReductionError(
            f"the convolutions of this network make features of one resolution only ({found} for an image of "
            f"{base[2]}x{base[3]}): there is nothing to turn upside down"
        )
    where = str(error).partition("\n")[2].partition("\n")[0].strip()
    return TopologyError(
        f"this network runs only at its own image size {base[2]}x{base[3]}, so its layers cannot be moved to "
        f"another resolution; the operation that binds the size is {where}"
    )


def shapes_of(
    graph_module: fx.GraphModule,
    image_shape: tuple[int, ...],
    pooled: Mapping[str, tuple[int, int]] | None = None,
    quick: bool = False,
    numbers: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Run a graph on a meta image and return the shape of every value by node name.

    Args:
        graph_module: a graph on the meta device.
        image_shape: (N, C, H, W).
        pooled: nodes that read their first argument pooled to a size.
        quick: let norms, activations and dropout pass their input on, whose shape theirs is, and pyramids and
            layers that are bound to one map size state their shapes; a graph that ran once need not prove
            again that its norms fit.
        numbers: is filled with the sizes and other numbers that nodes of the graph compute.
    """
    dtypes = {p.dtype for p in graph_module.parameters()}
    image = torch.empty(image_shape, device="meta", dtype=next(iter(dtypes), torch.float32))
    recorder = _ShapeRecorder(graph_module, pooled or {}, quick)
    with torch.no_grad():
        recorder.run(image)
    if numbers is not None:
        numbers |= {name: value for name, value in recorder.numbers.items() if _is_number(value)}
    return recorder.shapes


def _is_number(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_number(v) for v in value)
    return isinstance(value, int | float)


class _ShapeRecorder(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, pooled: Mapping[str, tuple[int, int]], quick: bool) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.pooled = pooled
        self.quick = quick
        self.extra_traceback = False
        self.shapes: dict[str, Any] = {}
        self.numbers: dict[str, Any] = {}
        self._image_shape: tuple[int, ...] = ()
        self.modules = dict(module.named_modules())

    def fetch_attr(self, target: str) -> Any:
        return self.modules[target] if target in self.modules else super().fetch_attr(target)

    def _keeps_shape(self, node: fx.Node) -> bool:
        if node.op != "call_module":
            return False
        role = converter_for(node, self.modules[str(node.target)]).role
        return role in ("norm", "norm_act", "act", "dropout")

    def _batch_norm(self, node: fx.Node, norm: Any) -> Any:
        """Check the width alone: on meta a batch norm takes as long as ten convolutions."""
        source: Any = node.args[0]
        value = self.env[source]
        if value.dim() < 2 or value.shape[1] != norm.num_features:
            raise ExampleInputError(
                f"the model does not run on an image of shape {tuple(self._image_shape)}: {node.name} normalises "
                f"{norm.num_features} channels but reads {tuple(value.shape)}\n  at {source_line(node)}"
            )
        self.shapes[node.name] = _shape(value)
        return value

    def _stated(self, node: fx.Node, module: nn.Module) -> Any:
        """What a pyramid, or a layer that is bound to one map size, says of its output; None for others."""
        inputs, _ = self.fetch_args_kwargs_from_env(node)
        if isinstance(module, Pyramid):
            return tuple(inputs[0].new_empty(shape) for shape in module.shapes(inputs[0].shape))
        return converter_for(node, module).meta(module, *inputs)

    def run_node(self, n: fx.Node) -> Any:
        if self.quick and self._keeps_shape(n):
            source: Any = n.args[0]
            self.shapes[n.name] = _shape(self.env[source])
            return self.env[source]
        if self.quick and n.op == "call_module":
            result = self._stated(n, self.modules[str(n.target)])
            if result is not None:
                self.shapes[n.name] = _shape(result)
                return result
        if n.op == "call_module" and isinstance(self.modules[str(n.target)], _BatchNorm):
            return self._batch_norm(n, self.modules[str(n.target)])
        if n.name in self.pooled:
            source = n.args[0]
            self.env[source] = F.adaptive_avg_pool2d(self.env[source], self.pooled[n.name])
        try:
            result = super().run_node(n)
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            what = f"{n.name} ({n.target})"
            reads_image = any(i.op == "placeholder" for i in n.all_input_nodes)
            if "expected device meta" in reason:
                raise CaptureError(
                    f"the forward makes a tensor on a device of its own choice, which {what} at {source_line(n)} "
                    f"reads; make it where the image is (device=x.device), or register it as a buffer"
                ) from error
            if reads_image and isinstance(self.modules.get(str(n.target)), nn.Embedding):
                raise ModelInputError(
                    f"{what} at {source_line(n)} looks indices up in a table; the input must be an image "
                    f"(N, C, H, W)"
                ) from error
            raise ExampleInputError(
                f"the model does not run on an image of shape {tuple(self._image_shape)}: {reason}\n"
                f"  in {what} at {source_line(n)}\n"
                f"Pass example_inputs with the channels and size that the model expects"
            ) from error
        if n.op == "placeholder":
            self._image_shape = result.shape
        self.shapes[n.name] = shape = _shape(result)
        if shape is None:
            self.numbers[n.name] = result
        return result


def _shape(value: Any) -> Any:
    if isinstance(value, Tensor):
        return tuple(value.shape)
    if isinstance(value, tuple | list) and any(isinstance(v, Tensor) for v in value):
        return [_shape(v) for v in value]
    return None


def _dims(base: Any, more: Any, taller: Any, wider: Any, step: int) -> Value:
    if base is None:
        return None
    if isinstance(base, list):
        return tuple(_dims(b, m, t, w, step) for b, m, t, w in zip(base, more, taller, wider, strict=True))
    return tuple(_dim(b, m - b, t - b, w - b, step) for b, m, t, w in zip(base, more, taller, wider, strict=True))


def _dim(size: int, by_batch: int, by_height: int, by_width: int, step: int) -> Dim:
    if by_batch and (by_height or by_width):
        return Dim("mixed", size)
    if by_batch:
        return Dim("batch", size)
    if by_height and by_width:
        return Dim("token", size)
    if by_height:
        return Dim("height", size, Fraction(step, by_height))
    if by_width:
        return Dim("width", size, Fraction(step, by_width))
    return Dim("channel", size)


def is_tensor(value: Value) -> bool:
    """Whether a value is one tensor."""
    return isinstance(value, tuple) and bool(value) and isinstance(value[0], Dim)


def is_spatial(value: Value) -> bool:
    """Whether a value is a tensor (or several) with a height or width left."""
    if value is None:
        return False
    if not is_tensor(value):
        return any(is_spatial(v) for v in value)
    return any(d.kind in ("height", "width", "token", "mixed") for d in value)


def reduction_of(value: Value) -> Fraction | None:
    """The reduction of a feature map (one height, one width, equal strides), else None."""
    if not is_tensor(value):
        if value is None or not isinstance(value, tuple):
            return None
        found = {reduction_of(v) for v in value}
        return found.pop() if len(found) == 1 else None
    strides = [d.stride for d in value if d.kind in ("height", "width")]
    kinds = [d.kind for d in value if d.kind in ("height", "width")]
    if sorted(kinds) == ["height", "width"] and strides[0] == strides[1]:
        return strides[0]
    return None


def is_feature_map(value: Value) -> bool:
    """Whether a value is a clean (N, C, H, W) map."""
    return (
        is_tensor(value)
        and [d.kind for d in value] == ["batch", "channel", "height", "width"]
        and reduction_of(value) is not None
    )
