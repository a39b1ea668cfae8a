"""Canonical form: every rewrite on the smallest graph that shows it, and what it must leave alone."""

from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from bu2td.capture.activations import handwritten_activation
from bu2td.capture.canonical import REWRITES, canonicalise
from bu2td.capture.concats import growing_concat
from bu2td.capture.draft import Draft
from bu2td.capture.forms import functional_form, whole_map_pool
from bu2td.capture.rewrites import identity, in_place_method, view
from bu2td.capture.tracer import trace
from bu2td.errors import ModelOutputError
from bu2td.nn import ScaledSiLU

Forward = Callable[[Any, Tensor], Any]
SHAPE = (2, 4, 6, 6)


class Net(nn.Module):
    def __init__(self, forward: Forward, **parts: nn.Module) -> None:
        super().__init__()
        self.written = forward
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Any:
        return self.written(self, x)


def rewritten(
    rewrite: Callable[[Draft, fx.Node], bool], forward: Forward, training: bool = False, **parts: nn.Module
) -> tuple[bool, fx.GraphModule]:
    """Whether a rewrite changed a network's graph, and the graph, which computes what the network computes."""
    net = Net(forward, **parts)
    draft = Draft(trace(net, net, torch.empty(SHAPE, device="meta"), training), net)
    changed = [rewrite(draft, node) for node in list(draft.graph.nodes)]
    module = with_values(draft.graph_module(), draft, net).train(training)
    images = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(module(images), net(images.clone()))
    return any(changed), module


def with_values(module: fx.GraphModule, draft: Draft, net: nn.Module) -> fx.GraphModule:
    """A graph with the values that its parameters and buffers have in the network."""
    known = {**net.state_dict(), **draft.tensors}
    module.to_empty(device="cpu")
    module.load_state_dict({name: known[name] for name in module.state_dict() if name in known}, strict=False)
    return module


def calls(module: fx.GraphModule) -> list[str]:
    """What the nodes of a graph call: classes of modules, names of functions and methods."""
    modules = dict(module.named_modules())
    names = []
    for node in module.graph.nodes:
        target: Any = modules[node.target] if node.op == "call_module" else node.target
        if node.op.startswith("call"):
            names.append(target if isinstance(target, str) else getattr(target, "__name__", type(target).__name__))
    return names


Outputs = namedtuple("Outputs", ["logits", "auxiliary"])
Pair = namedtuple("Pair", ["first", "second"])


@dataclass
class Record:
    loss: Any = None
    logits: Any = None
    hidden_states: Any = None


def pooled(x: Tensor) -> Tensor:
    return x.mean((2, 3))


def chosen(forward: Forward, training: bool = False) -> tuple[list[str], tuple[str, ...]]:
    """What a network's graph calls once one output is chosen, and the note on it."""
    net = Net(forward)
    found = canonicalise(trace(net, net, torch.empty(SHAPE, device="meta"), training), net)
    return calls(found.graph_module), found.chosen


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "forward",
    [
        lambda net, x: (pooled(x.sin()), pooled(x.cos())),
        lambda net, x: [pooled(x.sin()), None, x],
        lambda net, x: (pooled(x.sin()), [x, (x.cos(), x)]),
        lambda net, x: Outputs(pooled(x.sin()), pooled(x.cos())),
        lambda net, x: Pair(pooled(x.sin()), x.cos()),
        lambda net, x: {"features": pooled(x.cos()), "logits": pooled(x.sin())},
        lambda net, x: {"out": pooled(x.sin()), "map": x.cos()},
        lambda net, x: Record(logits=pooled(x.sin()), hidden_states=(x, x.cos())),
    ],
)
def test_the_logits_are_the_output(forward: Forward, training: bool) -> None:
    names, notes = chosen(forward, training)
    assert names == ["sin", "mean"]
    assert "taken for the logits" in notes[0]
    assert "dropped" in notes[0]


def test_logits_that_were_computed_out_of_features_are_chosen() -> None:
    def forward(net: Any, x: Tensor) -> Any:
        features = pooled(x)
        return features, features.sin()

    assert chosen(forward)[0] == ["mean", "sin"]


@pytest.mark.parametrize("order", [1, -1])
def test_logits_and_not_their_softmax_are_chosen(order: int) -> None:
    def forward(net: Any, x: Tensor) -> Any:
        logits = pooled(x)
        return (logits.softmax(1), logits)[::order]

    assert chosen(forward)[0] == ["mean"]


def test_logits_of_one_pixel_are_flattened() -> None:
    assert chosen(lambda net, x: x.mean((2, 3), keepdim=True))[0] == ["mean", "flatten"]


def test_one_tensor_is_the_output_already() -> None:
    assert chosen(lambda net, x: pooled(x)) == (["mean"], ())


