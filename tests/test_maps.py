"""Networks of pixels, made of networks with an encoder: what the encoder is, and what is refused."""

import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bu2td
from bu2td.errors import ModelOutputError
from bu2td.maps import find_encoder


def unit(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), nn.ReLU())


class Encoder(nn.Module):
    """Maps of three levels, in a form of choice."""

    def __init__(self, form: Any) -> None:
        super().__init__()
        self.a, self.b, self.c = unit(1, 4, 2), unit(4, 8, 2), unit(8, 16, 2)
        self.form = form

    def forward(self, x: Tensor) -> Any:
        a = self.a(x)
        b = self.b(a)
        return self.form((x, a, b, self.c(b)))


class Segmenter(nn.Module):
    """Pixels, of an encoder's maps; pools to a grid on the way, which is coarser still."""

    def __init__(self, form: Any) -> None:
        super().__init__()
        self.eyes = Encoder(form)
        self.grid = nn.AdaptiveAvgPool2d(2)
        self.scores = nn.Conv2d(16, 3, 1)

    def forward(self, x: Tensor) -> Any:
        maps = self.eyes(x)
        deep = list(maps.values())[-1] if isinstance(maps, dict) else maps[-1] if isinstance(maps, tuple) else maps
        deep = deep + F.interpolate(self.grid(deep), size=deep.shape[-2:])
        return {"out": F.interpolate(self.scores(deep), size=x.shape[-2:])}


class Flat(nn.Module):
    """Pixels without an encoder to be seen: its first layer strides, and is none."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.deep, self.scores = unit(1, 4, 2), unit(4, 8, 2), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.scores(self.deep(self.stem(x))), size=x.shape[-2:])


FORMS = {
    "the last": lambda maps: maps[-1],
    "tuple": tuple,
    "dict": lambda maps: OrderedDict((f"c{i}", each) for i, each in enumerate(maps)),
}
IMAGES = torch.zeros(2, 1, 32, 32)


@pytest.mark.parametrize("form", FORMS)
def test_an_encoder_is_found_whatever_it_returns(form: str) -> None:
    whole = Segmenter(FORMS[form])
    found = find_encoder(whole, IMAGES)
    assert found is not None
    assert (found.module, found.name, found.width) == (whole.eyes, "eyes", 16)
    dense = bu2td.dense(whole, 3, example_inputs=IMAGES)
    alone = bu2td.dense(whole.eyes, 3, example_inputs=IMAGES)
    for network in (dense, alone):
        assert (network.plan.ladder, network.plan.widths) == ((8, 4, 2, 1), (16, 8, 4, 4))
        assert network(torch.rand(2, 1, 35, 50)).shape == (2, 3, 35, 50)
    assert "made of eyes of Segmenter" in dense.plan.notes[-1]
    assert "made of the maps of Encoder" in alone.plan.notes[-1]


def test_weights_of_the_encoder_are_inherited() -> None:
    whole = Segmenter(FORMS["tuple"])
    dense = bu2td.dense(whole, 3, example_inputs=IMAGES, inherit="matching")
    inherited = dict(dense.named_parameters())
    eyes = whole.eyes
    for name, own in (("r8.encoder.c", eyes.c), ("r4_up.encoder.b", eyes.b), ("r2.encoder.a", eyes.a)):
        assert torch.equal(inherited[f"{name}.0.bias"], own[0].bias)  # drawn at random: equal by inheritance alone
    assert dense.plan.inherited is not None
    assert dense.plan.inherited[0] >= sum(
        len(p) for name, p in inherited.items() if ".encoder." in name and p.ndim == 1
    )


@pytest.mark.parametrize("refuse", [bu2td.dense, bu2td.convert])
def test_what_has_no_encoder_is_refused(refuse: Any) -> None:
    arguments = (Flat(), 3) if refuse is bu2td.dense else (Flat(),)
    with pytest.raises(
        ModelOutputError, match="No encoder is found" if refuse is bu2td.dense else r"bu2td\.dense\("
    ):
        refuse(*arguments, example_inputs=IMAGES)


SEGMENTERS = [
    "deeplabv3_mobilenet_v3_large",
    pytest.param("lraspp_mobilenet_v3_large", marks=pytest.mark.slow),
    pytest.param("fcn_resnet50", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("name", SEGMENTERS)
def test_torchvisions_segmentation_models(name: str) -> None:
    torchvision = pytest.importorskip("torchvision")
    model = torchvision.models.get_model(name, weights=None, weights_backbone=None)
    options: dict[str, Any] = {"example_inputs": torch.zeros(2, 3, 64, 64), "finest_reduction": 4, "device": "meta"}
    dense = bu2td.dense(model, 21, head="fpn", **options)
    if name == "fcn_resnet50":  # the encoder is the classifier, with dilation in place of two strides
        same = torchvision.models.resnet50(weights=None, replace_stride_with_dilation=[False, True, True])
    else:
        same = torchvision.models.mobilenet_v3_large(weights=None, dilated=True)
    plan = bu2td.convert(same, **options).plan
    assert (dense.plan.ladder, dense.plan.widths) == (plan.ladder, plan.widths)
    assert [level.cost for level in dense.plan.levels] == [level.cost for level in plan.levels]
    assert dense(torch.empty(2, 3, 65, 70, device="meta")).shape == (2, 21, 65, 70)


@pytest.mark.parametrize("make", ["features_only", "extractor"])
def test_networks_of_features(make: str) -> None:
    options: dict[str, Any] = {"example_inputs": torch.zeros(2, 3, 64, 64), "device": "meta", "finest_reduction": 4}
    if make == "features_only":
        model = pytest.importorskip("timm").create_model("resnet18", features_only=True)
    else:
        torchvision = pytest.importorskip("torchvision")
        extraction = torchvision.models.feature_extraction
        model = extraction.create_feature_extractor(torchvision.models.resnet18(), {"layer2": "x", "layer4": "y"})
    dense = bu2td.dense(model, 4, **options)
    assert (dense.plan.ladder, dense.plan.widths) == ((32, 16, 8, 4), (512, 256, 128, 64))


@pytest.mark.slow
def test_the_page_says_what_runs() -> None:
    pytest.importorskip("torchvision")
    page = (Path(__file__).parent.parent / "docs" / "dense.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 3
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
    assert names["scores"].shape == (2, 21, 97, 130)
    assert names["dense"].plan.notes[-1] == "made of backbone of FCN; what is behind is left out"
    assert all(torch.isfinite(loss) for loss in names["losses"].values())
