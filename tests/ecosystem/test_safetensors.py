"""safetensors (safetensors): weights written and read again give the logits of the network."""

from pathlib import Path
from typing import Any

import torch
from ecosystem.kit import client, images, relative


def test_round_trip(network: Any, plain: Any, tmp_path: Path) -> None:
    files = client("safetensors.torch")
    files.save_model(network, str(tmp_path / "weights.safetensors"))
    with torch.no_grad():
        for p in network.parameters():
            p.zero_()
    files.load_model(network, str(tmp_path / "weights.safetensors"))
    assert relative(network(images()), plain(images())) < 1e-5


def test_training_forms_read_each_others_files(trainable: Any, plain: Any, tmp_path: Path) -> None:
    files = client("safetensors.torch")
    weights = {name: value.contiguous() for name, value in trainable.state_dict().items()}  # it refuses others
    files.save_file(weights, str(tmp_path / "weights.safetensors"))
    plain.load_state_dict(files.load_file(str(tmp_path / "weights.safetensors")))
