"""Attacks that Foolbox 3 lacks, or whose own cannot be used as they are, as Foolbox attack classes.

All of them minimise the L2 distance, image by image: what one image of a batch yields does not depend on the others
(the random numbers that it gets do). Images for which nothing was found come back as they were.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bu2td.errors import MissingPackageError, OptionError
from bu2td.evaluate.robustness.candidates import Search, norms, spread

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Foolbox imports scipy's functions by their old names
        import eagerpy as ep
        import foolbox.attacks as fa
        from foolbox import PyTorchModel  # noqa: F401 (for bu2td.evaluate.robustness.smallest)
        from foolbox.attacks.base import (
            FixedEpsilonAttack,
            MinimizationAttack,
            get_criterion,
            raise_if_kwargs,
            verify_input_bounds,
        )
        from foolbox.attacks.gradient_descent_base import GDOptimizer, Optimizer
        from foolbox.criteria import Misclassification
        from foolbox.distances import l2
except ImportError as error:
    raise MissingPackageError(
        f"attacks need foolbox ({error}). Run: pip install 'bu2td[evaluate]' (or pip install foolbox)"
    ) from error


class SearchAttack(MinimizationAttack):
    """An attack that offers candidates to a `Search`; untargeted, in L2. A subclass writes `improve`."""

    distance = l2

    def run(
        self, model: Any, inputs: Any, criterion: Any, *, early_stop: float | None = None, **kwargs: Any
    ) -> Any:
        """Perturb images (N, C, H, W); the labels (N,) or a `Misclassification` are the criterion.

        Raises:
            OptionError: the criterion is another one.
        """
        raise_if_kwargs(kwargs)
        images, restore = ep.astensor_(inputs)
        verify_input_bounds(images, model)
        criterion = get_criterion(criterion)
        if not isinstance(criterion, Misclassification):
            raise OptionError(f"{type(self).__name__} takes labels or Misclassification, found {criterion!r}")
        search = Search(model, images.raw, criterion.labels.raw.long())
        self.improve(search)
        return restore(ep.astensor(search.best))

    @abstractmethod
    def improve(self, search: Search) -> None:
        """Find adversarial images for the open rows of the search."""


# --- one pixel, places, filters -----------------------------------------------------------------------


class SinglePixelAttack(SearchAttack):
    """Set one pixel to black or white, in all channels; the smallest change that fools the model.

    Foolbox 2 draws 1000 pixels at random and stops at the first hit. Here they lie on a regular lattice (for images
    of up to `side` x `side` pixels: all of them) and are tried in the order of their distance.

    Args:
        side: how many rows and columns of the lattice at most.
    """

    def __init__(self, side: int = 32) -> None:
        self.side = side

    def improve(self, search: Search) -> None:
        """Try every candidate, nearest first."""
        images = search.images
        height, width = images.shape[2:]
        lattice = [torch.linspace(0, n - 1, min(n, self.side)).round().long() for n in (height, width)]
        places = (lattice[0][:, None] * width + lattice[1]).flatten().to(images.device)
        old = images.flatten(2)[:, :, places]
        distance = torch.cat([(old - value).norm(dim=1) for value in (0.0, 1.0)], dim=1)  # (N, 2P)
        distance, order = distance.sort(dim=1, stable=True)
        rows, start = search.open_rows(), 0
        while len(rows) and start < order.shape[1]:
            count = min(max(1, search.chunk // len(rows)), order.shape[1] - start)
            every = rows.repeat_interleave(count)
            pick = order[rows, start : start + count].flatten()
            changed = images[every].flatten(2)
            value = (pick >= len(places)).to(images.dtype)
            changed[torch.arange(len(every), device=rows.device), :, places[pick % len(places)]] = value[:, None]
            search.offer(changed.reshape(-1, *images.shape[1:]), every)
            rows, start = search.open_rows(), start + count


class SpatialAttack(SearchAttack):
    """Rotate and shift images over a grid; the smallest change in L2 that fools the model.

    Sampling is bilinear, what comes in from outside is black. Foolbox 3 returns the first hit of its grid instead.

    Args:
        shift: greatest shift in pixels, along both axes.
        angle: greatest rotation about the centre, in degrees.
        shift_steps, angle_steps: values from the negative to the positive greatest, ends included; 1: none.
    """

    def __init__(
        self, shift: float = 5.0, angle: float = 5.0, shift_steps: int = 10, angle_steps: int = 10
    ) -> None:
        self.shift, self.angle = shift, angle
        self.shift_steps, self.angle_steps = shift_steps, angle_steps

    def improve(self, search: Search) -> None:
        """Try all transformations, the mild ones first, of which the farther ones need not be looked at."""
        device = search.images.device
        shifts, angles = _symmetric(self.shift, self.shift_steps), _symmetric(self.angle, self.angle_steps)
        grid = torch.cartesian_prod(angles, shifts, shifts)
        scale = torch.tensor([max(self.angle, 1e-9), max(self.shift, 1e-9), max(self.shift, 1e-9)])
        grid = grid[(grid / scale).norm(dim=1).argsort(stable=True)].to(device)
        rows = search.open_rows()
        if not len(rows):
            return
        for part in grid.split(max(1, search.chunk // len(rows))):
            every = rows.repeat(len(part))
            moves = part.repeat_interleave(len(rows), dim=0)
            search.offer(rotate_and_shift(search.images[every], moves[:, 0], moves[:, 1:]), every)


def _symmetric(greatest: float, steps: int) -> Tensor:
    return torch.linspace(-greatest, greatest, steps) if steps > 1 else torch.zeros(1)


def rotate_and_shift(images: Tensor, degrees: Tensor, pixels: Tensor) -> Tensor:
    """Rotate images about their centre, then shift them; bilinear, black outside.

    Args:
        images: (M, C, H, W).
        degrees: (M,), counter-clockwise as one looks at the image.
        pixels: (M, 2), down and right.

    Returns:
        (M, C, H, W). The pixel at p of the result is the image at R^-1 (p - c - shift) + c, with c the image's
        centre.
    """
    height, width = images.shape[2:]
    radians = torch.deg2rad(degrees)[:, None, None]
    y = torch.arange(height, device=images.device)[None, :, None] - (height - 1) / 2 - pixels[:, 0, None, None]
    x = torch.arange(width, device=images.device)[None, None, :] - (width - 1) / 2 - pixels[:, 1, None, None]
    down = torch.cos(radians) * y + torch.sin(radians) * x
    right = torch.cos(radians) * x - torch.sin(radians) * y
    # grid_sample with align_corners: -1 and 1 are the centres of the outermost pixels.
    grid = torch.stack([right / max((width - 1) / 2, 0.5), down / max((height - 1) / 2, 0.5)], dim=-1)
    moved = F.grid_sample(images, grid.to(images.dtype), padding_mode="zeros", align_corners=True)
    return moved.clamp(0, 1)


class _PathAttack(SearchAttack):
    """Walk along a path from every image: `steps` equal steps, then bisection."""

    def __init__(self, steps: int, bisections: int) -> None:
        self.steps, self.bisections = steps, bisections

    def _walk(self, search: Search, path: Any) -> None:
        grid = [(i + 1) / self.steps for i in range(self.steps)]
        search.along(path, search.open_rows(), grid, self.bisections)


class GaussianBlurAttack(_PathAttack):
    """Blur images more and more, as scipy.ndimage.gaussian_filter does (reflected edges, cut off at 4 sigma).

    Foolbox 3 blurs on the host and keeps images that are done in its batch.

    Args:
        steps, bisections: values of sigma, and halvings of the step to the first hit.
        extent: greatest sigma as a share of the longer side (Foolbox: 1).
    """

    def __init__(self, steps: int = 1000, bisections: int = 0, extent: float = 1.0) -> None:
        super().__init__(steps, bisections)
        self.extent = extent

    def improve(self, search: Search) -> None:
        """Walk from sigma 0 up."""
        greatest = self.extent * max(search.images.shape[2:])
        self._walk(search, lambda rows, t: gaussian_blur(search.images[rows], t * greatest))


def gaussian_blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Blur images (M, C, H, W), each with a standard deviation of its own (M,) in pixels.

    The filter is separable and linear, so it is a matrix product from either side: W_h X W_w^T, where the weights
    that fall outside an axis are added to the pixels that they mirror (d c b a | a b c d | d c b a).
    """
    values, index = sigma.unique(return_inverse=True)
    rows, columns = (_blur_matrices(size, values)[index][:, None] for size in images.shape[2:])
    return (rows @ images @ columns.transpose(-1, -2)).clamp(0, 1)


