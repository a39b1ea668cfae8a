"""The command line imports what a command needs, and an interruption on the way is one line."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import bu2td
from bu2td.cli import main
from bu2td.packages import advice

HEAVY = ("torch", "numpy", "scipy", "networkx", "timm", "torchvision", "matplotlib", "foolbox", "yaml")

LOADED = f"""
import sys
from bu2td.cli import main
try:
    status = main(sys.argv[1:])
except SystemExit as end:
    status = end.code
print(status, sorted(set({HEAVY}) & set(sys.modules)), 'bu2td.evaluate' in sys.modules, file=sys.stderr)
"""


def loaded(*words: str) -> str:
    """Exit status, heavy packages that were imported, and whether the evaluation was."""
    done = subprocess.run([sys.executable, "-c", LOADED, *words], capture_output=True, text=True)
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize("words", [("--help",), ("--version",), (), ("inspct",)], ids=str)
def test_nothing_heavy_is_imported_to_say_what_there_is(words: tuple[str, ...]) -> None:
    assert loaded(*words).endswith("[] False")


def test_a_command_imports_no_other() -> None:
    said = loaded("inspect", "--help")
    assert said.startswith("0 ")
    assert "matplotlib" not in said
    assert said.endswith("False")


def test_help_lists_all_commands(call: Any) -> None:
    status, out, _ = call(main, "--help")
    assert status == 0
    for name in ("inspect", "convert", "draw", "zoo", "erf", "evaluate"):
        assert f"    {name} " in out


def test_an_interruption_of_imports_is_one_line(tmp_path: Path) -> None:
    """A torch that takes long to import, and that turns what interrupts it into an error of its own."""
    package = tmp_path / "torch"
    package.mkdir()
    slow = "import pathlib, time\npathlib.Path(__file__).with_name('here').touch()\n"
    slow += "try:\n    time.sleep(60)\nexcept BaseException as e:\n    raise ImportError('broken') from e\n"
    (package / "__init__.py").write_text(slow)
    path = os.pathsep.join([str(tmp_path), str(Path(bu2td.__file__).parents[1])])
    process = subprocess.Popen(
        [sys.executable, "-m", "bu2td", "inspect", "bu2td:lenet_fc"],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for _ in range(600):
        if (package / "here").exists() or process.poll() is not None:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "bu2td: interrupted\n")


def test_ctrl_c_works_as_before_afterwards(call: Any) -> None:
    before = signal.getsignal(signal.SIGINT)
    call(main, "inspect", "--help")
    assert signal.getsignal(signal.SIGINT) is before


def test_names_are_there_when_asked_for() -> None:
    code = "import sys, bu2td; assert 'torch' not in sys.modules; bu2td.errors.Bu2tdError; bu2td.convert; bu2td.erf"
    code += "; from bu2td import *; assert Plan.__name__ == 'Plan' and set(bu2td.__all__) <= set(dir(bu2td))"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="has no attribute 'convrt'"):
        bu2td.convrt  # type: ignore[attr-defined]  # noqa: B018


# --- convert ------------------------------------------------------------------------------------------

FACTORY = """
import torch
from torch import nn
from bu2td.models.baselines import LeNetFC

def net(num_classes=10, pretrained=False):
    torch.manual_seed(0)
    model = LeNetFC(num_classes)
    if pretrained:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 2)
                nn.init.normal_(module.bias)
    return model
"""


def test_convert_with_classes_and_weights(call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    words = ("convert", "my.py:net", "-o", "td.pt", "--input-size", "1,28,28", "--num-classes", "7")
    assert call(main, *words)[::2] == (0, "")
    status, out, err = call(main, *words, "--pretrained")
    assert status == 0
    assert err.startswith("bu2td: PretrainedWarning: LeNetFC is trained (")
    assert err.count("\n") == 1
    assert call(main, *words, "--pretrained", "--inherit", "none")[::2] == (0, "")
    status, out, err = call(main, *words, "--pretrained", "--inherit", "matching")
    assert (status, err) == (0, "")
    assert "inherited 183 of 14,425 values (1.3%)" in out
    weights = torch.load("td.pt", weights_only=True)["state_dict"]
    assert [value.shape[0] for name, value in weights.items() if "classifier" in name and value.dim() == 4] == [7]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("bu2td:lenet_fc", "--num-classes", "0"), "--num-classes 0 must be at least 1"),
        (("bu2td:lenet_fc", "--pretrained"), "no weights for 'bu2td:lenet_fc'"),
    ],
)
def test_convert_refuses(call: Any, tmp_path: Path, words: tuple[str, ...], says: str) -> None:
    status, _, err = call(main, "convert", "-o", tmp_path / "x", *words)
    assert status == 2
    assert says in err


def test_advice_names_both_ways() -> None:
    assert advice("draw") == "pip install 'bu2td[draw]' (in a checkout: pip install -e '.[draw]')"
