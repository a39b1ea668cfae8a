"""Convolutions over upsampled maps, and wide 3x3 convolutions, in forms with fewer multiplications."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, library, nn
from torch.utils.flop_counter import FlopCounterMode

from bu2td.nn import Merge
from bu2td.optimization.kernels import GlobalAvgPool, SplitMerge, UpsampledConv2d, WinogradConv2d, can_read_low
from bu2td.optimization.kernels.lowres import summed_kernel, sums_matrix
from bu2td.optimization.kernels.winograd import plain_kernel, transformed_kernel

CHANNELS_LAST = torch.channels_last


def plain(conv: nn.Conv2d, x: Tensor, like: Tensor) -> Tensor:
    """The reference: upsample, then convolve."""
    return conv(F.interpolate(x, size=like.shape[-2:], mode="nearest"))


def close(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    return float((found - expected).detach().abs().max()) <= tolerance * float(expected.detach().abs().max())


def agree(
    pair: tuple[nn.Module, nn.Module], run: Callable[[nn.Module], Tensor], x: Tensor, tolerance: float
) -> None:
    """Outputs and all gradients of two modules that share their parameters agree."""
    gradients = []
    outputs = []
    for module in pair:
        x.grad = None
        module.zero_grad()
        out = run(module)
        weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
        (out * weights).sum().backward()
        outputs.append(out)
        gradients.append([x.grad, *(p.grad for p in pair[0].parameters())])
    assert close(outputs[1], outputs[0], tolerance)
    for expected, found in zip(*gradients, strict=True):
        assert close(found, expected, tolerance)


class Upsampled(nn.Module):
    """The reference as a module that shares its convolution's parameters."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor, like: Tensor) -> Tensor:
        return plain(self.conv, x, like)


# --- at low resolution --------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [1, 3, 5, 7, (1, 5), (3, 1)])
@pytest.mark.parametrize("factor", [2, 3, 4, (2, 1), (1, 4)])
def test_equals_upsample_and_conv(kernel: Any, factor: Any) -> None:
    """Output and gradients, also where borders are all there is."""
    pads = (kernel // 2,) * 2 if isinstance(kernel, int) else tuple(k // 2 for k in kernel)
    factors = (factor, factor) if isinstance(factor, int) else factor
    for h, w in [(1, 1), (2, 3), (5, 4)]:
        conv = nn.Conv2d(4, 6, kernel, padding=pads).double()
        x = torch.randn(2, 4, h, w, dtype=torch.float64, requires_grad=True)
        like = torch.empty(2, 1, h * factors[0], w * factors[1])
        agree((Upsampled(conv), UpsampledConv2d(conv, factor)), lambda m: m(x, like), x, 1e-12)  # noqa: B023


@pytest.mark.parametrize(("groups", "dilation", "bias"), [(1, 2, True), (2, 1, False), (4, 1, True), (4, 3, False)])
@pytest.mark.parametrize("kernel", [3, 5])
def test_groups_and_dilation(groups: int, dilation: int, bias: bool, kernel: int) -> None:
    padding = dilation * (kernel - 1) // 2
    conv = nn.Conv2d(4, 8, kernel, padding=padding, groups=groups, dilation=dilation, bias=bias).double()
    x = torch.randn(2, 4, 5, 3, dtype=torch.float64, requires_grad=True)
    like = torch.empty(2, 1, 10, 6)
    agree((Upsampled(conv), UpsampledConv2d(conv, 2)), lambda m: m(x, like), x, 1e-12)


@pytest.mark.parametrize("size", [(9, 10), (10, 11), (5, 5), (11, 9), (20, 20)])
def test_other_sizes_than_the_factors(size: tuple[int, int]) -> None:
    conv = nn.Conv2d(3, 4, 3, padding="same")
    x, like = torch.randn(1, 3, 5, 5), torch.empty(1, 1, *size)
    torch.testing.assert_close(UpsampledConv2d(conv, 2)(x, like), plain(conv, x, like), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("layout", [torch.contiguous_format, CHANNELS_LAST])
def test_float32_is_exact_to_1e_5(layout: torch.memory_format) -> None:
    conv = nn.Conv2d(128, 64, 3, padding=1).to(memory_format=layout)  # type: ignore[call-overload]
    x = torch.randn(2, 128, 14, 14).to(memory_format=layout)
    like = torch.empty(2, 1, 28, 28)
    assert close(UpsampledConv2d(conv, 2)(x, like), plain(conv, x, like), 1e-5)


def test_autocast() -> None:
    conv = nn.Conv2d(16, 16, 3, padding=1)
    x, like = torch.randn(2, 16, 6, 6), torch.empty(2, 1, 12, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = UpsampledConv2d(conv, 2)(x, like)
    assert found.dtype == torch.bfloat16
    assert close(found.float(), plain(conv, x, like), 2e-2)


def test_the_large_map_is_never_built() -> None:
    """Multiplications are those of the derivation, and no tensor of the large map's size is made."""
    conv, x, like = nn.Conv2d(32, 8, 3, padding=1), torch.randn(1, 32, 16, 16), torch.empty(1, 1, 32, 32)
    largest: list[int] = []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor):
                largest.append(out.numel())
            return out

    with torch.no_grad(), Sizes(), FlopCounterMode(display=False) as counter:
        UpsampledConv2d(conv, 2)(x, like)
    assert max(largest) <= max(8 * 32 * 32, 16 * 32 * 8)
    convolution = counter.get_flop_counts()["Global"][torch.ops.aten.convolution]
    assert convolution == 2 * 32 * 8 * 16 * 16 * 16


def test_state_dict_is_the_convolutions() -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1)
    module = UpsampledConv2d(conv, 2)
    assert list(module.state_dict()) == ["weight", "bias"]
    assert module.weight is conv.weight
    module.load_state_dict(nn.Conv2d(4, 4, 3).state_dict())


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 4, 3, stride=2, padding=1),
        nn.Conv2d(4, 4, 3, padding=0),
        nn.Conv2d(4, 4, 3, padding=2),
        nn.Conv2d(4, 4, 2, padding="same"),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.ConvTranspose2d(4, 4, 3, padding=1),
        type("Standardised", (nn.Conv2d,), {})(4, 4, 3, padding=1),
    ],
)
def test_convolutions_without_a_form_are_refused(conv: Any) -> None:
    assert not can_read_low(conv)
    with pytest.raises(ValueError, match="no form of"):
        UpsampledConv2d(conv, 2)


