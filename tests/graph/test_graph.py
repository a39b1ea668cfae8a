"""How a captured graph is read: flat, with its owners, shapes and source lines."""

from pathlib import Path

import torch
from nets import convert_baseline
from torch import Tensor, fx, nn

import bu2td
from bu2td.graph import flatten, is_torch_source, owner_of, shapes_of, source_line


def test_a_flat_network_computes_the_same() -> None:
    network = convert_baseline("lenet_fc", "td", seed=0).eval()
    images = torch.rand(2, 1, 28, 28)
    flat = flatten(network, copied=False)
    torch.testing.assert_close(flat(images), network(images))
    assert not any(isinstance(module, fx.GraphModule) for name, module in flat.named_modules() if name)


def test_flattening_copies_to_meta_and_every_node_has_its_owner() -> None:
    network = convert_baseline("lenet_fc", "td").train()
    flat = flatten(network)
    assert network.training
    assert all(p.is_meta for p in flat.parameters())
    assert not any(p.is_meta for p in network.parameters())
    owners = {owner_of(node) for node in flat.graph.nodes if node.op == "call_module"}
    assert owners == {name for name, _ in network.named_children()}


def test_shapes_are_those_of_real_tensors() -> None:
    network = convert_baseline("lenet_fc", "td", device="meta")
    flat = flatten(network)
    for quick in (False, True):
        shapes = shapes_of(flat, (3, 1, 37, 50), quick=quick)
        assert set(shapes) >= {node.name for node in flat.graph.nodes if node.op == "call_module"}
        [logits] = next(node for node in flat.graph.nodes if node.op == "output").all_input_nodes
        assert shapes[logits.name] == tuple(network(torch.empty(3, 1, 37, 50, device="meta")).shape) == (3, 10)


def test_a_node_knows_the_line_that_wrote_it() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 10, 3, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.tanh(self.a(x))).mean((2, 3))

    graph = bu2td.analyze(Net(), example_inputs=torch.zeros(1, 3, 32, 32)).capture.graph_module.graph
    [tanh] = [node for node in graph.nodes if "tanh" in str(node.target)]
    file, _, line = source_line(tanh).rpartition(":")
    assert file.endswith("test_graph.py")
    assert "torch.tanh" in Path(__file__).read_text().splitlines()[int(line) - 1]
    assert is_torch_source(torch.nn.modules.conv.__file__)
    assert not is_torch_source(__file__)
