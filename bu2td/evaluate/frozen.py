"""A model while it is measured: in eval mode, with constant weights, on one device, its logits checked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from bu2td.errors import ModelOutputError, NonFiniteError, NotAModelError, OptionError
from bu2td.evaluate.checks import place_of


class Checked(nn.Module):
    """A model whose logits are finite and of shape (N, K), or an error says so.

    An attack may lose its way and ask about images that are not finite; it gets logits of 0 for them.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) -> logits (N, K)."""
        logits = self.model(images)
        if (
            isinstance(logits, Tensor)
            and logits.shape[:1] == images.shape[:1]
            and not bool(logits.isfinite().all())
        ):
            lost = ~images.detach().flatten(1).isfinite().all(1)
            logits = logits.masked_fill(lost.reshape(-1, *(1,) * (logits.ndim - 1)), 0.0)
        return checked_logits(logits, len(images))


def checked_logits(logits: object, count: int) -> Tensor:
    """Logits as they are, if they are good.

    Raises:
        ModelOutputError: they are not one tensor (count, K).
        NonFiniteError: they are not finite.
    """
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != count or logits.shape[1] < 2:
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ModelOutputError(f"the model returns {found} for {count} images, expected logits ({count}, classes)")
    if not bool(logits.isfinite().all()):
        bad = int((~logits.detach().isfinite().all(1)).sum())
        raise NonFiniteError(
            f"the model's logits are not finite for {bad} of {count} images; its weights or its training went wrong"
        )
    return logits


def check_images(images: Tensor, labels: Tensor | None = None) -> None:
    """Refuse what is no set of images in [0, 1] with a class each.

    Raises:
        OptionError: the images are not (N, C, H, W) floating point in [0, 1] with N > 0, or the labels not N
            non-negative integers.
    """
    if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point():
        found = f"{tuple(images.shape)} of {images.dtype}" if isinstance(images, Tensor) else type(images).__name__
        raise OptionError(f"images must be a floating point tensor (N, C, H, W), found {found}")
    if not images.numel():
        raise OptionError(f"there are no images: found a tensor of shape {tuple(images.shape)}")
    low, high = float(images.min()), float(images.max())
    if not (low >= 0 and high <= 1):
        raise OptionError(
            f"images must lie in [0, 1], found values from {low:g} to {high:g}; put the normalisation into the "
            f"model (bu2td.evaluate.train.model.Classifier)"
        )
    if labels is None:
        return
    integer = isinstance(labels, Tensor) and not (labels.is_floating_point() or labels.dtype == torch.bool)
    if not integer or labels.shape != images.shape[:1]:
        found = f"{tuple(labels.shape)} of {labels.dtype}" if isinstance(labels, Tensor) else type(labels).__name__
        raise OptionError(f"labels must be {len(images)} integers, one per image, found {found}")
    if int(labels.min()) < 0:
        raise OptionError(f"labels must be classes from 0 up, found {int(labels.min())}")


def check_classes(labels: Tensor, logits: Tensor) -> None:
    """Refuse labels that the model has no logit for.

    Raises:
        OptionError: there are such.
    """
    if int(labels.max()) >= logits.shape[1]:
        raise OptionError(
            f"labels go up to {int(labels.max())}, but the model has {logits.shape[1]} classes (0 to "
            f"{logits.shape[1] - 1}); check that model and data belong together"
        )


def check_count(name: str, value: int, least: int = 1) -> int:
    """A whole number that is large enough.

    Raises:
        OptionError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise OptionError(f"{name} must be a whole number from {least} up, found {value!r}")
    return value


def as_device(device: str | torch.device) -> torch.device:
    """A device that is there.

    Raises:
        OptionError: it is not.
    """
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise OptionError(f"device {str(device)!r} cannot be used: {reason} Use 'cpu' or another one") from error
    return found


@contextmanager
def frozen(model: nn.Module, device: str | torch.device | None = None) -> Iterator[torch.device]:
    """Measure a model: eval mode, parameters without gradients, on `device` (None: where it is).

    Afterwards every module is in the mode, and every parameter as, it was.

    Raises:
        NotAModelError: it is not a module.
        OptionError: the device is not there.
    """
    if not isinstance(model, nn.Module):
        raise NotAModelError(f"expected a torch.nn.Module that maps images to logits, found {type(model).__name__}")
    home = place_of(model)
    target = home if device is None else as_device(device)
    modes = {module: module.training for module in model.modules()}
    wanted = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        if target != home:
            model.to(target)
        model.eval()
        model.requires_grad_(False)
        yield target
    finally:
        for parameter, required in wanted.items():
            parameter.requires_grad_(required)
        for module, training in modes.items():
            module.training = training
        if target != home:
            model.to(home)


@torch.no_grad()
def predict_classes(model: nn.Module, images: Tensor, labels: Tensor, batch_size: int) -> Tensor:
    """Predicted classes (N,) on the CPU, batch by batch on the model's device; the model must be frozen.

    Raises:
        ModelOutputError, NonFiniteError: as `checked_logits`.
        OptionError: there is no logit for a label.
    """
    device, found = place_of(model), []
    for batch in images.split(batch_size):
        logits = checked_logits(model(batch.to(device)), len(batch))
        check_classes(labels, logits)
        found.append(logits.argmax(-1).cpu())
    return torch.cat(found)
