"""Families: the smallest model of every family of the zoo, in all three arrangements, on the meta device.

`pytest -m zoo` runs them all, `pytest -m zoo1` to `-m zoo4` a quarter each.
"""

import pytest

from bu2td.options import ARRANGEMENTS
from bu2td.zoo.zoo import ZooModel, convert_model, list_zoo

pytest.importorskip("timm")
pytest.importorskip("torchvision")

pytestmark = pytest.mark.zoo

SHARDS = (pytest.mark.zoo1, pytest.mark.zoo2, pytest.mark.zoo3, pytest.mark.zoo4)

#: The model with the fewest parameters of every family (timm 1.0.31, torchvision 0.29).
SMALLEST = {
    "torchvision:alexnet": "torchvision:alexnet",
    "torchvision:convnext": "torchvision:convnext_tiny",
    "torchvision:densenet": "torchvision:densenet121",
    "torchvision:efficientnet": "torchvision:efficientnet_b0",
    "torchvision:googlenet": "torchvision:googlenet",
    "torchvision:inception": "torchvision:inception_v3",
    "torchvision:mnasnet": "torchvision:mnasnet0_5",
    "torchvision:mobilenetv2": "torchvision:mobilenet_v2",
    "torchvision:mobilenetv3": "torchvision:mobilenet_v3_small",
    "torchvision:regnet": "torchvision:regnet_y_400mf",
    "torchvision:resnet": "torchvision:resnet18",
    "torchvision:shufflenetv2": "torchvision:shufflenet_v2_x0_5",
    "torchvision:squeezenet": "torchvision:squeezenet1_1",
    "torchvision:vgg": "torchvision:vgg11",
    "byoanet": "halonet_h1",
    "byobnet": "test_byobnet",
    "convmixer": "convmixer_768_32",
    "convnext": "test_convnext",
    "cspnet": "cs3darknet_focus_s",
    "cspnext": "cspnext_tiny",
    "csatv2": "csatv2",
    "densenet": "densenet121",
    "dla": "dla46x_c",
    "dpn": "dpn48b",
    "edgenext": "edgenext_xx_small",
    "efficientnet": "test_efficientnet",
    "fasternet": "fasternet_t0",
    "focalnet": "focalnet_tiny_srf",
    "ghostnet": "ghostnet_050",
    "hardcorenas": "hardcorenas_b",
    "hgnet": "hgnetv2_b0",
    "hrnet": "hrnet_w18_small",
    "inception_next": "inception_next_atto",
    "inception_resnet_v2": "inception_resnet_v2",
    "inception_v3": "inception_v3",
    "inception_v4": "inception_v4",
    "lcnetv2": "lcnetv2_small",
    "mambaout": "test_mambaout",
    "metaformer": "poolformerv2_s12",
    "mobilenetv3": "mobilenetv3_small_050",
    "mobilenetv5": "mobilenetv5_base",
    "nasnet": "nasnetalarge",
    "nfnet": "test_nfnet",
    "pnasnet": "pnasnet5large",
    "rdnet": "rdnet_tiny",
    "regnet": "regnetx_002",
    "repghost": "repghostnet_050",
    "repvit": "repvit_m1",
    "res2net": "res2next50",
    "resnest": "resnest14d",
    "resnet": "test_resnet",
    "resnetv2": "resnetv2_18",
    "rexnet": "rexnet_100",
    "selecsls": "selecsls42",
    "senet": "legacy_seresnet18",
    "sknet": "skresnet18",
    "starnet": "starnet_s050",
    "tresnet": "tresnet_m",
    "vgg": "vgg11",
    "vovnet": "ese_vovnet19b_slim_dw",
    "xception": "legacy_xception",
    "xception_aligned": "xception41p",
}

#: Families that cannot be turned upside down: their exception. Every other one is verified.
REFUSED = {
    "convmixer": "NoReductionError",  # one resolution throughout
    "hrnet": "TopologyError",  # several resolutions side by side, and no trunk
}


def test_every_family_is_listed() -> None:
    zoo = list_zoo()
    assert set(SMALLEST) == {model.family for model in zoo}
    assert {ZooModel(word, family) for family, word in SMALLEST.items()} <= set(zoo)
    assert set(REFUSED) <= set(SMALLEST)


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=SHARDS[i % len(SHARDS)]) for i, name in enumerate(SMALLEST)]
)
def test_family(family: str) -> None:
    rows = convert_model(ZooModel(SMALLEST[family], family), ARRANGEMENTS, real=False)
    expected = ("refused", REFUSED[family]) if family in REFUSED else ("verified", "")
    found = {row.arrangement: (row.status, row.cause) for row in rows}
    assert found == dict.fromkeys(ARRANGEMENTS, expected), rows[0].message
    for row in rows:
        assert row.none + row.regroup + row.entry_adapter + row.exit_adapter + row.frozen == row.levels
        assert bool(row.levels) == (row.status == "verified") == (not row.message)
