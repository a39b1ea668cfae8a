"""Recomputing levels changes no number and saves memory; what is predicted is what a real step takes."""

import copy
import json
from typing import Any

import pytest
import torch
from nets import convert_baseline
from reference.fill import fill
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import bu2td
from bu2td.cli import main
from bu2td.errors import FusedNetworkError, ReductionError
from bu2td.measure.memory import Tracker, measured, training_memory
from bu2td.models import baselines
from bu2td.nn import Merge
from bu2td.runtime.recompute import masked_relu

timm = pytest.importorskip("timm")
#: Bytes per nanosecond that no core writes.
FASTEST = 200
WAYS: dict[str, dict[str, Any]] = {
    "levels": {},
    "inside": {"inside": True},
    "one": {"levels": [1]},
    "one inside": {"levels": [1], "inside": True},
    "two inside": {"levels": [2, 1], "inside": True},
}


def allocated(network: nn.Module, images: Tensor) -> int:
    """Most bytes at once in a training step that the allocator of the CPU handed out and that could be written.

    The backward pass of batch norm asks for a map that it gives back at once; no page of it becomes resident.
    """
    network.train()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        network(images).square().mean().backward()
    found: list[Any] = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    events = sorted(found, key=lambda e: e.start_ns())
    moves: list[tuple[int, int] | None] = [(e.start_ns(), e.nbytes()) for e in events]
    held: dict[int, list[int]] = {}
    for index, move in enumerate(moves):
        assert move is not None
        time, size = move
        if size > 0:
            held.setdefault(size, []).append(index)
        elif held.get(-size):
            before = held[-size].pop()
            made = moves[before]
            if made is not None and time - made[0] < -size / FASTEST:
                moves[before] = moves[index] = None
    live = peak = 0
    for move in moves:
        live += move[1] if move else 0
        peak = max(peak, live)
    for parameter in network.parameters():
        parameter.grad = None
    return peak


def resnet(optimised: bool = False) -> Any:
    network = bu2td.convert(timm.create_model("resnet18", num_classes=5), [64, 48, 32, 24], seed=0)
    return bu2td.optimize(network, "training", image_size=64) if optimised else network


# --- the same numbers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("act", [nn.ReLU, nn.SiLU, nn.Hardtanh, nn.LeakyReLU, nn.Hardswish])
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_recomputing_where_activations_overwrite_what_convolutions_made(
    way: str, inplace: bool, act: type[nn.Module]
) -> None:
    """Without a norm between them: what is computed again must not read what is not there any more."""
    layers: list[nn.Module] = []
    for width, after in ((3, 4), (4, 8), (8, 8)):
        layers += [nn.Conv2d(width, after, 3, padding=1), act(inplace=inplace), nn.MaxPool2d(2)]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    plain = bu2td.convert(model, example_inputs=torch.zeros(2, 3, 32, 32), seed=0).double()
    saving = copy.deepcopy(plain)
    saving.set_grad_checkpointing(True, **WAYS[way])
    images = torch.rand(2, 3, 24, 40, dtype=torch.float64)
    for network in (plain, saving, bu2td.optimize(saving, "training")):
        network.train()(images).square().sum().backward()
        for (key, a), b in zip(plain.named_parameters(), network.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, msg=key)


@pytest.mark.parametrize("rules", [None, {}, {"merge": "always"}], ids=["converted", "optimised", "split"])
@pytest.mark.parametrize(
    ("name", "way"),
    [
        pytest.param(
            name, way, marks=pytest.mark.slow if name == "resnet18_imagenette" and "levels" in WAYS[way] else ()
        )
        for name in ("lenet_fc", "resnet32", "resnet18_imagenette")
        for way in WAYS
    ],
)
def test_recomputing_changes_no_number(name: str, way: str, rules: dict[str, str] | None) -> None:
    """Logits, gradients and also the statistics of norms, which see every batch twice."""
    plain = convert_baseline(name, "td", seed=0).double()
    fill(plain)
    if rules is not None:
        plain = bu2td.optimize(plain, "training", rules=rules)
    saving = copy.deepcopy(plain)
    saving.set_grad_checkpointing(True, **WAYS[way])
    assert saving.grad_checkpointing
    assert saving.checkpointing == {"levels": None, "inside": False, **WAYS[way]}
    images = torch.rand(3, baselines.INPUT_SIZES[name][0], 32, 40, dtype=torch.float64)
    results = [network.train()(images) for network in (plain, saving)]
    assert torch.equal(results[0], results[1])
    for result in results:
        result.square().sum().backward()
    for (key, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert a.grad is not None
        torch.testing.assert_close(a.grad, b.grad, msg=key)
    for (key, a), b in zip(plain.state_dict().items(), saving.state_dict().values(), strict=True):
        assert torch.equal(a, b), key
    for a, b in zip(plain.eval().features(images), saving.eval().features(images), strict=True):
        assert torch.equal(a, b)
    saving.set_grad_checkpointing(False)
    assert saving.code == plain.code
    assert (saving.grad_checkpointing, saving.checkpointing) == (False, None)


def test_a_cumulative_norm_counts_a_batch_once() -> None:
    plain = convert_baseline("lenet_fc", "td", seed=0)
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    saving = copy.deepcopy(plain)
    saving.set_grad_checkpointing(inside=True)
    for network in (plain, saving):
        for seed in range(2):
            images = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(seed))
            network.train()(images).sum().backward()
    for (key, a), b in zip(plain.state_dict().items(), saving.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, msg=key)
    assert int(saving.state_dict()["r1_merge.norm.num_batches_tracked"]) == 2


