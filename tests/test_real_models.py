"""Real models: every one of the 25 converts in td, uni and rev without relaxation; five are run in full."""

from itertools import pairwise

import pytest
import torch
from nets import MODELS, make, parameters
from reference import real
from reference.fill import fill, picture
from torch import nn

import bu2td
from bu2td.options import ARRANGEMENTS

pytest.importorskip("timm")
pytest.importorskip("torchvision")

#: Relaxations that are allowed in `uni`: model -> (level, relaxation, cause). Measured: none is needed.
UNI_RELAXATIONS: dict[str, list[tuple[str, str, str]]] = {}

#: Run on real tensors in CI; `bench/real_models.py` runs all 75.
IN_FULL = ("resnet18", "mobilenetv3_small_100", "convnext_atto", "cspresnet50", "torchvision:shufflenet_v2_x1_0")


def test_there_are_25_models() -> None:
    assert len(MODELS) == len(set(MODELS)) == 25


@pytest.mark.parametrize("word", MODELS)
def test_converts_in_every_arrangement(word: str) -> None:
    """Conversion verifies itself on meta; widths follow rule 6.3, relaxations are those listed."""
    analysis = bu2td.analyze(make(word))
    bodies = [level.width for level in analysis.bodies]
    head_convs = [b.width for b in analysis.head.convs]
    before = dict(analysis.capture.source.state_dict())
    for arrangement in ARRANGEMENTS:
        network = bu2td.convert(analysis, arrangement, device="meta", max_macs_ratio=None)
        plan = network.plan
        allowed = [(a, b) for a, b, _ in UNI_RELAXATIONS.get(word, [])] if arrangement == "uni" else []
        assert list(plan.relaxations) == allowed
        widths = [level.width for level in plan.levels if level.source]
        if arrangement == "td":
            assert widths == [*(head_convs[-1:] or bodies[:1]), *bodies[1:]]
        elif arrangement == "rev":
            assert widths == bodies[::-1]
        else:
            assert widths == [bodies[len(bodies) // 2]] * len(bodies)
        assert plan.ladder[-1] == 1
        assert all(a > b for a, b in pairwise(plan.ladder))
        assert plan.cost.parameters == parameters(network)
    assert dict(analysis.capture.source.state_dict()).keys() == before.keys()


@pytest.mark.parametrize("arrangement", real.ARRANGEMENTS)
@pytest.mark.parametrize("name", real.NAMES)
def test_function_equals_reference(name: str, arrangement: str) -> None:
    import timm

    network = bu2td.convert(timm.create_model(name), arrangement, max_macs_ratio=None).eval()
    reference = real.build(name, arrangement).eval()
    assert parameters(network) == parameters(reference)
    fill(network)
    fill(reference)
    for shape in ((2, 3, 64, 64), (1, 3, 50, 71)):
        images = picture(*shape)
        with torch.no_grad():
            expected = reference(images)
            assert float((network(images) - expected).abs().max()) < 1e-5
        assert float(expected.std()) > 0.1


@pytest.mark.parametrize(
    ("word", "arrangement"),
    [
        pytest.param(word, arrangement, marks=() if arrangement == "td" else pytest.mark.slow)
        for word in IN_FULL  # small networks are, in every arrangement, in test_hard.py and arrange/test_slices.py
        for arrangement in ARRANGEMENTS
    ],
)
def test_in_full(word: str, arrangement: str) -> None:
    """Section 6 on real tensors: gradients, copies, channels_last, compile, export, autocast, odd sizes."""
    from bu2td.models.words import create_model

    model = create_model(word)
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    network = bu2td.convert(model, arrangement, seed=3, max_macs_ratio=None)
    report = bu2td.verify(network, full=True, size=32)
    assert {"gradients", "compile", "export", "channels_last"} <= set(report.checks)
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes


def _class_of(network: nn.Module, name: str) -> str:
    return type(network.get_submodule(name)).__name__


@pytest.mark.parametrize(
    ("word", "checks"),
    [
        ("nf_resnet50", {"r16_merge.conv": "ScaledStdConv2d", "r1_lateral.conv": "ScaledStdConv2d"}),
        ("convnext_atto", {"r8_lateral.norm": "LayerNorm2d", "r8_lateral.act": "GELU"}),
        ("mobilenetv2_100", {"r2_merge.norm": "BatchNormAct2d"}),
        ("torchvision:squeezenet1_1", {"r8_merge.act": "ReLU"}),
    ],
)
def test_laterals_and_merges_are_of_the_models_kind(word: str, checks: dict[str, str]) -> None:
    network = bu2td.convert(make(word), device="meta")
    assert {name: _class_of(network, name) for name in checks} == checks


def test_preactivation_laterals_are_bare() -> None:
    for word in ("densenet121", "resnetv2_50"):
        network = bu2td.convert(make(word), device="meta")
        for level in network.plan.levels[1:]:
            assert [n for n, _ in network.get_submodule(f"{level.name}_lateral").named_children()] == ["conv"]
            assert next(n for n, _ in network.get_submodule(f"{level.name}_merge").named_children()) == "norm"


def test_auxiliary_heads_are_dropped_in_both_modes() -> None:
    from bu2td.models.words import create_model

    network = bu2td.convert(create_model("torchvision:googlenet"), finest_reduction=4, seed=0)
    images = torch.rand(2, 3, 64, 64)
    assert network.train()(images).shape == network.eval()(images).shape == (2, 1000)
    assert not any("aux" in name for name, _ in network.named_parameters())


def test_head_of_vgg_pools_to_its_own_size() -> None:
    network = bu2td.convert(make("vgg11_bn"), device="meta")
    assert tuple(network.head.pre_logits.fc1.weight.shape) == (4096, 64, 7, 7)  # type: ignore[union-attr]
    assert "dropped" in " ".join(network.plan.notes)


def test_same_seed_same_network() -> None:
    import timm

    model = timm.create_model("resnet18")
    one, two, other = (bu2td.convert(model, seed=s).state_dict() for s in (5, 5, 6))
    assert all(torch.equal(v, two[k]) for k, v in one.items())
    assert any(not torch.equal(v, other[k]) for k, v in one.items())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.filterwarnings("ignore:.torch.jit.*is deprecated:DeprecationWarning")  # of Inductor itself
@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_on_a_gpu(arrangement: str) -> None:
    import timm

    network = bu2td.convert(timm.create_model("resnet18"), arrangement, device="cuda", seed=0).eval()
    on_cpu = bu2td.convert(timm.create_model("resnet18"), arrangement, seed=0).eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(network(images.cuda()).cpu(), on_cpu(images), rtol=1e-3, atol=1e-3)
    bu2td.verify(network, full=True, size=64)
