"""Segments of a network that are computed again in the backward pass instead of being stored.

Which segments. Let a level's output be kept and its inside be computed again (`whole`): before the backward pass
only the outputs of the levels are stored. The peak then is the inside of the level that is in its backward pass.
That is the finest, whose maps are four times those of the next: to store little before its backward pass begins
buys nothing, as that begins at once. It must be cut itself: into its lateral, the upsampling and the first half of
the merge, the second half, and its body, each computed again on its own (`in_parts`).

How low the finest level can go, in maps of its size. The backward pass of a conv-norm-act unit holds the gradient
of its result or of its input, the norm's input, the activation's mask and one gradient more. PyTorch keeps the
activation's result as its mask, a whole map where one bit per value is needed: `masked_relu` keeps a byte, so
that a norm and a ReLU need not be computed again at all. Where a merge builds no concatenation, its convolution
needs the lateral and two gradients; the inside of the lateral is computed once more when its own turn comes
("nested"), so that neither step holds more than 3 1/4 maps. The lateral reads three channels and costs little.
Every other segment runs at most twice.
"""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from bu2td.ir import Stage, Stages
from bu2td.nn import Joining, Upsample, is_hooked, is_transformed

#: Norms whose result nobody keeps: an activation may overwrite it.
_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
#: A step: index of its module among the values, how to run it (the value of a `How`), indices of its arguments.
Step = tuple[int, str, tuple[int, ...]]


class How(enum.Enum):
    """What a step of a segment runs; the values are written into graphs."""

    WHOLE = ""
    #: The first half of a merge.
    FIRST = "first"
    #: Its second half.
    REST = "rest"
    #: A second half that is not worth computing again.
    STORED_REST = "stored rest"
    #: A unit, in a segment of its own.
    NESTED = "nested"

    @property
    def reads_half(self) -> bool:
        """Whether it reads what the first half of its own node made."""
        return self in (How.REST, How.STORED_REST)


@dataclass(frozen=True)
class Part:
    """A node's call, or a half of it."""

    node: fx.Node
    how: How = How.WHOLE


#: What is stored or computed again as one.
Segment = list[Part]


def checkpointed(steps: Sequence[Step], *values: Any) -> Any:
    """Run steps; what they compute is not stored, but computed again in the backward pass.

    Args:
        steps: each appends its result to the values.
        values: modules, then what the steps read.

    Returns:
        The result of the last step.
    """
    return _checkpoint(stored, [value for value in values if isinstance(value, nn.Module)], steps, *values)


def stored(steps: Sequence[Step], *values: Any) -> Any:
    """Run steps as `checkpointed` does, and store what the backward pass needs."""
    known = list(values)
    for module, call, arguments in steps:
        known.append(_CALLS[call](known[module], *(known[i] for i in arguments)))
    return known[-1]


def _checkpoint(function: Callable[..., Any], modules: Sequence[nn.Module], *args: Any) -> Any:
    options: dict[str, Any] = {}
    if is_transformed():
        return function(*args)  # torch.func does not let a backward pass compute anything again
    if not torch.compiler.is_compiling():
        options["context_fn"] = lambda: (contextlib.nullcontext(), FrozenStatistics(modules))
    return checkpoint(function, *args, use_reentrant=False, **options)


def _nested(unit: Any, x: Tensor) -> Any:
    """A conv unit that is computed again on its own, inside of a segment."""
    if is_hooked(unit):
        return _checkpoint(unit, [unit], x)
    return _checkpoint(_lean, [unit], list(unit.children()), x)


def _rest(merge: Any, x: Tensor) -> Tensor:
    return _lean(merge.after(), x)


def _lean(parts: Sequence[nn.Module], x: Tensor) -> Tensor:
    """Run modules in a row; of a ReLU behind a norm the mask is kept, not the result."""
    before = None
    for part in parts:
        lean = type(part) is nn.ReLU and type(before) in _NORMS and not is_hooked(part)
        lean = lean and x.requires_grad and not torch.compiler.is_compiling() and not is_transformed()
        x = masked_relu(x) if lean else part(x)
        before = part
    return x


def _is_stored(merge: Any) -> bool:
    """Whether the second half of a merge is not to be computed again.

    It stores no more than its input and a mask, or begins with an activation that overwrites its input, which
    cannot be read again then.
    """
    parts = merge.after()
    kinds = [type(part) for part in parts]
    is_lean = kinds[:1] != [] and kinds[0] in _NORMS and kinds[1:] in ([], [nn.ReLU])
    return is_lean or any(getattr(part, "inplace", False) for part in parts[:1])


_CALLS: dict[str, Callable[..., Any]] = {
    How.WHOLE.value: lambda module, *args: module(*args),
    How.FIRST.value: lambda merge, *args: merge.first(*args),
    How.REST.value: _rest,
    How.STORED_REST.value: _rest,
    How.NESTED.value: _nested,
}


class _MaskedReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x.clamp_(min=0)
        ctx.mark_dirty(x)
        ctx.save_for_backward(x > 0)
        return x

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        gradient = gradients[0]
        return torch.where(ctx.saved_tensors[0], gradient, gradient.new_zeros(()))  # a product would cast the mask


def masked_relu(x: Tensor) -> Tensor:
    """ReLU in place; the backward pass holds a byte per value instead of the result."""
    return _MaskedReLU.apply(x)