def _blur_matrices(size: int, sigma: Tensor) -> Tensor:
    """(S,) -> (S, size, size)."""
    reach = (4 * sigma + 0.5).floor()
    radius = int(reach.max())
    offsets = torch.arange(-radius, radius + 1, device=sigma.device)
    weights = torch.exp(-0.5 * (offsets / sigma[:, None].clamp_min(1e-6)) ** 2) * (offsets.abs() <= reach[:, None])
    weights = weights / weights.sum(1, keepdim=True)
    places = (torch.arange(size, device=sigma.device)[:, None] + offsets) % (2 * size)
    places = torch.where(places < size, places, 2 * size - 1 - places)  # (size, 2 radius + 1)
    matrix = torch.zeros(len(sigma), size, size, device=sigma.device)
    return matrix.scatter_add_(2, places.expand(len(sigma), -1, -1), weights[:, None].expand(-1, size, -1))


class ContrastReductionAttack(_PathAttack):
    """Mix images with grey (0.5) until they fool the model. Foolbox 3's bisection takes for granted that grey does.

    Args:
        steps, bisections: shares of grey, and halvings of the step to the first hit.
    """

    def __init__(self, steps: int = 1000, bisections: int = 0) -> None:
        super().__init__(steps, bisections)

    def improve(self, search: Search) -> None:
        """Walk from the image to grey."""
        self._walk(search, lambda rows, t: torch.lerp(x := search.images[rows], x.new_tensor(0.5), spread(t, x)))