@pytest.mark.parametrize(
    ("forward", "match"),
    [
        (lambda net, x: (x.sin(), x.cos()), r"\[0\] of shape \(2, 4, 6, 6\).*it returns maps"),
        (lambda net, x: {"masks": x.sin()}, r"\['masks'\] of shape"),
        (lambda net, x: [], "no tensor"),
    ],
)
def test_other_outputs_are_refused(forward: Forward, match: str) -> None:
    with pytest.raises(ModelOutputError, match=match):
        chosen(forward)


def test_a_tensor_that_changes_in_place_is_read_in_its_latest_version() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        y = x * 2
        before = y + 1
        same = y.add_(1)
        y.mul_(3)
        return before + y + same

    changed, module = rewritten(in_place_method, forward)
    assert changed
    assert not [name for name in calls(module) if name.endswith("_")]


@pytest.mark.parametrize(
    "forward",
    [
        lambda net, x: net.same(x).sin(),
        lambda net, x: x.contiguous().sin(),
        lambda net, x: torch.cat([x], 1).sin(),
        lambda net, x: sum([x]).sin(),
    ],
)
def test_what_hands_a_value_on_is_gone(forward: Forward) -> None:
    changed, module = rewritten(identity, forward, same=nn.Identity())
    assert changed
    assert calls(module) == ["sin"]


@pytest.mark.parametrize("forward", [lambda net, x: 1 + x, lambda net, x: torch.cat([x, x], 1)])
def test_what_computes_something_is_no_identity(forward: Forward) -> None:
    assert not rewritten(identity, forward)[0]


def test_a_view_to_a_shape_reshapes() -> None:
    changed, module = rewritten(view, lambda net, x: x.view(2, -1))
    assert changed
    assert calls(module) == ["reshape"]
    assert not rewritten(view, lambda net, x: x.view(torch.int32))[0]


@pytest.mark.parametrize(
    ("forward", "expected"),
    [
        (lambda net, x: F.relu(x, inplace=True), nn.ReLU(inplace=True)),
        (lambda net, x: x.relu(), nn.ReLU()),
        (lambda net, x: torch.sigmoid(x), nn.Sigmoid()),
        (lambda net, x: F.leaky_relu(x, 0.2), nn.LeakyReLU(0.2)),
        (lambda net, x: F.hardtanh(x, -2, max_val=2), nn.Hardtanh(-2, 2)),
        (lambda net, x: F.gelu(x, approximate="tanh"), nn.GELU("tanh")),
        (lambda net, x: F.softplus(x, 2, threshold=10), nn.Softplus(2, 10)),
        (lambda net, x: x.clamp(min=0), nn.ReLU()),
        (lambda net, x: torch.clamp(x, 0.0, 6.0), nn.ReLU6()),
        (lambda net, x: x.clamp_min(0), nn.ReLU()),
        (lambda net, x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True), nn.MaxPool2d(3, 2, 1, ceil_mode=True)),
        (lambda net, x: F.avg_pool2d(x, 2), nn.AvgPool2d(2)),
        (lambda net, x: F.adaptive_avg_pool2d(x, 1), nn.AdaptiveAvgPool2d(1)),
        (lambda net, x: F.dropout(x, 0.3, net.training), nn.Dropout(0.3)),
        (lambda net, x: F.dropout2d(x, 0.3, net.training), nn.Dropout2d(0.3)),
    ],
)
def test_a_functional_form_is_a_module(forward: Forward, expected: nn.Module) -> None:
    changed, module = rewritten(functional_form, forward)
    assert changed
    [made] = module.children()
    assert repr(made) == repr(expected)
    assert calls(module) == [type(expected).__name__]


@pytest.mark.parametrize(
    "forward",
    [lambda net, x: x.clamp(0, 5), lambda net, x: F.avg_pool2d(x, x.shape[2:]), lambda net, x: torch.exp(x)],
)
def test_what_no_module_does_stays_a_function(forward: Forward) -> None:
    assert not rewritten(functional_form, forward)[0]


def test_modules_that_are_made_take_no_name_of_the_model() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        return net.relu(F.relu(F.relu(x)) - 1)

    _, module = rewritten(functional_form, forward, relu=nn.LeakyReLU(0.5))
    assert [(name, type(part)) for name, part in sorted(module.named_children())] == [
        ("relu", nn.LeakyReLU),
        ("relu_1", nn.ReLU),
        ("relu_2", nn.ReLU),
    ]


def test_modules_that_are_made_take_no_name_of_a_container() -> None:
    """A module is not put where others of the model are inside."""
    _, module = rewritten(functional_form, lambda net, x: net.relu(F.relu(x)), relu=nn.Sequential(nn.Tanh()))
    assert {name: len(list(part.children())) for name, part in module.named_children()} == {"relu": 1, "relu_1": 0}


def test_modules_that_are_made_lie_where_the_function_is_called() -> None:
    inner = Net(lambda net, x: F.relu(x))
    _, module = rewritten(functional_form, lambda net, x: net.inner(x).sin(), inner=inner)
    [call] = [node for node in module.graph.nodes if node.op == "call_module"]
    assert (call.name, call.target, call.meta["path"]) == ("inner_relu", "inner.relu", "inner")


