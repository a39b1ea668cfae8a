"""`bu2td.optimize`: the same function, rewritten; its report, its files, what it refuses."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import Block, convert_baseline, head, unit
from reference.fill import fill as fill_in_place
from torch import Tensor, fx, nn

import bu2td
from bu2td.errors import FileError, FusedNetworkError, NotAModelError, OptimizeError, OptionError, VerificationError
from bu2td.models import baselines
from bu2td.nn import Upsample
from bu2td.optimization.cost_model import Chooser, Form
from bu2td.optimization.kernels import (
    FusedConv2d,
    FusedMerge,
    FusedNorm,
    GlobalAvgPool,
    SplitMerge,
    UpsampledConv2d,
    WinogradConv2d,
)
from bu2td.optimization.kernels.fused import activation_of
from bu2td.optimization.rules import RULES

timm = pytest.importorskip("timm")
MODES = ("training", "inference")
ALL = dict.fromkeys(RULES, "always")
BASELINES = ("lenet_fc", "nin_light", "resnet32")


def fill(network: Any) -> Any:
    """Weights and statistics that are a function of kind and shape; returns the network."""
    fill_in_place(network)
    return network


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).detach().abs().max() / expected.detach().abs().max())


def kinds(network: nn.Module) -> set[type]:
    return {type(module) for module in network.modules() if not isinstance(module, fx.GraphModule)}


@pytest.fixture(scope="module")
def resnet() -> Any:
    """A network of 512 to 64 channels whose norms have seen data."""
    network = fill(bu2td.convert(timm.create_model("resnet18"), seed=0))
    return network.eval()


@pytest.fixture
def small() -> Any:
    return fill(convert_baseline("resnet32", "td", seed=0)).eval()


# --- the same function --------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rules", [{}, ALL], ids=["auto", "always"])
@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("arrangement", ["td", "rev"])
def test_baselines_keep_their_function(name: str, arrangement: str, rules: dict[str, str], mode: str) -> None:
    network = fill(convert_baseline(name, arrangement, seed=0)).eval()
    fast = bu2td.optimize(network, mode, rules=rules).eval()
    channels = baselines.INPUT_SIZES[name][0]
    with torch.no_grad():
        for size in ((28, 28), (37, 45), (32, 16)):
            images = torch.rand(2, channels, *size)
            assert relative(fast(images), network(images)) < 1e-5
            for found, expected in zip(fast.features(images), network.features(images), strict=True):
                assert relative(found, expected) < 1e-5


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "options",
    [{"merge": "add"}, {"merge": "concat"}, {"merge_kernel": 1}, {"merge_kernel": 5}, {"upsample": "bilinear"},
     {"upsample": "transpose"}, {"finest_reduction": 2}, {"pyramid": "max"}],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("name", ["lenet_fc", "resnet32"])
def test_every_option_keeps_its_function(name: str, options: dict[str, Any], mode: str) -> None:
    network = fill(convert_baseline(name, "td", seed=0, **options)).eval()
    fast = bu2td.optimize(network, mode, rules=ALL).eval()
    images = torch.rand(1, baselines.INPUT_SIZES[name][0], 36, 28)
    with torch.no_grad():
        assert relative(fast(images), network(images)) < 1e-5


class Averaged(nn.Module):
    """Its classifier has the name that a pooling module of its mean would have."""

    def __init__(self, pooled: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.body = nn.Sequential(unit(3, 8), nn.MaxPool2d(2), unit(8, 16), nn.MaxPool2d(2), unit(16, 16))
        self.mean_pool, self.pooled = nn.Linear(16, 10), pooled

    def forward(self, x: Tensor) -> Tensor:
        return self.mean_pool(self.pooled(self.body(x)))


@pytest.mark.parametrize(
    ("pooled", "is_mean"),
    [
        (lambda x: x.mean((2, 3)), True),
        (lambda x: x.sum((2, 3)), False),
        (lambda x: x.amax((2, 3)), False),
        (lambda x: x.mean((2, 3), dtype=torch.float64).float(), False),
    ],
)
def test_means_are_poolings_of_a_name_of_their_own(pooled: Callable[[Tensor], Tensor], is_mean: bool) -> None:
    images = torch.rand(2, 3, 32, 32)
    network = bu2td.convert(Averaged(pooled), example_inputs=images, seed=0).eval()
    fast = bu2td.optimize(network, "training", rules={"channels_last": "always", "pool": "always"}).eval()
    assert (GlobalAvgPool in kinds(fast)) == is_mean
    with torch.no_grad():
        assert relative(fast(images), network(images)) < 1e-5


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "word",
    [
        *("mobilenetv3_small_050", "convnext_atto", "regnetx_002"),
        *(pytest.param(w, marks=pytest.mark.slow) for w in ("densenet121", "resnetv2_50d_gn", "nf_resnet26")),
    ],
)
def test_real_families(word: str, mode: str) -> None:
    model = timm.create_model(word, num_classes=7)
    images = torch.rand(1, 3, 64, 64)
    network = fill(bu2td.convert(model, example_inputs=images, finest_reduction=4, max_macs_ratio=None)).eval()
    fast = bu2td.optimize(network, mode, rules=ALL).eval()
    with torch.no_grad():
        assert relative(fast(images), network(images)) < 1e-4


@pytest.mark.parametrize("mode", MODES)
def test_resnet18(resnet: Any, mode: str) -> None:
    fast = bu2td.optimize(resnet, mode, image_size=64).eval()
    with torch.no_grad():
        for size in ((64, 64), (50, 71)):
            images = torch.rand(2, 3, *size)
            assert relative(fast(images), resnet(images)) < 1e-5


def test_double_precision(small: Any) -> None:
    network = small.double()
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    for mode in MODES:
        fast = bu2td.optimize(network, mode, rules=ALL).eval()
        with torch.no_grad():
            assert relative(fast(images), network(images)) < 1e-10
        assert fast.optimization.difference < 1e-10


def test_branches_and_head(small: Any) -> None:
    images, other = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    for mode in MODES:
        fast = bu2td.optimize(small, mode).eval()
        with torch.no_grad():
            mixed = [images, other, images]
            assert relative(fast.forward_branches(mixed), small.forward_branches(mixed)) < 1e-5
            assert relative(fast.forward_head(fast.forward_features(images)), small(images)) < 1e-5


# --- training -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BASELINES)
def test_training_steps_are_the_same(name: str) -> None:
    """In train mode: the same logits, gradients and statistics, under the same names."""
    network = fill(convert_baseline(name, "td", seed=0)).double().train()
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    fast = bu2td.optimize(network, "training", rules=ALL)
    assert fast.training
    assert list(fast.state_dict()) == list(network.state_dict())
    images = torch.rand(4, *baselines.INPUT_SIZES[name], dtype=torch.float64)
    for model in (network, fast):
        model(images).square().sum().backward()
    scale = max(float(p.grad.abs().max()) for p in network.parameters())
    for (key, expected), found in zip(network.named_parameters(), fast.parameters(), strict=True):
        assert float((found.grad - expected.grad).abs().max()) < 1e-10 * scale, key
    for (key, expected), found in zip(network.named_buffers(), _persistent(fast, network), strict=True):
        torch.testing.assert_close(found, expected, msg=key)


def _persistent(fast: nn.Module, network: nn.Module) -> list[Tensor]:
    found = dict(fast.named_buffers())
    return [found[name] for name, _ in network.named_buffers()]


def test_training_uses_its_forms(resnet: Any) -> None:
    fast = bu2td.optimize(resnet, "training")
    assert {UpsampledConv2d, SplitMerge, WinogradConv2d} <= kinds(fast)
    assert not {FusedConv2d, FusedMerge} & kinds(fast)
    assert not hasattr(fast, "r1_up")
    names = [n.name for n in fast.graph.nodes]
    assert names.index("r4_lateral") == names.index("r4_merge") - 1
    fast.load_state_dict(resnet.state_dict())


def test_training_then_inference(small: Any) -> None:
    fast = bu2td.optimize(small, "training", rules=ALL)
    fused = bu2td.optimize(fast)
    direct = bu2td.optimize(small)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert relative(fused(images), small(images)) < 1e-5
    assert sum(p.numel() for p in direct.parameters()) < sum(p.numel() for p in small.parameters()) * 1.6


def test_checkpointing_survives(small: Any) -> None:
    small.set_grad_checkpointing()
    fast = bu2td.optimize(small, "training")
    assert fast.grad_checkpointing
    assert small.grad_checkpointing
    fast.train()(torch.rand(2, 3, 32, 32)).sum().backward()
    assert all(p.grad is not None for p in fast.parameters())


def test_the_network_is_not_changed(small: Any) -> None:
    before = {name: value.clone() for name, value in small.state_dict().items()}
    code, modules = small.code, [(name, type(m), m.training) for name, m in small.named_modules()]
    for mode in MODES:
        bu2td.optimize(small, mode, rules=ALL)
    assert small.code == code
    assert small.optimization is None
    assert modules == [(name, type(m), m.training) for name, m in small.named_modules()]
    assert all(torch.equal(value, before[name]) for name, value in small.state_dict().items())
    assert all(p.requires_grad for p in small.parameters())


# --- inference ----------------------------------------------------------------------------------------


def test_inference_folds_and_fuses(resnet: Any) -> None:
    fused = bu2td.optimize(resnet)
    assert {FusedConv2d, FusedMerge} <= kinds(fused)
    assert not {nn.BatchNorm2d, nn.ReLU, nn.Conv2d} & kinds(fused)
    assert sum(isinstance(module, Upsample) for module in fused.modules()) == 3  # the shortcuts of the up-blocks
    assert not fused.training
    assert not any(p.requires_grad for p in fused.parameters())


def test_gradients_of_the_image_pass_through(small: Any) -> None:
    """Saliency and attacks work on a fused network."""
    fused = bu2td.optimize(small)
    gradients = []
    for network in (small, fused):
        images = torch.linspace(0, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32).requires_grad_()
        network(images)[:, 0].sum().backward()
        gradients.append(images.grad)
    assert relative(gradients[1], gradients[0]) < 1e-4


def test_new_weights_are_noticed(small: Any) -> None:
    """Laid out weights are made again when their weight changes, however it changes."""
    fused, images = bu2td.optimize(small), torch.rand(2, 3, 32, 32)
    other = copy.deepcopy(small)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
        second = bu2td.optimize(other)
        before = fused(images)
        fused.load_state_dict(second.state_dict())
        assert relative(fused(images), other(images)) < 1e-5
        assert relative(fused(images), before) > 1e-3
        conv = next(m for m in fused.modules() if isinstance(m, FusedConv2d))
        conv.weight.zero_()
        changed = fused(images)
    assert relative(changed, before) > 1e-3


def test_forms_of_fused_networks_agree(small: Any) -> None:
    """Copies, autocast, compile and export give the fused network's numbers."""
    fused = bu2td.optimize(small, rules=ALL)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = fused(images)
        assert torch.equal(copy.deepcopy(fused)(images), expected)
        compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")(images)
        assert relative(compiled, expected) < 1e-5
        exported = torch.export.export(fused, (images,)).module()(images)
        assert relative(exported, expected) < 1e-5
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert relative(fused(images), expected) < 0.1
    torch.compiler.reset()