class BlendedUniformNoiseAttack(_PathAttack):
    """Mix images with uniform noise until they fool the model.

    Args:
        steps, bisections: shares of noise, and halvings of the step to the first hit.
        directions: how many noise images are drawn at most until one fools the model by itself.
    """

    def __init__(self, steps: int = 1000, bisections: int = 0, directions: int = 1000) -> None:
        super().__init__(steps, bisections)
        self.directions = directions

    def improve(self, search: Search) -> None:
        """Draw noise, then walk from the image to the noise."""
        noise = torch.rand_like(search.images)
        draw_until_adversarial(search, noise, self.directions)
        self._walk(search, lambda rows, t: torch.lerp(x := search.images[rows], noise[rows], spread(t, x)))


def draw_until_adversarial(search: Search, noise: Tensor, draws: int) -> Tensor:
    """Draw uniform noise images anew, in place, where they do not fool the model; returns rows without success."""
    rows = search.open_rows()
    for i in range(draws):
        if i:
            noise[rows] = torch.rand_like(noise[rows])
        rows = rows[~search.adversarial(noise[rows], rows)]
        if not len(rows):
            break
    return rows


# --- a search around attacks of a fixed size ----------------------------------------------------------


class SmallestEpsilon(SearchAttack):
    """Minimise with an attack of a fixed size: ascending sizes up to the first hit, then bisection, per image.

    Foolbox 3 runs such attacks at given sizes only. The attack's `run` must take one epsilon per image.

    Args:
        attack: of which size is asked for as an eagerpy tensor (N,).
        smallest, largest: sizes, as root mean square over pixel values: L2 / sqrt(C H W).
        steps: how many sizes, in a geometric series.
        bisections: of the interval below the first hit.
    """

    def __init__(
        self, attack: FixedEpsilonAttack, smallest: float, largest: float, steps: int, bisections: int
    ) -> None:
        self.attack = attack
        self.smallest, self.largest, self.steps, self.bisections = smallest, largest, steps, bisections

    def improve(self, search: Search) -> None:
        """Grow until hit, then bisect."""
        root = search.images[0].numel() ** 0.5
        ratio = (self.largest / self.smallest) ** (1 / max(self.steps - 1, 1))
        upper, lower = torch.zeros_like(search.distance), torch.zeros_like(search.distance)
        targets = rows = search.open_rows()
        size = self.smallest * root
        for _ in range(self.steps):
            hits = self._try(search, rows, torch.full_like(search.distance, size)[rows])
            upper[rows[hits]] = size
            rows = rows[~hits]
            lower[rows] = size
            size *= ratio
            if not len(rows):
                break
        rows = targets[upper[targets] > 0]
        for _ in range(self.bisections if len(rows) else 0):
            middle = (lower[rows] + upper[rows]) / 2
            hits = self._try(search, rows, middle)
            upper[rows] = torch.where(hits, middle, upper[rows])
            lower[rows] = torch.where(hits, lower[rows], middle)

    def _try(self, search: Search, rows: Tensor, sizes: Tensor) -> Tensor:
        if not len(rows):
            return torch.zeros(0, dtype=torch.bool, device=rows.device)
        criterion = Misclassification(search.labels[rows])
        found = self.attack.run(search.model, search.images[rows], criterion, epsilon=ep.astensor(sizes))  # type: ignore[arg-type]
        return search.offer(found.clamp(0, 1), rows)


