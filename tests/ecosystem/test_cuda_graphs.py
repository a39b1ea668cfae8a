"""CUDA graphs (torch): a replayed graph gives the logits of the network."""

from typing import Any

import pytest
import torch
from ecosystem.kit import images, relative

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def test_replay(network: Any, plain: Any) -> None:
    static, network = images().cuda(), network.cuda()
    with torch.no_grad():
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            network(static)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = network(static)
        static.copy_(images().flip(0))
        graph.replay()
    assert relative(out.cpu(), plain(images().flip(0))) < 1e-3
