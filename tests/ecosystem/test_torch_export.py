"""torch.export (torch): a program for any batch size gives the logits of the network."""

from typing import Any

import torch
from ecosystem.kit import images, relative


def test_any_batch(network: Any, plain: Any) -> None:
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(network, (images(2),), dynamic_shapes=shapes).module()
    for count in (1, 2, 4):
        assert relative(program(images(count)), plain(images(count))) < 1e-5
