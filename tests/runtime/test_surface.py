"""What libraries of models expect of every network."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import Block, convert_baseline, make, unit
from torch import nn

import bu2td
from bu2td.errors import OptimizeError, OptionError
from bu2td.runtime import feature_network

timm = pytest.importorskip("timm")


def tiny(word: str = "test_resnet", **options: Any) -> Any:
    """A converted network with weights that are no initial ones."""
    network = bu2td.convert(timm.create_model(word, **options), seed=0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    return network.eval()


@pytest.fixture(scope="module")
def resnet() -> Any:
    return tiny(drop_path_rate=0.2)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


# --- what it is ---------------------------------------------------------------------------------------


def test_widths(resnet: Any, images: torch.Tensor) -> None:
    assert (resnet.in_chans, resnet.num_classes, resnet.global_pool) == (3, 1000, "avg")
    with torch.no_grad():
        features = resnet.forward_features(images)
        assert features.shape[1] == resnet.num_features
        assert resnet.forward_head(features, pre_logits=True).shape == (2, resnet.head_hidden_size)
    assert resnet.get_classifier(name_only=True) == "head.fc"
    assert resnet.get_submodule("head.fc") is resnet.get_classifier()


@pytest.mark.parametrize(
    ("word", "pool", "hidden"),
    [
        ("mobilenetv3_small_050", "avg", 1024),  # a convolution behind the pool
        ("vgg11", "avg", 4096),  # two in front of it
        ("torchvision:mnasnet0_5", "avg", None),  # a mean
        ("mambaout_femto", "avg", 1152),  # a mean over (N, H, W, C), a layer behind it
    ],
)
def test_pools_and_widths_of_other_heads(word: str, pool: str, hidden: int | None) -> None:
    network = bu2td.convert(make(word), device="meta", finest_reduction=4)
    assert network.global_pool == pool
    assert network.head_hidden_size == (network.num_features if hidden is None else hidden)


def test_the_width_of_a_classifier_inside_of_a_head() -> None:
    """Attention over the map that pools it: what its last layer reads is wider than the map."""
    pool = timm.layers.AttentionPool2d(24, 8, 10, embed_dim=40, head_dim=8, qkv_separate=True)
    model = nn.Sequential(unit(3, 8), Block(8, 16, 2), Block(16, 24, 2), pool)
    network = bu2td.convert(model, example_inputs=torch.zeros(1, 3, 32, 32), device="meta", max_macs_ratio=None)
    assert network.get_classifier().weight.shape == (10, 40)
    assert network.head_hidden_size == 40


@pytest.mark.parametrize("pool", ["avg", "max", "avgmax", "catavgmax"])
def test_the_pool_is_told_by_what_it_computes(pool: str) -> None:
    network = bu2td.convert(timm.create_model("test_resnet", global_pool=pool), device="meta")
    assert network.global_pool == pool


def test_configuration(resnet: Any) -> None:
    model = timm.create_model("test_resnet")
    config, before = resnet.pretrained_cfg, model.pretrained_cfg
    assert config is resnet.default_cfg
    assert {key: config[key] for key in ("mean", "std", "input_size")} == {
        key: before[key] for key in ("mean", "std", "input_size")
    }
    assert "hf_hub_id" in before
    assert not {"hf_hub_id", "url", "file"} & set(config)
    names = dict(resnet.named_modules())
    assert names[config["classifier"]] is resnet.get_classifier()
    assert len(config["first_conv"]) == len(resnet.plan.ladder)
    assert all(names[name].in_channels == 3 for name in config["first_conv"])
    assert config["pool_size"] == tuple(config["input_size"][1:])
    assert bu2td.convert(make("lenet_fc"), device="meta").pretrained_cfg is None


def test_what_is_put_on_a_network_is_copied_with_it(resnet: Any) -> None:
    twin = copy.deepcopy(resnet)
    twin.note = ["mine"]
    twin.default_cfg = {"mean": (0.5,)}
    again = copy.deepcopy(twin)
    assert again.note == ["mine"]
    assert again.note is not twin.note
    assert again.pretrained_cfg == {"mean": (0.5,)}
    assert "hf_hub_id" not in resnet.pretrained_cfg
    assert not hasattr(resnet, "note")


# --- features -----------------------------------------------------------------------------------------


def test_intermediates_are_the_levels_fine_to_coarse(resnet: Any, images: torch.Tensor) -> None:
    with torch.no_grad():
        expected = resnet.features(images)[::-1]
        last, found = resnet.forward_intermediates(images)
        some = resnet.forward_intermediates(images, [-1, 1], intermediates_only=True)
        early, one = resnet.forward_intermediates(images, 1, stop_early=True)
        logits = resnet.forward_head(last)
        torch.testing.assert_close(logits, resnet(images))
    for one_of, other in zip(found, expected, strict=True):
        assert torch.equal(one_of, other)
    assert [torch.equal(a, b) for a, b in zip(some, (expected[-1], expected[1]), strict=True)] == [True, True]
    assert torch.equal(early, expected[-1])
    assert torch.equal(one[0], expected[-1])
    info = timm.models.FeatureInfo(resnet.feature_info, len(resnet.feature_info))
    assert info.channels() == [feature.shape[1] for feature in expected]
    assert info.reduction() == [64 // feature.shape[2] for feature in expected] == sorted(info.reduction())
    assert all(name in dict(resnet.named_modules()) for name in info.module_name())
    for indices in (0, 9, [9], [-9], [], [1.5]):
        with pytest.raises(OptionError, match="0 to"):
            resnet.forward_intermediates(images, indices)
    with pytest.raises(OptionError, match="NCHW"):
        resnet.forward_intermediates(images, output_fmt="NLC")


def test_intermediates_under_checkpointing(resnet: Any, images: torch.Tensor) -> None:
    network = copy.deepcopy(resnet)
    network.set_grad_checkpointing()
    assert network.feature_info == resnet.feature_info
    with torch.no_grad():
        for a, b in zip(network.features(images), resnet.features(images), strict=True):
            assert torch.equal(a, b)


def test_a_network_of_features_has_the_levels_that_it_needs(resnet: Any, images: torch.Tensor) -> None:
    backbone = feature_network(resnet, (4, 32), "none")
    with torch.no_grad():
        expected = [resnet.features(images)[::-1][i] for i in (2, -1)]
        copies = (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone)))
        for form in (backbone, *copies, torch.compile(backbone, fullgraph=True, backend="eager")):
            found = form(images)
            assert [torch.equal(a, b) for a, b in zip(found, expected, strict=True)] == [True, True]
        named = feature_network(resnet, (4,), "modules")(images)
        assert {name: value.shape for name, value in named.items()} == {
            resnet.feature_info[2]["module"]: expected[0].shape
        }
        assert list(feature_network(resnet, (4, 32))(images)) == ["0", "1"]
    torch.compiler.reset()
    own, whole = backbone.state_dict(), resnet.state_dict()
    assert set(own) < set(whole)
    assert not any(name.startswith(("head", "r1_", "r2_")) for name in own)
    twin = copy.deepcopy(backbone).train()
    twin.set_grad_checkpointing()
    assert twin.grad_checkpointing
    assert "checkpoint" in twin.code
    sum(feature.mean() for feature in twin(images)).backward()
    assert all(parameter.grad is not None for parameter in twin.parameters())
    twin.set_grad_checkpointing(False)
    assert twin.code == backbone.code
    again = feature_network(_checkpointed(resnet), (4, 32), "none")
    assert again.grad_checkpointing
    with pytest.raises(OptimizeError):
        feature_network(bu2td.optimize(resnet), (8,))


def _checkpointed(network: Any) -> Any:
    twin = copy.deepcopy(network)
    twin.set_grad_checkpointing()
    return twin


# --- the classifier -----------------------------------------------------------------------------------


def test_reset_classifier_as_in_timm(images: torch.Tensor) -> None:
    """The bottom-up network goes the same way; its outputs have the same shapes, but for the map's size."""
    model, network = timm.create_model("test_resnet").eval(), tiny()
    for arguments in [(0,), (5,), (0, ""), (7, "max"), (0,), (6, "catavgmax"), (0, ""), (4, "avg"), (3,)]:
        model.reset_classifier(*arguments)
        network.reset_classifier(*arguments)
        with torch.no_grad():
            expected, found = model(images), network(images)
            assert torch.equal(copy.deepcopy(network)(images), found)
        assert network.num_classes == model.num_classes
        assert network.global_pool == model.global_pool.pool_type
        if arguments[0]:
            assert found.shape == expected.shape
        else:
            widths = expected.shape[1] // model.num_features * network.num_features
            assert (found.ndim, found.shape[1]) == (expected.ndim, widths)
        assert network.head_hidden_size == model.head_hidden_size // model.num_features * network.num_features
        assert next(network.parameters()).is_leaf
        assert {module.training for module in network.modules()} == {False}


