"""Segments of a network that are computed again in the backward pass instead of being stored.

Which segments. Let a level's output be kept and its inside be computed again (`whole`): before the backward pass
only the outputs of the levels are stored. The peak then is the inside of the level that is in its backward pass.
That is the finest, whose maps are four times those of the next: to store little before its backward pass begins
buys nothing, as that begins at once. It must be cut itself: into its lateral, the upsampling and the first half of
the merge, the second half, and its body, each computed again on its own (`pieces`).

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
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from bu2td.nn import Joining, Upsample

#: Norms whose result nobody keeps: an activation may overwrite it.
_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
#: A step: index of its module among the values, how to run it (a key of `_CALLS`), indices of its arguments.
Step = tuple[int, str, tuple[int, ...]]
#: A node's call, or a half of it: a key of `_CALLS`.
Piece = tuple[fx.Node, str]


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
    if not torch.compiler.is_compiling():
        options["context_fn"] = lambda: (contextlib.nullcontext(), FrozenStatistics(modules))
    return checkpoint(function, *args, use_reentrant=False, **options)


def _nested(unit: Any, x: Tensor) -> Any:
    """A conv unit that is computed again on its own, inside of a segment."""
    if _is_hooked(unit):
        return _checkpoint(unit, [unit], x)
    return _checkpoint(_lean, [unit], list(unit.children()), x)


def _rest(merge: Any, x: Tensor) -> Tensor:
    return _lean(merge.after(), x)


def _lean(parts: Sequence[nn.Module], x: Tensor) -> Tensor:
    """Run modules in a row; of a ReLU behind a norm the mask is kept, not the result."""
    before = None
    for part in parts:
        lean = type(part) is nn.ReLU and type(before) in _NORMS and not _is_hooked(part)
        x = masked_relu(x) if lean and x.requires_grad and not torch.compiler.is_compiling() else part(x)
        before = part
    return x


def _is_lean(merge: Any) -> bool:
    """Whether the second half of a merge stores no more than its input and a mask."""
    kinds = [type(part) for part in merge.after()]
    return kinds[:1] != [] and kinds[0] in _NORMS and kinds[1:] in ([], [nn.ReLU])


def _is_hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)


#: How a step of a segment runs: a call, either half of a merge, a second half that is not worth computing again, a
#: unit in a segment of its own.
_CALLS: dict[str, Callable[..., Any]] = {
    "": lambda module, *args: module(*args),
    "first": lambda merge, *args: merge.first(*args),
    "rest": _rest,
    "stored rest": _rest,
    "nested": _nested,
}


_SECOND = ("rest", "stored rest")


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


def whole(nodes: Sequence[fx.Node]) -> list[list[Piece]]:
    """All calls of a level as one segment."""
    return [[(node, "") for node in nodes]]


def pieces(nodes: Sequence[fx.Node], network: nn.Module) -> list[list[Piece]]:
    """The calls of a level in several segments, coarse maps and cheap ones together with what reads them."""
    found: list[list[Piece]] = []
    waiting: list[Piece] = []
    for node in nodes:
        module = network.get_submodule(str(node.target))
        if isinstance(module, Upsample):
            waiting.append((node, ""))
        elif isinstance(module, Joining):
            if not module.concatenates and found and str(found[-1][-1][0].target).endswith("_lateral"):
                waiting = [*((n, "nested") for n, _ in found.pop()), *waiting]
            found += [[*waiting, (node, "first")], [(node, "stored rest" if _is_lean(module) else "rest")]]
            waiting = []
        elif any(held in node.args for held, _ in waiting):
            found.append([*waiting, (node, "")])
            waiting = []
        else:
            found.append([(node, "")])
    return found + ([waiting] if waiting else [])


def recomputing(graph: fx.Graph, segments: Sequence[Sequence[Piece]]) -> fx.Graph:
    """A graph that computes segments of another one again in the backward pass.

    Args:
        graph: of calls of modules; it is not changed.
        segments: of its nodes, in their order; only the last value of a segment may be read outside of it.

    Returns:
        The new graph; the node of a segment has the name of its last node.
    """
    made = fx.Graph()
    new: dict[fx.Node, fx.Node] = {}
    halves: dict[fx.Node, fx.Node] = {}
    inside = {node: index for index, segment in enumerate(segments) for node, _ in segment}
    last: dict[fx.Node, list[Sequence[Piece]]] = {segment[-1][0]: [] for segment in segments}
    for segment in segments:
        last[segment[-1][0]].append(segment)
    for node in graph.nodes:
        if node in last:
            for segment in last[node]:
                result = _emit(made, segment, new, halves)
                if segment[-1][1] == "first":
                    halves[node] = result
                else:
                    new[node] = result
        elif node.op == "output":
            made.output(fx.map_arg(node.args[0], lambda n: new[n]))
        elif node not in inside:
            new[node] = made.node_copy(node, lambda n: new[n])
    made.lint()
    return made


def _emit(
    made: fx.Graph, segment: Sequence[Piece], new: dict[fx.Node, fx.Node], halves: dict[fx.Node, fx.Node]
) -> fx.Node:
    modules = [made.create_node("get_attr", str(node.target), name="part") for node, _ in segment]
    values: list[Any] = list(modules)
    own = {node for node, _ in segment}
    for node, half in segment:
        outside = [halves[node]] if half in _SECOND else [new[n] for n in node.args if n not in own]  # type: ignore[index]
        values += [value for value in outside if value not in values]
    places: dict[fx.Node, int] = {}
    steps: list[Step] = []
    for index, (node, half) in enumerate(segment):
        if half in _SECOND:
            arguments: tuple[int, ...] = (values.index(halves[node]),)
        else:
            arguments = tuple(places[n] if n in places else values.index(new[n]) for n in node.args)  # type: ignore[index]
        steps.append((index, half, arguments))
        places[node] = len(values) + index
    name = "half" if segment[-1][1] == "first" else segment[-1][0].name
    run = stored if segment[-1][1] == "stored rest" else checkpointed
    return made.create_node("call_function", run, (tuple(steps), *values), {}, name=name)
