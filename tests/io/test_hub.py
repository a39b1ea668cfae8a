"""Folders of a hub: what is in them, what comes back, and what is asked of the hub, which is never reached."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from nets import FlatResNet, convert_baseline
from torch import nn

import bu2td
from bu2td.errors import CopyError, FileError, MissingPackageError
from bu2td.models import create_model

huggingface_hub = pytest.importorskip("huggingface_hub")
pytest.importorskip("safetensors")

IMAGES = torch.rand(2, 1, 32, 32)


@pytest.fixture(scope="module")
def lenet() -> Any:
    model = create_model("bu2td:lenet_fc", num_classes=7)
    return convert_baseline("lenet_fc", "uni", model, seed=3, merge="add").eval()


@pytest.fixture
def folder(lenet: Any, tmp_path: Path) -> Path:
    lenet.save_pretrained(tmp_path / "of" / "mine")
    return tmp_path / "of" / "mine"


def _logits(network: Any) -> torch.Tensor:
    with torch.no_grad():
        return network(IMAGES)


def test_a_folder_comes_back(lenet: Any, folder: Path) -> None:
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    for place in (folder, str(folder), folder / "model.safetensors"):
        found = bu2td.TopDownNetwork.from_pretrained(place)
        assert not found.training
        assert torch.equal(_logits(found), _logits(lenet))
    assert json.loads((folder / "config.json").read_text()) == {**found.recipe, "training": {}}
    assert torch.equal(_logits(bu2td.load(folder / "model.safetensors").eval()), _logits(lenet))


def test_patches_and_optimised_networks_come_back(lenet: Any, tmp_path: Path) -> None:
    for network in (bu2td.PatchNetwork(lenet, share=0.4).eval(), bu2td.optimize(lenet)):
        network.save_pretrained(tmp_path)
        found = type(network).from_pretrained(tmp_path)
        assert torch.equal(_logits(found), _logits(network))
    card = (tmp_path / "README.md").read_text()
    assert "optimised for inference on cpu" in card


def test_the_card(lenet: Any, folder: Path) -> None:
    text = (folder / "README.md").read_text()
    card = huggingface_hub.ModelCard.load(folder / "README.md")
    assert card.data.library_name == "bu2td"
    assert card.data.pipeline_tag == "image-classification"
    assert {"top-down", "bu2td"} <= set(card.data.tags)
    assert card.data.license is None  # nobody has said one
    assert "# Top-down lenet_fc" in text
    assert f'bu2td.TopDownNetwork.from_pretrained("{folder}")' in text
    assert "`bu2td.convert(model, arrangement='uni', merge='add', max_macs_ratio=None, seed=3)`" in text
    assert "bu2td:lenet_fc, called with {'num_classes': 7}" in text
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| r")]
    assert [row[0].strip("| ") for row in rows] == [level.name for level in lenet.plan.levels]
    assert f"Parameters {lenet.plan.cost.parameters:,}" in text


def test_the_card_says_how_to_load_it(tmp_path: Path) -> None:
    images = torch.zeros(2, 3, 32, 32)
    network = bu2td.convert(FlatResNet((8, 16), 1), example_inputs=images)
    network.save_pretrained(tmp_path / "a")
    text = (tmp_path / "a" / "README.md").read_text()
    assert f'from_pretrained("{tmp_path / "a"}", model=model)' in text
    assert "# model: the FlatResNet that was converted" in text
    with pytest.raises(FileError, match="whose factory is not known"):
        bu2td.TopDownNetwork.from_pretrained(tmp_path / "a")
    found = bu2td.TopDownNetwork.from_pretrained(tmp_path / "a", model=FlatResNet((8, 16), 1))
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), network.parameters(), strict=True))


def test_the_card_has_the_licence_of_the_weights(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    network = bu2td.convert(timm.create_model("resnet10t"), finest_reduction=16)
    network.save_pretrained(tmp_path)
    assert huggingface_hub.ModelCard.load(tmp_path / "README.md").data.license == "apache-2.0"


class _Hub:
    """A hub in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked = folder, []

    def api(self, token: Any = None) -> Any:
        self.asked.append(token)
        return self

    def create_repo(self, repo_id: str, **options: Any) -> Any:
        self.asked.append((repo_id, options))
        return SimpleNamespace(repo_id=f"me/{repo_id}" if "/" not in repo_id else repo_id)

    def upload_folder(self, *, repo_id: str, folder_path: str, **options: Any) -> str:
        self.asked.append((repo_id, options))
        (self.folder / repo_id).mkdir(parents=True)
        for file in Path(folder_path).iterdir():
            (self.folder / repo_id / file.name).write_bytes(file.read_bytes())
        return f"https://hub/{repo_id}/commit/1"

    def download(self, repo_id: str, name: str, **options: Any) -> str:
        self.asked.append((repo_id, options))
        if not (self.folder / repo_id).is_dir():
            raise OSError(f"404: there is no {repo_id}\nmore")
        return str(self.folder / repo_id / name)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _Hub:
    hub = _Hub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", hub.api)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hub.download)
    return hub


