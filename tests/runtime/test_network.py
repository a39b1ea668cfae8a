"""The result of a conversion: what it offers, how it is saved, what other tools make of it."""

import copy
import io
import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nets import convert_baseline, make
from torch import nn

import bu2td
from bu2td.errors import Bu2tdError, FileError, OptionError, ReductionError
from bu2td.models import baselines

timm = pytest.importorskip("timm")


@pytest.fixture(scope="module")
def resnet18() -> Any:
    return bu2td.convert(timm.create_model("resnet18"), seed=0).eval()


@pytest.fixture
def lenet() -> Any:
    return convert_baseline("lenet_fc", "td", seed=0).eval()


def test_code_reads_like_a_persons(resnet18: Any) -> None:
    assert resnet18.code.count("\n") <= 30
    names = {node.name for node in resnet18.graph.nodes}
    assert not any(name.rpartition("_")[2].isdigit() for name in names)
    assert {"r32", "r16_lateral", "r16_up", "r16_merge", "r16", "head"} <= names
    inside = {n.name for level in ("r16", "r16_up", "head") for n in getattr(resnet18, level).graph.nodes}
    assert not any(name.startswith(("add_", "getitem")) for name in inside)


def test_modules_keep_their_paths(resnet18: Any) -> None:
    keys = resnet18.state_dict().keys()
    assert {"r16.layer3.1.conv1.weight", "r16_up.layer3.0.conv1.weight", "head.fc.weight"} <= keys


