"""Tensors that a network makes by itself: where its maps are."""

from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary


def made(like: Tensor, function: str, *args: Any, **kwargs: Any) -> Tensor:
    """Make a tensor by a function of torch, on the device of another.

    Args:
        like: whose device it gets.
        function: "zeros", "arange", "randn" and their like.
        args, kwargs: what the function takes.
    """
    if has_torch_function_unary(like):
        return handle_torch_function(made, (like,), like, function, *args, **kwargs)
    return getattr(torch, function)(*args, **kwargs, device=like.device)
