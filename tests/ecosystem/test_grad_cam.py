"""pytorch-grad-cam (grad-cam): maps of every level are those of the plain network."""

from typing import Any

import numpy as np
from ecosystem.kit import SIZE, client, images


def test_levels(network: Any, plain: Any) -> None:
    cam = client("pytorch_grad_cam")
    targets = [client("pytorch_grad_cam.utils.model_targets").ClassifierOutputTarget(i) for i in range(2)]
    maps = []
    for net in (network, plain):
        layers = [net.get_submodule(stage.output) for stage in net.stages.levels]
        with cam.GradCAM(model=net, target_layers=layers) as method:
            maps.append(method(input_tensor=images(2).clone().requires_grad_(), targets=targets))
    assert maps[0].shape == (2, SIZE, SIZE)
    assert np.abs(maps[0] - maps[1]).max() < 1e-3
