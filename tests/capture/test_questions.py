"""What a forward asks is answered: the graph does what the model does, and the network converts."""

import copy

import pytest
import torch
from questions import NETS, SIDE
from torch import nn

import bu2td
from bu2td.capture import capture

IMAGES = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return NETS[name]()


@pytest.mark.parametrize("name", sorted(NETS.keys() - {"HoldsACompiledPart"}))  # the compiler warns as it runs
def test_the_graph_does_what_the_model_does(name: str) -> None:
    model = build(name)
    found = capture(model, IMAGES)
    graph = found.graph_module.to_empty(device="cpu")
    graph.load_state_dict({k: v for k, v in found.weights.items() if k in graph.state_dict()}, strict=False)
    for training in (False, True):
        twin, made = copy.deepcopy(model).train(training), copy.deepcopy(graph).train(training)
        expected = twin(IMAGES)
        torch.testing.assert_close(made(IMAGES), expected["logits"] if isinstance(expected, dict) else expected)


@pytest.mark.parametrize(
    ("name", "arrangement"),
    [  # one arrangement for each, in turn: what is asked is answered before there is any
        pytest.param(name, arrangement, marks=() if (i - k) % 3 == 0 else pytest.mark.slow)
        for i, name in enumerate(NETS)
        for k, arrangement in enumerate(("td", "uni", "rev"))
    ],
)
def test_the_network_converts(name: str, arrangement: str) -> None:
    td = bu2td.convert(build(name), arrangement, example_inputs=IMAGES, seed=0, max_macs_ratio=None)
    assert td.plan.ladder[-1] == 1
    td(IMAGES).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in td.parameters())
    other = torch.rand(2, 3, SIDE + 8, SIDE + 4, generator=torch.Generator().manual_seed(1))
    td.eval()
    torch.testing.assert_close(bu2td.optimize(td, "inference")(other), td(other), atol=1e-4, rtol=1e-4)