def test_features(resnet18: Any) -> None:
    features = resnet18.features(torch.rand(2, 3, 37, 50))
    expected = [
        (2, level.width, -(-37 // level.reduction), -(-50 // level.reduction)) for level in resnet18.plan.levels
    ]
    assert [tuple(f.shape) for f in features] == expected


def test_forward_is_features_and_head(resnet18: Any) -> None:
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = resnet18(images)
        last = resnet18.forward_features(images)
        torch.testing.assert_close(resnet18.forward_head(last), expected)
        torch.testing.assert_close(last, resnet18.features(images)[-1])
        pooled = resnet18.forward_head(last, pre_logits=True)
        torch.testing.assert_close(resnet18.get_classifier()(pooled), expected)


def test_forward_branches(lenet: Any) -> None:
    images, other = torch.rand(2, 1, 28, 28), torch.zeros(2, 1, 28, 28)
    with torch.no_grad():
        expected = lenet(images)
        torch.testing.assert_close(lenet.forward_branches([images] * 3), expected)
        torch.testing.assert_close(lenet.forward_branches({1: images, 2: images, 4: images}), expected)
        for reduction in (4, 2, 1):
            mixed = {r: other if r == reduction else images for r in (4, 2, 1)}
            assert float((lenet.forward_branches(mixed) - expected).abs().max()) > 1e-4
    with pytest.raises(ReductionError, match=r"\[4, 2, 1\]"):
        lenet.forward_branches([images])
    with pytest.raises(ReductionError, match=r"found \[8\]"):
        lenet.forward_branches({8: images})
    with pytest.raises(OptionError, match="one shape"):
        lenet.forward_branches([images, images, other[..., :14]])


def test_timm_surface(lenet: Any) -> None:
    model = timm.create_model("resnet10t")
    network = bu2td.convert(model, device="meta", finest_reduction=4)
    assert network.num_classes == 1000
    assert network.pretrained_cfg is model.pretrained_cfg
    network.reset_classifier(7)
    assert network.get_classifier().out_features == network.num_classes == 7
    assert network(torch.empty(2, 3, 64, 64, device="meta")).shape == (2, 7)
    network.reset_classifier(0)
    assert network(torch.empty(2, 3, 64, 64, device="meta")).shape == (2, network.plan.levels[-1].width)
    with pytest.raises(OptionError, match="convert the bottom-up network with 5 classes"):
        lenet.reset_classifier(5)
    with pytest.raises(OptionError, match="global_pool='max'"):
        network.reset_classifier(3, "max")


def test_checkpointing_changes_no_number() -> None:
    plain = convert_baseline("resnet32", "td", seed=0)
    saving = copy.deepcopy(plain)
    saving.set_grad_checkpointing()
    assert "checkpoint" in saving.code
    images = torch.rand(4, 3, 32, 32)
    for network in (plain, saving):
        network(images).square().sum().backward()
    for (name, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)
    assert len(saving.features(images)) == 3
    saving.set_grad_checkpointing(False)
    assert saving.code == plain.code


def test_deepcopy_keeps_everything(lenet: Any) -> None:
    twin = copy.deepcopy(lenet)
    assert twin.plan is lenet.plan
    assert (twin.training, twin.num_classes) == (False, 10)
    assert type(twin).__name__ == type(lenet).__name__
    with torch.no_grad():
        twin.get_parameter("head.classifier.0.weight").zero_()
    assert float(lenet.get_parameter("head.classifier.0.weight").abs().sum().detach()) > 0


def test_pickle_is_refused_with_the_remedy(lenet: Any) -> None:
    with pytest.raises(Bu2tdError, match=r"bu2td\.save"):
        pickle.dumps(lenet)


# --- files --------------------------------------------------------------------------------------------


def test_save_and_load_by_factory(tmp_path: Path, resnet18: Any) -> None:
    bu2td.save(resnet18, tmp_path / "td.pt")
    loaded = bu2td.load(tmp_path / "td.pt").eval()
    images = torch.rand(2, 3, 40, 40)
    with torch.no_grad():
        assert torch.equal(loaded(images), resnet18(images))
    assert loaded.plan.options == resnet18.plan.options
    assert str(loaded.plan) == str(resnet18.plan)
    assert [p.name for p in tmp_path.iterdir()] == ["td.pt"]
    content = torch.load(tmp_path / "td.pt", weights_only=True)
    assert set(content) == {"recipe", "state_dict"}
    json.dumps(content["recipe"])


def test_save_and_load_by_model(tmp_path: Path) -> None:
    network = convert_baseline("resnet32", [24, 20, 12], upsample="transpose", merge="add", sigma=0.7)
    network.reset_classifier(4)
    bu2td.save(network, tmp_path / "td.pt")
    loaded = bu2td.load(tmp_path / "td.pt", model=baselines.resnet32())
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(images), network.eval()(images))
    with pytest.raises(FileError, match=r"factory is not known.*model="):
        bu2td.load(tmp_path / "td.pt")
    with pytest.raises(FileError, match="another bottom-up model"):
        bu2td.load(tmp_path / "td.pt", model=baselines.nin())


def test_load_notices_a_variant_of_the_factory(tmp_path: Path) -> None:
    model = timm.create_model("resnet10t", num_classes=3)
    bu2td.save(bu2td.convert(model, finest_reduction=8), tmp_path / "td.pt")
    with pytest.raises(FileError, match="variant of resnet10t"):
        bu2td.load(tmp_path / "td.pt")
    assert bu2td.load(tmp_path / "td.pt", model=model).num_classes == 3


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04garbage", b"\x80\x02K\x01."])
def test_load_refuses_garbage(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.pt").write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(FileError, match=r"is not a file that bu2td\.save wrote"):
            bu2td.load(tmp_path / "bad.pt")


def test_load_refuses_truncated_missing_and_foreign(tmp_path: Path, lenet: Any) -> None:
    bu2td.save(lenet, tmp_path / "td.pt")
    whole = (tmp_path / "td.pt").read_bytes()
    (tmp_path / "half.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FileError, match="truncated"):
        bu2td.load(tmp_path / "half.pt")
    with pytest.raises(FileError, match=r"no file .*tdd\.pt.*'td\.pt'"):
        bu2td.load(tmp_path / "tdd.pt")
    torch.save({"state_dict": {}}, tmp_path / "foreign.pt")
    with pytest.raises(FileError, match="no recipe"):
        bu2td.load(tmp_path / "foreign.pt")
    with pytest.raises(FileError, match="cannot be written"):
        bu2td.save(lenet, tmp_path / "nowhere" / "td.pt")


# --- other tools --------------------------------------------------------------------------------------


@pytest.mark.parametrize("upsample", ["nearest", "bilinear", "transpose"])
def test_export_and_onnx(upsample: str) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    network = convert_baseline("lenet_fc", "td", upsample=upsample, seed=0).eval()
    images = torch.rand(2, 1, 29, 30)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = network(images)
        exported = torch.export.export(network, (images,))
        torch.testing.assert_close(exported.module()(images), expected)
        file = io.BytesIO()
        torch.onnx.export(network, (images,), file, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    [found] = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-4)


def test_compile_with_code_generation(lenet: Any) -> None:
    images = torch.rand(2, 1, 28, 28)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.testing.assert_close(torch.compile(lenet, fullgraph=True)(images), lenet(images))
    torch.compiler.reset()


def test_ordinary_training_lowers_the_loss() -> None:
    network = convert_baseline("lenet_fc", "td", seed=0).train()
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    labels = torch.arange(40) % 10
    images = torch.rand(40, 1, 28, 28) * 0.1 + labels[:, None, None, None] / 10
    losses = []
    for _ in range(12):
        loss = nn.functional.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


# --- weights ------------------------------------------------------------------------------------------


def test_hooks_belong_to_one_module() -> None:
    model = baselines.lenet_fc()
    calls: list[str] = []
    model.unit2[1].register_forward_hook(lambda *_: calls.append("bottom-up"))
    analysis = bu2td.analyze(model, example_inputs=torch.zeros(1, 1, 28, 28))
    network, other = bu2td.convert(analysis), bu2td.convert(analysis)
    network.get_submodule("r2_merge.norm").register_forward_hook(lambda *_: calls.append("merge"))
    network(torch.rand(2, 1, 28, 28))
    other(torch.rand(2, 1, 28, 28))
    assert calls == ["merge"]


def test_one_analysis_serves_all_arrangements() -> None:
    analysis = bu2td.analyze(make("resnet18"))
    for arrangement in ("td", "uni", "rev"):
        own = bu2td.convert(make("resnet18"), arrangement, device="meta")
        assert str(bu2td.convert(analysis, arrangement, device="meta").plan) != ""
        shared = bu2td.convert(analysis, arrangement, device="meta")
        assert {k: v.shape for k, v in shared.state_dict().items()} == {
            k: v.shape for k, v in own.state_dict().items()
        }
    assert "layer4.0" in str(analysis)
