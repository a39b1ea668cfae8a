"""The rivals of `bench/speed.py`: the same top-down networks, written by hand in ordinary PyTorch.

They are the references of the tests (`tests/reference`): what one writes from the paper's text without a compiler,
modules of `torch.nn`, in-place activations, `torch.cat` and `F.interpolate` where the text says so. Here the
matrices of their pyramid are made once (`Pyramid.prepare`). `build` gives both networks the same weights, and
`check` refuses a rival that does not compute the same.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import bu2td
from bu2td.models.words import create_model

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from reference import paper, real
from reference.fill import fill, picture


@dataclass(frozen=True)
class Pair:
    """A network and its rival.

    Attributes:
        name: of the reference.
        word: of the bottom-up model.
        shape: (C, H, W) of its images.
        stem: of the conversion.
        batches: images at once in inference and in training.
    """

    name: str
    word: str
    shape: tuple[int, int, int]
    stem: str = "mirror"
    batches: tuple[int, int] = (1, 4)

    def convert(self, **options: Any) -> bu2td.TopDownNetwork:
        """The converted network, with weights and statistics that all matter where it has any."""
        device = options.get("device")
        network = bu2td.convert(
            create_model(self.word, device=device),
            "td",
            stem=self.stem,
            example_inputs=torch.zeros(2, *self.shape, device=device),
            max_macs_ratio=None,
            **options,
        )
        if device != "meta":
            fill(network)
        return network

    def rival(self, fault: str | None = None) -> nn.Module:
        """The network written by hand, made for images of one size; the paper's with a fault if one is named."""
        if self.name in real.NAMES:
            return prepared(real.build(self.name, "td"), self.shape)
        return prepared(paper.build(self.name, "td", fault), self.shape)


def prepared(rival: nn.Module, shape: tuple[int, int, int], dtype: torch.dtype = torch.float32) -> nn.Module:
    """A rival that makes the matrices of its pyramid no more."""
    rival.get_submodule("pyramid").prepare(shape[1:], dtype)  # type: ignore[operator]
    return rival


PAIRS: dict[str, Pair] = {
    "lenet_fc": Pair("lenet_fc", "bu2td:lenet_fc", (1, 28, 28), batches=(32, 32)),
    "nin_light": Pair("nin_light", "bu2td:nin_light", (1, 28, 28), batches=(32, 32)),
    "nin": Pair("nin", "bu2td:nin", (3, 32, 32), batches=(8, 32)),
    "resnet32": Pair("resnet32", "bu2td:resnet32", (3, 32, 32), batches=(8, 32)),
    "resnet18_imagenette": Pair(
        "resnet18_imagenette", "bu2td:resnet18_imagenette", (3, 128, 128), "coarse", batches=(1, 8)
    ),
    **{name: Pair(name, name, (3, 224, 224)) for name in ("resnet18", "resnet50", "mobilenetv2_100")},
}


def check(network: nn.Module, rival: nn.Module, images: Tensor, tolerance: float = 1e-4) -> float:
    """The relative difference of the logits in eval mode.

    Raises:
        ValueError: it is more than the tolerance.
    """
    modes = network.training, rival.training
    with torch.no_grad():
        expected, found = network.eval()(images), rival.eval()(images)
    for model, mode in zip((network, rival), modes, strict=True):
        if mode:
            model.train()
    difference = float((found - expected).abs().max() / expected.abs().max())
    if not difference <= tolerance:
        raise ValueError(f"the rival differs by {difference:.1e} relative, more than {tolerance:.0e}")
    return difference


def build(name: str, fault: str | None = None) -> tuple[bu2td.TopDownNetwork, nn.Module]:
    """A converted network and its rival, which has its weights and is checked.

    Raises:
        ValueError: the rival has other parameters, or does not compute the same.
    """
    pair = PAIRS[name]
    network, rival = pair.convert(seed=0), pair.rival(fault)
    shapes = [sorted(tuple(p.shape) for p in model.parameters()) for model in (network, rival)]
    if shapes[0] != shapes[1]:
        raise ValueError("the rival does not have the parameters of the converted network")
    fill(rival)
    check(network, rival, picture(1, *pair.shape))
    return network, rival
