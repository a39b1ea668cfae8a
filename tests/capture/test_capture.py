"""Capture: the graph does what the model does, in both modes."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nets import head, unit
from torch import Tensor, nn

import bu2td
from bu2td.capture.trace import capture

timm = pytest.importorskip("timm")


def same_in_both_modes(model: nn.Module, images: Tensor) -> None:
    """The captured graph, given the model's weights, computes what the model computes, in both modes."""
    captured = capture(model, images).graph_module
    captured = captured.to_empty(device="cpu")
    captured.load_state_dict(model.state_dict(), strict=False)
    for training in (False, True):
        twin, graph = copy.deepcopy(model).train(training), copy.deepcopy(captured).train(training)
        torch.manual_seed(7)
        expected = twin(images)
        torch.manual_seed(7)
        torch.testing.assert_close(graph(images), expected)
        for key, value in graph.state_dict().items():
            torch.testing.assert_close(value, twin.state_dict()[key], msg=key)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("mobilenetv2_100", {}),
        ("resnet10t", {"drop_path_rate": 0.3, "drop_rate": 0.2}),
        ("efficientnet_b0", {"drop_path_rate": 0.3, "drop_rate": 0.2}),
        ("convnext_atto", {"drop_path_rate": 0.3}),
        ("densenet121", {"proj_drop_rate": 0.2}),
    ],
)
def test_captured_graph_behaves_as_the_model(name: str, settings: dict[str, Any]) -> None:
    same_in_both_modes(timm.create_model(name, **settings), torch.rand(2, 3, 64, 64))


def test_functional_dropout_survives_conversion() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = unit(3, 8, stride=2), unit(8, 8, stride=2), head(8)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            if self.training:
                x = F.dropout(x, 0.5)
            return self.head(self.b(F.dropout2d(x, 0.3, self.training)))

    same_in_both_modes(Net(), torch.rand(4, 3, 16, 16))
    network = bu2td.convert(Net(), device="meta")
    assert sorted(type(m).__name__ for m in network.modules() if "Dropout" in type(m).__name__) == [
        "Dropout",
        "Dropout2d",
    ]


def test_in_place_results_survive() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = unit(3, 8, stride=2), unit(8, 8, stride=2), head(8)
            self.gain = nn.Parameter(torch.full((), 0.5))

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            x.mul_(self.gain)  # nobody reads the result of this call
            x += 1
            return self.head(self.b(x))

    same_in_both_modes(Net(), torch.rand(4, 3, 16, 16))
