"""The image pyramid: equal to TensorFlow's resampling, of any size, never cascaded."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from bu2td.nn import Pyramid, gaussian_resample

GOLDENS = Path(__file__).parents[1] / "goldens"


def test_pyramid_equals_tensorflow() -> None:
    golden = np.load(GOLDENS / "pyramid.npz")
    compared = 0
    for key in golden:
        match = re.fullmatch(r"out_(.*)_f(\d+)", key)
        if match:
            images = torch.tensor(golden[f"in_{match[1]}"])
            found = gaussian_resample(images, int(match[2])).numpy()
            np.testing.assert_allclose(found, golden[key], atol=1e-5)
            compared += 1
    assert compared == 9


@pytest.mark.parametrize("reducer", ["gaussian", "strided", "max", "max_blur", "average"])
@pytest.mark.parametrize("size", [(32, 32), (33, 47), (1, 5), (37, 30)])
def test_pyramid_sizes(reducer: str, size: tuple[int, int]) -> None:
    ladder = (32, 8, 4, 2, 1)
    levels = Pyramid(ladder, reducer)(torch.rand(2, 3, *size))
    assert [tuple(t.shape[-2:]) for t in levels] == [(-(-size[0] // f), -(-size[1] // f)) for f in ladder]
    assert all(bool(torch.isfinite(t).all()) for t in levels)


def test_pyramid_taps() -> None:
    """6 taps at f = 2, and constants stay constant at the borders."""
    response = gaussian_resample(torch.eye(16).reshape(1, 1, 16, 16), 2)
    row = gaussian_resample(torch.eye(16)[:, None, None, :].expand(16, 1, 2, 16), 2)[:, 0, 0, 4]
    taps = [round(float(v), 4) for v in row if v > 0]
    assert taps == [0.0176, 0.1297, 0.3527, 0.3527, 0.1297, 0.0176]
    assert response.shape == (1, 1, 8, 8)
    for sigma in (0.125, 0.5, 1.3):
        flat = gaussian_resample(torch.ones(1, 1, 19, 31), 4, sigma)
        torch.testing.assert_close(flat, torch.ones(1, 1, 5, 8))


@pytest.mark.parametrize(("reducer", "value"), [("strided", 10.0), ("average", 7.5), ("max", 15.0)])
def test_other_reducers(reducer: str, value: float) -> None:
    images = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert float(Pyramid((4,), reducer)(images)[0]) == value


def test_levels_are_never_cascaded() -> None:
    images = torch.rand(1, 1, 32, 32)
    direct, cascaded = gaussian_resample(images, 4), gaussian_resample(gaussian_resample(images, 2), 2)
    assert float((direct - cascaded).abs().max()) > 1e-3
    torch.testing.assert_close(Pyramid((4, 2, 1))(images)[0], direct)
