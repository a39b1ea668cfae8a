"""What a training step takes, in time and memory, predicted on meta tensors.

Memory is counted as autograd makes and frees it (`bu2td.measure.memory`). Time is a sum over the calls of both
passes, recomputed ones included: what they multiply over a rate, the bytes that they read and write over a
bandwidth, and a constant for every call. The constants are those of one core of a CPU, fitted to measured training
steps; only ratios of times mean something on another machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from bu2td.graph import undisturbed
from bu2td.measure.memory import TrainingMemory, measured, on_meta


@dataclass(frozen=True)
class Speed:
    """What one core reaches in a training step; only ratios matter.

    Attributes:
        dense: multiply-accumulates per second of convolutions over all channels, and of matrix products.
        grouped: of convolutions in groups; those of one channel each included.
        bandwidth: bytes per second that calls read and write.
        call: seconds of every call.
    """

    dense: float
    grouped: float
    bandwidth: float
    call: float


#: One core of an AMD EPYC (float32, oneDNN), by least squares on the logarithms of 79 training steps (14 networks
#: of 0.01 to 1 GMAC: bottom-up, top-down, cheaper forms of that, recomputing). Groups cost by the bytes they move.
SPEED = Speed(dense=60e9, grouped=147e9, bandwidth=5.0e9, call=23e-6)

_FORWARD, _BACKWARD = torch.ops.aten.convolution, torch.ops.aten.convolution_backward
#: Calls that neither read nor write.
_FREE = (torch.ops.aten.detach, torch.ops.aten.empty, torch.ops.aten.empty_like, torch.ops.aten._unsafe_view)


@dataclass(frozen=True)
class TrainingStep:
    """A training step as predicted.

    Attributes:
        memory: its bytes.
        seconds: forward and backward on one core of the machine that `SPEED` was measured on.
    """

    memory: TrainingMemory
    seconds: float


class Clock(TorchDispatchMode):
    """Adds up what the calls that it sees take, by `SPEED`, in ``seconds``."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view and func.overloadpacket not in _FREE:
            self.seconds += SPEED.call + _bytes((args, kwargs, out)) / SPEED.bandwidth
            formula = flop_registry.get(func.overloadpacket)
            if formula is not None:
                macs = int(formula(*args, **(kwargs or {}), out_val=out)) // 2
                self.seconds += macs / (SPEED.grouped if _is_grouped(func, args) else SPEED.dense)
        return out


def _bytes(values: Any) -> int:
    tensors = {id(value): value for value in tree_leaves(values) if isinstance(value, Tensor)}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _is_grouped(func: Any, args: Sequence[Any]) -> bool:
    if func.overloadpacket is _FORWARD:
        return bool(args[8] > 1)
    return func.overloadpacket is _BACKWARD and bool(args[9] > 1)


@undisturbed()
def training_step(network: nn.Module, image_shape: Sequence[int], device: str = "cpu") -> TrainingStep:
    """Predict a training step: forward, a loss of the logits, backward.

    Args:
        network: any network of images, on any device, with checkpointing or not; it is not changed.
        image_shape: (N, C, H, W), N being the batch size.
        device: as of `training_memory`; times are those of a CPU.

    Returns:
        `TrainingStep`, for tensors of the network's dtype.

    Raises:
        NotImplementedError: an operation of the network has no backward pass on meta tensors.
    """
    twin, images, tracker = on_meta(network, image_shape, device)
    with Clock() as clock:
        memory = measured(twin, images, tracker)
    return TrainingStep(memory, clock.seconds)
