"""TensorBoard (tensorboard): the network's graph and weights are written."""

from pathlib import Path
from typing import Any

from ecosystem.kit import client, images


def test_graph(network: Any, tmp_path: Path) -> None:
    client("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        writer.add_graph(network, images(1))
        for name, p in network.named_parameters():
            writer.add_histogram(name, p)
    [file] = tmp_path.iterdir()
    assert b"r8_lateral" in file.read_bytes()
