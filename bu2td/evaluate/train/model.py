"""A classifier of images in [0, 1]: normalisation and network in one module, bottom-up or top-down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

import bu2td
from bu2td.errors import ModelOutputError, NotAModelError, OptionError, first_line
from bu2td.evaluate.data.sets import Data, Images
from bu2td.evaluate.settings import Settings
from bu2td.models.words import create_model
from bu2td.runtime import TopDownNetwork

_CHUNK = 1024


class Classifier(nn.Module):
    """A network with the preparation of its images in front.

    Attacks and heat maps work on what people see, pixels in [0, 1]; so the normalisation belongs to the model, and
    distances need no conversion.

    Args:
        network: takes prepared images (N, C', H, W), returns logits (N, K).
        mean: subtracted from the images, (C, 1, 1) or a mean image (C, H, W); None: nothing is.
        std: what they are divided by then, of the same shapes; None: nothing.
        channels: C' where it is not the images' C; grey images are repeated.
    """

    mean: Tensor | None
    std: Tensor | None

    def __init__(
        self, network: nn.Module, mean: Tensor | None = None, std: Tensor | None = None, channels: int | None = None
    ) -> None:
        super().__init__()
        self.network = network
        self.channels = channels
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def prepare(self, images: Tensor) -> Tensor:
        """What the network gets: (N, C, H, W) in [0, 1] -> (N, C', H, W)."""
        if self.mean is not None:
            images = images - self.mean
        if self.std is not None:
            images = images / self.std
        if self.channels is not None and images.shape[1] != self.channels:
            images = images.expand(-1, self.channels, -1, -1)
        return images

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] -> logits (N, K)."""
        return self.network(self.prepare(images))

    def forward_branches(self, images: Sequence[Tensor] | Mapping[int, Tensor]) -> Tensor:
        """Logits when every pyramid level sees an image of its own (`bu2td.TopDownNetwork.forward_branches`).

        Raises:
            NotAModelError: the network is not a top-down network.
        """
        if not isinstance(self.network, TopDownNetwork):
            raise NotAModelError(
                f"only a top-down network has pyramid branches, found a bottom-up {type(self.network).__name__}"
            )
        if isinstance(images, Mapping):
            return self.network.forward_branches({r: self.prepare(image) for r, image in images.items()})
        return self.network.forward_branches([self.prepare(image) for image in images])


def build_classifier(
    settings: Settings, data: Data, arrangement: str, seed: int, normalisation: tuple[Tensor | None, Tensor | None]
) -> Classifier:
    """Build one of the networks that are compared, with fresh weights.

    Args:
        settings: model, options of the conversion, initialisation.
        data: what it has to classify.
        arrangement: "bu", "td", "uni" or "rev".
        seed: of the weights; the caller's random numbers are not touched.
        normalisation: mean and standard deviation (`normalisation_of`).

    Raises:
        ModelOutputError: the model cannot give one logit per class for images of this shape.
        Bu2tdError: as `bu2td.convert` and `bu2td.models.words.create_model`.
    """
    channels = data.shape[0]
    keeps = arrangement == "bu" and settings.pretrained  # its own classes and channels, as its weights have them
    wishes: dict[str, Any] = {} if keeps else {"num_classes": len(data.classes), "in_channels": channels}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = create_model(settings.model, device="cpu", **wishes)
    hint = "Pretrained weights know their own classes: train the last layer, and give --checkpoint bu=FILE"
    inner = _channels_of(model, data, settings.model, hint if keeps else "A factory may take num_classes")
    network: nn.Module = model
    if arrangement != "bu":
        example = torch.zeros(2, inner, *data.shape[1:])
        options = {"inherit": "none", **settings.convert}
        network = bu2td.convert(
            model, cast(Any, arrangement), example_inputs=example, device="cpu", seed=seed, **options
        )
    initialise(network, settings.init, seed)
    if settings.grad_checkpointing:
        _checkpoint(network)
    return Classifier(network, *normalisation, channels=inner if inner != channels else None)


def _checkpoint(network: nn.Module) -> None:
    switch: Any = getattr(network, "set_grad_checkpointing", None)
    if switch is None:
        raise OptionError(f"grad_checkpointing: {type(network).__name__} has no set_grad_checkpointing")
    switch()


def _channels_of(model: nn.Module, data: Data, word: str, hint: str) -> int:
    """How many channels the model takes for these data, checked by running it."""
    channels, height, width = data.shape
    wanted = len(data.classes)
    reasons = []
    was_training = model.training
    model.eval()
    for count in dict.fromkeys((channels, 3) if channels == 1 else (channels,)):
        try:
            with torch.no_grad():
                logits = model(torch.zeros(2, count, height, width))
        except Exception as error:  # the model's own code: whatever it raises about the shape
            reasons.append(first_line(error))
            continue
        finally:
            model.train(was_training)
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        if found != (2, wanted):
            raise ModelOutputError(
                f"{word} returns {found} for two images, expected (2, {wanted}): one logit for each of the "
                f"{wanted} classes of {data.name}. {hint}"
            )
        return count
    raise ModelOutputError(
        f"{word} does not run on images of {channels}x{height}x{width} ({data.name}): {reasons[0]}. A factory may "
        f"take in_channels; --input-size gives other sizes"
    )


def initialise(network: nn.Module, kind: str, seed: int) -> None:
    """Set the weights of all convolutions and linear layers, biases to 0.

    Args:
        network: changed in place, unless `kind` is "default".
        kind: "default" (as the modules do themselves), "glorot_uniform" (Glorot and Bengio, 2010) or "he_normal"
            (He et al., 2015; fan in), both with Keras' definition of the fans.
        seed: of the draw; the caller's random numbers are not touched.
    """
    if kind == "default":
        return
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            if kind == "glorot_uniform":
                nn.init.xavier_uniform_(module.weight, generator=generator)
            else:
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def normalisation_of(images: Images, kind: str) -> tuple[Tensor | None, Tensor | None]:
    """Mean and standard deviation of training images.

    Args:
        images: (C, H, W) each.
        kind: "none"; "pixel-mean": the mean image (C, H, W), as in the paper; "mean-std": both, (C, 1, 1).

    Returns:
        (mean, std); None is "leave as it is".
    """
    if kind == "none":
        return None, None
    total = squares = torch.zeros(())
    for start in range(0, len(images), _CHUNK):
        chunk = [images[i][0] for i in range(start, min(start + _CHUNK, len(images)))]
        batch = torch.stack(chunk).double()
        total, squares = total + batch.sum(0), squares + (batch**2).sum(0)
    mean, square = total / len(images), squares / len(images)
    if kind == "pixel-mean":
        return mean.float(), None
    mean, square = mean.mean((1, 2), keepdim=True), square.mean((1, 2), keepdim=True)
    return mean.float(), (square - mean**2).clamp_min(1e-8).sqrt().float()


__all__ = ["Classifier", "build_classifier", "initialise", "normalisation_of"]