class _NoisePerImage:
    """Sizes of Foolbox's repeated noise, one per image."""

    def get_epsilons(self, x: Any, p: Any, epsilon: Any, min_: float, max_: float) -> Any:
        return ep.astensor(spread((epsilon / p.flatten(1).norms.l2(axis=-1)).raw, p.raw))


class _GaussianNoise(_NoisePerImage, fa.L2RepeatedAdditiveGaussianNoiseAttack):
    pass


class _UniformNoise(_NoisePerImage, fa.L2RepeatedAdditiveUniformNoiseAttack):
    pass


class AdditiveGaussianNoiseAttack(SmallestEpsilon):
    """Gaussian noise of growing size, clipped to [0, 1].

    Args:
        draws: noise images per size; the rest as `SmallestEpsilon`.
    """

    noise: Any = _GaussianNoise

    def __init__(
        self, smallest: float = 0.02, largest: float = 1.0, steps: int = 40, bisections: int = 8, draws: int = 20
    ) -> None:
        super().__init__(self.noise(repeats=draws, check_trivial=False), smallest, largest, steps, bisections)


class AdditiveUniformNoiseAttack(AdditiveGaussianNoiseAttack):
    """Uniform noise of growing size, clipped to [0, 1]; arguments as `AdditiveGaussianNoiseAttack`."""

    noise = _UniformNoise


class _GradientPerImage:
    """Foolbox's gradient steps in L2 with one size per image.

    The loss is z = logsumexp of the other logits - logit of the label. Cross-entropy is log(1 + exp(z)), which
    rises with z, so that both have gradients of the same direction, and only the direction is used; but the
    gradient of cross-entropy is rounded to 0 where the model is very sure, that of z never.
    """

    def get_loss_fn(self, model: Any, labels: Any) -> Any:
        def loss(inputs: Any) -> Any:
            logits = model(inputs).raw
            own = F.one_hot(labels.raw, logits.shape[-1]).bool()
            others = logits.masked_fill(own, -torch.inf).logsumexp(-1)
            return ep.astensor((others - logits[own]).sum())

        return loss

    def get_optimizer(self, x: Any, stepsize: Any) -> Optimizer:
        return GDOptimizer(x, ep.astensor(spread(stepsize.raw, x.raw)))  # type: ignore[arg-type]

    def get_random_start(self, x0: Any, epsilon: Any) -> Any:
        direction = torch.randn_like(x0.raw)
        size = torch.rand_like(epsilon.raw) ** (1 / x0.raw[0].numel()) * epsilon.raw  # uniform in the ball
        return x0 + ep.astensor(direction * spread(size / norms(direction), direction))


class _FastGradient(_GradientPerImage, fa.L2FastGradientAttack):
    pass


