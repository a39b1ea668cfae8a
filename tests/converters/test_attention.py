"""Attention layers that are bound to a map's size or to blocks: other widths, another place, other images."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import make, unit
from torch import Tensor, nn

import bu2td
from bu2td.errors import ExampleInputError, ImageSizeError
from bu2td.nn import Pyramid
from bu2td.options import ARRANGEMENTS

pytest.importorskip("timm")
from timm.layers.attention_pool2d import AttentionPool2d, RotAttentionPool2d
from timm.layers.bottleneck_attn import BottleneckAttn
from timm.layers.halo_attn import HaloAttn
from timm.layers.lambda_layer import LambdaLayer
from timm.layers.non_local_attn import BatNonLocalAttn

SIZE = 64
IMAGES = torch.zeros(1, 3, SIZE, SIZE)


def bottleneck(width: int, side: int, stride: int) -> nn.Module:
    return BottleneckAttn(width, feat_size=(side, side), stride=stride)


def thin_bottleneck(width: int, side: int, stride: int) -> nn.Module:
    return BottleneckAttn(width, feat_size=(side, side), stride=stride, dim_head=4, qkv_bias=True)


def halo(width: int, side: int, stride: int) -> nn.Module:
    return HaloAttn(width, stride=stride, num_heads=4, block_size=4, halo_size=1)


def pooled_halo(width: int, side: int, stride: int) -> nn.Module:
    return HaloAttn(width, stride=stride, num_heads=2, block_size=4, halo_size=1, avg_down=True)


def local_lambda(width: int, side: int, stride: int) -> nn.Module:
    return LambdaLayer(width, stride=stride, dim_head=4, r=3)


def pairwise_lambda(width: int, side: int, stride: int) -> nn.Module:
    return LambdaLayer(width, feat_size=(side, side), stride=stride, dim_head=4, r=None)


def bilinear(width: int, side: int, stride: int) -> nn.Module:
    attention = BatNonLocalAttn(width, block_size=4)
    return attention if stride == 1 else nn.Sequential(nn.Conv2d(width, width, 3, stride, 1), attention)


#: Layer -> what the note says of it.
NOTES: dict[Callable[..., nn.Module], str] = {
    bottleneck: "works at images of 64x64 only: BottleneckAttn in {}stages.1.0.path.3",
    thin_bottleneck: "works at images of 64x64 only",
    halo: "works at images whose sides are multiples of {}: HaloAttn in ",
    pooled_halo: "works at images whose sides are multiples of {}: HaloAttn in ",
    local_lambda: "",
    pairwise_lambda: "works at images of 64x64 only: LambdaLayer in {}stages.1.0.path.3",
    bilinear: "works at images whose sides are multiples of {}: BilinearAttnTransform in ",
}


class Block(nn.Module):
    """A bottleneck whose spatial layer is given."""

    def __init__(self, inputs: int, outputs: int, stride: int, layer: nn.Module) -> None:
        super().__init__()
        inner = outputs // 2
        self.path = nn.Sequential(
            nn.Conv2d(inputs, inner, 1), nn.BatchNorm2d(inner), nn.ReLU(), layer, nn.BatchNorm2d(inner), nn.ReLU(),
            nn.Conv2d(inner, outputs, 1), nn.BatchNorm2d(outputs),
        )  # fmt: skip
        self.shortcut = nn.Identity() if inputs == outputs else unit(inputs, outputs, 1, stride)[:2]
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.path(x) + self.shortcut(x))


class Net(nn.Module):
    """Stem at 1/2, convolutions at 1/4, attention at 1/8 and, in a block that does not stride, at 1/16."""

    def __init__(self, layer: Callable[..., nn.Module], head: nn.Module | None = None) -> None:
        super().__init__()
        self.stem = unit(3, 8, 3, 2)
        self.stages = nn.Sequential(
            nn.Sequential(Block(8, 16, 2, nn.Conv2d(8, 8, 3, 2, 1))),
            nn.Sequential(Block(16, 32, 2, layer(16, 16, 2)), Block(32, 32, 1, layer(16, 8, 1))),
            nn.Sequential(Block(32, 64, 2, nn.Conv2d(32, 32, 3, 2, 1)), Block(64, 64, 1, layer(32, 4, 1))),
        )
        self.head = head or nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(self.stem(x)))


def convert(layer: Callable[..., nn.Module], arrangement: Any = "td", **options: Any) -> Any:
    options.setdefault("seed", 0)
    return bu2td.convert(Net(layer), arrangement, example_inputs=IMAGES, max_macs_ratio=None, **options)


def attentions(network: nn.Module) -> dict[str, Any]:
    kinds = ("BottleneckAttn", "HaloAttn", "LambdaLayer", "BilinearAttnTransform")
    return {name: m for name, m in network.named_modules() if type(m).__name__ in kinds}


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@pytest.mark.parametrize("layer", NOTES, ids=lambda layer: layer.__name__)
def test_converts_and_learns(layer: Callable[..., nn.Module], arrangement: str) -> None:
    """Without relaxation, every parameter finite and reached; the note names what binds which size."""
    network = convert(layer, arrangement)
    expected = {"td": (64, 32, 16), "uni": (32, 32, 32), "rev": (16, 32, 64)}
    assert tuple(level.width for level in network.plan.levels if level.source) == expected[arrangement]
    assert network.plan.relaxations == ()
    assert len(attentions(network)) == 3
    notes = " ".join(network.plan.notes)
    assert "without a converter" not in notes
    assert all(part in notes for part in NOTES[layer].split("{}"))
    assert bool(notes) == bool(NOTES[layer])
    logits = network(torch.rand(2, 3, SIZE, SIZE))
    (logits * torch.linspace(-1, 1, 10)).sum().backward()
    assert bool(torch.isfinite(logits).all())
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert bool(torch.isfinite(parameter.grad).all()), name
        assert bool(torch.isfinite(parameter).all()), name


def test_positions_follow_the_map() -> None:
    """Coarse to fine the maps are 4, 8 and 16 wide; strides are gone, so that a layer sees its level's map."""
    sides = {"td": [4, 8, 8], "rev": [8, 8, 16]}
    for arrangement, expected in sides.items():
        network = convert(bottleneck, arrangement, device="meta")
        found = [m.pos_embed for m in attentions(network).values()]
        assert [(p.height, p.width) for p in found] == [(side, side) for side in expected]
        assert [len(p.height_rel) for p in found] == [2 * side - 1 for side in expected]
        lambdas = list(attentions(convert(pairwise_lambda, arrangement)).values())
        assert [m.feat_size for m in lambdas] == [(side, side) for side in expected]
        assert [tuple(m.pos_emb.shape[:2]) for m in lambdas] == [(2 * side - 1,) * 2 for side in expected]
        for m, side in zip(lambdas, expected, strict=True):
            assert m.rel_pos_indices.shape == (2, side**2, side**2)
            assert int(m.rel_pos_indices.max()) == 2 * side - 2
    assert all(isinstance(m.pool, nn.Identity) for m in attentions(network).values())


