"""A network on real tensors: gradients, copies, compilation and export."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from bu2td.graph import full_precision
from bu2td.programs import program_of
from bu2td.verification.graph import Report, fault


@full_precision()
def verify_numbers(
    network: fx.GraphModule, image_shape: tuple[int, int, int, int], size: int | None = None, odd: bool = True
) -> Report:
    """Check a network on real tensors: forward, backward, copies, compile and export.

    Needs: a network with weights; it is copied, not touched. ``odd``: whether it works at any image size.
    Returns: a `Report` with the largest difference of every form to the network itself.
    Guarantees: finite logits and a finite gradient in every parameter; deepcopy, a state_dict round trip,
        channels_last, torch.compile(fullgraph=True, without code generation) and torch.export agree to 1e-4
        relative; logits are finite under bfloat16 autocast, for a batch of one and for an odd image size.

    Raises:
        VerificationError: one of those does not hold.
    """
    _, channels, height, width = image_shape
    height, width = (size, size) if size else (height, width)
    device = next(network.parameters()).device
    generator = torch.Generator().manual_seed(0)
    images = torch.rand((2, channels, height, width), generator=generator).to(next(network.parameters()))
    model = copy.deepcopy(network)
    checks = {"gradients": _check_gradients(model.train(), images)}
    model.eval()
    with torch.no_grad():
        expected = model(images)
        if not bool(torch.isfinite(expected).all()):
            raise fault("logits are not finite in eval mode")
        forms: dict[str, Callable[[], Any]] = {
            "deepcopy": lambda: copy.deepcopy(model)(images),
            "state_dict": lambda: _reloaded(model)(images),
            "channels_last": lambda: model(images.contiguous(memory_format=torch.channels_last)),
            "compile": lambda: torch.compile(model, fullgraph=True, backend="aot_eager")(images),
            "export": lambda: program_of(model, images).module()(images),
        }
        for name, run in forms.items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                checks[name] = _difference(name, run(), expected)
        torch.compiler.reset()
        with torch.autocast(device.type, dtype=torch.bfloat16):
            _finite("under autocast", model(images))
        height, width = (height - 3, width - 5) if odd else (height, width)
        _finite("for one odd image" if odd else "for one image", model(images[:1, :, :height, :width]))
    return Report({**checks, "autocast": "finite", "batch 1, odd size" if odd else "batch 1": "finite"})


def _finite(where: str, output: Tensor) -> None:
    if not bool(torch.isfinite(output).all()):
        raise fault(f"logits are not finite {where}")


def _check_gradients(model: nn.Module, images: Tensor) -> str:
    output = model(images)
    output = output.mean((2, 3)) if output.ndim == 4 else output
    (output * torch.linspace(-1, 1, output.shape[1], device=output.device)).sum().backward()
    if not bool(torch.isfinite(output).all()):
        raise fault("logits are not finite in train mode")
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.grad is None:
            raise fault(f"{name} has no gradient")
        if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all()):
            raise fault(f"the gradient of {name} is not finite")
    return f"finite in all {sum(1 for _ in model.parameters())} parameters"


def _reloaded(model: nn.Module) -> nn.Module:
    new = copy.deepcopy(model)
    for parameter in new.parameters():
        nn.init.zeros_(parameter)
    new.load_state_dict(model.state_dict())
    return new


def _difference(name: str, found: Tensor, expected: Tensor) -> str:
    difference = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-12))
    if not difference <= 1e-4 or math.isnan(difference):
        raise fault(f"{name} gives other numbers (relative difference {difference:.2e})")
    return f"relative difference {difference:.1e}"
