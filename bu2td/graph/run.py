"""Run a graph on meta tensors: the shape of every value, and the numbers that it computes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from bu2td.errors import Bu2tdError, CaptureError, ExampleInputError, ModelInputError
from bu2td.graph.source import source_line
from bu2td.ops import converter_for


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

    def fetch_attr(self, target: str) -> Any:
        """A module or attribute of the graph, without a walk along its path."""
        return self.submodules[target] if target in self.submodules else super().fetch_attr(target)

    def run_node(self, n: fx.Node) -> Any:
        """Run a node, or take its converter's word, and note what came out."""
        if n.name in self.pooled:
            self._pool_source(n)
        try:
            result = self._stated(n)
            if result is None:
                result = super().run_node(n)
        except Exception as error:
            raise self._refusal(n, error) from error
        self._note(n, result)
        return result

    def _pool_source(self, node: fx.Node) -> None:
        """Bring what a node reads to the size that it binds."""
        source: Any = node.args[0]
        self.env[source] = F.adaptive_avg_pool2d(self.env[source], self.pooled[node.name])

    def _stated(self, node: fx.Node) -> Any:
        """What the converter of a module says of its output without running it; None where it says nothing."""
        if node.op != "call_module" or node.name in self.pooled:
            return None
        module = self.submodules[str(node.target)]
        inputs = [self.env[arg] for arg in node.args if isinstance(arg, fx.Node)]
        return converter_for(node, module).empty_output(module, *inputs, proof=not self.quick)

    def _note(self, node: fx.Node, result: Any) -> None:
        """Keep the shape of a value, or the number that it is."""
        self.shapes[node.name] = shape = _shape(result)
        if shape is None:
            self.numbers[node.name] = result

    def _refusal(self, node: fx.Node, error: Exception) -> Bu2tdError:
        """What it means that a node does not run."""
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        what, where = f"{node.name} ({node.target})", source_line(node)
        if "expected device meta" in reason:
            return CaptureError(
                f"the forward makes a tensor on a device of its own choice, which {what} at {where} "
                f"reads; make it where the image is (device=x.device), or register it as a buffer"
            )
        if "cannot be called on meta" in reason:
            return CaptureError(
                f"the forward computes with the value of a tensor as a number, {what} at {where}; compute with the "
                f"tensor itself, so that the value stays part of the network"
            )
        image = next(n for n in self.graph.nodes if n.op == "placeholder")
        # A hint for this message alone: such a network does not take images, which no converter can change.
        if image in node.all_input_nodes and isinstance(self.submodules.get(str(node.target)), nn.Embedding):
            return ModelInputError(
                f"{what} at {where} looks indices up in a table; the input must be an image (N, C, H, W)"
            )
        return ExampleInputError(
            f"the model does not run on an image of shape {self.shapes[image.name]}: {reason}\n"
            f"  in {what} at {where}\n"
            f"Pass example_inputs with the channels and size that the model expects"
        )


def _shape(value: Any) -> Any:
    if isinstance(value, Tensor):
        return tuple(value.shape)
    if isinstance(value, tuple | list) and any(isinstance(v, Tensor) for v in value):
        return [_shape(v) for v in value]
    return None
