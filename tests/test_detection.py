"""Backbones of torchvision's detectors."""

from typing import Any

import pytest
import torch

import bu2td
from bu2td.errors import OptionError

torchvision = pytest.importorskip("torchvision")
detection = pytest.importorskip("torchvision.models.detection")

SIZES = [(64, 80), (70, 64)]


def targets() -> list[dict[str, torch.Tensor]]:
    return [
        {
            "boxes": torch.tensor([[4.0, 4.0, 40.0, 40.0]]),
            "labels": torch.tensor([1]),
            "masks": torch.ones(1, *size, dtype=torch.uint8),
        }
        for size in SIZES
    ]


def resnet18(**options: Any) -> Any:
    return bu2td.backbone(torchvision.models.resnet18(), out_channels=32, seed=0, **options)


def test_maps_are_those_that_detectors_expect() -> None:
    model = torchvision.models.resnet18()
    theirs = detection.backbone_utils.BackboneWithFPN(
        model, {f"layer{i}": str(i - 1) for i in (1, 2, 3, 4)}, [64, 128, 256, 512], 32
    ).eval()
    ours = resnet18().eval()
    images = torch.rand(1, 3, 64, 96)
    expected, found = theirs(images), ours(images)
    assert {name: each.shape for name, each in found.items()} == {name: e.shape for name, e in expected.items()}
    assert list(found) == list(expected)
    assert ours.out_channels == theirs.out_channels
    raw = list(ours.body(images).values())
    assert [each.shape[1] for each in raw] == [64, 128, 256, 512]
    for a, b in zip(raw, reversed(ours.body.features(images)), strict=True):
        assert torch.equal(a, b)


DETECTORS = [
    "FasterRCNN",
    "RetinaNet",
    pytest.param("MaskRCNN", marks=pytest.mark.slow),
    pytest.param("FCOS", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("name", DETECTORS)
def test_detectors_train(name: str) -> None:
    torch.manual_seed(0)
    detector = getattr(detection, name)(resnet18(), num_classes=3, min_size=64, max_size=96).train()
    images = [torch.rand(3, *size) for size in SIZES]
    losses = detector(images, targets())
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert [n for n, p in detector.named_parameters() if p.grad is None] == []
    with torch.no_grad():
        assert len(detector.eval()(images)) == 2


def test_finer_levels_of_a_converted_network_are_left_out() -> None:
    td = bu2td.convert(torchvision.models.resnet18(), device="meta")
    backbone = bu2td.backbone(td, (16, 32))
    assert backbone.body.plan.ladder == (32, 16)
    assert backbone.body.reductions == (32, 16)
    assert not any(name.startswith("r8") for name, _ in backbone.body.named_parameters())
    maps = backbone(torch.empty(1, 3, 65, 64, device="meta"))
    assert [tuple(each.shape[-2:]) for each in maps.values()] == [(5, 4), (3, 2), (2, 1)]
    backbone.body.set_grad_checkpointing()
    assert backbone.body.grad_checkpointing
    with pytest.raises(OptionError, match="no classifier"):
        backbone.body.reset_classifier(3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reductions": []}, "whole numbers"),
        ({"reductions": (4.0,)}, "whole numbers"),
        ({"reductions": 4}, "list of whole numbers"),
        ({"out_channels": 0}, "at least 1"),
    ],
)
def test_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        bu2td.backbone(torchvision.models.resnet18(), **options)
