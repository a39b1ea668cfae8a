"""One Gaussian blur for the whole evaluation: the attack, the corruption and the start of insertion."""

from __future__ import annotations

import torch
from torch import Tensor

from bu2td.errors import OptionError


def gaussian_blur(images: Tensor, sigma: Tensor | float) -> Tensor:
    """Blur images as ``scipy.ndimage.gaussian_filter(mode="reflect")`` does, a batch at once and on any device.

    The filter is separable and linear, so it is a matrix product from either side, W_h X W_w^T. Weights are those
    of a normal density at whole pixels, cut off at 4 sigma and normalised to sum 1; those that fall outside an axis
    are added to the pixels that they mirror (d c b a | a b c d | d c b a). It is by hand on purpose: scipy works on
    the host and with one sigma per call, torchvision mirrors about the outermost pixel and knows one sigma too.

    Args:
        images: (M, C, H, W), floating point.
        sigma: standard deviation in pixels, one for all or one per image (M,); 0 changes nothing.

    Returns:
        (M, C, H, W); no value lies outside those of its image.

    Raises:
        OptionError: a sigma that is no number from 0 up, or not one per image.
    """
    sigma = torch.as_tensor(sigma, dtype=torch.float64, device=images.device).reshape(-1)
    if len(sigma) not in (1, len(images)):
        raise OptionError(f"sigma must be one number, or one per image ({len(images)}); found {len(sigma)}")
    if not bool((sigma.isfinite() & (sigma >= 0)).all()):
        raise OptionError(f"sigma must be a number of pixels from 0 up, found {sigma.min():g} to {sigma.max():g}")
    values, index = sigma.unique(return_inverse=True)
    index = index.expand(len(images))
    rows, columns = (_matrices(size, values).to(images.dtype)[index][:, None] for size in images.shape[2:])
    low, high = images.flatten(1).aminmax(dim=1)
    each = (-1, 1, 1, 1)
    return (rows @ images @ columns.transpose(-1, -2)).clamp(low.reshape(each), high.reshape(each))


def _matrices(size: int, sigma: Tensor) -> Tensor:
    """The blur of an axis of `size` pixels as a matrix, for each sigma: (S,) -> (S, size, size)."""
    reach = (4 * sigma + 0.5).floor()
    radius = int(reach.max())
    offsets = torch.arange(-radius, radius + 1, device=sigma.device)
    weights = torch.exp(-0.5 * (offsets / sigma[:, None].clamp_min(1e-6)) ** 2) * (offsets.abs() <= reach[:, None])
    weights = weights / weights.sum(1, keepdim=True)
    places = (torch.arange(size, device=sigma.device)[:, None] + offsets) % (2 * size)
    places = torch.where(places < size, places, 2 * size - 1 - places)  # (size, 2 radius + 1)
    matrix = torch.zeros(len(sigma), size, size, dtype=sigma.dtype, device=sigma.device)
    return matrix.scatter_add_(2, places.expand(len(sigma), -1, -1), weights[:, None].expand(-1, size, -1))
