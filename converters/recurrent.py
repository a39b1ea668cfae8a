"""Recurrent layers: they read sequences, which no level of maps is made of."""

from typing import Any

import torch
from torch import Tensor, nn

from bu2td.ops import Converter, Role, register_converter


@register_converter(nn.RNN, nn.LSTM, nn.GRU)
class RecurrentConverter(Converter):
    """An RNN, LSTM or GRU over a sequence: opaque."""

    role = Role.OPAQUE

    def empty_output(self, module: Any, *inputs: Tensor, proof: bool = False) -> Any:
        """The sequence and the last states, without a step: sequences may be as long as images are large."""
        sequence = inputs[0]
        if sequence.shape[-1] != module.input_size:
            raise ValueError(f"input.size(-1) must be {module.input_size}, got {sequence.shape[-1]}")
        directions = 2 if module.bidirectional else 1
        width = module.proj_size or module.hidden_size
        batch = sequence.shape[:-1][0 if module.batch_first else -1 :][:1] if sequence.dim() == 3 else ()

        def empty(*shape: int) -> Tensor:
            return torch.empty(shape, dtype=sequence.dtype, device="meta")

        hidden = empty(directions * module.num_layers, *batch, width)
        cells = empty(directions * module.num_layers, *batch, module.hidden_size)
        return empty(*sequence.shape[:-1], directions * width), (
            (hidden, cells) if isinstance(module, nn.LSTM) else hidden
        )
