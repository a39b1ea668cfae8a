"""The references are right by themselves, and sharp enough to compare with."""

from __future__ import annotations

import ast
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from . import paper, real
from .fill import fill, picture
from .parts import Pyramid, Unit, resample, resample_matrix

HERE = Path(__file__).parent
GOLDENS = HERE.parent / "goldens"
PARAMETERS = json.loads((GOLDENS / "parameters.json").read_text())
PAPER = [(name, arr) for name, arrs in paper.ARRANGEMENTS.items() for arr in arrs]
REAL = [(name, arr) for name in real.NAMES for arr in real.ARRANGEMENTS]
RUN = [pytest.param(*key, marks=pytest.mark.slow) if key == ("resnet50", "rev") else key for key in REAL]

# Counted once from the references; no outside source has them.
REAL_PARAMETERS = {
    ("resnet18", "td"): 15_297_320,
    ("resnet18", "rev"): 17_654_440,
    ("resnet50", "td"): 49_658_344,
    ("resnet50", "rev"): 123_065_832,
    ("mobilenetv2_100", "td"): 2_680_304,
    ("mobilenetv2_100", "rev"): 3_737_072,
    ("densenet121", "td"): 8_769_640,
    ("densenet121", "rev"): 13_464_424,
}


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@torch.no_grad()
def logits(model: nn.Module, image: Tensor) -> Tensor:
    fill(model)
    return model.eval()(image)


def example(name: str) -> Tensor:
    channels, height, width = paper.INPUTS[name]
    return picture(2, channels, min(height, 64), min(width, 64))


@pytest.mark.parametrize(("name", "arrangement"), PAPER)
def test_parameters_are_the_authors(name: str, arrangement: str) -> None:
    key = "td (stem=coarse)" if name == "resnet18_imagenette" else arrangement
    assert parameters(paper.build(name, arrangement)) == PARAMETERS[name][key]


@pytest.mark.parametrize(("name", "arrangement"), REAL)
def test_parameters_of_real_models(name: str, arrangement: str) -> None:
    with torch.device("meta"):
        model = real.build(name, arrangement)
    assert parameters(model) == REAL_PARAMETERS[name, arrangement]


def test_pyramid_is_tensorflows() -> None:
    with np.load(GOLDENS / "pyramid.npz") as golden:
        outputs = [key for key in golden.files if key.startswith("out_")]
        assert len(outputs) == 9
        for key in outputs:
            source, factor = key.removeprefix("out_").rsplit("_f", 1)
            image = torch.from_numpy(golden[f"in_{source}"])
            coarse, full = Pyramid((int(factor), 1))(image)
            torch.testing.assert_close(coarse, torch.from_numpy(golden[key]), rtol=0, atol=1e-5)
            assert torch.equal(full, image)


def test_pyramid_weights() -> None:
    row = resample_matrix(32, 16)[8]
    taps = [0.0176, 0.1297, 0.3527, 0.3527, 0.1297, 0.0176]
    assert row[14:20].tolist() == pytest.approx(taps, abs=5e-5)
    assert int((row > 0).sum()) == 6
    assert int((resample_matrix(32, 8)[4] > 0).sum()) == 12


@pytest.mark.parametrize("size", [(30, 37), (33, 64), (7, 5)])
def test_pyramid_of_any_size(size: tuple[int, int]) -> None:
    levels = Pyramid((16, 4, 2, 1))(torch.full((1, 2, *size), 3.0))
    for reduction, level in zip((16, 4, 2, 1), levels, strict=True):
        assert level.shape[-2:] == tuple(math.ceil(n / reduction) for n in size)
        torch.testing.assert_close(level, torch.full_like(level, 3.0))


def test_pyramid_does_not_cascade() -> None:
    image = picture(1, 3, 32, 32)
    coarse = Pyramid((4, 2, 1))(image)[0]
    torch.testing.assert_close(coarse, resample(image, (8, 8)))
    assert (coarse - Pyramid((4, 2, 1), cascaded=True)(image)[0]).abs().max() > 0.05


@pytest.mark.parametrize(("name", "arrangement"), PAPER)
def test_every_fault_shows(name: str, arrangement: str) -> None:
    image = example(name)
    right = logits(paper.build(name, arrangement), image)
    for mutant in paper.mutants(name, arrangement):
        wrong = logits(paper.build(name, arrangement, mutant), image)
        assert wrong.shape == right.shape
        assert (wrong - right).abs().max() > 1e-3, mutant


def test_faults_that_do_not_apply_are_refused() -> None:
    for mutant, names in paper.MUTANTS.items():
        assert all(any(mutant in paper.mutants(name, arr) for arr in paper.ARRANGEMENTS[name]) for name in names)
        for name in set(paper.ARRANGEMENTS) - set(names):
            with pytest.raises(ValueError, match=mutant):
                paper.build(name, "td", mutant)
    with pytest.raises(ValueError, match="projection_reads_x"):
        paper.build("resnet32", "uni", "projection_reads_x")
    with pytest.raises(ValueError, match="does not apply"):
        paper.build("nin", "td", "no_such_fault")
    with pytest.raises(ValueError, match="no reference"):
        paper.build("resnet18_imagenette", "rev")


