"""Lightning Fabric (lightning-fabric): a loop of one's own, in bfloat16 too, has the weights of a step by hand."""

from typing import Any

import pytest
import torch
from ecosystem.kit import client, images, labels, loss, same, state, step


@pytest.mark.parametrize(("precision", "tolerance"), [("32-true", 1e-4), ("bf16-mixed", 2e-2)])
def test_step(trainable: Any, plain: Any, precision: str, tolerance: float) -> None:
    fabric = client("lightning_fabric").Fabric(accelerator="cpu", devices=1, precision=precision)
    net, optimizer = fabric.setup(trainable, torch.optim.SGD(trainable.parameters(), 0.1))
    fabric.backward(loss(net(images()), labels()))
    optimizer.step()
    step(plain.train())
    same(state(trainable), state(plain), tolerance)
