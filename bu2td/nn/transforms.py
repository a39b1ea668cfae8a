"""Transforms of a function that a network is part of."""

import torch
from torch.autograd import forward_ad


def is_transformed() -> bool:
    """Whether torch.func (vmap, grad, jvp, ..) or forward-mode autograd is at work.

    Operators of ours and fused calls of libraries have no rules for these, and some drop a tangent without a word;
    their ordinary forms do. A compiler traces through the transform by itself.
    """
    if torch.compiler.is_compiling():
        return False
    return bool(torch._C._are_functorch_transforms_active()) or forward_ad._current_level >= 0
