"""Attacks that follow the network's gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from bu2td.evaluate.robustness.base import GDOptimizer, Misclassification, SearchAttack, SmallestEpsilon, ep, fa
from bu2td.evaluate.robustness.candidates import Search, norms, spread

#: Logits that span more are brought nearer for cross-entropy, whose gradient would be rounded to 0.
_SPAN = 15.0


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

    def get_optimizer(self, x: Any, stepsize: Any) -> Any:
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


class _Tempered:
    """A model whose logits span at most `_SPAN` per image: the same classes, and a gradient of cross-entropy."""

    def __init__(self, model: Any) -> None:
        self.model, self.bounds = model, model.bounds

    def __call__(self, images: Any) -> Any:
        logits = self.model(images).raw
        span = (logits.amax(-1, keepdim=True) - logits.amin(-1, keepdim=True)).detach()
        return ep.astensor(logits / (span / _SPAN).clamp_min(1))


class DDNAttack(SearchAttack):
    """Foolbox's DDN (Rony et al., 2019), for models that are very sure too.

    Args:
        steps: of the descent.
        init_epsilon: first L2 norm.
        gamma: by what share the norm shrinks and grows.
    """

    def __init__(self, steps: int = 100, init_epsilon: float = 1.0, gamma: float = 0.05) -> None:
        self.inner = fa.DDNAttack(steps=steps, init_epsilon=init_epsilon, gamma=gamma)

    def improve(self, search: Search) -> None:
        """Descend from all open rows."""
        _descend(self.inner, _Tempered(search.model), search)


class _FastMinimumNorm(fa.L2FMNAttack):
    """Foolbox's attack with the projection of the paper; its own (3.3.4) multiplies by norm / norm, which is 1.

    The ball is a hundredth larger, for where a model is nearly linear the first step ends right on the border, and
    the attack never comes past it; once it has, the ball shrinks as long as it does, so that nothing is lost.
    """

    def project(self, x: Any, x0: Any, epsilon: Any) -> Any:
        change = (x - x0).raw
        factor = (1.01 * epsilon.raw / norms(change).clamp_min(1e-12)).clamp_max(1)
        return x0 + ep.astensor(change * spread(factor, change))


class FMNAttack(SearchAttack):
    """Foolbox's fast minimum norm attack in L2 (Pintor et al., 2021).

    Args:
        steps: of the descent.
        max_stepsize: first length of a step; the last is a hundredth of it.
        gamma: by what share the norm shrinks and grows at first.
    """

    def __init__(self, steps: int = 100, max_stepsize: float = 1.0, gamma: float = 0.05) -> None:
        self.inner = _FastMinimumNorm(steps=steps, max_stepsize=max_stepsize, gamma=gamma)

    def improve(self, search: Search) -> None:
        """Descend from all open rows."""
        _descend(self.inner, search.model, search)


def _descend(attack: Any, model: Any, search: Search) -> None:
    rows = search.open_rows()
    if len(rows):
        found = attack.run(model, search.images[rows], Misclassification(search.labels[rows]))
        search.offer(found.clamp(0, 1), rows)
