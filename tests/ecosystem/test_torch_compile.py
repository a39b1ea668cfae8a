"""torch.compile (torch): one graph, with the logits and gradients of eager."""

from typing import Any

import pytest
import torch
from ecosystem.kit import gradients, images, labels, loss, relative, same


def test_one_graph(network: Any, plain: Any) -> None:
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert relative(compiled(images()), plain(images())) < 1e-5


@pytest.mark.slow
def test_gradients(trainable: Any, plain: Any) -> None:
    compiled = torch.compile(trainable.eval(), fullgraph=True, backend="aot_eager")
    loss(compiled(images()), labels()).backward()
    same({name: p.grad for name, p in trainable.named_parameters()}, gradients(plain))


@pytest.mark.slow
def test_generated_code(network: Any, plain: Any) -> None:
    with torch.no_grad():
        assert relative(torch.compile(network, fullgraph=True)(images()), plain(images())) < 1e-4
