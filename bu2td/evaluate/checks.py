"""A model while it is measured, and checks of what is given to it and of what it answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bu2td.errors import (
    Bu2tdError,
    DataError,
    ExampleInputError,
    ModelOutputError,
    NonFiniteError,
    NotAModelError,
    OptionError,
    first_line,
)
from bu2td.options import as_device


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode, and every module of it back into its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def is_classifier(model: Any) -> bool:
    """Whether a model is a classifier around a network: it has ``network``, and ``prepare`` for its images."""
    return isinstance(getattr(model, "network", None), nn.Module) and callable(getattr(model, "prepare", None))


def place_of(module: nn.Module) -> torch.device:
    """The device of a module's weights; the CPU if it has none."""
    tensors = [*module.parameters(), *module.buffers()]
    return tensors[0].device if tensors else torch.device("cpu")


def as_read(images: Tensor, model: nn.Module) -> Tensor:
    """Images where a model's weights are, in their precision."""
    weight = next((p for p in model.parameters() if p.is_floating_point()), None)
    return images.detach().to(place_of(model), images.dtype if weight is None else weight.dtype)


def logits_of(model: nn.Module, images: Tensor, batch_size: int = 64) -> Tensor:
    """Logits (N, K), float32, on the CPU, of images (N, C, H, W); in eval mode, where the model's weights are.

    Raises:
        ExampleInputError: the model does not run on the images.
        ModelOutputError: it does not return logits (N, K).
        NonFiniteError: they are not finite numbers.
    """
    found = []
    with evaluating(model), torch.no_grad():
        for batch in images.split(batch_size):
            y = running(model, as_read(batch, model))
            check_logits(y, len(batch))
            found.append(y.float().cpu())
    return torch.cat(found)


def running(call: Callable[[Tensor], Any], images: Tensor) -> Any:
    """What a model (or a part of it) makes of images; what goes wrong inside is one line.

    Raises:
        ExampleInputError: it does not run on the images, or they do not fit into memory.
    """
    try:
        return call(images)
    except Bu2tdError:
        raise
    except torch.OutOfMemoryError as error:
        raise ExampleInputError(
            f"{len(images)} images of shape {tuple(images.shape[1:])} do not fit into memory at once; give a "
            f"smaller batch_size"
        ) from error
    except (RuntimeError, ValueError, TypeError, AssertionError, IndexError) as error:
        reason = first_line(error)
        raise ExampleInputError(
            f"the network does not run on images of shape {tuple(images.shape)}: {reason}"
        ) from error


# --- a model while it is measured -----------------------------------------------------------------------


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
        return check_logits(logits, len(images))


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
    target = as_device(device) or home
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
        ModelOutputError, NonFiniteError: as `check_logits`.
        DataError: there is no logit for a label.
    """
    device, found = place_of(model), []
    for batch in images.split(batch_size):
        logits = check_logits(model(batch.to(device)), len(batch))
        check_labels(labels, len(labels), logits.shape[1])
        found.append(logits.argmax(-1).cpu())
    return torch.cat(found)


# --- checks -------------------------------------------------------------------------------------------


def check_images(images: Any, bounded: bool = True) -> Tensor:
    """Images (N, C, H, W) or an error; ``bounded``: they must lie in [0, 1].

    Raises:
        ExampleInputError: no floating point image batch, or values outside [0, 1].
        NonFiniteError: values that are not finite numbers.
    """
    if not isinstance(images, Tensor) or images.dim() != 4 or not images.is_floating_point() or not images.numel():
        found = f"shape {tuple(images.shape)} of {images.dtype}" if isinstance(images, Tensor) else type(images)
        raise ExampleInputError(f"images must be a floating point image batch (N, C, H, W), found {found}")
    if not bool(torch.isfinite(images).all()):
        raise NonFiniteError("the images hold values that are not finite numbers")
    low, high = float(images.min()), float(images.max())
    if bounded and not (low >= 0 and high <= 1):
        raise ExampleInputError(
            f"images must lie in [0, 1], found values from {low:.4g} to {high:.4g}; divide pixels by their maximum "
            f"(255), and leave mean and standard deviation to the classifier"
        )
    return images


def check_labels(labels: Any, count: int, classes: int | None, name: str = "labels") -> Tensor:
    """Classes (N,) as int64, on the CPU, or an error; ``classes`` is how many there are, None if not known.

    Raises:
        OptionError: they are not whole numbers, or not one per image.
        DataError: they are out of range.
    """
    try:
        labels = torch.as_tensor(labels).cpu()
    except (TypeError, ValueError, RuntimeError):
        raise OptionError(f"{name} must be whole numbers (N,), found {type(labels).__name__}") from None
    whole = not labels.is_floating_point() and not labels.is_complex() and labels.dtype != torch.bool
    if labels.dim() != 1 or len(labels) != count or not whole:
        raise OptionError(
            f"{name} must be one whole number per image, of shape ({count},); found shape {tuple(labels.shape)} of "
            f"{labels.dtype}"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or (classes is not None and high >= classes):
        upper = "" if classes is None else f" to {classes - 1}, for the model has {classes} classes"
        raise DataError(f"{name} must count from 0{upper}; found {low} to {high}")
    return labels.to(torch.int64)


def check_logits(logits: Any, count: int) -> Tensor:
    """Logits as they are, if they are good.

    Raises:
        ModelOutputError: they are no tensor (count, K).
        NonFiniteError: they are not finite numbers.
    """
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != count or logits.shape[1] < 1:
        found = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise ModelOutputError(f"the model must return logits (N, K) for N = {count} images, found {found}")
    if not bool(logits.isfinite().all()):
        bad = int((~logits.detach().isfinite().all(1)).sum())
        raise NonFiniteError(
            f"the model's logits are not finite numbers for {bad} of {count} images; its weights or its training "
            f"went wrong"
        )
    return logits


def check_count(name: str, value: Any, least: int = 1) -> int:
    """A whole number of at least ``least``, or an error.

    Raises:
        OptionError: it is none.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise OptionError(f"{name}={value!r} must be a whole number of at least {least}")
    return value


def check_number(name: str, value: Any, low: float, high: float, meaning: str) -> float:
    """A number from ``low`` up to ``high`` inclusive, or an error that says what it must be.

    Raises:
        OptionError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise OptionError(f"{name} must be {meaning}, found {value!r}")
    return float(value)
