"""TorchCAM (torchcam): a map of the finest level is that of the plain network."""

from typing import Any

from ecosystem.kit import client, images, relative


def test_finest_level(network: Any, plain: Any) -> None:
    methods = client("torchcam.methods")
    maps = []
    for net in (network, plain):
        with methods.GradCAM(net, target_layer=net.stages.levels[-1].output) as method:
            maps += method(0, net(images(1).requires_grad_()))
    assert relative(maps[0], maps[1]) < 1e-4
