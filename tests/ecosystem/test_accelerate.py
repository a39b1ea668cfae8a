"""Accelerate (accelerate): a prepared network has the weights of a step by hand."""

from typing import Any

import torch
from ecosystem.kit import client, images, labels, loss, same, state, step
from torch.utils.data import DataLoader, TensorDataset


def test_step(trainable: Any, plain: Any) -> None:
    accelerator = client("accelerate").Accelerator(cpu=True)
    data = DataLoader(TensorDataset(images(), labels()), batch_size=4)
    net, optimizer, data = accelerator.prepare(trainable, torch.optim.SGD(trainable.parameters(), 0.1), data)
    for x, y in data:
        accelerator.backward(loss(net(x), y))
        optimizer.step()
    step(plain.train())
    same(state(accelerator.unwrap_model(net)), state(plain))
