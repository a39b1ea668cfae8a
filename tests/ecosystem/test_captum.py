"""Captum (captum): attributions of all levels and of the image are those of the plain network, and add up."""

from typing import Any

from ecosystem.kit import client, images, labels, relative


def test_attributions_add_up(network: Any, plain: Any) -> None:
    attr = client("captum.attr")
    x, zero = images(2), images(2) * 0
    found = attr.IntegratedGradients(network).attribute(x, zero, target=labels(2), n_steps=64)
    gain = (plain(x) - plain(zero)).gather(1, labels(2)[:, None])[:, 0]
    assert relative(found.sum((1, 2, 3)), gain) < 0.05
    assert relative(found, attr.IntegratedGradients(plain).attribute(x, zero, target=labels(2), n_steps=64)) < 1e-4


def test_every_level(network: Any, plain: Any) -> None:
    attr = client("captum.attr")
    for own, other in zip(network.stages.levels, plain.stages.levels, strict=True):
        maps = [
            attr.LayerGradCam(net, net.get_submodule(stage.output)).attribute(images(2), target=labels(2))
            for net, stage in ((network, own), (plain, other))
        ]
        assert relative(maps[0], maps[1]) < 1e-4
