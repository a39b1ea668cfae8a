"""The input pyramid: the image at every reduction that a top-down network starts from or merges.

Derivation of the Gaussian resample. Level 1/f of an axis with ``n`` pixels has ``m = ceil(n / f)``
outputs, and the factor that is really applied is ``F = n / m``. Output ``i`` looks at the image
position ``c_i = F (i + 1/2)`` while pixel ``j`` has its centre at ``j + 1/2``, so that both grids cover
the same interval [0, n]. The weight of pixel j is

    w_ij = exp(-(j + 1/2 - c_i)^2 / (2 (sigma F)^2))    where |j + 1/2 - c_i| < 3 sigma F, else 0,

divided by the sum over the pixels j inside the image. With sigma = 1/2 the standard deviation is F/2
and the cut-off 1.5 F: 6 taps at F = 2 and 12 at F = 4. Away from the cut-off this is
``tf.image.resize(method="gaussian", antialias=True)``, which the paper's experiments used.
Both axes are independent, so a level is ``W_h X W_w^T``.
"""

import functools
import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bu2td.errors import ImageSizeError
from bu2td.nn.sizes import reduced
from bu2td.nn.transforms import is_transformed

#: Below this an output of a level can fall between two pixels and see neither. Centres of outputs and
#: pixels are at most 1/2 apart and F >= 3/2 wherever F != 1, so 3 sigma F > 1/2 needs sigma > 1/9.
MIN_SIGMA = 0.125

#: Ways to reduce an image to a level of the pyramid.
Reducer = Literal["gaussian", "strided", "max", "max_blur", "average"]
REDUCERS: tuple[Reducer, ...] = get_args(Reducer)


@functools.lru_cache(maxsize=256)
def _kept_weights(size: int, factor: int, sigma: float, device: torch.device, dtype: torch.dtype) -> Tensor:
    """`_make_weights`, made once; not under inference mode, whose tensors autograd could not use later."""
    with torch.inference_mode(False), torch.no_grad():
        return _make_weights(size, factor, sigma, device, dtype)


def _gaussian_weights(size: int, factor: int, sigma: float, like: Tensor) -> Tensor:
    make = _kept_weights if type(like) is Tensor and not _is_traced() else _make_weights
    return make(size, factor, sigma, like.device, like.dtype)


def _is_traced() -> bool:
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def _make_weights(size: int, factor: int, sigma: float, device: torch.device, dtype: torch.dtype) -> Tensor:
    out = reduced(size, factor)
    centres = size * (2 * torch.arange(out, device=device) + 1)
    pixels = out * (2 * torch.arange(size, device=device) + 1)
    # |j + 1/2 - c_i| / F in whole numbers until the division, so that no size and no program rounds otherwise.
    distance = (pixels[None, :] - centres[:, None]).abs().to(torch.float32) / (2 * size)
    weights = torch.exp(-0.5 * (distance / sigma) ** 2)
    # The tolerance keeps a tap exactly on the cut-off out in spite of rounding.
    weights = torch.where(distance < 3 * sigma - 1e-6, weights, torch.zeros_like(weights))
    return (weights / weights.sum(dim=1, keepdim=True)).to(dtype)


def gaussian_resample(images: Tensor, factor: int, sigma: float = 0.5) -> Tensor:
    """Blur and reduce images by a factor, as every level of the paper's pyramid is made.

    Args:
        images: (N, C, H, W), floating point.
        factor: how many times smaller; 1 returns the images as they are.
        sigma: standard deviation of the blur in units of the factor; the cut-off is at 3 sigma.

    Returns:
        (N, C, ceil(H / factor), ceil(W / factor)).

    Source: Lelekas et al. (2020), section 3.1; the derivation stands at the top of this module.
    """
    if factor == 1:
        return images
    rows = _gaussian_weights(images.shape[-2], factor, sigma, images)
    columns = _gaussian_weights(images.shape[-1], factor, sigma, images)
    return torch.matmul(torch.matmul(rows, images), columns.t())


def _strided(images: Tensor, factor: int) -> Tensor:
    """Take the pixel under the centre of each output, without blur."""
    for axis in (-2, -1):
        images = images.index_select(axis, _centres(images.shape[axis], factor, images.device))
    return images


