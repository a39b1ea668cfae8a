"""Which input of a top-down network is vulnerable: perturbed images in some branches, clean ones in the rest.

Source: Lelekas et al. (2020), figure 5 and the supplement. The smallest perturbation lies right on the border, so
that any part of it does nothing; that is why perturbations are scaled up, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from bu2td.errors import OptionError
from bu2td.evaluate.checks import check_count, check_images, check_labels, check_logits, frozen

#: How many times as large as the smallest a perturbation is.
SCALES = (1.0, 1.5, 2.0, 3.0)


def branch_names(ladder: Sequence[int]) -> dict[int, str]:
    """Reductions of a pyramid -> names of its branches, fine to coarse.

    The finest image is "highest" (the highest resolution), the coarsest "lowest"; in between, "medium" where there
    is one and "r2", "r4", ... (the reduction) where there are more. A pyramid of one level has "highest" alone.
    """
    fine = sorted(ladder)
    inner = fine[1:-1]
    names = {r: "medium" if len(inner) == 1 else f"r{r}" for r in inner}
    names |= {fine[-1]: "lowest"} | {fine[0]: "highest"}
    return {r: names[r] for r in fine}


def branch_accuracy(
    classifier: nn.Module,
    clean: Tensor,
    perturbed: Tensor,
    labels: Tensor,
    *,
    scales: Sequence[float] = SCALES,
    batch_size: int = 128,
    device: str | torch.device | None = None,
) -> list[dict[str, Any]]:
    """Accuracy when the perturbation, scaled, enters none, one, two or all branches of the pyramid.

    Args:
        classifier: a top-down network of images in [0, 1], or a classifier around one (with `forward_branches` and
            `network`).
        clean: (N, C, H, W) in [0, 1].
        perturbed: the same, image by image. A pair that is equal (an image for which no attack succeeded, or which
            is wrong without any) is left out: it says nothing of a perturbation.
        labels: (N,).
        scales: factors of the perturbation; what leaves [0, 1] is clipped, so that a perturbation of twice the size
            may be less than twice as far from the clean image. One whose pixels are black and white (salt and
            pepper) does not grow at all.
        batch_size: images per batch. Give that of the attack: at the very boundary the size of a batch decides how
            logits are rounded.
        device: where to run; None: where the classifier is.

    Returns:
        One row per scale and choice of inputs with `inputs` (where the perturbation enters: "none", a branch, every
        pair "highest+medium", "all"), `reductions` (of these, fine to coarse: "1+2"; empty for none), `scale`,
        `samples` (images that are not left out) and `accuracy` (of these; nan where there is none). "none" is the
        accuracy on the clean images, "all" that on the perturbed ones. A pyramid of two levels has no pair besides
        "all".

    Raises:
        OptionError: the network is bottom-up, images and labels do not fit together, or a scale is no positive
            number.
        ExampleInputError: bad images.
        DataError: labels that the network has no logit for.
        ModelOutputError, NonFiniteError: it does not return finite logits.
    """
    check_images(clean)
    check_images(perturbed)
    labels = check_labels(labels, len(clean), None)
    check_count("batch_size", batch_size)
    if clean.shape != perturbed.shape:
        raise OptionError(
            f"clean and perturbed images differ in shape: {tuple(clean.shape)} and {tuple(perturbed.shape)}"
        )
    for scale in scales:
        if not (math.isfinite(scale) and scale > 0):
            raise OptionError(f"scales must be positive numbers, found {scale!r}")
    ladder = _ladder(classifier)
    choices = _choices(branch_names(ladder))
    right = {(scale, name): 0 for scale in scales for name in choices}
    counts = (clean != perturbed).flatten(1).any(1)
    with frozen(classifier, device) as place, torch.no_grad():
        for start in range(0, len(clean), batch_size):
            part = slice(start, start + batch_size)
            good, bad = (images[part].to(place, torch.float32) for images in (clean, perturbed))
            truth, chosen = labels[part].to(place, torch.int64), counts[part].to(place)
            for (scale, name), _ in right.items():
                scaled = bad if scale == 1 else (good + scale * (bad - good)).clamp(0, 1)
                hits = _is_right(classifier, ladder, good, scaled, set(choices[name]), truth)
                right[scale, name] += int(hits[chosen].sum())
    samples = int(counts.sum())
    return [
        {
            "inputs": name,
            "reductions": "+".join(map(str, choices[name])),
            "scale": float(scale),
            "samples": samples,
            "accuracy": number / samples if samples else math.nan,
        }
        for (scale, name), number in right.items()
    ]


def _ladder(classifier: nn.Module) -> tuple[int, ...]:
    network = getattr(classifier, "network", classifier)
    plan = getattr(network, "plan", None)
    if plan is None or not hasattr(network, "forward_branches") or not hasattr(classifier, "forward_branches"):
        raise OptionError(
            f"only a top-down network has pyramid branches, found {type(network).__name__}; give what "
            f"bu2td.convert returns, or a classifier around it"
        )
    return tuple(plan.ladder)


def _choices(names: dict[int, str]) -> dict[str, tuple[int, ...]]:
    """Where the perturbation enters: name -> reductions, fine to coarse."""
    every = tuple(names)
    found: dict[str, tuple[int, ...]] = {"none": ()}
    for size in (1, 2):
        if size < len(every) or size == 1:
            found |= {"+".join(names[r] for r in some): some for some in combinations(every, size)}
    return found | {"all": every}


def _is_right(
    classifier: Any, ladder: tuple[int, ...], clean: Tensor, perturbed: Tensor, where: set[int], labels: Tensor
) -> Tensor:
    if not where or where == set(ladder):  # through the front door, as the attack itself
        logits = classifier(perturbed if where else clean)
    else:
        logits = classifier.forward_branches([perturbed if r in where else clean for r in ladder])
    logits = check_logits(logits, len(clean))
    check_labels(labels, len(labels), logits.shape[1])
    return logits.argmax(-1) == labels
