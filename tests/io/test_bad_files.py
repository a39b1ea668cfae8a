"""Files that are damaged, forged or out of reach: one line that says so, and no code is run."""

import json
import os
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import convert_baseline

import bu2td
from bu2td.errors import Bu2tdError, FileError, MissingPackageError, UnknownModelError
from bu2td.ir import Optimization
from bu2td.models import Call, baselines, create_again

safetensors_torch = pytest.importorskip("safetensors.torch")


@pytest.fixture(scope="module")
def lenet() -> Any:
    return convert_baseline("lenet_fc", "td", seed=0).eval()


@pytest.fixture
def forged(tmp_path: Path, lenet: Any) -> Callable[..., Path]:
    """A file with changes to its recipe, in either format."""

    def forge(change: Callable[[Any], Any], name: str = "td.safetensors") -> Path:
        recipe = json.loads(json.dumps(bu2td.io.writing.tried_recipe(lenet)))
        found = change(recipe)
        recipe = recipe if found is None or not isinstance(found, dict) or found is recipe else found
        weights = {key: value.clone() for key, value in lenet.state_dict().items()}
        file = tmp_path / name
        if name.endswith("safetensors"):
            safetensors_torch.save_file(weights, file, {"bu2td": json.dumps(recipe)})
        else:
            torch.save({"recipe": recipe, "state_dict": weights}, file)
        return file

    return forge


def _set(**changes: Any) -> Callable[[Any], None]:
    return lambda recipe: recipe.update(changes)


def _option(**changes: Any) -> Callable[[Any], None]:
    return lambda recipe: recipe["options"].update(changes)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda recipe: recipe.pop("fingerprint"), "the recipe is incomplete.*fingerprint"),
        (lambda recipe: recipe.pop("factory"), "the recipe is incomplete.*factory"),
        (lambda recipe: recipe.pop("format"), "no recipe of format"),
        (_set(format="bu2td.recipe.9"), "no recipe of format"),
        (_set(options={"merge": "concatt"}), "the recipe is incomplete.*'concat'"),
        (_set(options=None), "the recipe is incomplete"),
        (_set(options=[1]), "the recipe is incomplete"),
        (_set(patches={"share": 2.0}), "about patches is incomplete.*share=2.0"),
        (_set(patches={"size": 2}), "about patches is incomplete.*'size'"),
        (_set(patches=3), "about patches is incomplete"),
        (_set(patches={"share": 0.5}), "the weights do not fit"),
        (_set(optimize={"mode": "training"}), "about optimisation is incomplete"),
        (_set(optimize=7), "about optimisation is incomplete"),
        (_set(optimize=Optimization("training", "cpu", 1, (0, 0), ()).to_dict()), "optimisation is incomplete"),
        (_set(factory=["bu2td:lenet_fc"]), "the recipe is incomplete.*no call"),
        (_set(arguments="num_classes"), "the recipe is incomplete.*no call"),
        (_set(image_shape=[1, 1, 28]), "the recipe is incomplete.*image_shape"),
        (_set(image_shape=None), "the recipe is incomplete"),
        (_set(image_shape=[1, 1, 28, "28"]), "the recipe is incomplete.*image_shape"),
        (_set(num_classes=True), "the recipe is incomplete.*num_classes"),
        (_set(fingerprint=3), "the recipe is incomplete.*fingerprint"),
        (_set(identity="0"), "variant of bu2td:lenet_fc"),
        (_set(training=[1]), "about training is incomplete"),
        (_set(training={"r2": {"forward": 0.5}}), "about training is incomplete.*r2.forward"),
        (_set(training={"r2_merge.norm": {"momentum": "high"}}), "about training is incomplete.*'high'"),
        # sizes that nobody's network has
        (_set(image_shape=[1, 1, 10**9, 10**9]), "the recipe is incomplete.*image_shape"),
        (_set(num_classes=10**12), "the recipe is incomplete.*num_classes"),
        (_set(num_classes=10**6), "the weights do not fit|cannot be followed"),
        (_option(arrangement=[10**5, 10**5, 10**5]), "the recipe cannot be followed|the weights do not fit"),
        (_option(arrangement="uni", width=10**7), "the recipe cannot be followed|the weights do not fit"),
        (_option(merge_kernel=10**9 + 1), "the recipe cannot be followed|the weights do not fit"),
        (_option(reductions=[4, 3]), "the recipe cannot be followed"),
        (_option(seed=-1), "the recipe is incomplete.*seed"),
    ],
)
def test_damaged_recipes(forged: Any, change: Any, match: str) -> None:
    with pytest.raises(FileError, match=match) as caught:
        bu2td.load(forged(change))
    assert "td.safetensors" in str(caught.value)


def test_damaged_recipes_of_the_other_format(forged: Any) -> None:
    with pytest.raises(FileError, match=r"the recipe is incomplete.*fingerprint"):
        bu2td.load(forged(lambda recipe: recipe.pop("fingerprint"), "td.pt"))


