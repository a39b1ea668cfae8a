"""Probe: kinds, sizes and strides of every dimension, measured."""

import torch
from torch import Tensor, nn

from bu2td.capture.trace import capture
from bu2td.probe.measure import probe


def test_probe_measures_kinds_and_strides() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, stride=2)  # valid padding shaves a pixel, which is no reduction
            self.pool, self.fc = nn.MaxPool2d(3, 2, ceil_mode=True), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.pool(self.conv(x)).permute(0, 2, 3, 1)
            return self.fc(x.flatten(1, 2).mean(1))

    captured = capture(Net(), torch.zeros(1, 3, 31, 45))
    dims = probe(captured)
    by_target = {str(n.target): dims[n.name] for n in captured.graph_module.graph.nodes if dims.get(n.name)}
    assert [(d.kind, d.stride) for d in by_target["conv"][2:]] == [("height", 2), ("width", 2)]
    assert [d.kind for d in by_target["permute"]] == ["batch", "height", "width", "channel"]
    assert by_target["permute"][1].stride == 4
    flattened = next(v for k, v in by_target.items() if "flatten" in k)
    assert [d.kind for d in flattened] == ["batch", "token", "channel"]
    assert [(d.kind, d.size) for d in by_target["fc"]] == [("batch", 2), ("channel", 5)]
