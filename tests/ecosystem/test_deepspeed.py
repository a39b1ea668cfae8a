"""DeepSpeed (deepspeed): an engine has the weights of a step by hand."""

import os
from typing import Any

import pytest
from ecosystem.kit import client, images, labels, loss, same, state, step

pytestmark = pytest.mark.slow


def test_engine(trainable: Any, plain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_PORT": "29577"}.items():
        monkeypatch.setitem(os.environ, name, value)
    monkeypatch.setitem(os.environ, "MASTER_ADDR", "127.0.0.1")
    deepspeed = client("deepspeed")
    settings = {"train_batch_size": 4, "optimizer": {"type": "SGD", "params": {"lr": 0.1}}}
    engine, *_ = deepspeed.initialize(model=trainable, config=settings, dist_init_required=True)
    engine.backward(loss(engine(images()), labels()))
    engine.step()
    step(plain.train())
    same(state(trainable), state(plain), 1e-3)
