"""Settings of training: rates from none to one."""

from typing import Any

import pytest
from torch import nn

from bu2td.settings import set_training, training_settings


def network(rate: Any = 0.5) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, momentum=rate), nn.Dropout(0.5), nn.ReLU())


@pytest.mark.parametrize("rate", [0, 0.0, 0.3, 1, 1.0, None])
def test_rates_are_told_and_set(rate: Any) -> None:
    told = {"1": {"momentum": rate}, "2": {"p": 0.5}}
    assert training_settings(network(rate)) == told
    other: Any = network()
    set_training(other, {"1": {"momentum": rate}})
    assert other[1].momentum == rate
    assert training_settings(other) == told


@pytest.mark.parametrize("rate", [-0.1, 1.5, True, "high", float("nan")])
def test_what_is_no_rate_is_refused(rate: Any) -> None:
    other: Any = network()
    with pytest.raises(ValueError, match=r"1\.momentum=.* is no setting of training"):
        set_training(other, {"1": {"momentum": rate}})
    assert other[1].momentum == 0.5
