"""The recipes of docs/stack.md, as they stand there."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import bu2td
from bu2td.models.baselines import LeNetFC

PAGE = Path(__file__).parents[1] / "docs" / "stack.md"
RECIPES = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
NEEDS = {"timm": "timm", "torchvision": "torchvision", "lightning": "lightning", "bu2td.export": "onnxscript",
         "save_pretrained": "huggingface_hub"}  # fmt: skip


def test_there_is_one_of_each() -> None:
    assert [sum(word in recipe for recipe in RECIPES) > 0 for word in NEEDS] == [True] * len(NEEDS)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.partition("\n")[0][:40])
def test_a_recipe_runs(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for word, package in NEEDS.items():
        if word in recipe:
            pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    td = bu2td.convert(LeNetFC(), example_inputs=torch.zeros(1, 1, 28, 28), seed=0)
    images, labels = torch.rand(8, 1, 28, 28), torch.arange(8)
    loader = DataLoader(TensorDataset(images, labels), batch_size=4)
    found: dict[str, Any] = {"bu2td": bu2td, "td": td, "loader": loader, "classes": list("0123456789")}
    before = td.eval()(images[:2]).detach()
    exec(recipe, found)
    if "from_pretrained" in recipe:
        assert torch.equal(found["td"](images[:2]), before)
    elif "create_model" in recipe or "get_model" in recipe:
        assert found["td"](torch.rand(2, 3, 64, 64)).shape == (2, 10)
    elif "detector" in recipe:
        assert found["dense"].eval()(torch.rand(1, 3, 33, 40)).shape == (1, 21, 33, 40)
    elif "fit" in recipe:
        assert not torch.equal(td.eval()(images[:2]), before)
    else:
        assert os.listdir(tmp_path) == ["td.onnx"]