def test_push_and_fetch(lenet: Any, hub: _Hub) -> None:
    assert lenet.push_to_hub("td-lenet", private=True, token="t", commit_message="new") == (
        "https://hub/me/td-lenet/commit/1"
    )
    asked = {"commit_message": "new", "revision": None, "create_pr": False}
    assert hub.asked == ["t", ("td-lenet", {"private": True, "exist_ok": True}), ("me/td-lenet", asked)]
    found = bu2td.TopDownNetwork.from_pretrained("me/td-lenet", revision="main", token="t")
    assert torch.equal(_logits(found), _logits(lenet))
    assert hub.asked[-1][1]["revision"] == "main"
    assert 'from_pretrained("me/td-lenet")' in (hub.folder / "me" / "td-lenet" / "README.md").read_text()


def test_what_the_hub_refuses_is_one_line(lenet: Any, hub: _Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        FileError, match=r"no folder me/nothing, and no model.safetensors.*404: there is no [^\n]*$"
    ):
        bu2td.TopDownNetwork.from_pretrained("me/nothing")

    def refuse(*args: Any, **options: Any) -> Any:
        raise ValueError("401: not you\nmore")

    monkeypatch.setattr(hub, "create_repo", refuse)
    with pytest.raises(FileError, match=r"me/td cannot be uploaded to the hub \(ValueError: 401: not you\)$"):
        lenet.push_to_hub("me/td")


def test_bad_places(lenet: Any, tmp_path: Path, hub: _Hub) -> None:
    for place in (tmp_path / "nowhere", "./nowhere", "a/b/c", "", "../x"):
        with pytest.raises(FileError):
            bu2td.TopDownNetwork.from_pretrained(place)
    assert not hub.asked
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileError, match=r"holds no model\.safetensors"):
        bu2td.TopDownNetwork.from_pretrained(tmp_path / "empty")
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="cannot be made"):
        lenet.save_pretrained(tmp_path / "file" / "inside")
    with pytest.raises(FileError, match=r"is not a file that bu2td\.save wrote"):
        bu2td.TopDownNetwork.from_pretrained(tmp_path / "file")


def test_what_cannot_be_saved_leaves_no_card(tmp_path: Path) -> None:
    network = convert_baseline("lenet_fc", "td", seed=0)
    network.set_submodule("r2_merge.act", nn.SiLU())
    with pytest.raises(CopyError):
        network.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_package_may_be_missing(lenet: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    match = r"need it: huggingface_hub is not installed|need it: .*pip install .*bu2td\[hub\]"
    with pytest.raises(MissingPackageError, match=match):
        lenet.save_pretrained(tmp_path)
    with pytest.raises(MissingPackageError, match=match):
        bu2td.TopDownNetwork.from_pretrained("me/td")