@pytest.mark.parametrize(("name", "arrangement"), PAPER)
def test_paper_runs_at_any_size(name: str, arrangement: str) -> None:
    model = paper.build(name, arrangement)
    for image in (example(name), picture(2, paper.INPUTS[name][0], 30, 37)):
        out = logits(model, image)
        assert out.shape == (2, 10)
        assert torch.isfinite(out).all()
        assert 0.1 < out.std() < 10
        assert (out[0] - out[1]).abs().max() > 0.02


@pytest.mark.parametrize(("name", "arrangement"), RUN)
def test_real_runs_at_any_size(name: str, arrangement: str) -> None:
    model = real.build(name, arrangement)
    for size in ((64, 64), (45, 53)):
        out = logits(model, picture(2, 3, *size))
        assert out.shape == (2, 1000)
        assert torch.isfinite(out).all()
        assert 0.1 < out.std() < 10
        assert (out[0] - out[1]).abs().max() > 0.02


@pytest.mark.parametrize(("name", "arrangement"), PAPER + RUN)
def test_every_parameter_is_trained(name: str, arrangement: str) -> None:
    model = (real if name in real.NAMES else paper).build(name, arrangement)
    channels = 3 if name in real.NAMES else paper.INPUTS[name][0]
    fill(model)
    model.train()(picture(2, channels, 33, 32)).square().mean().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key


def test_dropout_of_nin_follows_the_merge() -> None:
    for name, p in (("nin", 0.5), ("nin_light", 0.5), ("lenet_fc", 0.0)):
        model = paper.build(name, "td")
        assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [p, p]


def timm_pairs() -> list[tuple[str, nn.Module, nn.Module, int]]:
    """Return (what, timm's module at stride 1, the reference's, input channels)."""
    timm = pytest.importorskip("timm")
    resnet = timm.create_model("resnet18")
    mobile = timm.create_model("mobilenetv2_100")
    dense = timm.create_model("densenet121").features
    head_conv = nn.Sequential(mobile.conv_head, mobile.bn2)
    transition = nn.Sequential(dense.transition1.norm, dense.transition1.conv)
    separable, expand, skip = mobile.blocks[0][0], mobile.blocks[4][0], mobile.blocks[4][1]
    return [
        ("basic", resnet.layer3[1], real.BasicBlock(256, 256), 256),
        ("bottleneck", timm.create_model("resnet50").layer2[1], real.Bottleneck(512, 512), 512),
        ("separable", separable, real.DepthwiseSeparable(32, 16), 32),
        ("inverted", expand, real.InvertedResidual(64, 384, 96, shortcut=False), 64),
        ("inverted add", skip, real.InvertedResidual(96, 576, 96, shortcut=True), 96),
        ("head conv", head_conv, Unit(320, 1280, 1, real.MOBILENET), 320),
        ("dense", dense.denseblock2, real.dense_block(128, 12), 128),
        ("transition", transition, Unit(256, 128, 1, real.DENSENET), 256),
    ]


def test_blocks_are_timms() -> None:
    for what, theirs, ours, channels in timm_pairs():
        x = picture(2, channels, 9, 8)
        for module in (theirs, ours):
            fill(module)
        for mode in (True, False):  # train first: it moves the statistics, by eps and momentum
            theirs.train(mode)
            ours.train(mode)
            torch.testing.assert_close(ours(x), theirs(x.clone()), msg=lambda text, what=what: f"{what}: {text}")


def test_strided_projection_is_timms() -> None:
    timm = pytest.importorskip("timm")
    theirs = timm.create_model("resnet18").layer3[0]
    theirs.conv1.stride = theirs.downsample[0].stride = (1, 1)
    x = picture(2, 128, 9, 8)
    ours = logits(real.BasicBlock(128, 256), x)
    torch.testing.assert_close(ours, logits(theirs, x.clone()))


def test_fill_knows_kind_and_shape_only() -> None:
    first = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1))
    second = nn.ModuleDict({"b": nn.Conv2d(8, 8, 1), "n": nn.BatchNorm2d(8), "a": first[0]})
    fill(second)
    weight = first[0].weight.clone()
    first[0].reset_parameters()
    fill(first)
    assert torch.equal(first[0].weight, weight)
    assert torch.equal(first[2].weight, second["b"].weight)
    for key, value in first[1].state_dict().items():
        assert torch.equal(value, second["n"].state_dict()[key])
    assert int(first[1].num_batches_tracked) == 0
    assert not torch.equal(first[1].weight, torch.ones(8))
    assert not torch.equal(first[1].weight, first[1].running_var)


def test_references_do_not_know_the_compiler() -> None:
    for file in HERE.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                assert not any(alias.name.startswith("bu2td") for alias in node.names), file
            if isinstance(node, ast.ImportFrom):
                assert not (node.module or "").startswith("bu2td"), file
