"""Recurrent layers behind a trunk: refused, and at once."""

import time

import pytest
import torch
from nets import unit
from torch import Tensor, nn

import bu2td
from bu2td.errors import TopologyError


class Reads(nn.Module):
    """Convolutions, and a recurrent layer that reads columns one after the other."""

    def __init__(self, layer: type[nn.RNNBase], pooled: bool) -> None:
        super().__init__()
        self.trunk, self.pooled = nn.Sequential(unit(3, 8, stride=2), unit(8, 16, stride=2)), pooled
        self.rnn, self.fc = layer(16 if pooled else 16 * 8, 12, batch_first=True), nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.trunk(x)
        x = x.mean(2).transpose(1, 2) if self.pooled else x.flatten(1, 2).transpose(1, 2)
        return self.fc(self.rnn(x)[0][:, -1])


@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("layer", [nn.RNN, nn.LSTM, nn.GRU])
def test_recurrent_layers_are_refused_without_being_unrolled(layer: type[nn.RNNBase], pooled: bool) -> None:
    start = time.perf_counter()
    with pytest.raises(TopologyError):
        bu2td.convert(Reads(layer, pooled), example_inputs=torch.zeros(2, 3, 32, 32))
    assert time.perf_counter() - start < 20  # unrolled over the probe's images it takes minutes


@pytest.mark.parametrize("layer", [nn.RNN, nn.LSTM, nn.GRU])
@pytest.mark.parametrize("settings", [{}, {"batch_first": True, "bidirectional": True}, {"num_layers": 2}])
def test_shapes_are_those_of_the_layer(layer: type[nn.RNNBase], settings: dict[str, bool]) -> None:
    from bu2td.ops import converter_for_type

    module = layer(6, 5, **settings).to("meta")
    sequence = torch.empty(4, 3, 6, device="meta")
    stated, run = converter_for_type(layer).empty_output(module, sequence), module(sequence)  # type: ignore[union-attr]
    assert stated[0].shape == run[0].shape
    states = zip(stated[1], run[1], strict=True) if layer is nn.LSTM else [(stated[1], run[1])]
    assert all(a.shape == b.shape for a, b in states)
    with pytest.raises(ValueError, match="must be 6"):
        converter_for_type(layer).empty_output(module, sequence[..., :5])  # type: ignore[union-attr]
