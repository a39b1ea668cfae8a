"""TorchMetrics (torchmetrics): accuracy of a network's logits."""

from typing import Any

import torch
from ecosystem.kit import client, images, labels


def test_accuracy(network: Any, plain: Any) -> None:
    metric = client("torchmetrics.classification").MulticlassAccuracy(10, average="micro")
    metric.update(network(images()), labels())
    assert torch.isclose(metric.compute(), (plain(images()).argmax(1) == labels()).float().mean())
