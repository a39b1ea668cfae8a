"""Convolutions that are too small for a call of oneDNN."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from bu2td.optimization.kernels import FusedConv2d
from bu2td.optimization.kernels.small import Small

# --- what is small ------------------------------------------------------------------------------------

LAST = torch.channels_last


def _maps(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=LAST)


@pytest.mark.parametrize(
    ("kernel", "options", "shape", "small"),
    [
        pytest.param(1, {}, (32, 16, 2, 2), True, id="a product of many images"),
        pytest.param(1, {}, (1, 16, 200, 200), False, id="a large product"),
        pytest.param(1, {"stride": (2, 2)}, (1, 16, 8, 8), True, id="1x1 with strides"),
        pytest.param(1, {"stride": (2, 2)}, (2, 16, 8, 8), False, id="1x1 with strides, two images"),
        pytest.param(3, {"padding": (1, 1)}, (1, 16, 8, 8), True, id="unfolded"),
        pytest.param(3, {"padding": (1, 1)}, (2, 16, 8, 8), False, id="two images"),
        pytest.param(3, {"padding": (1, 1)}, (1, 16, 64, 64), False, id="too much to unfold"),
        pytest.param(3, {"padding": (2, 2), "dilation": (2, 2)}, (1, 16, 8, 8), None, id="dilated"),
        pytest.param(3, {"padding": (1, 1), "groups": 4}, (1, 16, 8, 8), None, id="grouped"),
        pytest.param(5, {"padding": (2, 2)}, (1, 16, 8, 8), None, id="5x5"),
    ],
)
def test_what_is_small(kernel: int, options: dict[str, Any], shape: tuple[int, ...], small: bool | None) -> None:
    own = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1, **options}
    made = Small.of(torch.zeros(8, 16 // own["groups"], kernel, kernel), **own)
    assert (None if made is None else made.holds(_maps(*shape))) is small


def test_a_product_reads_channels_last_maps_only() -> None:
    made = Small.of(torch.zeros(8, 16, 1, 1), (1, 1), (0, 0), (1, 1), 1)
    assert made is not None
    assert made.holds(_maps(2, 16, 4, 4))
    assert not made.holds(_maps(2, 16, 4, 4).contiguous())


# --- the same function --------------------------------------------------------------------------------


@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 2, 3])
@pytest.mark.parametrize("shape", [(1, 12, 7, 9), (3, 12, 1, 1), (1, 12, 1, 5), (4, 12, 6, 6)])
def test_small_ones_are_the_convolution(
    shape: tuple[int, ...], kernel: int, stride: int, bias: bool, added: bool
) -> None:
    torch.manual_seed(0)
    x, weight, shift = _maps(*shape), torch.randn(5, 12, kernel, kernel), torch.randn(5) if bias else None
    sizes = {"stride": (stride, stride), "padding": (kernel // 2, kernel // 2)}
    plain = F.conv2d(x, weight, shift, **sizes)
    other = torch.randn_like(plain) if added else None
    fused = FusedConv2d(weight, shift, act="relu", **sizes)
    with torch.inference_mode():
        found = fused(x, None if other is None else other.clone())
    torch.testing.assert_close(found, F.relu(plain if other is None else plain + other), rtol=1e-4, atol=1e-5)
    assert found.is_contiguous(memory_format=LAST)


def test_a_new_weight_is_read() -> None:
    fused = FusedConv2d(torch.ones(4, 4, 1, 1), None)
    with torch.inference_mode():
        assert fused(_maps(1, 4, 2, 2)).sum() > 0
        fused.load_state_dict({"weight": torch.zeros(4, 4, 1, 1)})
        assert fused(_maps(1, 4, 2, 2)).sum() == 0


def test_gradients_of_the_input_are_those_of_the_convolution() -> None:
    torch.manual_seed(0)
    weight = torch.randn(5, 12, 1, 1)
    x = _maps(1, 12, 4, 4).requires_grad_()
    FusedConv2d(weight, None)(x).square().sum().backward()
    y = x.detach().clone().requires_grad_()
    F.conv2d(y, weight).square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