def test_without_pool_and_classifier_it_returns_the_finest_level(images: torch.Tensor) -> None:
    network = tiny()
    with torch.no_grad():
        expected = network.forward_features(images)
        network.reset_classifier(0, "")
        assert torch.equal(network(images), expected)
        network.reset_classifier(5)
        assert network(images).shape == (2, 5, 64, 64)
        network.reset_classifier(0, "max")
        torch.testing.assert_close(network(images), expected.amax((2, 3)))
        network.reset_classifier(0, "avg")
        torch.testing.assert_close(network(images), expected.mean((2, 3)))


@pytest.mark.parametrize("word", ["test_convnext", "resnetv2_18", "torchvision:mnasnet0_5", "mambaout_femto"])
def test_reset_classifier_of_other_heads(word: str) -> None:
    network = bu2td.convert(make(word), device="meta", finest_reduction=4)
    images = torch.empty(2, 3, 64, 64, device="meta")
    for arguments, shape in [((0,), 2), ((0, ""), 4), ((5, "max"), 2), ((3, None), 2)]:
        network.reset_classifier(*arguments)
        assert network(images).ndim == shape
    assert network.get_classifier().weight.shape[:2] == (3, network.head_hidden_size)


def test_what_cannot_be_reset_is_refused() -> None:
    lenet = convert_baseline("lenet_fc", "td", seed=0)
    before = lenet.state_dict().keys()
    for count in (0, 5):
        with pytest.raises(OptionError, match=f"convert the bottom-up network with {count} classes"):
            lenet.reset_classifier(count)
    assert lenet.state_dict().keys() == before
    network = tiny()
    with pytest.raises(OptionError, match=r"global_pool='mean' must be one of.*'avg'"):
        network.reset_classifier(5, "mean")
    for count in (-1, 2.0, True):
        with pytest.raises(OptionError, match="num_classes"):
            network.reset_classifier(count)
    with pytest.raises(OptionError, match="convert the bottom-up network with 5 classes"):  # two that are averaged
        bu2td.convert(make("repvit_m0_9"), device="meta", finest_reduction=8).reset_classifier(5)
    alexnet = bu2td.convert(make("torchvision:alexnet"), device="meta", finest_reduction=4)
    with pytest.raises(OptionError, match="no global pool"):
        alexnet.reset_classifier(3, "max")