def test_widths_of_heads() -> None:
    """The number of heads stays, queries keep their share of the output; where heads do not divide, fewer do."""
    found = attentions(convert(thin_bottleneck, [48, 80, 24], device="meta")).values()
    assert [(m.num_heads, m.dim_head_v, m.dim_head_qk) for m in found] == [(4, 6, 3), (4, 10, 10), (4, 10, 10)]
    assert [m.qkv.out_channels for m in found] == [4 * (6 + 2 * 3), 120, 120]
    blocks = [m.block_size for m in attentions(convert(halo, "rev", device="meta")).values()]
    assert blocks == [4, 4, 4]


def test_blocks_that_do_not_divide_shrink() -> None:
    """An image of 96 has maps of 6, 12 and 24; blocks of 8 become 2 at 1/16 and 4 at 1/8."""

    class Odd(Net):
        def __init__(self) -> None:
            super().__init__(lambda w, side, stride: nn.Conv2d(w, w, 3, stride, 1))
            self.stages[0][0].path[3] = HaloAttn(8, stride=2, num_heads=4, block_size=8, halo_size=1)  # type: ignore[index,union-attr]

    images = torch.zeros(1, 3, 96, 96)
    for arrangement, block in (("td", 8), ("rev", 2)):
        network = bu2td.convert(Odd(), arrangement, example_inputs=images, seed=0, max_macs_ratio=None)
        [found] = attentions(network).values()
        assert (found.block_size, found.win_size, found.block_stride) == (block, block + 2, 1)
        assert network(torch.rand(2, 3, 96, 96)).shape == (2, 10)