@pytest.mark.parametrize("mode", MODES)
def test_verify_accepts_optimised_networks(small: Any, mode: str) -> None:
    report = bu2td.verify(bu2td.optimize(small, mode, rules=ALL))
    assert report.checks["levels"] == "r4: 64, r2: 32, r1: 16"


def test_verify_in_full_accepts_a_training_network(small: Any) -> None:
    report = bu2td.verify(bu2td.optimize(small, "training", rules=ALL), full=True)
    assert {"gradients", "compile", "export", "channels_last"} <= set(report.checks)


# --- report and choice --------------------------------------------------------------------------------


def test_report(resnet: Any) -> None:
    done = bu2td.optimize(resnet, "inference", batch_size=2).optimization
    assert (done.mode, done.device, done.batch_size) == ("inference", "cpu", 2)
    assert done.difference < 1e-4
    made = {(r.rule, r.site) for r in done.made}
    assert {("merge", "r1_merge"), ("upsample_conv", "r4_up.layer1.0.conv1")} <= made
    row = next(r for r in done.rows() if r["site"] == "r1_merge")
    assert (row["MMACs"], row["after"], row["made"]) == (3699.4, 2671.8, "yes")
    assert "largest relative difference" in str(done)
    assert "r1_merge" in str(done)
    json.dumps(done.to_dict())
    assert type(done).from_dict(json.loads(json.dumps(done.to_dict()))) == done