def test_a_reset_head_is_saved_and_loaded(tmp_path: Path, images: torch.Tensor) -> None:
    network = tiny()
    for arguments in [(0, ""), (6, "catavgmax")]:
        network.reset_classifier(*arguments)
        bu2td.save(network, tmp_path / "td.pt")
        loaded: Any = bu2td.load(tmp_path / "td.pt").eval()
        with torch.no_grad():
            assert torch.equal(loaded(images), network(images))
        assert loaded.global_pool == arguments[1]


# --- training -----------------------------------------------------------------------------------------


def test_set_drop_path_is_building_with_that_rate(resnet: Any) -> None:
    def rates(network: nn.Module) -> dict[str, float]:
        return {name: m.drop_prob for name, m in network.named_modules() if hasattr(m, "drop_prob")}

    expected = rates(bu2td.convert(timm.create_model("test_resnet", drop_path_rate=0.1), device="meta"))
    network = copy.deepcopy(resnet)
    for rate in (0.0, 0.3, 0.1):
        network.set_drop_path(rate)
        assert max(rates(network).values()) == pytest.approx(rate)
    assert rates(network) == pytest.approx(expected)
    assert max(rates(resnet).values()) == pytest.approx(0.2)
    with pytest.raises(OptionError, match="drop_path_rate"):
        tiny().set_drop_path(0.1)
    tiny().set_drop_path(0)
    for rate in (-0.1, 1.0, "much", None):
        with pytest.raises(OptionError, match="at least 0"):
            network.set_drop_path(rate)


