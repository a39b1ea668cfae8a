"""The result of a conversion: what it offers, how it is saved, what other tools make of it."""

import copy
import io
import json
import pickle
import re
import warnings
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nets import convert_baseline, make
from torch import nn

import bu2td
from bu2td import capture
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


# --- stages -------------------------------------------------------------------------------------------


def test_stages_name_every_node_of_the_top_graph() -> None:
    network = convert_baseline("nin_light", "td", device="meta")
    stages = network.stages
    assert [stage.reduction for stage in stages.levels] == [4, 2, 1]
    assert stages.levels[0].calls == ("r4",)  # the body of the coarsest level reads the image
    assert stages.levels[1].calls == ("r2_lateral", "r2_up", "r2_merge", "r2_dropout", "r2")
    images = {name for stage in stages.levels for name in (stage.image, *stage.calls)}
    assert images | {"x", stages.pyramid, stages.head, "output"} == {node.name for node in network.graph.nodes}
    assert stages.outputs == ("r4", "r2", "r1")


def test_levels_without_a_body_end_with_their_merge(resnet18: Any) -> None:
    finest = resnet18.stages.levels[-1]
    assert (finest.body, finest.merge, finest.output) == (None, "r1_merge", "r1_merge")
    up_block = resnet18.stages.levels[1]
    assert isinstance(resnet18.get_submodule(up_block.upsampling), torch.fx.GraphModule)


@pytest.mark.parametrize("mode", [None, "training", "inference"])
@pytest.mark.parametrize("way", [None, {}, {"inside": True}, {"levels": [1], "inside": True}])
@pytest.mark.parametrize("name", ["lenet_fc", "resnet32"])
def test_stages_are_those_of_the_graph_that_runs(name: str, way: Any, mode: Any) -> None:
    """Whatever optimisation and checkpointing take away, what stages name is there and holds the same values."""
    plain = convert_baseline(name, "td", seed=0).eval()
    network = plain if mode is None else bu2td.optimize(plain, mode, rules={"merge": "always"})
    if way is not None and mode != "inference":
        network.set_grad_checkpointing(**way)
    nodes = {node.name for node in network.graph.nodes}
    for stage in network.stages.levels:
        assert {stage.image, stage.output, *stage.calls} <= nodes
    images = torch.rand(2, plain.plan.image_shape[1], 32, 32)
    with torch.no_grad():
        values = network.run_until(network.stages.head, images)
        features = convert_baseline(name, "td", seed=0).eval().features(images)
        for output, expected in zip(network.stages.outputs, features, strict=True):
            torch.testing.assert_close(values[output], expected, rtol=1e-3, atol=1e-5)
    network.set_grad_checkpointing(False)
    assert network.stages.within(network.graph) == network.stages
    gone = mode is not None and name == "lenet_fc"  # the merge reads the map before its upsampling
    assert all((stage.upsampling is None) == gone for stage in network.stages.levels[1:])


def test_run_from_needs_no_images(lenet: Any) -> None:
    images = torch.rand(2, 1, 28, 28)
    stages = lenet.stages
    with torch.no_grad():
        values = lenet.run_until(stages.outputs[1], images)
        assert stages.outputs[1] in values
        assert stages.levels[2].merge not in values  # nothing behind it is run
        known = {stages.pyramid: values[stages.pyramid], stages.outputs[1]: values[stages.outputs[1]]}
        found = lenet.run_from(stages.outputs[1], known)
        assert torch.equal(found[stages.head], lenet(images))
        assert set(known) == {stages.pyramid, stages.outputs[1]}  # what is given is not changed


def test_running_parts_names_what_is_not_there(lenet: Any) -> None:
    images, stages = torch.rand(2, 1, 28, 28), lenet.stages
    with pytest.raises(OptionError, match=r"no node 'r2_marge'.*mean 'r2_merge'"):
        lenet.run_until("r2_marge", images)
    with pytest.raises(OptionError, match="no node ''"):
        lenet.run_from(stages.pyramid, {}, until="")
    with pytest.raises(OptionError, match=rf"reads .*{stages.pyramid}.*add it"):
        lenet.run_from(stages.pyramid, {})


def test_the_record_is_frozen_and_shared_by_copies(lenet: Any) -> None:
    with pytest.raises(FrozenInstanceError):
        lenet.record.plan = None
    assert copy.deepcopy(lenet).record is lenet.record
    recipe = lenet.recipe
    recipe["num_classes"] = 3
    assert lenet.recipe["num_classes"] == lenet.num_classes == 10


@pytest.mark.parametrize("checkpointed", [False, True])
def test_every_parameter_is_in_one_group(checkpointed: bool) -> None:
    network = bu2td.convert(timm.create_model("resnet10t"), device="meta")
    network.set_grad_checkpointing(checkpointed)
    groups = network.group_matcher(coarse=True)["blocks"]
    assert [order for _, order in groups] == [(i,) for i in range(len(network.plan.levels))]
    for name, _ in network.named_parameters():
        found = [i for pattern, (i,) in groups if re.match(pattern, name)]
        level = next(
            (i for i, level in enumerate(network.plan.levels) if re.match(rf"{level.name}[_.]", name)), None
        )
        assert found == ([] if level is None else [level]), name
        assert (level is None) == name.startswith("head.")


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
    assert content["recipe"]["bu2td"] == loaded.recipe["bu2td"] == bu2td.__version__


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


def test_load_captures_the_model_once(tmp_path: Path, lenet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = capture.capture
    for module in (bu2td.conversion, bu2td.io):
        monkeypatch.setattr(module, "capture", lambda *args: calls.append(args) or original(*args))
    bu2td.save(lenet, tmp_path / "td.pt")
    bu2td.load(tmp_path / "td.pt", model=baselines.lenet_fc())
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda recipe: recipe.pop("fingerprint"), "the recipe is incomplete.*fingerprint"),
        (lambda recipe: recipe.update(options={"merge": "concatt"}), "the recipe is incomplete.*'concat'"),
        (lambda recipe: recipe.update(options=None), "the recipe is incomplete"),
        (lambda recipe: recipe.update(patches={"share": 2.0}), "about patches is incomplete.*share=2.0"),
        (lambda recipe: recipe.update(patches={"size": 2}), "about patches is incomplete.*'size'"),
        (lambda recipe: recipe.update(patches={"share": 0.5}), "the weights do not fit"),
    ],
)
def test_load_refuses_damaged_recipes(tmp_path: Path, lenet: Any, change: Any, match: str) -> None:
    bu2td.save(lenet, tmp_path / "td.pt")
    content = torch.load(tmp_path / "td.pt", weights_only=True)
    change(content["recipe"])
    torch.save(content, tmp_path / "td.pt")
    with pytest.raises(FileError, match=match):
        bu2td.load(tmp_path / "td.pt", model=baselines.lenet_fc())


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
