"""DataParallel (torch): without a GPU it is the network itself."""

from typing import Any

import pytest
import torch
from ecosystem.kit import gradients, images, labels, loss, relative, same
from torch.nn.parallel import DataParallel


def test_on_the_cpu(network: Any, plain: Any) -> None:
    assert relative(DataParallel(network)(images()), plain(images())) < 1e-5


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_gradients_of_two_devices(trainable: Any, plain: Any) -> None:
    net = DataParallel(trainable.eval().cuda())
    loss(net(images().cuda()), labels().cuda()).backward()
    found = {name: p.grad.cpu() for name, p in net.module.named_parameters()}
    same(found, gradients(plain), 1e-3)