def test_rules_and_force(resnet: Any) -> None:
    none = bu2td.optimize(resnet, rules=dict.fromkeys(RULES, "never"), image_size=32)
    assert none.optimization.made == ()
    assert kinds(none) <= kinds(resnet)  # units inside levels are written out
    forced = bu2td.optimize(resnet, "training", image_size=32, force={"r16_up.*": False, "r8_merge": True})
    made = {(r.rule, r.site) for r in forced.optimization.made}
    assert ("merge", "r8_merge") in made
    assert not any(site.startswith("r16_up.") for _, site in made)
    assert isinstance(forced.get_submodule("r8_merge"), SplitMerge)


def test_small_work_is_left_alone() -> None:
    """The cost model refuses forms whose overhead is larger than what they save."""
    choose = Chooser("training", "cpu", batch=1)
    wide = Form(1e6, 0, 0), Form(0.5e6, 0, 1e7)
    assert not choose("upsample_conv", "a", *wide)
    assert Chooser("training", "cpu", batch=4096)("upsample_conv", "a", *wide)
    assert Chooser("inference", "xpu", batch=1)("upsample_conv", "a", *wide)
    assert not Chooser("training", "xpu", batch=1)("upsample_conv", "a", *wide)
    assert not Chooser("training", "cpu")("fuse", "a")
    filtering = Form(9e9, 0, 0), Form(4e9, 0, 0)
    assert Chooser("inference", "cpu")("winograd", "a", *filtering)
    assert not Chooser("inference", "cuda")("winograd", "a", *filtering)