@pytest.mark.parametrize(
    "forward",
    [
        lambda net, x: F.avg_pool2d(x, x.shape[2:]),
        lambda net, x: F.avg_pool2d(x, kernel_size=x.size()[2:]),
        lambda net, x: F.avg_pool2d(x, (x.size(2), x.size(3))),
        lambda net, x: F.avg_pool2d(x.abs().pow(3), (x.size(-2), x.size(-1))).pow(1 / 3),
    ],
)
def test_a_window_of_the_size_of_its_map_is_adaptive(forward: Forward) -> None:
    changed, module = rewritten(whole_map_pool, forward)
    assert changed
    assert "AdaptiveAvgPool2d" in calls(module)


@pytest.mark.parametrize(
    "forward",
    [
        lambda net, x: F.avg_pool2d(x, 2),
        lambda net, x: F.avg_pool2d(x, net.smaller(x).shape[2:]),
        lambda net, x: F.max_pool2d(x, (x.shape[2] // 2, x.shape[3] // 2)),
    ],
)
def test_other_windows_stay(forward: Forward) -> None:
    assert not rewritten(whole_map_pool, forward, smaller=nn.MaxPool2d(2))[0]


@pytest.mark.parametrize(
    ("forward", "expected"),
    [
        (lambda net, x: x * net.sigmoid(x), nn.SiLU()),
        (lambda net, x: net.sigmoid(x).mul(x), nn.SiLU()),
        (lambda net, x: x * net.sigmoid(1.702 * x), ScaledSiLU(1.702)),
        (lambda net, x: x * net.tanh(net.softplus(x)), nn.Mish()),
        (lambda net, x: net.relu6(x + 3) / 6, nn.Hardsigmoid()),
        (lambda net, x: net.relu6(3 + x) * (1 / 6), nn.Hardsigmoid()),
        (lambda net, x: x * net.relu6(x + 3) / 6, nn.Hardswish()),
        (lambda net, x: x * (net.relu6(x + 3) / 6), nn.Hardswish()),
    ],
)
def test_an_activation_of_parts_is_one_module(forward: Forward, expected: nn.Module) -> None:
    parts = {"sigmoid": nn.Sigmoid(), "tanh": nn.Tanh(), "softplus": nn.Softplus(), "relu6": nn.ReLU6()}
    changed, module = rewritten(handwritten_activation, forward, **parts)
    assert changed
    assert calls(module) == [type(expected).__name__]
    [made] = module.children()
    assert repr(made) == repr(expected)


@pytest.mark.parametrize(
    "forward",
    [
        lambda net, x: x.sin() * net.sigmoid(x),
        lambda net, x: x + net.sigmoid(x),
        lambda net, x: x * net.sigmoid(x * x),
        lambda net, x: 2 * net.sigmoid(x),
    ],
)
def test_other_gates_stay(forward: Forward) -> None:
    assert not rewritten(handwritten_activation, forward, sigmoid=nn.Sigmoid())[0]


def test_a_concat_that_grows_is_one_of_all_parts() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = torch.cat([x, x.sin()], 1)
        x = torch.cat([x, x.cos()], 1)
        return torch.cat([x, x.exp()], 1)

    changed, module = rewritten(growing_concat, forward)
    assert changed
    [last] = next(n for n in module.graph.nodes if n.op == "output").all_input_nodes
    assert [part.name for part in last.args[0]] == ["x", "sin", "cos", "exp"]


@pytest.mark.parametrize(
    "forward",
    [
        lambda net, x: torch.cat([torch.cat([x.sin(), x.cos()], 1), x.exp()], 1),
        lambda net, x: torch.cat([y := torch.cat([x, x.sin()], 1), y.cos()], 2),
        lambda net, x: torch.cat([x, x.sin()], 1),
    ],
)
def test_concats_of_branches_or_of_other_dimensions_stay(forward: Forward) -> None:
    assert not rewritten(growing_concat, forward)[0]


def test_the_canonical_form_is_left_as_it_is() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = F.relu(x).mul_(2)
        x += net.same(x)
        x = x * torch.sigmoid(x)
        return F.avg_pool2d(x, x.shape[2:]).view(2, -1)

    net, images = Net(forward, same=nn.Identity()), torch.empty(SHAPE, device="meta")
    module = canonicalise(trace(net, net, images, False), net).graph_module
    assert calls(module) == ["ReLU", "mul", "add", "SiLU", "AdaptiveAvgPool2d", "reshape"]
    draft = Draft(trace(module, module, images, False), module)
    assert not [r.__name__ for r in REWRITES for node in list(draft.graph.nodes) if r(draft, node)]


def test_every_rewrite_says_what_it_does() -> None:
    assert all(rewrite.__doc__ for rewrite in REWRITES)