@pytest.mark.parametrize("layer", NOTES, ids=lambda layer: layer.__name__)
def test_inherited_layers_compute_the_same(layer: Callable[..., nn.Module]) -> None:
    """A layer that keeps widths and map is the bottom-up layer."""
    model = Net(layer).eval()
    network = bu2td.convert(model, example_inputs=IMAGES, seed=0, inherit="matching", max_macs_ratio=None).eval()
    path = next(name for name in attentions(model) if name.startswith("stages.1.1."))
    x = torch.rand(2, 8 if layer is bilinear else 16, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(network.get_submodule(f"r8.{path}")(x), model.get_submodule(path)(x))


def test_other_image_sizes_are_refused() -> None:
    bound = convert(bottleneck, "uni")
    with pytest.raises(ImageSizeError, match=r"images of 64x64 only.*found images of 96x96"):
        bound(torch.rand(1, 3, 96, 96))
    with pytest.raises(ImageSizeError, match="64x64 only"):
        bound.forward_branches([torch.rand(1, 3, 96, 96)] * len(bound.plan.ladder))
    assert bound.plan.check_sizes == ((SIZE, SIZE),)
    blocks = convert(halo, "uni")
    assert blocks(torch.rand(1, 3, 128, 64)).shape == (1, 10)
    with pytest.raises(
        ImageSizeError, match=r"level r16 .* multiples of 4; found images of 96x64, whose map is 6x4"
    ):
        blocks(torch.rand(1, 3, 96, 64))
    free = convert(local_lambda, "uni")
    assert free(torch.rand(1, 3, 70, 95)).shape == (1, 10)
    with pytest.raises(ExampleInputError, match=r"does not run on an image of shape \(2, 3, 96, 96\)"):
        bu2td.analyze(Net(bottleneck), example_inputs=torch.zeros(1, 3, 96, 96))


def test_levels_without_the_layer_bind_nothing() -> None:
    network = convert(bottleneck, reductions=[4, 2, 1], device="meta")
    assert network.plan.notes == ()
    assert network.plan.check_sizes == ((64, 64), (69, 78))
    assert isinstance(network.pyramid, Pyramid)
    assert network.pyramid.size is None


@pytest.mark.parametrize("layer", [bottleneck, pairwise_lambda], ids=lambda layer: layer.__name__)
def test_files_keep_what_is_computed(layer: Callable[..., nn.Module], tmp_path: Path) -> None:
    """Indices of positions are no part of a state_dict."""
    network = convert(layer, "rev").eval()
    bu2td.save(network, tmp_path / "td.pt")
    loaded = bu2td.load(tmp_path / "td.pt", model=Net(layer)).eval()
    images = torch.rand(2, 3, SIZE, SIZE)
    with torch.no_grad():
        assert torch.equal(loaded(images), network(images))


def test_weights_are_initialised_by_the_layers_themselves() -> None:
    for layer, weight in ((bottleneck, "qkv"), (halo, "q"), (local_lambda, "qkv")):
        for found in attentions(convert(layer, "rev")).values():
            weights = found.get_submodule(weight).weight.detach()
            assert 0.7 < float(weights.std()) * weights.shape[1] ** 0.5 < 1.3  # truncated normal of the fan-in


# --- attention pools ----------------------------------------------------------------------------------


def attention_pool(**settings: Any) -> nn.Module:
    return AttentionPool2d(64, feat_size=4, out_features=10, head_dim=16, **settings)


def rotary_pool(**settings: Any) -> nn.Module:
    return RotAttentionPool2d(64, out_features=10, ref_feat_size=4, head_dim=16, **settings)


@pytest.mark.parametrize("settings", [{}, {"qkv_separate": True, "class_token": True}], ids=str)
@pytest.mark.parametrize("pool", [attention_pool, rotary_pool], ids=lambda pool: pool.__name__)
def test_a_pooling_head_goes_on_reading_a_map_of_its_size(
    pool: Callable[..., nn.Module], settings: dict[str, Any]
) -> None:
    model = Net(local_lambda, pool(**settings))
    for arrangement in ARRANGEMENTS:
        network: Any = bu2td.convert(model, arrangement, example_inputs=IMAGES, seed=0, max_macs_ratio=None)
        assert network.plan.relaxations == ()
        assert [m.output_size for m in network.head.modules() if isinstance(m, nn.AdaptiveAvgPool2d)] == [(4, 4)]
        last = network.plan.levels[-1].width
        assert (network.head.head.in_features, network.head.head.embed_dim) == (last, 64)
        if pool is attention_pool:
            assert tuple(network.head.head.pos_embed.shape) == (17, last)
            assert 0.5 < float(network.head.head.pos_embed.detach().std()) * last**0.5 < 1.5
        network(torch.rand(2, 3, 75, 66)).square().sum().backward()
        assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in network.parameters())
    assert network.get_classifier().out_features == 10
    network.reset_classifier(3)
    assert network(torch.rand(2, 3, 64, 64)).shape == (2, 3)


# --- timm's networks ----------------------------------------------------------------------------------

MODELS = {
    "botnet26t_256": "BottleneckAttn",
    "halonet26t": "HaloAttn",
    "lambda_resnet26rpt_256": "LambdaLayer",
    "bat_resnext26ts": "BilinearAttnTransform",
    "resnet50_clip": "",
    "edgenext_xx_small": "",
}


@pytest.mark.parametrize("word", MODELS)
def test_models_of_timm(word: str) -> None:
    analysis = bu2td.analyze(make(word))
    for arrangement in ARRANGEMENTS:
        plan = bu2td.convert(analysis, arrangement, device="meta", max_macs_ratio=None).plan
        assert plan.relaxations == ()
        assert len(plan.notes) == bool(MODELS[word])
        assert MODELS[word] in " ".join(plan.notes)


@pytest.mark.slow
@pytest.mark.parametrize("layer", [bottleneck, halo, pairwise_lambda], ids=lambda layer: layer.__name__)
def test_in_full(layer: Callable[..., nn.Module]) -> None:
    """Copies, compile, export, autocast, at the own size alone."""
    report = bu2td.verify(convert(layer), full=True)
    assert {"compile", "export", "batch 1"} <= set(report.checks)
