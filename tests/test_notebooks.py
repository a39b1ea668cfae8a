"""The notebooks run, cell by cell, with smaller numbers, and are committed as executed."""

import importlib.util
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bu2td.errors import DataError
from bu2td.evaluate import load_data

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))

needs = [
    pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"no {name}")
    for name in ("matplotlib", "sklearn", "timm", "foolbox")
]


def read(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text())["cells"]


def run(name: str, parameters: str) -> dict[str, Any]:
    """Run a notebook's cells in one namespace; `parameters` stands for its cell of that tag."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    names: dict[str, Any] = {}
    tagged = 0
    with warnings.catch_warnings(), mpl.rc_context():
        for number, cell in enumerate(read(EXAMPLES / name)):
            if cell["cell_type"] == "code":
                has_parameters = "parameters" in cell["metadata"].get("tags", [])
                tagged += has_parameters
                own = parameters if has_parameters else "".join(cell["source"])
                exec(compile(own, f"{name}, cell {number}", "exec"), names)
    pyplot.close("all")
    assert tagged == 1
    return names


def test_all_are_run_here() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["five_minutes", "robustness"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_they_are_committed_as_executed_and_small(path: Path) -> None:
    code = [cell for cell in read(path) if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"]
    assert path.stat().st_size < 100_000


@needs[0]
@needs[1]
@needs[2]
def test_five_minutes(capsys: pytest.CaptureFixture[str]) -> None:
    names = run("five_minutes.ipynb", "steps, batch, size = 2, 4, 32")
    said = capsys.readouterr().out
    assert "r32    coarsest" in said
    assert "r1: (2, 64, 97, 130)" in said
    assert said.rstrip().endswith("True")
    assert names["td"].plan.ladder == (32, 16, 8, 4, 2)
    assert [x.shape[-1] for x in names["levels"]] == [1, 2, 4, 8, 16, 32]
    torch.testing.assert_close(names["found"], names["expected"], rtol=1e-3, atol=1e-4)
    assert len(names["losses"]) == 2
    assert np.isfinite(names["losses"]).all()


@needs[0]
@needs[3]
def test_robustness(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        load_data("fashion-mnist")
    except DataError as error:
        pytest.skip(str(error))
    names = run("robustness.ipynb", "train_images, epochs, attacked = 2_560, 1, 24")
    said = capsys.readouterr().out
    assert "median L2" in said
    assert list(names["errors"]) == ["bottom-up", "top-down"]
    for bands in names["errors"].values():
        assert list(bands) == ["0-5", "5-10", "10-20"]
        assert all(0 <= value <= 1 for value in bands.values())
    for found in names["found"].values():
        assert len(found.distance) == 24
        assert not np.isnan(found.distance).any()