class _ProjectedGradient(_GradientPerImage, fa.L2ProjectedGradientDescentAttack):
    pass


class FastGradientAttack(SmallestEpsilon):
    """One step along the gradient, of the smallest size in L2 that fools the model (Goodfellow et al., 2015)."""

    def __init__(
        self, smallest: float = 0.003, largest: float = 1.0, steps: int = 40, bisections: int = 10
    ) -> None:
        super().__init__(_FastGradient(), smallest, largest, steps, bisections)


class ProjectedGradientAttack(SmallestEpsilon):
    """Projected gradient descent in an L2 ball of the smallest size that fools the model (Madry et al., 2018).

    Args:
        iterations: gradient steps per size.
        stepsize: of the ball's radius; the rest as `SmallestEpsilon`.
    """

    def __init__(
        self,
        smallest: float = 0.003,
        largest: float = 1.0,
        steps: int = 12,
        bisections: int = 6,
        iterations: int = 40,
        stepsize: float = 0.1,
    ) -> None:
        attack = _ProjectedGradient(steps=iterations, rel_stepsize=stepsize, random_start=True)
        super().__init__(attack, smallest, largest, steps, bisections)


class CarliniWagnerAttack(SearchAttack):
    """Minimise ||d||^2 + c max(0, label's logit - greatest other logit) over the change d (Carlini, Wagner, 2017).

    The box is kept by projection after every step, which that paper names first (section V.B), not by its tanh:
    in Foolbox 3 that has no gradient to speak of where pixels are black or white, as most of a digit's are, and
    takes 10,000 steps. Found images are moved towards the original at the end, in a straight line.

    Args:
        searches: values of c tried per image: ten times the last until one succeeds, then bisection.
        steps: of Adam per value of c.
        stepsize: of Adam, in pixel values; falls to a tenth.
        initial_const: first c times the spread of the image's logits, so that their scale does not matter.
        bisections: of the straight line at the end.
    """

    def __init__(
        self,
        searches: int = 6,
        steps: int = 100,
        stepsize: float = 0.02,
        initial_const: float = 1.0,
        bisections: int = 10,
    ) -> None:
        self.searches, self.steps, self.stepsize = searches, steps, stepsize
        self.initial_const, self.bisections = initial_const, bisections

    def improve(self, search: Search) -> None:
        """Search c for each image."""
        rows = search.open_rows()
        if not len(rows):
            return
        with torch.no_grad():
            scale = search.model(search.images[rows]).std(dim=1).clamp_min(1e-6)
        const = self.initial_const / scale
        lower, upper = torch.zeros_like(const), torch.full_like(const, torch.inf)
        for _ in range(self.searches):
            hits = self._descend(search, rows, const)
            upper, lower = torch.where(hits, const, upper), torch.where(hits, lower, const)
            const = torch.where(upper.isinf(), const * 10, (lower + upper) / 2)
        search.approach(self.bisections)

    def _descend(self, search: Search, rows: Tensor, const: Tensor) -> Tensor:
        """Minimise from the image itself; returns which were adversarial on the way."""
        images, labels = search.images[rows], search.labels[rows]
        points = images.clone().requires_grad_()
        adam = torch.optim.Adam([points], lr=self.stepsize)
        decay = torch.optim.lr_scheduler.ExponentialLR(adam, 0.1 ** (1 / max(self.steps, 1)))
        hit = torch.zeros_like(rows, dtype=torch.bool)
        for _ in range(self.steps):
            with torch.enable_grad():
                logits = search.model(points)
                own = F.one_hot(labels, logits.shape[-1]).bool()
                margin = logits[own] - logits.masked_fill(own, -torch.inf).amax(-1)
                change = (points - images).flatten(1).square().sum(1)
                (points.grad,) = torch.autograd.grad((change + const * margin.relu()).sum(), points)
            adversarial = logits.detach().argmax(-1) != labels
            hit |= adversarial
            search.record(points.detach(), rows, adversarial)
            adam.step()
            decay.step()
            with torch.no_grad():
                points.clamp_(0, 1)
        return hit
