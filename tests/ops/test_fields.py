"""Receptive fields of windows, by the rule that all of them share."""

import pytest
import torch
from nets import head, unit
from torch import nn

from bu2td import erf


@pytest.mark.parametrize("padding", [4, "same", 0])
def test_a_dilated_window_reaches_from_its_first_to_its_last_tap(padding: int | str) -> None:
    """Three taps, four pixels apart, span nine; half of the eight beside its own are in front of the map."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=padding, dilation=4), nn.MaxPool2d(2), unit(8, 12), head(12))
    [row] = erf.theory(model, example_inputs=torch.zeros(1, 3, 32, 32), layers=["0"]).rows
    assert (row["size"], row["jump"]) == ((9, 9), (1, 1))
    assert row["padding"] == ((0, 0) if padding == 0 else (4, 4))
