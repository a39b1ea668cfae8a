"""The images that a model takes: as an example shows, as its configuration says, or as its layers read them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from bu2td.ops import converter_for_type

_SIDES = (224, 224)


def image_shape(
    model: nn.Module, example_inputs: Tensor | None, graph_module: fx.GraphModule
) -> tuple[tuple[int, int, int, int], tuple[str, ...]]:
    """The shape of an image batch: the example's, else the configuration's, else 1 x C x 224 x 224; and notes.

    Without an example, C is what the convolution that reads the image reads.
    """
    if example_inputs is not None:
        n, c, h, w = example_inputs.shape
        return (n, c, h, w), ()
    channels = _image_channels(graph_module)
    size = _configured_size(model)
    if size is not None:
        return (1, channels or int(size[0]), int(size[1]), int(size[2])), ()
    channels = channels or 3
    note = f"no example_inputs and no input size in the model's configuration: 1x{channels}x224x224 is assumed"
    return (1, channels, *_SIDES), (note,)


def likely_images(model: nn.Module, example_inputs: Tensor | None) -> Tensor:
    """Meta images (2, C, H, W) of the size that the model most likely takes, for what tracing must know."""
    size: Any = _configured_size(model) if example_inputs is None else example_inputs.shape[1:]
    if size is None:
        widths = (_input_width(module) for module in model.modules())
        size = (next((width for width in widths if width is not None), 3), *_SIDES)
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    return torch.empty((2, *size), device="meta", dtype=dtype)


def _configured_size(model: nn.Module) -> Any:
    """The (C, H, W) in a configuration that the model carries; None if there is none."""
    configs: list[Any] = [getattr(model, name, None) for name in ("pretrained_cfg", "default_cfg")]
    sizes = (config.get("input_size") for config in configs if hasattr(config, "get"))
    return next((size for size in sizes if size is not None), None)


def _image_channels(graph_module: fx.GraphModule) -> int | None:
    """Input channels of the convolution that reads the image itself, if there is one."""
    image = next(n for n in graph_module.graph.nodes if n.op == "placeholder")
    readers = (graph_module.get_submodule(str(n.target)) for n in image.users if n.op == "call_module")
    return next((width for width in map(_input_width, readers) if width is not None), None)


def _input_width(module: nn.Module) -> int | None:
    """How many channels a module must read, as its converter says."""
    converter = converter_for_type(type(module))
    return None if converter is None else converter.input_width(module)
