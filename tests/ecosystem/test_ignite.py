"""Ignite (pytorch-ignite): a supervised trainer has the weights of a step by hand."""

from typing import Any

import torch
from ecosystem.kit import client, images, labels, loss, same, state, step


def test_trainer(trainable: Any, plain: Any) -> None:
    engine = client("ignite.engine")
    trainer = engine.create_supervised_trainer(trainable, torch.optim.SGD(trainable.parameters(), 0.1), loss)
    trainer.run([(images(), labels())], max_epochs=1)
    step(plain.train())
    same(state(trainable), state(plain))
