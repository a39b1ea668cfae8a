"""Pieces and units as they are emitted."""

from fractions import Fraction
from typing import Any

import pytest
import torch
from nets import convert_baseline, head, unit
from torch import Tensor, fx, nn

import bu2td
import bu2td.nn
from bu2td import errors
from bu2td.arrange.levels import arrange
from bu2td.models import baselines
from bu2td.options import Options
from bu2td.rewrite.inplace import settle_inplace
from bu2td.rewrite.piece import Place
from bu2td.rewrite.top import Emitted, rewrite


def test_a_place_knows_the_resolution_of_its_maps() -> None:
    place = Place("r8", (224, 100), reduction=8, source=32)
    assert place.reduction_of(Fraction(32)) == place.reduction_of(Fraction(16)) == 8
    assert place.reduction_of(Fraction(64)) == 16  # an excursion stays one
    assert place.map_size(Fraction(8)) == (28, 13)
    assert Place("head", (224, 100)).reduction_of(Fraction(32)) is None
    assert place.map_size(None) is None


# --- in place -----------------------------------------------------------------------------------------


def works_in_place(*targets: str) -> bool:
    """Whether an activation at the end of a chain may work in place."""
    act, graph = nn.ReLU(inplace=True), fx.Graph()
    modules = {"conv": nn.Conv2d(3, 3, 1), "act": act, "same": nn.Identity(), "up": bu2td.nn.Upsample("nearest")}
    value = graph.placeholder("x")
    for target in (*targets, "act"):
        called = target in modules
        value = graph.call_module(target, (value,)) if called else graph.call_function(FUNCTIONS[target], (value,))
    graph.output(value)
    settle_inplace(graph, modules)
    return act.inplace


FUNCTIONS = {"sum": torch.sum, "flatten": torch.flatten, "exp": torch.exp}


def test_activations_work_in_place_on_what_they_alone_read() -> None:
    assert works_in_place("conv")
    assert works_in_place("conv", "sum")


@pytest.mark.parametrize("before", [(), ("conv", "same"), ("conv", "up"), ("conv", "flatten"), ("conv", "exp")])
def test_activations_leave_memory_alone_that_others_may_read(before: tuple[str, ...]) -> None:
    """Nor what the backward pass reads again, the result of an exponential."""
    assert not works_in_place(*before)


def test_activations_leave_values_alone_that_have_another_reader() -> None:
    graph = fx.Graph()
    act = nn.ReLU(inplace=True)
    modules = {"conv": nn.Conv2d(3, 3, 1), "act": act}
    value = graph.call_module("conv", (graph.placeholder("x"),))
    graph.output((graph.call_module("act", (value,)), value))
    settle_inplace(graph, modules)
    assert not act.inplace


# --- whole networks -----------------------------------------------------------------------------------


class Recurrent(nn.Module):
    """A block that is called twice in a level, and a parameter that the forward reads itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.pool = unit(3, 8), nn.MaxPool2d(2)
        self.again = unit(8, 8)
        self.scale = nn.Parameter(torch.ones(1, 8, 1, 1))
        self.head = head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.first(x))
        return self.head(self.again(self.again(x)) * self.scale)


def emit(model: nn.Module, arrangement: Any = "td") -> Emitted:
    analysis = bu2td.analyze(model, example_inputs=torch.zeros(2, 3, 32, 32))
    return rewrite(analysis, arrange(analysis, Options(arrangement)))


def test_nothing_is_shared() -> None:
    """Neither with the bottom-up network nor between two places."""
    model = Recurrent()
    root = nn.ModuleDict(emit(model).modules)
    tensors = [*root.parameters(), *root.buffers()]
    assert len({id(t) for t in tensors}) == len(tensors)
    own = {id(t) for t in [*model.parameters(), *model.buffers()]}
    assert not own & {id(t) for t in tensors}
    assert all(t.is_meta for t in tensors)
    twice = {name for name, _ in root.get_submodule("r2").named_modules()}
    assert {"again.0", "again.0_again_3"} <= twice


def test_origins_name_parameters_of_the_bottom_up_network() -> None:
    model = Recurrent()
    emitted = emit(model)
    known = {name for name, _ in [*model.named_parameters(), *model.named_buffers()]}
    assert set(emitted.origins.values()) <= known
    whole = nn.ModuleDict(emitted.modules)
    there = {name for name, _ in [*whole.named_parameters(), *whole.named_buffers()]}
    assert set(emitted.origins) <= there
    assert emitted.origins["r2.scale"] == "scale"


class Sized(nn.Module):
    """Reads a size at one resolution and uses it at another."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = unit(3, 8), unit(8, 16, stride=2), unit(16, 16)
        self.head = head(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        height, width = x.shape[2:]
        x = self.third(self.second(x))
        return self.head(x.reshape(x.shape[0], 16, height // 2, width // 2))


def test_a_size_of_another_resolution_is_an_error() -> None:
    with pytest.raises(errors.UnsupportedOperationError, match="at another resolution"):
        emit(Sized())


def test_modules_keep_their_paths() -> None:
    """Those of the bottom-up network, in front of which the level stands."""
    network = convert_baseline("resnet32", "td", device="meta")
    paths = dict(network.named_modules())
    own = dict(baselines.resnet32().named_modules())
    assert type(paths["r2_up.stages.1.0.conv1"]) is type(own["stages.1.0.conv1"])
    assert "r2.stages.1.1.conv1" in paths


# --- names --------------------------------------------------------------------------------------------


class Named(nn.Module):
    """A residual block whose second convolution has a name that new modules of a piece have, too."""

    def __init__(self, name: str, stride: int, inside: str) -> None:
        super().__init__()
        self.first, self.pool = unit(8, 8, stride=stride), nn.AvgPool2d(2) if stride > 1 else nn.Identity()
        conv = nn.Conv2d(8, 8, 3, padding=1)
        self.add_module(name, nn.Sequential() if inside else conv)
        if inside:
            self.get_submodule(name).add_module(inside, conv)
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.get_submodule(self.name)(self.first(x)) + self.pool(x))


@pytest.mark.parametrize("inside", ["", "conv"])
@pytest.mark.parametrize("name", ["projection", "upsample", "upsample2", "entry_adapter", "plain"])
def test_new_modules_have_names_of_their_own(name: str, inside: str) -> None:
    """No name that the bottom-up network gives stands in the way of a module that is new."""

    def converted(name: str, inside: str) -> Any:
        blocks = [Named(name, stride, inside) for stride in (1, 2)]
        wider = [unit(8, 16), nn.MaxPool2d(2), unit(16, 16), head(16)]
        images = torch.zeros(1, 3, 32, 32)
        return bu2td.convert(nn.Sequential(unit(3, 8), *blocks, *wider), "td", example_inputs=images, seed=0)

    td, plain = converted(name, inside), converted("other", "")
    assert sorted(p.shape for p in td.parameters()) == sorted(p.shape for p in plain.parameters())
    assert any("projection" in path for path, _ in plain.named_modules())
    td(torch.rand(2, 3, 32, 32)).square().sum().backward()
    assert all(p.grad is not None for p in td.parameters())