class FrozenStatistics:
    """Let batch norms see a batch again without counting it again; can be entered for every backward pass."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.norms: list[Any] = [m for module in modules for m in module.modules() if isinstance(m, _BatchNorm)]
        self.kept: list[tuple[Any, Any]] = []

    def __enter__(self) -> None:
        self.kept = [(norm.momentum, norm.num_batches_tracked) for norm in self.norms]
        for norm, (_, count) in zip(self.norms, self.kept, strict=True):
            norm.momentum = 0.0
            norm.num_batches_tracked = None if count is None else count.clone()

    def __exit__(self, *error: object) -> None:
        for norm, (momentum, count) in zip(self.norms, self.kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


def segments_of(
    network: fx.GraphModule, stages: Stages, levels: Sequence[int] | None, inside: bool
) -> list[Segment]:
    """The segments of a network, each of nodes of its graph in their order.

    Args:
        network: without checkpointing.
        stages: the nodes of its graph.
        levels: reductions of the levels that are computed again; None: all, and the head.
        inside: whether the finest of them is cut into parts.
    """
    wanted = [stage.reduction for stage in stages.levels] if levels is None else levels
    found: list[Segment] = []
    for stage in stages.levels:
        nodes = [node for node in network.graph.nodes if node.name in stage.calls]
        if stage.reduction in wanted and nodes:
            cut = inside and stage.reduction == min(wanted)
            found += in_parts(nodes, stage, network) if cut else whole(nodes)
    head = [node for node in network.graph.nodes if node.name == stages.head]
    return found + (whole(head) if levels is None else [])


def whole(nodes: Sequence[fx.Node]) -> list[Segment]:
    """All calls of a level as one segment."""
    return [[Part(node) for node in nodes]]


def in_parts(nodes: Sequence[fx.Node], stage: Stage, network: nn.Module) -> list[Segment]:
    """The calls of a level in several segments, coarse maps and cheap ones together with what reads them."""
    found: list[Segment] = []
    waiting: Segment = []
    for node in nodes:
        module = network.get_submodule(str(node.target))
        if isinstance(module, Upsample):
            waiting.append(Part(node))
        elif isinstance(module, Joining):
            if not module.concatenates and found and found[-1][-1].node.name == stage.lateral:
                waiting = [*(Part(part.node, How.NESTED) for part in found.pop()), *waiting]
            second = How.STORED_REST if _is_stored(module) else How.REST
            found += [[*waiting, Part(node, How.FIRST)], [Part(node, second)]]
            waiting = []
        elif any(part.node in node.args for part in waiting):
            found.append([*waiting, Part(node)])
            waiting = []
        else:
            found.append([Part(node)])
    return found + ([waiting] if waiting else [])


def recomputing(graph: fx.Graph, segments: Sequence[Segment]) -> fx.Graph:
    """A graph that computes segments of another one again in the backward pass.

    Args:
        graph: of calls of modules; it is not changed.
        segments: of its nodes, in their order; only the last value of a segment may be read outside of it.

    Returns:
        The new graph; the node of a segment has the name of its last node.
    """
    emitter = _Emitter()
    inside = {part.node for segment in segments for part in segment}
    last: dict[fx.Node, list[Segment]] = {segment[-1].node: [] for segment in segments}
    for segment in segments:
        last[segment[-1].node].append(segment)
    for node in graph.nodes:
        for segment in last.get(node, []):
            emitter.emit(segment)
        if node not in inside:
            emitter.copy(node)
    emitter.made.lint()
    return emitter.made


class _Emitter:
    """Copies a graph, with segments in place of calls."""

    def __init__(self) -> None:
        self.made = fx.Graph()
        self.new: dict[fx.Node, fx.Node] = {}
        self.halves: dict[fx.Node, fx.Node] = {}

    def copy(self, node: fx.Node) -> None:
        """Copy a node that is in no segment."""
        if node.op == "output":
            self.made.output(fx.map_arg(node.args[0], lambda n: self.new[n]))
        else:
            self.new[node] = self.made.node_copy(node, lambda n: self.new[n])

    def emit(self, segment: Segment) -> None:
        """Emit a segment as one call, which reads the modules of its parts and what they read from outside."""
        own = {part.node for part in segment}
        values: dict[fx.Node, None] = dict.fromkeys(self._module(part.node) for part in segment)
        for part in segment:
            outside = [n for n in self._reads(part) if n not in own or part.how.reads_half]
            values |= dict.fromkeys(self._made(n, part) for n in outside)
        numbers = {value: index for index, value in enumerate(values)}
        places: dict[fx.Node, int] = {}
        steps: list[Step] = []
        for index, part in enumerate(segment):
            arguments = tuple(places[n] if n in places else numbers[self._made(n, part)] for n in self._reads(part))
            steps.append((index, part.how.value, arguments))
            places[part.node] = len(values) + index
        last = segment[-1]
        run = stored if last.how is How.STORED_REST else checkpointed
        name = "half" if last.how is How.FIRST else last.node.name
        result = self.made.create_node("call_function", run, (tuple(steps), *values), {}, name=name)
        kept = self.halves if last.how is How.FIRST else self.new
        kept[last.node] = result

    def _module(self, node: fx.Node) -> fx.Node:
        return self.made.create_node("get_attr", str(node.target), name="part")

    def _reads(self, part: Part) -> list[Any]:
        """The nodes that a part reads; a second half reads its own node, the first half of it."""
        return [part.node] if part.how.reads_half else list(part.node.args)

    def _made(self, node: fx.Node, part: Part) -> fx.Node:
        return self.halves[node] if part.how.reads_half else self.new[node]
