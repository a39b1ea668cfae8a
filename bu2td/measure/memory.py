"""Memory of a training step, predicted on meta tensors.

A forward and a backward pass run on the meta device, where nothing is allocated, under a dispatch mode that sees
every tensor that an ATen call makes. A storage counts from the call that makes it until it is freed, which a weak
reference to it tells: autograd holds what it saves, and lets go of it, just as on a real device. Checkpointing,
views, in-place calls and gradients of maps therefore need no rules. What a call allocates only while it runs is not
seen, apart from what oneDNN needs on the CPU: a convolution of maps that are not channels-last holds its weight,
what it reads and what it writes in a layout of its own beside the originals.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bu2td.graph import undisturbed
from bu2td.nn import Pyramid
from bu2td.ops import meta_copy

_FORWARD, _BACKWARD = torch.ops.aten.convolution, torch.ops.aten.convolution_backward
#: Up to so many channels oneDNN reads a map as it lies.
_FEW_CHANNELS = 4


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of a training step.

    Attributes:
        peak: most bytes at once beside weights, buffers and images: maps, their gradients, gradients of weights.
        stored: bytes held between the forward and the backward pass.
        weights: bytes of parameters and buffers; the gradients of the parameters, part of the peak, take as many
            again, and an optimiser its own.
    """

    peak: int
    stored: int
    weights: int


class Tracker(TorchDispatchMode):
    """Counts the bytes of live storages that calls make while it is active.

    Args:
        known: tensors that do not count.
        copies: count the copies that oneDNN makes.

    Attributes:
        live, peak: bytes now, and the most so far.
    """

    def __init__(self, known: Iterable[Tensor] = (), copies: bool = True) -> None:
        super().__init__()
        self.copies = copies
        self.live = self.peak = 0
        self._seen: dict[int, weakref.ref[Any]] = {}
        for tensor in known:
            self._see(tensor, counts=False)

    def _see(self, tensor: Tensor, counts: bool = True) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._seen:
            return
        size = storage.nbytes() if counts else 0

        def freed(_: Any) -> None:
            self.live -= size
            self._seen.pop(key, None)

        self._seen[key] = weakref.ref(storage, freed)
        self.live += size
        self.peak = max(self.peak, self.live)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = [value for value in tree_leaves(out) if isinstance(value, Tensor)]
        for tensor in made:
            self._see(tensor)
        if self.copies and func.overloadpacket is _FORWARD:
            self.peak = max(self.peak, self.live + _copied(args[0], out, args[1]))
        elif self.copies and func.overloadpacket is _BACKWARD:
            self.peak = max(self.peak, self.live + _copied(args[1], args[0], args[2]))
        return out


def _copied(read: Tensor, written: Tensor, weight: Tensor) -> int:
    """Bytes of the copies that oneDNN makes for a convolution of maps that are not channels-last."""
    maps = [read, written] if read.shape[1] > _FEW_CHANNELS else [written]
    return sum(tensor.numel() * tensor.element_size() for tensor in [weight, *maps])


def copies_maps(network: nn.Module, device: str = "cpu") -> bool:
    """Whether convolutions of a network copy their maps on a device: neither they nor weights are channels-last."""
    if any(isinstance(module, Pyramid) and module.channels_last for module in network.modules()):
        return False
    kernels = [p for p in network.parameters() if p.dim() == 4 and p.shape[1] > 1 and p.shape[2:].numel() > 1]
    last = torch.channels_last
    return device == "cpu" and not any(kernel.is_contiguous(memory_format=last) for kernel in kernels)


@undisturbed()
def training_memory(network: nn.Module, image_shape: Sequence[int], device: str = "cpu") -> TrainingMemory:
    """Predict the memory of a training step: forward, a loss of the logits, backward.

    Args:
        network: any network of images, on any device, with checkpointing or not; it is not changed.
        image_shape: (N, C, H, W), N being the batch size.
        device: type of the device to predict for; on others than "cpu" convolutions are taken to copy nothing.

    Returns:
        `TrainingMemory`, for tensors of the network's dtype.

    Raises:
        NotImplementedError: an operation of the network has no backward pass on meta tensors.
    """
    return measured(*on_meta(network, image_shape, device))


def on_meta(network: nn.Module, image_shape: Sequence[int], device: str) -> tuple[nn.Module, Tensor, Tracker]:
    """A network in train mode and images on the meta device, and the tracker of its training step."""
    twin = meta_copy(network).train()
    weights = [*twin.parameters(), *twin.buffers()]
    dtype = next((p.dtype for p in twin.parameters()), torch.float32)
    images = torch.empty(tuple(image_shape), device="meta", dtype=dtype)
    return twin, images, Tracker([*weights, images], copies_maps(network, device))


def measured(network: nn.Module, images: Tensor, tracker: Tracker) -> TrainingMemory:
    """Run a training step of a network under a tracker."""
    with torch.enable_grad(), tracker:
        outputs = [value for value in tree_leaves(network(images)) if isinstance(value, Tensor)]
        loss = torch.stack([value.float().square().mean() for value in outputs]).sum()
        del outputs
        stored = tracker.live
        loss.backward()
    size = sum(t.numel() * t.element_size() for t in [*network.parameters(), *network.buffers()])
    return TrainingMemory(tracker.peak, stored, size)