# --- what it is built of ------------------------------------------------------------------------------


@pytest.mark.parametrize("act", [nn.Identity(), nn.ReLU(), nn.ReLU6(), nn.LeakyReLU(0.2), nn.SiLU()], ids=str)
def test_a_norm_is_one_multiply_add(act: nn.Module) -> None:
    norm = fill(nn.BatchNorm2d(6)).eval()
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    name, numbers = activation_of(act) or ("", ())
    fused = FusedNorm(scale.detach(), (norm.bias - norm.running_mean * scale).detach(), name, numbers)
    images = torch.randn(2, 6, 5, 4, requires_grad=True)
    expected, found = act(norm(images)), fused(images)
    torch.testing.assert_close(found, expected)
    gradient = torch.randn_like(found)
    one, other = (torch.autograd.grad(y, images, gradient, retain_graph=True)[0] for y in (found, expected))
    torch.testing.assert_close(one, other)
    with torch.no_grad():
        torch.testing.assert_close(fused(images), expected.detach())


def test_preactivation_networks_keep_no_norm(small: Any) -> None:
    """Norms behind sums become multiply-adds, merges read both maps without a concatenation, sums work in place."""
    fast = bu2td.optimize(small)
    assert nn.BatchNorm2d not in kinds(fast)
    assert {FusedNorm, FusedMerge} <= kinds(fast)
    merge: Any = fast.r1_merge
    assert merge.add
    assert merge.of_lateral.reuse
    body: Any = fast.r1
    sums = [m for n, m in body.named_modules() if n.endswith("conv2")]
    assert [m.reuse for m in sums] == [False] + [True] * (len(sums) - 1)  # the first would overwrite what is given
    images = torch.rand(2, 3, 32, 32)
    given = torch.rand(2, 16, 32, 32).contiguous(memory_format=torch.channels_last)
    kept = given.clone()
    with torch.no_grad():
        assert torch.equal(body(given), body(given))
        assert torch.equal(given, kept)
        assert relative(fast(images), small(images)) < 1e-5


@pytest.mark.parametrize("name", ["resnet32", "nin_light"])
def test_the_gradient_of_the_head_is_channels_last(name: str) -> None:
    """Both as a module and as a call of mean; without the rule it is channels-first."""
    network = convert_baseline(name, "td", seed=0).train()
    seen: list[Tensor] = []

    def watch(module: nn.Module, args: Any, y: Tensor) -> None:
        y.register_hook(lambda gradient: seen.append(gradient))

    for rule in ("auto", "never"):
        lean: Any = bu2td.optimize(network, "training", rules={"pool": rule})
        maps = lean.forward_features(torch.rand(2, *baselines.INPUT_SIZES[name]))
        next(m for m in lean.head.modules() if isinstance(m, nn.ReLU)).register_forward_hook(watch)
        lean.forward_head(maps).square().sum().backward()
        assert seen[-1].is_contiguous(memory_format=torch.channels_last) == (rule == "auto")


def test_narrow_merges_stay_whole() -> None:
    network = convert_baseline("lenet_fc", "td", seed=0)
    merges = [r for r in bu2td.optimize(network).optimization.rewrites if r.rule == "merge"]
    assert [r.chosen for r in merges] == [False] * 2
    forced = bu2td.optimize(network, rules={"merge": "always"})
    assert all(r.chosen for r in forced.optimization.rewrites if r.rule == "merge")


# --- files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_save_and_load(tmp_path: Path, mode: str) -> None:
    network = fill(bu2td.convert(timm.create_model("resnet10t"), seed=0, finest_reduction=4))
    fast = bu2td.optimize(network, mode, batch_size=3, force={"r8_up.*": False}, image_size=64)
    bu2td.save(fast, tmp_path / "td.pt")
    loaded = bu2td.load(tmp_path / "td.pt")
    assert loaded.optimization == fast.optimization
    assert kinds(loaded.r16_up) == kinds(fast.r16_up)
    assert [n.name for n in loaded.graph.nodes] == [n.name for n in fast.graph.nodes]
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(images), fast.eval()(images))
    json.dumps(torch.load(tmp_path / "td.pt", weights_only=True)["recipe"])
    bu2td.save(loaded, tmp_path / "again.pt")
    with torch.no_grad():
        assert torch.equal(bu2td.load(tmp_path / "again.pt").eval()(images), fast(images))


