"""Networks that score every pixel, of classifiers and of networks that do so bottom-up: `bu2td.dense`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from bu2td.conversion import convert
from bu2td.errors import ModelOutputError, NotAModelError, OptionError, nearest
from bu2td.ir import Analysis
from bu2td.ops import meta_copy
from bu2td.options import as_count
from bu2td.runtime import PatchNetwork, PixelNetwork, TopDownNetwork, check_head, pixel_network

#: Height and width of the images that a network is tried with, where no others are given.
_SIZE = 224


def dense(model: nn.Module | Analysis, num_classes: int, *, head: str = "conv", **options: Any) -> PixelNetwork:
    """Make a network that scores every pixel: a top-down network whose finest features go to a head of maps.

    Args:
        model: a classifier (or the `Analysis` of one), which is converted; a converted network, whose levels are
            shared and not copied; or a network of maps with an encoder in it, such as torchvision's segmentation
            models, timm's ``features_only`` ones or an encoder itself. The encoder is the outermost module that
            reads the image and returns the coarsest maps of the network; what is behind it is left out, and noted.
        num_classes: scores of a pixel.
        head: "conv" reads the finest level, "fpn" all of them, added from coarse to fine.
        options: of `bu2td.convert`. ``finest_reduction=4`` ends at a quarter of the image's resolution; scores are
            then upsampled to the image's size, bilinearly.

    Returns:
        A `PixelNetwork`, in the mode of the converted network. Its head starts from the conversion's seed.

    Raises:
        OptionError: an unknown head, no number of classes, or options where nothing is converted.
        TypeError: an unknown option, with the nearest known one.
        ModelOutputError: the model is no classifier, and no encoder is found in it.
        NotAModelError: no model, or patches of one.
        OptimizeError: a converted network that is optimised for inference.
        Bu2tdError: as `bu2td.convert`.
    """
    check_head(head)
    as_count("num_classes", num_classes)
    return pixel_network(converted(model, options, ("head",)), num_classes, head)


def converted(model: nn.Module | Analysis, options: Mapping[str, Any], own: Sequence[str] = ()) -> TopDownNetwork:
    """The top-down network of what `dense` takes.

    Args:
        model: as there.
        options: of `bu2td.convert`.
        own: the caller's further options, for its hints.

    Raises:
        OptionError, TypeError, ModelOutputError, NotAModelError, Bu2tdError: as `dense`.
    """
    known = [name for name in inspect.signature(convert).parameters if name != "model"]
    for name in options:
        if name not in known:
            raise TypeError(f"{name!r} is no option of a conversion.{nearest(name, [*known, *own])}")
    if isinstance(model, PatchNetwork):
        raise NotAModelError(
            "patches read parts of an image, not every pixel; pass the network inside, model.network"
        )
    if isinstance(model, TopDownNetwork):
        if options:
            raise OptionError(
                f"{', '.join(options)} would be for a conversion, but this network is converted already; give "
                f"them to bu2td.convert"
            )
        return model
    try:
        return convert(model, **options)
    except ModelOutputError as error:
        refused = error
    found = None if isinstance(model, Analysis) else find_encoder(model, options.get("example_inputs"))
    if found is None:
        raise ModelOutputError(
            f"{refused}. No encoder is found in it: a module that reads the image and returns the coarsest maps of "
            f"all; pass the layers that reduce resolution, with a global pool and a classifier behind them"
        ) from None
    network = convert(EncoderClassifier(found), **options)
    note = f"made of {found.name or 'the maps'} of {type(model).__name__}; what is behind is left out"
    plan = network.plan
    network.record = replace(network.record, plan=replace(plan, notes=(*plan.notes, note)))
    return network


# --- encoders -----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Encoder:
    """A part of a network that reads the image and returns maps.

    Attributes:
        module, name: the part, and its name in the network.
        index: which of the tensors that it returns is the deepest.
        width: of that.
    """

    module: nn.Module
    name: str
    index: int
    width: int


class EncoderClassifier(nn.Module):
    """An encoder as the classifier that it may have been: a global pool of its deepest map, and a linear layer.

    Shapes: (N, C, H, W) -> (N, 2).
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder, self.index = encoder.module, encoder.index
        like = next(encoder.module.parameters())
        self.classifier = nn.Linear(encoder.width, 2, device=like.device)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        return self.classifier(_leaves(self.encoder(x))[self.index].mean((2, 3)))


def find_encoder(model: nn.Module, example_inputs: Tensor | None = None) -> Encoder | None:
    """The outermost module of a network that reads the image and returns the coarsest maps of all.

    Args:
        model: is run on the meta device.
        example_inputs: an image batch; by default 2 x C x 224 x 224 with the channels of the first convolution.

    Returns:
        None where there is none, or the network does not run.
    """
    conv = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if conv is None:
        return None
    n, channels, height, width = (
        (2, conv.in_channels, _SIZE, _SIZE) if example_inputs is None else tuple(example_inputs.shape)
    )
    own, twice = (_calls(model, (n, channels, k * height, k * width)) for k in (1, 2))
    if [call.name for call in own] != [call.name for call in twice]:
        return None
    reductions = [
        [_reduction(width, *pair) for pair in zip(a.maps, b.maps, strict=True)]
        for a, b in zip(own, twice, strict=True)
    ]
    coarsest = max((each for call in reductions for each in call), default=1)
    order = {name: position for position, (name, _) in enumerate(model.named_modules())}
    able = [
        (order[call.name], call, found) for call, found in zip(own, reductions, strict=True) if call.reads_image
    ]
    for _, call, found in sorted(able, key=lambda each: each[0]):
        if coarsest > 1 and coarsest in found:
            index = len(found) - 1 - found[::-1].index(coarsest)
            return Encoder(model.get_submodule(call.name), call.name, index, call.maps[index][1])
    return None


@dataclass(frozen=True)
class _Call:
    """A module that ran: whether on the image, and the shapes of what it returned, () for what is no map."""

    name: str
    reads_image: bool
    maps: tuple[tuple[int, ...], ...]


def _calls(model: nn.Module, shape: tuple[int, ...]) -> list[_Call]:
    """All calls of modules in a run on meta images; none where it does not run."""
    twin = meta_copy(model).eval()
    found: list[_Call] = []

    def watch(name: str, module: nn.Module) -> None:
        def hook(_: nn.Module, args: tuple[Any, ...], result: Any) -> None:
            reads = bool(args) and isinstance(args[0], Tensor) and tuple(args[0].shape) == shape
            shapes = [tuple(each.shape) if isinstance(each, Tensor) else () for each in _leaves(result)]
            found.append(_Call(name, reads, tuple(each if len(each) == 4 else () for each in shapes)))

        module.register_forward_hook(hook)

    for name, module in twin.named_modules():
        watch(name, module)
    try:
        with torch.no_grad():
            twin(torch.empty(shape, device="meta"))
    except Exception:  # whatever a user's forward raises: then there is nothing to say about its parts
        return []
    return found


def _reduction(pixels: int, own: tuple[int, ...], twice: tuple[int, ...]) -> int:
    """Pixels for a position of a map, by how it grows with the image; 1 for what is no map, or does not grow."""
    grown = twice[3] - own[3] if own and twice else 0
    return max(1, round(pixels / grown)) if grown > 0 else 1


def _leaves(value: Any) -> list[Any]:
    """The values in what a module returns, in their order."""
    if isinstance(value, Mapping):
        return [leaf for each in value.values() for leaf in _leaves(each)]
    if isinstance(value, list | tuple):
        return [leaf for each in value for leaf in _leaves(each)]
    return [value]
