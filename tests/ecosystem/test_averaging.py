"""Averaged weights (torch, timm, torch-ema): averages are those of the weights, norms are estimated anew."""

from typing import Any

import torch
from ecosystem.kit import client, images, relative
from torch.optim import swa_utils


def shift(net: Any) -> None:
    with torch.no_grad():
        for p in net.parameters():
            p += 0.1


def test_stochastic_weight_averaging(trainable: Any, plain: Any) -> None:
    averaged = swa_utils.AveragedModel(trainable)
    averaged.update_parameters(trainable)
    shift(trainable)
    averaged.update_parameters(trainable)
    swa_utils.update_bn([images()], averaged)
    with torch.no_grad():
        for p in plain.parameters():
            p += 0.05
    swa_utils.update_bn([images()], plain)
    assert relative(averaged.eval()(images()), plain.eval()(images())) < 1e-4


def test_moving_average(trainable: Any, plain: Any) -> None:
    ema = client("timm.utils").ModelEmaV3(trainable, decay=0.5)
    shift(trainable)
    ema.update(trainable)
    with torch.no_grad():
        for p in plain.parameters():
            p += 0.05
    assert relative(ema.module.eval()(images()), plain(images())) < 1e-4


def test_moving_average_of_a_parameter_list(trainable: Any, plain: Any) -> None:
    ema = client("torch_ema").ExponentialMovingAverage(trainable.parameters(), decay=0.5, use_num_updates=False)
    shift(trainable)
    ema.update()
    with torch.no_grad(), ema.average_parameters():
        for p in plain.parameters():
            p += 0.05
        assert relative(trainable.eval()(images()), plain(images())) < 1e-4
