"""The Gaussian blur, against scipy."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from bu2td.errors import OptionError
from bu2td.evaluate.blur import gaussian_blur


def some_images(count: int, channels: int, height: int, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(1), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(24, 32), (9, 9), (2, 5), (1, 1)])
def test_against_scipy(size: tuple[int, int], dtype: torch.dtype) -> None:
    sigmas = torch.tensor([0.0, 1e-9, 0.1, 0.13, 0.5, 1.0, 2.7, 31.0])  # 31: mirrored more than once
    images = some_images(len(sigmas), 3, *size, dtype)
    found = gaussian_blur(images, sigmas)
    assert found.dtype == dtype
    for image, sigma, one in zip(images.double().numpy(), sigmas.tolist(), found.numpy(), strict=True):
        expected = ndimage.gaussian_filter(image, (0, sigma, sigma), mode="reflect")
        np.testing.assert_allclose(one, expected, atol=1e-6 if dtype == torch.float32 else 1e-12)


def test_one_sigma_for_all_and_one_per_image() -> None:
    images = some_images(5, 1, 12, 8)
    one = gaussian_blur(images, 1.5)
    assert torch.equal(one, gaussian_blur(images, torch.full((5,), 1.5)))
    assert torch.equal(one[3:4], gaussian_blur(images[3:4], 1.5))
    mixed = gaussian_blur(images, torch.tensor([0.0, 1.5, 3.0, 1.5, 0.0]))
    torch.testing.assert_close(mixed[1::2], one[1::2])
    assert torch.equal(mixed[::4], images[::4])


def test_no_value_leaves_its_image() -> None:
    images = torch.cat([torch.zeros(1, 1, 7, 7), torch.ones(1, 1, 7, 7), some_images(1, 1, 7, 7) * 9 - 3])
    found = gaussian_blur(images, 2.3)
    assert torch.equal(found[:2], images[:2])
    assert images[2].min() <= found[2].min() <= found[2].max() <= images[2].max()
    torch.testing.assert_close(found.mean((1, 2, 3)), images.mean((1, 2, 3)))  # mirrored edges keep the mean


def test_gradients_pass() -> None:
    images = some_images(2, 1, 6, 5, torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: gaussian_blur(x, torch.tensor([0.7, 1.4])), images)


@pytest.mark.parametrize("sigma", [-0.1, float("nan"), float("inf"), torch.tensor([1.0, 2.0, 3.0])])
def test_bad_sigmas(sigma: Tensor | float) -> None:
    with pytest.raises(OptionError, match="sigma must be"):
        gaussian_blur(some_images(2, 1, 4, 4), sigma)
