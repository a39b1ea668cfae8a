"""Networks converted on the meta device, where only their structure is asked for."""

from typing import Any

import pytest
import torch
from torch import nn

import bu2td
from bu2td.models.building import build


def converted(model: nn.Module, arrangement: Any = "td", **options: Any) -> Any:
    """The network without weights, however large it is."""
    return bu2td.convert(model, arrangement, device="meta", max_macs_ratio=None, **options)


def of_timm(name: str, arrangement: Any = "td", **settings: Any) -> Any:
    """That of a model of timm; without timm the test is skipped."""
    timm = pytest.importorskip("timm")
    model = build(lambda: timm.create_model(name, **settings), torch.device("meta"))
    return converted(model, arrangement)