def _centres(size: int, factor: int, device: torch.device) -> Tensor:
    """The positions that a strided level takes along one axis; by tensors, as a size may be a symbol."""
    last = torch.arange(size, device=device)[-1:]
    start = (last % factor).clamp(max=factor // 2)
    return factor * torch.arange(reduced(size, factor), device=device) + start


class Pyramid(nn.Module):
    """The image at several reductions, each computed from the full resolution.

    Args:
        reductions: the reductions to produce, coarse to fine.
        reducer: one of ``REDUCERS``: Gaussian resample; strided (no blur); maximum over factor x factor
            windows; the same maximum at full resolution followed by the Gaussian resample; average.
        sigma: blur width of the Gaussian in units of the factor.

    Shapes: (N, C, H, W) -> a tuple of (N, C, ceil(H / f), ceil(W / f)), one per reduction f.

    Attributes:
        size: the (H, W) that images must have; None for any.
        multiples: by reduction, what the sides of that level must be multiples of.
        channels_last: give levels whose channels are last in memory: all, none, or those of some reductions.
    """

    size: tuple[int, int] | None
    multiples: dict[int, int]
    channels_last: bool | tuple[int, ...]

    def __init__(self, reductions: tuple[int, ...], reducer: str = "gaussian", sigma: float = 0.5) -> None:
        super().__init__()
        if reducer not in REDUCERS:
            raise ValueError(f"reducer must be one of {REDUCERS}, not {reducer!r}")
        if not (math.isfinite(sigma) and sigma >= MIN_SIGMA):
            raise ValueError(f"sigma must be at least {MIN_SIGMA}, not {sigma}")
        self.reductions = tuple(reductions)
        self.reducer = reducer
        self.sigma = sigma
        self.size = None
        self.multiples = {}
        self.channels_last = False

    def check(self, images: Tensor) -> None:
        """Refuse images of a size that layers of the network cannot work on.

        Raises:
            ImageSizeError: see ``size`` and ``multiples``.
        """
        height, width = images.shape[-2:]
        found = f"found images of {height}x{width}"
        if self.size is not None and (height, width) != self.size:
            raise ImageSizeError(
                f"this network works on images of {self.size[0]}x{self.size[1]} only, because some of its layers "
                f"have a weight for every position (plan.notes names them); {found}. Convert the bottom-up network "
                f"built for that size"
            )
        for factor, multiple in self.multiples.items():
            rows, columns = reduced(height, factor), reduced(width, factor)
            if rows % multiple or columns % multiple:
                raise ImageSizeError(
                    f"level r{factor} of this network cuts its map into blocks (plan.notes names the layers), so "
                    f"that both sides must be multiples of {multiple}; {found}, whose map is "
                    f"{rows}x{columns} there"
                )

    def reduce(self, images: Tensor, factor: int) -> Tensor:
        """Reduce images (N, C, H, W) by one factor."""
        level = self._reduce(images, factor)
        last = self.channels_last
        lay_out = (factor in last if isinstance(last, tuple) else last) and not is_transformed()
        return level.contiguous(memory_format=torch.channels_last) if lay_out else level

    def _reduce(self, images: Tensor, factor: int) -> Tensor:
        if factor == 1:
            return images
        if self.reducer == "gaussian":
            return gaussian_resample(images, factor, self.sigma)
        if self.reducer == "strided":
            return _strided(images, factor)
        if self.reducer == "average":
            return F.avg_pool2d(images, factor, ceil_mode=True, count_include_pad=False)
        if self.reducer == "max":
            return F.max_pool2d(images, factor, ceil_mode=True)
        before, after = (factor - 1) // 2, factor // 2
        padded = F.pad(images, (before, after, before, after), value=-torch.inf)
        return gaussian_resample(F.max_pool2d(padded, factor, stride=1), factor, self.sigma)

    def shapes(self, shape: Sequence[int]) -> list[tuple[int, ...]]:
        """The shapes of all levels for images of shape (N, C, H, W)."""
        return [(*shape[:-2], *(reduced(size, factor) for size in shape[-2:])) for factor in self.reductions]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the images at every reduction, in the order of ``reductions``."""
        self.check(images)
        return tuple(self.reduce(images, factor) for factor in self.reductions)

    def extra_repr(self) -> str:
        """Show the configuration when printed."""
        return f"reductions={self.reductions}, reducer={self.reducer!r}, sigma={self.sigma}"