def test_levels_run_twice_and_others_once() -> None:
    network = convert_baseline("lenet_fc", "td", seed=0).train()
    runs: dict[str, int] = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(lambda *_, name=name: runs.update({name: runs.get(name, 0) + 1}))
    ways: list[tuple[list[int] | None, bool]] = [([1], False), ([2, 1], True), (None, True), ([4], True)]
    for levels, inside in ways:
        runs.clear()
        network.set_grad_checkpointing(levels=levels, inside=inside)
        network(torch.rand(2, 1, 28, 28)).sum().backward()
        for name, count in runs.items():
            owner = name.split(".")[0].split("_")[0]
            chosen = levels is None or (owner != "head" and int(owner[1:]) in levels)
            assert count == (2 if chosen else 1), (levels, name)


def test_the_inside_of_a_lateral_that_nobody_keeps_runs_once_more() -> None:
    plain = convert_baseline("lenet_fc", "td", seed=0)
    network = bu2td.optimize(plain, "training", rules={"merge": "always"}).train()
    runs: dict[str, int] = {}
    for name, module in network.named_modules():
        if name.endswith("_lateral.conv"):
            module.register_forward_pre_hook(lambda *_, name=name: runs.update({name: runs.get(name, 0) + 1}))
    network.set_grad_checkpointing(inside=True)
    network(torch.rand(2, 1, 28, 28)).sum().backward()
    assert runs == {"r2_lateral.conv": 2, "r1_lateral.conv": 3}
    lateral: Any = network.r1_lateral
    lateral.register_forward_pre_hook(lambda *_: runs.update(unit=runs.get("unit", 0) + 1))
    network(torch.rand(2, 1, 28, 28)).sum().backward()
    assert runs["unit"] == 3  # hooks are called as often


def test_masked_relu_is_relu() -> None:
    x = torch.randn(3, 4, 5, 5, dtype=torch.float64)
    x[0, 0] = 0.0
    weight = torch.randn(3, 4, 5, 5, dtype=torch.float64)
    gradients = []
    for act in (torch.relu, masked_relu):
        source = x.clone().requires_grad_()
        y = act(source * 1.0)
        assert torch.equal(y, x.clamp(min=0))
        (y * weight).sum().backward()
        gradients.append(source.grad)
    assert torch.equal(*gradients)


def test_copies_and_switching() -> None:
    network = convert_baseline("resnet32", "td", seed=0)
    code = network.code
    for way in WAYS.values():
        network.set_grad_checkpointing(True, **way)
        twin = copy.deepcopy(network)
        assert (twin.code, twin.checkpointing) == (network.code, network.checkpointing)
        twin.set_grad_checkpointing(False)
        assert twin.code == code != network.code
    fast = bu2td.optimize(network, "training")
    assert fast.checkpointing == network.checkpointing
    bu2td.verify(network, full=True, size=32)


def test_autocast() -> None:
    network = convert_baseline("lenet_fc", "td", seed=0).train()
    twin = copy.deepcopy(network)
    twin.set_grad_checkpointing(inside=True)
    images = torch.rand(4, 1, 28, 28)
    for model in (network, twin):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(images).float().square().sum()
        loss.backward()
    for (key, a), b in zip(network.named_parameters(), twin.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b[1].grad, msg=key)


@pytest.mark.parametrize("levels", [[3], [], [4, 5], ["r4"]])
def test_unknown_levels(levels: Any) -> None:
    network = convert_baseline("lenet_fc", "td", device="meta")
    code = network.code
    with pytest.raises(ReductionError, match=r"must name some of the network's reductions \[4, 2, 1\]"):
        network.set_grad_checkpointing(levels=levels)
    assert (network.code, network.grad_checkpointing) == (code, False)


def test_a_fused_network_has_nothing_to_recompute() -> None:
    fused = bu2td.optimize(convert_baseline("lenet_fc", "td"), "inference")
    with pytest.raises(FusedNetworkError, match="no backward pass"):
        fused.set_grad_checkpointing()
    fused.set_grad_checkpointing(False)


@pytest.mark.parametrize("preactivation", [False, True])
def test_halves_of_a_unit(preactivation: bool) -> None:
    conv, norm = nn.Conv2d(8, 4, 3, padding=1), nn.BatchNorm2d(8 if preactivation else 4)
    unit = Merge(conv, norm, nn.ReLU(), preactivation)
    x, lateral = torch.rand(2, 4, 5, 5), torch.rand(2, 4, 5, 5)
    half = unit.first(x, lateral)
    assert half.shape[1] == (8 if preactivation else 4)
    assert torch.equal(unit.rest(half), unit(x, lateral))