def test_set_drop_path_knows_torchvisions_layers() -> None:
    network = bu2td.convert(make("torchvision:efficientnet_b0"), device="meta", finest_reduction=8)
    network.set_drop_path(0.5)
    assert max(m.p for m in network.modules() if type(m).__name__ == "StochasticDepth") == pytest.approx(0.5)


def test_layer_decay_rises_from_coarse_to_fine(resnet: Any) -> None:
    from timm.optim import create_optimizer_v2

    for coarse in (True, False):
        groups = timm.models.group_parameters(resnet, resnet.group_matcher(coarse=coarse), reverse=True)
        assert set(groups) == {name for name, _ in resnet.named_parameters()}
        levels = [
            [number for name, number in groups.items() if name.startswith((f"{level.name}.", f"{level.name}_"))]
            for level in resnet.plan.levels
        ]
        ends = [number for level in levels for number in (min(level), max(level))]
        assert ends == sorted(ends)
        assert {number for name, number in groups.items() if name.startswith("head.")} == {max(groups.values())}
        if coarse:
            assert len(set(groups.values())) == len(resnet.plan.levels) + 1
    optimizer = create_optimizer_v2(resnet, "adamw", lr=1e-3, weight_decay=0.1, layer_decay=0.5)
    scales = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    assert scales[id(resnet.get_classifier().weight)] == 1
    finest = resnet.get_parameter(f"{resnet.plan.levels[-1].name}_merge.conv.weight")
    coarsest = resnet.get_parameter(f"{resnet.plan.levels[0].name}_lateral.conv.weight")
    assert scales[id(coarsest)] == min(scales.values()) < scales[id(finest)] == 0.5


def test_blocks_of_a_level_are_groups() -> None:
    network = bu2td.convert(make("resnet18"), device="meta")
    groups = timm.models.group_parameters(network, network.group_matcher(), reverse=True)
    first, second = groups["r32.layer4.0.conv1.weight"], groups["r32.layer4.1.bn2.bias"]
    assert groups["r32_lateral.conv.weight"] < first < second < groups["r16_lateral.conv.weight"]
    assert groups["r16_up.layer3.0.conv1.weight"] == groups["r16_merge.conv.weight"]
    assert groups["r16_merge.conv.weight"] < groups["r16.layer3.1.conv1.weight"]


def test_no_weight_decay_follows_the_names() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3, 2, 1)
            self.scale = nn.Parameter(torch.ones(1, 8, 1, 1))
            self.body = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1))
            self.fc = nn.Linear(16, 4)

        def no_weight_decay(self) -> set[str]:
            return {"scale", "body.*.bias", "missing"}

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(self.body(self.stem(x) * self.scale).mean((2, 3)))

    network = bu2td.convert(Model(), example_inputs=torch.zeros(1, 3, 32, 32), seed=0)
    found = network.no_weight_decay()
    assert found
    assert found < {name for name, _ in network.named_parameters()}
    assert all(name.endswith(("scale", "bias")) for name in found)
    assert any(name.endswith("scale") for name in found)
    assert not any(name.startswith("head") for name in found)
    assert tiny().no_weight_decay() == set()
