"""Layers whose weights may be read without calling them."""

from torch import nn


def is_hooked(module: nn.Module) -> bool:
    """Whether somebody's hooks wait for a module to be called."""
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)


def is_bare(conv: nn.Module) -> bool:
    """Whether a convolution is what its weight and bias say, and nothing else happens when it is called.

    That is not so for a subclass, a wrapper (an adapter, a quantised or sharded layer), a weight that is computed
    anew in every call (pruning, weight norm), and where hooks wait.
    """
    return type(conv) is nn.Conv2d and not is_hooked(conv) and "weight" in conv._parameters
