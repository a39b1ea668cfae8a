"""The images that a model takes: as an example shows, as its configuration says, or as its layers read them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from bu2td.ops import converter_for_type

#: Sides that are tried in turn where nothing says which: ImageNet's, those of small images, and what others use.
_SIDES = (224, 32, 28, 64, 96, 128, 227, 256, 299, 384, 512)
#: Where configurations and models keep the size of their images.
_NAMES = ("input_size", "in_size", "image_size", "img_size", "input_resolution", "input_shape")


@dataclass(frozen=True, eq=False)
class Nominal:
    """Images that a model may take.

    Attributes:
        images: on meta, two of them.
        shape: (N, C, H, W) of a batch.
        assumed: nothing says that it takes them.
        guessed: nothing says that it takes so many channels.
        fixed: an example says so.
    """

    images: Tensor
    shape: tuple[int, int, int, int]
    assumed: bool = False
    guessed: bool = False
    fixed: bool = False

    @property
    def notes(self) -> tuple[str, ...]:
        """What to say of an assumption."""
        if not self.assumed:
            return ()
        size = "x".join(map(str, self.shape))
        return (f"no example_inputs and no input size in the model's configuration: {size} is assumed",)

    def read_by(self, graph_module: fx.GraphModule) -> Nominal:
        """The images with the channels that the convolution which reads them says, if there is one."""
        channels = None if self.fixed else _image_channels(graph_module)
        n, _, height, width = self.shape
        return self if channels is None else replace(self, shape=(n, channels, height, width))


def nominal_images(model: nn.Module, example_inputs: Tensor | None) -> Iterator[Nominal]:
    """The images that a model may take, the likeliest first: one alone if an example or the model says which."""
    dtype = next((p.dtype for p in model.parameters()), torch.float32)

    def nominal(shape: tuple[int, ...], **settings: bool) -> Nominal:
        n, channels, height, width = shape
        images = torch.empty((2, channels, height, width), device="meta", dtype=dtype)
        return Nominal(images, (n, channels, height, width), **settings)

    if example_inputs is not None:
        yield nominal(tuple(example_inputs.shape), fixed=True)
        return
    widths = (_input_width(module) for module in model.modules())
    first = next((width for width in widths if width is not None), 3)
    for channels in dict.fromkeys((first, 3)):  # the first layer need not read the image as it is
        size = _configured_size(model, channels)
        if size is not None:
            yield nominal((1, *size), guessed=size[0] == first != 3)
        for side in () if size else _SIDES:
            yield nominal((1, channels, side, side), assumed=True)


def _configured_size(model: nn.Module, channels: int) -> tuple[int, int, int] | None:
    """The (C, H, W) that a model, or a configuration that it carries, states; None if there is none."""
    configs: list[Any] = [getattr(model, name, None) for name in ("pretrained_cfg", "default_cfg", "config")]
    for holder in (*configs, model):
        for name in _NAMES:
            value = holder.get(name) if isinstance(holder, dict) else getattr(holder, name, None)
            size = _size(value, channels)
            if size is not None:
                return size
    return None


def _size(value: Any, channels: int) -> tuple[int, int, int] | None:
    """(C, H, W) of a side, of (H, W), or of (C, H, W); None for anything else."""
    sides = (value, value) if _is_side(value) else value
    if not isinstance(sides, list | tuple) or not all(map(_is_side, sides)):
        return None
    if len(sides) == 2:
        return (channels, sides[0], sides[1])
    return (sides[0], sides[1], sides[2]) if len(sides) == 3 and sides[0] <= min(sides[1:]) else None


def _is_side(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _image_channels(graph_module: fx.GraphModule) -> int | None:
    """Input channels of the convolution that reads the image itself, if there is one."""
    image = next(n for n in graph_module.graph.nodes if n.op == "placeholder")
    readers = (graph_module.get_submodule(str(n.target)) for n in image.users if n.op == "call_module")
    return next((width for width in map(_input_width, readers) if width is not None), None)


def _input_width(module: nn.Module) -> int | None:
    """How many channels a module must read, as its converter says."""
    converter = converter_for_type(type(module))
    return None if converter is None else converter.input_width(module)
