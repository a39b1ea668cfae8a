"""Every option of `convert` does what it says."""

from typing import Any

import pytest
import torch
from nets import convert_baseline, make, parameters
from torch import nn

import bu2td
from bu2td.nn import TransposedUpsample, Upsample

pytest.importorskip("timm")


@pytest.fixture(scope="module")
def resnet18() -> Any:
    return bu2td.analyze(make("resnet18"))


def plan(analysis: Any, *args: Any, **options: Any) -> Any:
    return bu2td.convert(analysis, *args, device="meta", max_macs_ratio=None, **options).plan


def test_width_of_uni(resnet18: Any) -> None:
    assert plan(resnet18, "uni").widths == (128, 128, 128, 128, 64, 64)
    assert plan(resnet18, "uni", width=96).widths == (96, 96, 96, 96, 64, 64)
    assert plan(resnet18, "uni", width=1).widths == (1, 1, 1, 1, 64, 64)


def test_list_of_widths(resnet18: Any) -> None:
    assert plan(resnet18, [96, 80, 48, 40]).widths == (96, 80, 48, 40, 64, 64)
    assert plan(resnet18, (96, 80, 48, 40, 24, 20)).widths == (96, 80, 48, 40, 24, 20)
    network = convert_baseline("nin_light", [30, 20, 10], device="meta")
    assert [network.get_submodule(f"r2.features.unit2_{i}.0").out_channels for i in (1, 2, 3)] == [20, 20, 20]


def test_finest_reduction_and_reductions(resnet18: Any) -> None:
    assert plan(resnet18, finest_reduction=4).ladder == (32, 16, 8, 4)
    assert plan(resnet18, reductions=[32, 8, 1]).ladder == (32, 8, 1)
    assert plan(resnet18, reductions=[32, 8, 2], finest_reduction=8).ladder == (32, 8)
    skipped = plan(resnet18, reductions=(32, 8, 4, 1))
    assert [level.source for level in skipped.levels] == [32, 8, 4, None]
    head_convs = bu2td.convert(make("mobilenetv2_100"), reductions=(16, 8, 4), finest_reduction=4, device="meta")
    assert head_convs.head.conv_head.in_channels == head_convs.plan.widths[-1]  # type: ignore[union-attr]


def test_stem_coarse(resnet18: Any) -> None:
    """32 | 16 | 8 stage 512 | 4 | 2 | 1, as section 3 of the rules has it."""
    found = plan(resnet18, stem="coarse")
    assert found.ladder == (32, 16, 8, 4, 2, 1)
    assert found.widths == (512, 512, 512, 256, 128, 64)
    assert [level.source for level in found.levels] == [None, None, 32, 16, 8, 4]
    patches = plan(bu2td.analyze(make("convnext_atto")), stem="coarse")
    assert (patches.ladder, patches.widths) == ((32, 8, 4, 2, 1), (320, 320, 160, 80, 40))
    without = convert_baseline("lenet_fc", "td", stem="coarse", device="meta")
    assert any("no stem" in note for note in without.plan.notes)
    assert parameters(without) == 14452


@pytest.mark.parametrize(
    ("mode", "kind"), [("nearest", Upsample), ("bilinear", Upsample), ("transpose", TransposedUpsample)]
)
def test_upsample(resnet18: Any, mode: str, kind: type[nn.Module]) -> None:
    network = bu2td.convert(resnet18, upsample=mode, device="meta")
    ups = [m for m in network.modules() if isinstance(m, Upsample | TransposedUpsample)]
    # Two up-blocks of layer2 and layer3, each on the main path and on the shortcut; layer1; r2 and r1.
    assert len(ups) == 8
    assert all(type(m) is kind for m in ups)
    if mode != "transpose":
        assert {m.mode for m in ups} == {mode}


def test_merge(resnet18: Any) -> None:
    inputs = {
        mode: bu2td.convert(resnet18, merge=mode, merge_kernel=1, device="meta").r16_merge.conv
        for mode in ("add_concat", "add", "concat")
    }
    assert {k: (c.in_channels, c.kernel_size) for k, c in inputs.items()} == {
        "add_concat": (512, (1, 1)),
        "add": (256, (1, 1)),
        "concat": (512, (1, 1)),
    }


def test_pyramid_and_sigma(resnet18: Any) -> None:
    network = bu2td.convert(resnet18, pyramid="max_blur", sigma=0.75, device="meta")
    pyramid: Any = network.pyramid
    assert (pyramid.reducer, pyramid.sigma, pyramid.reductions) == ("max_blur", 0.75, (32, 16, 8, 4, 2, 1))


def test_device_and_dtype() -> None:
    import timm

    model = timm.create_model("resnet10t").to(torch.bfloat16)
    network = bu2td.convert(model, finest_reduction=8, seed=0)
    assert {p.dtype for p in network.parameters()} == {torch.bfloat16}
    assert network(torch.rand(2, 3, 64, 64, dtype=torch.bfloat16)).dtype == torch.bfloat16
    meta = bu2td.convert(model, finest_reduction=8, device="meta")
    assert all(p.is_meta for p in meta.parameters())
    assert bu2td.convert(make("resnet10t"), finest_reduction=8).get_parameter("head.fc.weight").is_meta


def test_image_sizes() -> None:
    network = convert_baseline("resnet32", "td", seed=0).eval()
    for size in ((32, 32), (33, 61), (1, 7), (100, 34)):
        with torch.no_grad():
            assert network(torch.rand(1, 3, *size)).shape == (1, 10)


def test_options_after_the_arrangement_are_keyword_only() -> None:
    with pytest.raises(TypeError):
        bu2td.convert(make("resnet18"), "uni", 96)  # type: ignore[misc]