@pytest.mark.parametrize(
    "word",
    ["os:system", "os:abort", "builtins:exec", "subprocess:Popen", "/tmp/x.py:net", "pickle:loads", "torch:load"],
)
def test_no_code_of_a_file_is_run(forged: Any, monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    monkeypatch.setattr(os, "system", lambda *args: pytest.fail("it was run"))
    file = forged(_set(factory=word, arguments={"command": "true"}))
    with pytest.raises(FileError, match="only with trust=True"):
        bu2td.load(file)
    with pytest.raises(FileError, match="is not called with 'command' from a file"):
        bu2td.load(file, trust=True)  # code may run, but what it is called with is counted


@pytest.mark.parametrize(
    ("word", "arguments"),
    [
        ("resnet18", {"checkpoint_path": "/etc/passwd"}),
        ("resnet18", {"pretrained": True}),
        ("resnet18", {"pretrained_cfg": {"url": "http://x"}}),
        ("resnet18", {"cache_dir": "/"}),
        ("resnet18", {"num_classes": 10**15}),
        ("resnet18", {"num_classes": {"a": {"b": {"c": {"d": {}}}}}}),
        ("resnet18", {"act_layer": "x" * 10**6}),
        ("torchvision:resnet18", {"weights": "DEFAULT"}),
        ("torchvision:fcn_resnet50", {"weights_backbone": "DEFAULT"}),
        ("bu2td:lenet_fc", {"name": "x"}),
        ("pytorchcv:resnet10", {"root": "/", "pretrained": True}),
    ],
)
def test_what_a_model_is_called_with_is_counted(word: str, arguments: Any) -> None:
    with pytest.raises(UnknownModelError, match=f"'{word}' is not called with '.*' from a file"):
        create_again(Call.of(word, arguments), device="meta")


@pytest.mark.parametrize(
    ("word", "error", "match"),
    [
        ("resnet_that_never_was", FileError, "has no model"),
        ("torchvision:resnet_that_never_was", FileError, "has no model"),
        (":", FileError, "only with trust"),
        ("resnet18", FileError, "variant of resnet18"),
        ("bu2td:nin_light", FileError, "variant of bu2td:nin_light"),
        ("transformers:ResNetForImageClassification", MissingPackageError, "pip install transformers"),
    ],
)
def test_words_that_mean_another_model(
    forged: Any, word: str, error: type[Bu2tdError], match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(error, match=match):
        bu2td.load(forged(_set(factory=word, arguments={})))


# --- damage -------------------------------------------------------------------------------------------


def _header(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


GARBAGE = [
    b"",
    b"hello",
    b"PK\x03\x04garbage",
    b"\x80\x02K\x01.",
    b"cos\nsystem\n(S'true'\ntR.",
    _header(b"{}")[:9],
    _header(b"{" + b" " * 20),
    struct.pack("<Q", 2**60) + b"{}",
    _header(b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4]}}') + b"1234",
    _header(b'{"__metadata__":{"bu2td":"{not json"}}'),
]


@pytest.mark.parametrize("content", GARBAGE)
@pytest.mark.parametrize("name", ["bad.pt", "bad.safetensors"])
def test_garbage(tmp_path: Path, content: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(FileError, match=r"is not a file that bu2td\.save wrote") as caught:
            bu2td.load(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["td.pt", "td.safetensors"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_truncated(tmp_path: Path, lenet: Any, name: str, share: float) -> None:
    bu2td.save(lenet, tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(share * len(whole))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(FileError, match="truncated"):
            bu2td.load(tmp_path / name)


def test_missing_foreign_and_out_of_reach(tmp_path: Path, lenet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bu2td.save(lenet, tmp_path / "td.pt")
    with pytest.raises(FileError, match=r"no file .*tdd\.pt.*'td\.pt'"):
        bu2td.load(tmp_path / "tdd.pt")
    with pytest.raises(FileError, match=r"is a folder; .*from_pretrained"):
        bu2td.load(tmp_path)
    torch.save({"state_dict": {}}, tmp_path / "foreign.pt")
    safetensors_torch.save_file({"a": torch.ones(2)}, tmp_path / "foreign.safetensors")
    for name in ("foreign.pt", "foreign.safetensors"):
        with pytest.raises(FileError, match="no recipe"):
            bu2td.load(tmp_path / name)
    for name in ("td.pt", "td.safetensors"):
        with pytest.raises(FileError, match="cannot be written"):
            bu2td.save(lenet, tmp_path / "nowhere" / name)
        (tmp_path / f"folder.{name}").mkdir()
        with pytest.raises(FileError, match="is a folder"):
            bu2td.save(lenet, tmp_path / f"folder.{name}")

    def refused(*args: Any, **options: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(FileError, match=r"td\.pt cannot be read: Permission denied"):
        bu2td.load(tmp_path / "td.pt")


@pytest.mark.parametrize("name", ["td.pt", "td.safetensors"])
def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, lenet: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bu2td.save(lenet, tmp_path / name)
    before = (tmp_path / name).read_bytes()

    def full(*args: Any, **options: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    monkeypatch.setattr(safetensors_torch, "save_file", full)
    with pytest.raises(FileError, match="cannot be written: No space left on device"):
        bu2td.save(lenet, tmp_path / name)
    assert (tmp_path / name).read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["td.pt", "td.safetensors"])
def test_weights_of_another_network(tmp_path: Path, lenet: Any, name: str, forged: Any) -> None:
    lacking = dict(lenet.state_dict())
    del lacking["head.classifier.0.weight"]
    recipe = bu2td.io.writing.tried_recipe(lenet)
    for weights in (lacking, {**lenet.state_dict(), "more": torch.ones(1)}, {}):
        bu2td.io.content.write(tmp_path / name, recipe, weights)
        with pytest.raises(FileError, match="the weights do not fit"):
            bu2td.load(tmp_path / name)
    torch.save({"recipe": recipe, "state_dict": {"head": 3}}, tmp_path / "td.pt")
    with pytest.raises(FileError, match=r"is not a file that bu2td\.save wrote|do not fit"):
        bu2td.load(tmp_path / "td.pt", baselines.lenet_fc())