@pytest.mark.parametrize(("kernel", "factor", "dilation"), [(3, 2, 1), (5, 2, 2), (7, 4, 1)])
def test_summed_kernels_keep_the_sum(kernel: int, factor: int, dilation: int) -> None:
    """Every tap reads every position of a block once: the taps' sum grows by s * s."""
    weight = torch.rand(2, 3, kernel, kernel, dtype=torch.float64)
    size = dilation * (kernel - 1) + factor
    sums = sums_matrix((kernel,) * 2, (factor,) * 2, (dilation,) * 2).double()
    found = summed_kernel(weight, sums, (size, size))
    torch.testing.assert_close(found.sum((2, 3)), factor**2 * weight.sum((2, 3)).t())


# --- merges in two terms ------------------------------------------------------------------------------


@pytest.mark.parametrize("join", ["add_concat", "concat"])
@pytest.mark.parametrize("factor", [1, 2, 4])
@pytest.mark.parametrize("winograd", [False, True])
def test_split_merges(join: str, factor: int, winograd: bool) -> None:
    merge = Merge(nn.Conv2d(10, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5), nn.ReLU(), join=join).double()
    split = SplitMerge(merge, factor)
    split.winograd = winograd
    assert list(split.state_dict()) == list(merge.state_dict())
    x = torch.randn(2, 5, 4, 3, dtype=torch.float64, requires_grad=True)
    lateral = torch.randn(2, 5, 4 * factor, 3 * factor, dtype=torch.float64)

    def run(module: nn.Module) -> Tensor:
        if isinstance(module, SplitMerge):
            return module(x, lateral)
        return module(F.interpolate(x, size=lateral.shape[-2:], mode="nearest"), lateral)

    agree((merge, split), run, x, 1e-10)


def test_split_merge_at_other_sizes() -> None:
    merge = Merge(nn.Conv2d(6, 3, 3, padding=1)).eval()
    x, lateral = torch.randn(1, 3, 4, 4), torch.randn(1, 3, 7, 8)
    expected = merge(F.interpolate(x, size=(7, 8)), lateral)
    torch.testing.assert_close(SplitMerge(merge, 2)(x, lateral), expected, atol=1e-5, rtol=1e-5)


# --- minimal filtering --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (5, 4), (6, 9), (8, 8)])
@pytest.mark.parametrize("bias", [True, False])
def test_winograd_equals_conv(size: tuple[int, int], bias: bool) -> None:
    conv = nn.Conv2d(5, 7, 3, padding=1, bias=bias).double()
    x = torch.randn(3, 5, *size, dtype=torch.float64, requires_grad=True)
    agree((conv, WinogradConv2d(conv)), lambda m: m(x), x, 1e-12)


def test_winograd_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bu2td.optimization.kernels.winograd._CHUNK", 1)
    conv = nn.Conv2d(3, 4, 3, padding=1).double()
    x = torch.randn(4, 3, 6, 6, dtype=torch.float64, requires_grad=True)
    agree((conv, WinogradConv2d(conv)), lambda m: m(x), x, 1e-12)


def test_winograd_in_float32() -> None:
    conv = nn.Conv2d(256, 128, 3, padding=1).to(memory_format=CHANNELS_LAST)  # type: ignore[call-overload]
    x = torch.randn(1, 256, 14, 14).to(memory_format=CHANNELS_LAST)
    assert close(WinogradConv2d(conv)(x), conv(x), 1e-5)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # opcheck's own
def test_winograd_operators_keep_to_torchs_rules() -> None:
    x, weight = torch.randn(2, 3, 4, 4, requires_grad=True), torch.randn(4, 3, 3, 3, requires_grad=True)
    library.opcheck(torch.ops.bu2td.winograd_trained.default, (x, weight))
    library.opcheck(torch.ops.bu2td.winograd.default, (x.detach(), transformed_kernel(weight.detach())))


def test_plain_kernel_is_the_inverse() -> None:
    weight = torch.randn(4, 3, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(plain_kernel(transformed_kernel(weight)), weight)


# --- pooling ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keepdim", [False, True])
def test_global_average_pooling(keepdim: bool) -> None:
    pool = GlobalAvgPool(keepdim)
    images = torch.randn(3, 4, 5, 6, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    images.requires_grad_()
    assert torch.equal(pool(images), images.mean((2, 3), keepdim=keepdim))
    assert torch.equal(pool(images.detach()), images.mean((2, 3), keepdim=keepdim))
    (gradient,) = torch.autograd.grad(pool(images).square().sum(), images)
    assert gradient.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(gradient, (2 * images.mean((2, 3), keepdim=True) / 30).expand_as(images))
    torch.autograd.gradcheck(pool, images)
    torch.autograd.gradgradcheck(pool, images)
    torch.testing.assert_close(torch.func.vmap(pool)(images[None]), pool(images)[None])
