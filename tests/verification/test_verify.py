"""`verify` measures the emitted graph alone: faults that are put in on purpose are found."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import convert_baseline, make
from torch import nn

import bu2td
from bu2td import verification
from bu2td.errors import VerificationError
from bu2td.nn import Upsample


@pytest.fixture(scope="module")
def healthy() -> Any:
    return convert_baseline("resnet32", "td", device="meta")


def spoil(network: Any) -> Any:
    return copy.deepcopy(network)


def _replace(network: Any, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(network.get_submodule(parent), last, module)


def wrong_level_resolution(network: Any) -> None:
    network.pyramid.reductions = (8, 2, 1)


def finest_level_stays_coarse(network: Any) -> None:
    network.pyramid.reductions = (4, 2, 2)


def laterals_from_the_wrong_pyramid_level(network: Any) -> None:
    first, second = (n for n in network.graph.nodes if n.name in ("r2_image", "r1_image"))
    first.args, second.args = second.args, first.args
    network.recompile()


def lateral_twice_from_one_pyramid_level(network: Any) -> None:
    node = next(n for n in network.graph.nodes if n.name == "r1_image")
    node.args = (node.args[0], 1)
    network.recompile()


def bypassed_merge(network: Any) -> None:
    nodes = {n.name: n for n in network.graph.nodes}
    nodes["r2"].args = (nodes["r2_up"],)
    network.recompile()


def removed_merge(network: Any) -> None:
    bypassed_merge(network)
    for name in ("r2_merge",):
        network.graph.erase_node(next(n for n in network.graph.nodes if n.name == name))
        delattr(network, name)
    network.recompile()


def dead_parameter(network: Any) -> None:
    network.r2.add_module("forgotten", nn.Conv2d(4, 4, 1, device="meta"))


def dead_code(network: Any) -> None:
    level = network.r2
    with level.graph.inserting_before(next(n for n in level.graph.nodes if n.op == "output")):
        level.add_module("unread", nn.Conv2d(32, 32, 1, device="meta"))
        level.graph.call_module("unread", (next(iter(level.graph.nodes)),))
    level.recompile()


def wrong_width(network: Any) -> None:
    block = "r1.stages.0.4"
    _replace(network, f"{block}.conv2", nn.Conv2d(16, 1, 3, padding=1, device="meta"))
    node = next(n for n in network.r1.graph.nodes if n.name.endswith("stages_0_4_add"))
    node.args = (node.args[0], node.args[0])
    network.r1.recompile()


def stride_left_in(network: Any) -> None:
    network.get_submodule("r4.stages.2.1.conv1").stride = (2, 2)
    network.get_submodule("r4.stages.2.1.conv2").padding = (0, 0)


def stale_literal(network: Any) -> None:
    level = network.r2
    node = next(n for n in level.graph.nodes if n.op == "call_module")
    with level.graph.inserting_after(node):
        sliced = level.graph.call_function(torch.narrow, (node, 1, 0, 17))
    node.replace_all_uses_with(sliced, delete_user_cb=lambda user: user is not sliced)
    level.recompile()


def head_reads_a_coarser_level(network: Any) -> None:
    nodes = {n.name: n for n in network.graph.nodes}
    network.head = copy.deepcopy(network.head)
    nodes["head"].args = (nodes["r1_up"],)
    network.recompile()


def wrong_classes(network: Any) -> None:
    _replace(network, "head.fc", nn.Linear(16, 9, device="meta"))


FAULTS: dict[Callable[[Any], None], str] = {
    wrong_level_resolution: "level r4 is",
    finest_level_stays_coarse: "level r1 is",
    laterals_from_the_wrong_pyramid_level: "level r2 is",
    lateral_twice_from_one_pyramid_level: "level r1 is",
    bypassed_merge: "level r2 is fed from|not on a path",
    removed_merge: "level r2 is fed from pyramid images of reduction none|nowhere in the graph",
    dead_parameter: "r2.forgotten",
    dead_code: "r2.unread",
    wrong_width: "does not run|wide",
    stride_left_in: "does not run|level r4 is",
    stale_literal: "does not run",
    head_reads_a_coarser_level: "not on a path|does not read",
    wrong_classes: r"logits are \(2, 9\)",
}


def test_a_healthy_network_passes(healthy: Any) -> None:
    report = bu2td.verify(spoil(healthy))
    assert set(report.checks) == {"logits", "levels", "resolution", "parameters"}
    assert "r4: 64, r2: 32, r1: 16" in str(report)


@pytest.mark.parametrize("fault", FAULTS, ids=[f.__name__ for f in FAULTS])
def test_faults_are_found(healthy: Any, fault: Callable[[Any], None]) -> None:
    network = spoil(healthy)
    fault(network)
    with pytest.raises(VerificationError, match=FAULTS[fault]):
        bu2td.verify(network)


def test_a_reduction_that_an_upsampling_hides_is_found() -> None:
    """A strided convolution in an up-block leaves every size right, because the upsampling goes by size."""
    network = bu2td.convert(make("resnet18"), device="meta")
    name = next(n for n, m in network.r16_up.named_modules() if isinstance(m, Upsample))  # type: ignore[union-attr]
    level: Any = network.r16_up
    upsampling = next(n for n in level.graph.nodes if n.target == name)
    with level.graph.inserting_before(upsampling):
        level.add_module("shrink", nn.AvgPool2d(2))
        shrunk = level.graph.call_module("shrink", (upsampling.args[0],))
    upsampling.args = (shrunk, *upsampling.args[1:])
    level.recompile()
    with pytest.raises(VerificationError, match="shrink reduces resolution"):
        bu2td.verify(network)


def test_numbers_that_are_not_finite_are_found() -> None:
    network = convert_baseline("lenet_fc", "td", seed=0)
    with torch.no_grad():
        network.get_parameter("r2_merge.conv.weight").fill_(torch.nan)
    with pytest.raises(VerificationError, match="not finite"):
        bu2td.verify(network, full=True)


def test_parameters_without_gradient_are_found() -> None:
    network = convert_baseline("lenet_fc", "td", seed=0)

    class Detach(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.detach()

    network.r2_merge.act = Detach()
    with pytest.raises(VerificationError, match="has no gradient"):
        bu2td.verify(network, full=True)


class Shares(nn.Module):
    """Divides by how many other images there are, which a single one has none of."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / (x.shape[0] - 1)


def test_a_network_that_needs_several_images_is_found() -> None:
    network = convert_baseline("lenet_fc", "td", seed=0)
    network.r2_merge.act = Shares()
    with pytest.raises(VerificationError, match="logits are not finite for one "):
        bu2td.verify(network, full=True)


def test_verify_does_not_touch_the_network() -> None:
    network = convert_baseline("lenet_fc", "td", seed=0).eval()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    bu2td.verify(network, full=True)
    assert not network.training
    assert all(p.grad is None for p in network.parameters())
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_a_report_is_frozen(healthy: Any) -> None:
    report = bu2td.verify(healthy)
    with pytest.raises(TypeError):
        report.checks["logits"] = "better"  # type: ignore[index]


def test_verification_knows_nothing_of_how_networks_are_made() -> None:
    files = list(Path(verification.__file__).parent.glob("*.py"))
    source = "".join(file.read_text() for file in files)
    assert "def verify_graph" in source
    for package in ("analyse", "arrange", "rewrite"):
        assert f"bu2td.{package}" not in source