def test_load_by_model_and_other_classes(tmp_path: Path) -> None:
    network = bu2td.convert(timm.create_model("resnet10t"), seed=0, finest_reduction=8)
    network.reset_classifier(5)
    bu2td.save(bu2td.optimize(network, image_size=64), tmp_path / "td.pt")
    assert bu2td.load(tmp_path / "td.pt")(torch.rand(1, 3, 64, 64)).shape == (1, 5)


def test_damaged_recipes_are_refused(tmp_path: Path, small: Any) -> None:
    bu2td.save(bu2td.optimize(small), tmp_path / "td.pt")
    content = torch.load(tmp_path / "td.pt", weights_only=True)
    del content["recipe"]["optimize"]["rewrites"]
    torch.save(content, tmp_path / "td.pt")
    with pytest.raises(FileError, match="optimisation is incomplete"):
        bu2td.load(tmp_path / "td.pt", model=baselines.resnet32())


# --- bad input ----------------------------------------------------------------------------------------


def test_a_fused_network_does_not_train(small: Any) -> None:
    fused = bu2td.optimize(small)
    images = torch.rand(2, 3, 32, 32)
    expected = fused(images)
    for network in (fused, copy.deepcopy(fused)):
        assert not network.training
        with pytest.raises(FusedNetworkError, match="mode='training'"):
            network.train()(images)
        assert network.eval() is network
        assert torch.equal(network(images), expected)
    for mode in MODES:
        with pytest.raises(OptimizeError, match="optimised for inference already"):
            bu2td.optimize(fused, mode)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "infrence"}, r"mode='infrence'.*'inference'"),
        ({"mode": None}, "mode=None"),
        ({"rules": {"merges": "auto"}}, r"no rule 'merges'.*'merge'"),
        ({"rules": {"merge": "yes"}}, "must be one of"),
        ({"force": {"r1": "yes"}}, "True or False"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 2.5}, "batch_size=2.5"),
        ({"image_size": "large"}, "image_size='large'"),
        ({"image_size": (32, 32, 3)}, "image_size"),
        ({"image_size": -1}, "image_size=-1"),
    ],
)
def test_bad_options(small: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        bu2td.optimize(small, **options)


def test_networks_that_cannot_be_optimised(small: Any) -> None:
    with pytest.raises(NotAModelError, match="Linear"):
        bu2td.optimize(nn.Linear(2, 2))  # type: ignore[arg-type]
    with pytest.raises(OptimizeError, match=r"found meta.*td\.to"):
        bu2td.optimize(convert_baseline("resnet32", "td", device="meta"))
    with pytest.raises(OptimizeError, match=r"float16.*optimise in float32"):
        bu2td.optimize(copy.deepcopy(small).half())
    mixed = copy.deepcopy(small)
    mixed.head.double()
    with pytest.raises(OptimizeError, match=r"float32.*float64"):
        bu2td.optimize(mixed)


def test_a_wrong_rewrite_is_noticed(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from bu2td.optimization import fuse

    fold = fuse.ConvDraft.fold

    def wrong(draft: Any, norm: Any) -> None:
        fold(draft, norm)
        draft.weight = draft.weight * 1.01

    monkeypatch.setattr(fuse.ConvDraft, "fold", wrong)
    with pytest.raises(VerificationError, match="differs from the network"):
        bu2td.optimize(small)


@pytest.mark.parametrize("mode", ["training", "inference"])
@pytest.mark.parametrize("depth", [True, False])
def test_convolutions_over_three_dimensions(mode: str, depth: bool) -> None:
    """Their weights have five dimensions, which are no channels-last map."""

    class Volume(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            inner = width if depth else 1
            self.conv, self.norm = nn.Conv3d(inner, inner, 3, padding=1), nn.BatchNorm3d(inner)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.norm(self.conv(x.unsqueeze(2 if depth else 1))).squeeze(2 if depth else 1))

    model = nn.Sequential(unit(3, 8), Block(8, 16, 2), Volume(16), Block(16, 24, 2), Volume(24), head(24))
    images = torch.rand(2, 3, 32, 32)
    network = bu2td.convert(model, example_inputs=images, seed=0, max_macs_ratio=None).eval()
    torch.testing.assert_close(bu2td.optimize(network, mode).eval()(images), network(images), rtol=1e-4, atol=1e-4)
