"""Optimisers (torch, timm, schedulefree): fused, foreach and adaptive ones take the steps of the plain network."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from ecosystem.kit import client, images, labels, loss, same, state

MAKERS: dict[str, Callable[[Any], Any]] = {
    "adamw foreach": lambda p: torch.optim.AdamW(p, 0.01, foreach=True, eps=1e-2),
    "adamw fused": lambda p: torch.optim.AdamW(p, 0.01, fused=True, eps=1e-2),
    "timm lamb": lambda p: client("timm.optim").Lamb(p, 0.01, eps=1e-2),
    "schedulefree": lambda p: client("schedulefree").SGDScheduleFree(p, 0.01),
}


@pytest.mark.parametrize("name", MAKERS)
def test_steps(trainable: Any, plain: Any, name: str) -> None:
    for net in (trainable, plain.train()):
        optimizer = MAKERS[name](net.parameters())
        getattr(optimizer, "train", lambda: None)()
        for _ in range(2):
            optimizer.zero_grad()
            loss(net(images()), labels()).backward()
            optimizer.step()
    same(state(trainable), state(plain), 1e-3)
