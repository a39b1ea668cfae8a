"""Assignment to a part of a tensor, as a function of it."""

from typing import Any

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary


def assigned(x: Tensor, index: Any, value: Any) -> Tensor:
    """Return a tensor with other values in a part of it: what ``x[index] = value`` makes of x.

    Args:
        x: the tensor; it stays as it is.
        index: what stands in the brackets.
        value: a tensor or number.
    """
    if has_torch_function_unary(x):
        return handle_torch_function(assigned, (x,), x, index, value)
    new = x.clone()
    new[index] = value
    return new
