"""Copies of modules: with other shapes, on the meta device, without hooks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bu2td.errors import CaptureError


def meta_copy(model: nn.Module) -> nn.Module:
    """Copy a module with every tensor in it replaced by an empty one on the meta device, without hooks."""
    return copied(model, lambda tensor: torch.empty_like(tensor, device="meta"))


def copied(model: nn.Module, make: Callable[[Tensor], Tensor]) -> nn.Module:
    """Copy a module without hooks.

    Args:
        model: the module; it may hold tensors outside of its parameters and buffers.
        make: what stands in for a tensor; those that are shared stay shared.

    Raises:
        CaptureError: it holds what cannot be copied.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None and id(parameter) not in memo:
                memo[id(parameter)] = nn.Parameter(make(parameter.detach()), parameter.requires_grad)
        for tensor in [*module._buffers.values(), *module.__dict__.values()]:
            if isinstance(tensor, Tensor) and id(tensor) not in memo:
                memo[id(tensor)] = make(tensor.detach())
    try:
        twin = copy.deepcopy(model, memo)
    except Exception as error:
        raise CaptureError(
            f"{type(model).__name__} cannot be copied ({error}); remove what copy.deepcopy cannot "
            f"copy (weight_norm hooks, open files, non-leaf tensors) before converting"
        ) from error
    for module in twin.modules():
        drop_hooks(module)
    return twin


def drop_hooks(module: nn.Module) -> None:
    """Forget the hooks of a copied module: they belong to the original."""
    for name, value in module.__dict__.items():
        if "_hooks" in name and isinstance(value, dict):
            module.__dict__[name] = type(value)()


def led_by(shape: Sequence[int], before: int, after: int, sole: bool = False) -> tuple[int, ...]:
    """A shape with another size where its first dimension that is longer than 1 is as long as ``before``.

    Parameters of one value per channel are written (C,), (C, 1, 1) or (1, C, 1, 1). A shape of ones says nothing of
    a layer of one channel: the value may belong to the channel, or to the layer, and then stays one.

    Args:
        shape: of a parameter.
        before: channels of the layer.
        after: channels that it is to have.
        sole: a value of a layer of one channel belongs to the channel.
    """
    at = next((i for i, n in enumerate(shape) if n > 1), None)
    if at is None and sole and before == 1 and shape:
        at = max(len(shape) - 3, 0)
    if at is None or shape[at] != before:
        return tuple(shape)
    return (*shape[:at], after, *shape[at + 1 :])


def resized(
    module: nn.Module,
    shapes: Mapping[str, Sequence[int]],
    attributes: Mapping[str, Any],
    device: str | torch.device = "meta",
) -> nn.Module:
    """Return a copy of a module with other parameter and buffer shapes, without running its constructor.

    The copy keeps the class, so that subclasses with further settings survive. Parameters and buffers
    that ``shapes`` does not name keep their shape; all are new and uninitialised.
    """
    new = copy.copy(module)
    for name, value in new.__dict__.items():
        if isinstance(value, dict | list | set):
            new.__dict__[name] = copy.copy(value)
    drop_hooks(new)
    new._parameters = {
        name: None
        if old is None
        else nn.Parameter(
            torch.empty(tuple(shapes.get(name, old.shape)), dtype=old.dtype, device=device),
            requires_grad=old.requires_grad,
        )
        for name, old in module._parameters.items()
    }
    new._buffers = {
        name: None
        if old is None
        else torch.empty(tuple(shapes.get(name, old.shape)), dtype=old.dtype, device=device)
        for name, old in module._buffers.items()
    }
    new._modules = {k: copy.deepcopy(v) for k, v in module._modules.items()}
    for name, value in attributes.items():
        setattr(new, name, value)
    return new


def resized_deeply(module: nn.Module) -> nn.Module:
    """An uninitialised copy of a module and all its children."""
    new = resized(module, {}, {})
    for name, child in module._modules.items():
        new._modules[name] = None if child is None else resized_deeply(child)
    return new
