"""The judge knows nothing of how a network was made: networks that are silly on purpose are found."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import fx, nn

import bu2td
from bu2td.errors import TopologyError
from bu2td.graph import flatten
from bu2td.ir import Capture
from bu2td.probe import probe
from bu2td.verification import Expectation, Measured
from bu2td.verification.likeness import compare
from tests.nets import Block, head, unit

IMAGE = (2, 3, 32, 32)


def measured(module: fx.GraphModule) -> Measured:
    return Measured(module, probe(Capture(module, module, IMAGE, {}, "")))


def outputs_of(network: Any, flat: fx.GraphModule) -> Mapping[int, str]:
    last = {str(n.target).partition(".")[0]: n.name for n in flat.graph.nodes if n.op == "call_module"}
    merged = {f"r{level.reduction}": f"r{level.reduction}_merge" for level in network.plan.levels}
    return {
        level.reduction: last.get(f"r{level.reduction}") or last[merged[f"r{level.reduction}"]]
        for level in network.plan.levels
    }


def model() -> nn.Module:
    return nn.Sequential(unit(3, 8), Block(8, 8), Block(8, 16, 2), Block(16, 16), Block(16, 32, 2), head(32))


def networks(bottom_up: nn.Module, source: nn.Module) -> tuple[Measured, Measured, Mapping[int, str]]:
    """A bottom-up network, beside the top-down network of a model."""
    images = torch.zeros(IMAGE)
    network = bu2td.convert(source, example_inputs=images, device="meta", max_macs_ratio=None)
    flat = flatten(network)
    captured = bu2td.analyze(bottom_up, example_inputs=images).capture.graph_module
    return measured(captured), Measured.of(network, flat, measured(flat).dims), outputs_of(network, flat)


def test_a_network_is_like_the_one_that_it_was_made_of() -> None:
    assert compare(*networks(model(), model()), Expectation()) == ()


def test_a_resolution_without_a_level_is_found() -> None:
    shallow = nn.Sequential(unit(3, 8), Block(8, 8), Block(8, 16, 4), Block(16, 16), head(16))
    with pytest.raises(TopologyError, match="at 1/2 of the image this network has layers"):
        compare(*networks(model(), shallow), Expectation())
    compare(*networks(model(), shallow), Expectation(whole=False))


def test_layers_that_went_to_a_coarser_resolution_are_found() -> None:
    def net(stride: int) -> nn.Module:
        fine = [Block(8, 8, stride if i == 0 else 1) for i in range(4)]
        return nn.Sequential(unit(3, 8), *fine, Block(8, 16, 2 if stride == 1 else 1), Block(16, 32, 2), head(32))

    parts = networks(net(1), net(2))
    with pytest.raises(TopologyError, match=r"layers at 1/1 of the image .* stand in one block"):
        compare(*parts, Expectation())
    compare(*parts, Expectation(ordered=False))


def test_levels_without_layers_are_found() -> None:
    before, after, outputs = networks(model(), model())
    for name, part in list(after.graph_module.named_modules()):
        if name.startswith(("r1.", "r1_up.")) and isinstance(part, nn.Conv2d | nn.BatchNorm2d):
            parent, _, last = name.rpartition(".")
            setattr(after.graph_module.get_submodule(parent), last, nn.ReLU())
    with pytest.raises(TopologyError, match="level r1 of the top-down network would have no weights of its own"):
        compare(before, after, outputs, Expectation(whole=False))


def test_an_image_in_front_of_the_head_is_found() -> None:
    before, after, outputs = networks(model(), narrow())
    with pytest.raises(TopologyError, match="would be 3 wide, as an image is"):
        compare(before, after, outputs, Expectation())


def narrow() -> nn.Module:
    return nn.Sequential(unit(3, 3), unit(3, 3), unit(3, 4, 3, 2), unit(4, 5, 3, 2), head(5))


def test_a_wide_merge_is_told_of() -> None:
    wide = nn.Sequential(unit(3, 8), unit(8, 64, 3, 2), unit(64, 8), unit(8, 32, 3, 2), head(32))
    [note] = compare(*networks(wide, wide), Expectation())
    assert "the merge of r2 is 64 wide" in note


def test_what_a_conversion_is_told() -> None:
    """The notes of the comparison are the plan's; frozen weights count."""
    wide = nn.Sequential(unit(3, 8), unit(8, 64, 3, 2), unit(64, 8), unit(8, 32, 3, 2), head(32)).requires_grad_(
        False
    )
    plan = bu2td.convert(wide, example_inputs=torch.zeros(IMAGE), device="meta", max_macs_ratio=None).plan
    assert any("64 wide" in note for note in plan.notes)
    assert plan.bottom_up_cost.parameters == sum(p.numel() for p in wide.parameters())
    assert sum(level.cost.parameters for level in plan.levels) > 0
