"""Parameters, multiply-accumulates and forward activations of a graph, measured on meta tensors.

One forward pass runs under a dispatch mode that sees every ATen call: PyTorch's own flop formulas give the
multiply-accumulates (half the flops), and every output that is not a view counts as activation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from bu2td.ir import Cost
from bu2td.ops import Role, converter_for


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.flops += int(formula(*args, **(kwargs or {}), out_val=out))
        if not func.is_view:
            outputs = out if isinstance(out, tuple | list) else (out,)
            self.elements += sum(o.numel() for o in outputs if isinstance(o, Tensor))
        return out


#: Operations that keep their input's shape, and how many tensors of it they make; meta runs of norms are slow.
_OUTPUTS = {Role.NORM: 1, Role.NORM_ACT: 2, Role.ACT: 1}


class _CostRecorder(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, counter: _Counter) -> None:
        super().__init__(module)
        self.counter = counter
        self.costs: dict[str, Cost] = {}

    def run_node(self, n: fx.Node) -> Any:
        if n.op == "call_module":
            module = self.submodules[str(n.target)]
            outputs = _OUTPUTS.get(converter_for(n, module).role)
            if outputs is not None:
                source: Any = n.args[0]
                value = self.env[source]
                parameters = sum(p.numel() for p in module.parameters())
                self.costs[n.name] = Cost(parameters, 0, outputs * value.numel())
                return value
        flops, elements = self.counter.flops, self.counter.elements
        result = super().run_node(n)
        parameters = 0
        if n.op == "call_module":
            module = self.submodules[str(n.target)]
            parameters = sum(p.numel() for p in module.parameters())
        elif n.op == "get_attr" and isinstance(result, torch.nn.Parameter):
            parameters = result.numel()
        macs = (self.counter.flops - flops) // 2
        self.costs[n.name] = Cost(parameters, macs, self.counter.elements - elements)
        return result


def measure_cost(graph_module: fx.GraphModule, image_shape: tuple[int, ...]) -> dict[str, Cost]:
    """Measure what every node of a graph costs for one image.

    Args:
        graph_module: a graph on the meta device, in eval mode.
        image_shape: (N, C, H, W); N is taken as 1.

    Returns:
        Node name -> `Cost`: parameters (frozen ones, too), multiply-accumulates of convolutions and matrix
        products, elements of all intermediate results.
    """
    image = torch.empty((1, *image_shape[1:]), device="meta", dtype=_dtype(graph_module))
    counter = _Counter()
    recorder = _CostRecorder(graph_module, counter)
    with torch.no_grad(), counter:
        recorder.run(image)
    return recorder.costs


def total(costs: dict[str, Cost]) -> Cost:
    """The sum over all nodes."""
    return sum(costs.values(), Cost())


def _dtype(graph_module: fx.GraphModule) -> torch.dtype:
    return next((p.dtype for p in graph_module.parameters()), torch.float32)
