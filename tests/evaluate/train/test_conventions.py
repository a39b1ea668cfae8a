"""What docs/training-conventions.md says of Keras' conventions, in numbers."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _same(x: Tensor, value: float = 0.0) -> Tensor:
    """TensorFlow's SAME of a 3 x 3 window with stride 2 on even sides: nothing before, one pixel after."""
    return F.pad(x, (0, 1, 0, 1), value=value)


def _turned(x: Tensor) -> Tensor:
    return x.flip(2, 3)


@pytest.mark.parametrize("side", [8, 28, 14])
def test_strided_layers_are_keras_in_the_mirror(side: int) -> None:
    """Ours pad one pixel before and Keras' one after: on images turned by 180 degrees, with kernels turned, the two
    are one.
    """
    x = torch.rand(2, 3, side, side)
    conv = nn.Conv2d(3, 5, 3, stride=2, padding=1)
    theirs = F.conv2d(_same(_turned(x)), _turned(conv.weight), conv.bias, stride=2)
    assert torch.allclose(conv(x), _turned(theirs), atol=1e-6)
    pooled = F.max_pool2d(_same(_turned(x), -torch.inf), 3, 2)
    assert torch.equal(nn.MaxPool2d(3, 2, padding=1)(x), _turned(pooled))
    # stride 1 pads alike on both sides, and turning changes nothing else
    plain = nn.Conv2d(3, 5, 5, padding=2)
    assert torch.allclose(
        plain(x), _turned(F.conv2d(_turned(x), _turned(plain.weight), plain.bias, padding=2)), atol=1e-6
    )


def test_momentum_is_kerass_while_the_learning_rate_stays() -> None:
    """Keras keeps v = m v - lr g and adds m v - lr g; PyTorch keeps b = m b + g and subtracts lr (g + m b)."""
    weight = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.02)
    keras, velocity = weight.detach().clone(), torch.zeros(2, dtype=torch.float64)
    for step in range(5):
        optimizer.zero_grad()
        (weight**3).sum().mul(0.1).backward()
        optimizer.step()
        gradient = 0.3 * keras**2 + 2 * 0.01 * keras  # of the loss and of 0.01 x sum of squares
        velocity = 0.9 * velocity - 0.1 * gradient
        keras = keras + 0.9 * velocity - 0.1 * gradient
        assert torch.allclose(weight.detach(), keras, atol=1e-12), step
