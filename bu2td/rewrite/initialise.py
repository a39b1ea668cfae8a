"""Weights of an emitted network: initialised, constants kept, optionally inherited."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from bu2td.ops import OPAQUE, Converter, converter_for_type


def initialise(
    network: nn.Module,
    origins: Mapping[str, str],
    source: Mapping[str, Tensor],
    constants: Mapping[str, float],
    seed: int,
    fixed: Collection[str] = (),
) -> nn.Module:
    """Give an emitted network storage on the CPU and initial weights.

    Needs: a network on meta; ``origins`` maps its parameter and buffer names to those of the source,
        which is given by its tensors; ``fixed`` are parameters that are no weights but constants.
    Returns: the same network, on the CPU.
    Guarantees: every module was reset as its converter says (by its own ``reset_parameters``); parameters that are
        constant in the source keep that constant; of a parameter that no module resets, one of a value per channel
        takes the source's mean, a matrix values drawn from the source's; a buffer takes the source's value, or
        values drawn from it, a constant the source's value; the global random state is untouched. The same seed
        gives the same weights.
    """
    network.to_empty(device="cpu")
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for tensor in [*network.parameters(), *network.buffers()]:
            tensor.fill_(math.nan if tensor.is_floating_point() else 0)
        _reset(network)
        fill_buffers(network)
        for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
            old = source.get(origins.get(name, ""))
            if name in fixed and old is not None and not old.is_meta:
                tensor.copy_(old)
            else:
                _settle(name, tensor, old, constants.get(origins.get(name, "")))
    return network


def _reset(network: nn.Module) -> None:
    """Reset all modules; those that initialise modules inside of them follow these."""
    modules = [(module, _converter(module)) for module in network.modules()]
    for last in (False, True):
        for module, converter in modules:
            if converter.resets_children(module) is last:
                converter.reset(module)


def fill_buffers(network: nn.Module) -> None:
    """Compute the buffers that a state_dict leaves out."""
    for module in network.modules():
        _converter(module).fill_buffers(module)


def _converter(module: nn.Module) -> Converter:
    return converter_for_type(type(module)) or OPAQUE


def _drawn(source: Tensor, like: Tensor) -> Tensor:
    """Values of the source, drawn at random; those of weights, scaled to what their new fan-in asks for."""
    values = source.detach().flatten().cpu()
    drawn = values[torch.randint(len(values), like.shape)].to(like)
    if not isinstance(like, nn.Parameter):
        return drawn
    before, after = (max(t.numel() // max(t.shape[0], 1), 1) for t in (source, like))
    return drawn * math.sqrt(before / after)


def _settle(name: str, tensor: Tensor, source: Tensor | None, constant: float | None) -> None:
    if constant is not None:
        tensor.fill_(constant)
        return
    usable = source is not None and not source.is_meta
    if not tensor.is_floating_point():
        if usable and source is not None and source.shape == tensor.shape and tensor.dim():
            tensor.copy_(source)
    elif tensor.numel() and bool(tensor.isnan().any()):
        if usable and source is not None and not isinstance(tensor, nn.Parameter) and source.shape == tensor.shape:
            tensor.copy_(source)
        elif usable and source is not None and sum(n > 1 for n in tensor.shape) > 1:
            tensor.copy_(_drawn(source, tensor))
        elif usable and source is not None:
            tensor.fill_(float(source.float().mean()))
        else:
            tensor.fill_(1.0 if "bias" not in name else 0.0)


def inherit_matching(
    network: nn.Module, origins: Mapping[str, str], source: Mapping[str, Tensor]
) -> tuple[int, int]:
    """Copy every weight of the source whose role and shape survive.

    Returns:
        The number of parameter values copied, and the number of parameter values in the network.
    """
    fitting = _fitting(network, origins, source)
    with torch.no_grad():
        for tensor, old in fitting:
            tensor.copy_(old)
    return _share(network, fitting)


def matching_share(network: nn.Module, origins: Mapping[str, str], source: Mapping[str, Tensor]) -> tuple[int, int]:
    """What `inherit_matching` would return; nothing is copied."""
    return _share(network, _fitting(network, origins, source))


def _fitting(
    network: nn.Module, origins: Mapping[str, str], source: Mapping[str, Tensor]
) -> list[tuple[Tensor, Tensor]]:
    """Weights of a network with those of the source that fit them."""
    found = []
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        old = source.get(origins.get(name, ""))
        if old is not None and old.shape == tensor.shape and not old.is_meta:
            found.append((tensor, old))
    return found


def _share(network: nn.Module, fitting: Sequence[tuple[Tensor, Tensor]]) -> tuple[int, int]:
    copied = sum(tensor.numel() for tensor, _ in fitting if isinstance(tensor, nn.Parameter))
    return copied, sum(parameter.numel() for parameter in network.parameters())
