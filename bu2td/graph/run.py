"""Run a graph on meta tensors: the shape of every value, and the numbers that it computes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from bu2td.errors import (
    CaptureError,
    ExampleInputError,
    ModelInputError,
)
from bu2td.graph.source import source_line
from bu2td.ops.registry import converter_for


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
        quick: let converters state shapes wherever they can; a graph that ran once need not prove again that
            its modules fit.
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

    def _stated(self, node: fx.Node) -> Any:
        """What the converter of a module says of its output without running it; None where it says nothing."""
        if node.op != "call_module" or node.name in self.pooled:
            return None
        module = self.modules[str(node.target)]
        inputs, _ = self.fetch_args_kwargs_from_env(node)
        return converter_for(node, module).empty_output(module, *inputs, proof=not self.quick)

    def run_node(self, n: fx.Node) -> Any:
        if n.name in self.pooled:
            source: Any = n.args[0]
            self.env[source] = F.adaptive_avg_pool2d(self.env[source], self.pooled[n.name])
        try:
            result = self._stated(n)
            if result is None:
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