# --- prediction ---------------------------------------------------------------------------------------

SETTINGS: list[tuple[str, bool, dict[str, Any] | None]] = [
    ("resnet18", False, None),
    ("resnet18", False, {}),
    ("resnet18", False, {"inside": True}),
    ("resnet18", True, None),
    ("resnet18", True, {"inside": True}),
    ("mobilenetv2_100", False, None),
    ("mobilenetv2_100", True, {"inside": True}),
    ("resnet32", False, None),
    ("resnet32", False, {"inside": True}),
    ("nin_light", True, {}),
]


@pytest.mark.parametrize(("name", "optimised", "way"), SETTINGS)
def test_prediction_is_within_15_percent_of_what_is_allocated(
    name: str, optimised: bool, way: dict[str, Any] | None
) -> None:
    if name == "resnet18":
        network, shape = resnet(optimised), (8, 3, 64, 64)
    elif name == "mobilenetv2_100":
        network, shape = bu2td.convert(timm.create_model(name), seed=0), (8, 3, 64, 64)
    else:
        network, shape = convert_baseline(name, "td", seed=0), (16, *baselines.INPUT_SIZES[name])
    if optimised and name != "resnet18":
        network = bu2td.optimize(network, "training")
    network.set_grad_checkpointing(way is not None, **(way or {}))
    predicted = training_memory(network, shape).peak
    found = allocated(network, torch.rand(shape))
    assert predicted == pytest.approx(found, rel=0.15)


def test_prediction_equals_a_real_run_under_the_tracker() -> None:
    network, images = resnet().train(), torch.rand(2, 3, 64, 64)
    known = [*network.parameters(), *network.buffers(), images]
    assert measured(network, images, Tracker(known)) == training_memory(network, images.shape)
    bare = measured(network, images, Tracker(known, copies=False))
    assert bare == training_memory(network, images.shape, "cuda")
    assert bare.peak < training_memory(network, images.shape).peak


def test_bottom_up_prediction() -> None:
    model = timm.create_model("resnet18", num_classes=5)
    shape = (32, 3, 64, 64)
    assert training_memory(model, shape).peak == pytest.approx(allocated(model, torch.rand(shape)), rel=0.15)


def test_recomputing_saves_what_it_promises() -> None:
    """Of ResNet18 in td at 224: each step of the advice takes less."""
    network = bu2td.convert(timm.create_model("resnet18"), seed=0)
    shape = (8, 3, 224, 224)
    peaks = []
    for model in (network, bu2td.optimize(network, "training", image_size=64)):
        plain = training_memory(model, shape)
        model.set_grad_checkpointing()
        whole = training_memory(model, shape)
        model.set_grad_checkpointing(inside=True)
        inside = training_memory(model, shape)
        assert inside.peak < whole.peak < plain.peak
        assert whole.stored < inside.stored < 0.5 * plain.stored
        held = [*model.parameters(), *model.buffers()]
        assert plain.weights == sum(tensor.numel() * tensor.element_size() for tensor in held)
        peaks += [plain.peak, inside.peak]
    assert peaks[1] < 0.75 * peaks[0]
    assert peaks[3] < 0.65 * peaks[2] < peaks[1]
    assert peaks[3] < 0.45 * peaks[0]


def test_a_tracker_sees_what_lives() -> None:
    known = torch.ones(100)
    with Tracker([known]) as tracker:
        a = known + 1
        b = a.view(10, 10)
        a += 1
        assert tracker.live == 400
        c = torch.cat([b, b])
        assert (tracker.live, tracker.peak) == (1200, 1200)
        del a, c
        assert tracker.live == 400  # the view holds it
        del b
    assert (tracker.live, tracker.peak) == (0, 1200)


def test_inspect_predicts(call: Any) -> None:
    status, out, _ = call(main, "inspect", "resnet18", "--arrangement", "td", "--json", "--batch-size", "4")
    assert status == 0
    answer = json.loads(out)
    network = bu2td.convert(timm.create_model("resnet18", device="meta"), device="meta")
    row = answer["arrangements"][0]
    assert row["training_mib"] == pytest.approx(training_memory(network, (4, 3, 224, 224)).peak / 2**20, abs=1e-3)
    assert row["checkpointed_mib"] < 0.75 * row["training_mib"]
    assert answer["bottom_up"]["training_mib"] < row["training_mib"]


def test_inspect_says_what_it_cannot_predict(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any) -> None:
        raise NotImplementedError("no backward on meta")

    monkeypatch.setattr("bu2td.cli.inspection.training_memory", fails)
    status, out, _ = call(main, "inspect", "bu2td:lenet_fc", "--arrangement", "td")
    assert status == 0
    row = next(line.split() for line in out.splitlines() if line.startswith("td "))
    assert "unknown" in out
    assert row
