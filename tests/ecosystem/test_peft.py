"""PEFT (peft): low-rank adapters of convolutions, alone trained and merged."""

from typing import Any

import pytest
import torch
from ecosystem.kit import client, images, labels, loss, relative

pytestmark = pytest.mark.slow


def test_lora(trainable: Any, plain: Any) -> None:
    peft = client("peft")
    names = [n for n, m in trainable.named_modules() if type(m) is torch.nn.Conv2d and n.startswith("r")]
    adapted = peft.get_peft_model(trainable.eval(), peft.LoraConfig(r=2, target_modules=names, bias="none"))
    assert relative(adapted(images()), plain(images())) < 1e-5
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], 0.5)
    for _ in range(2):
        optimizer.zero_grad()
        loss(adapted(images()), labels()).backward()
        optimizer.step()
    trained = adapted(images())
    assert relative(trained, plain(images())) > 1e-4
    assert relative(adapted.merge_and_unload()(images()), trained) < 1e-4
