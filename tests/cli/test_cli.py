"""The command line: every command, its JSON, and one line for everything that can go wrong."""

import importlib.util
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import bu2td
from bu2td.cli import main, structure

LENET = "bu2td:lenet_fc"

needs_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="no timm")
needs_matplotlib = pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="no matplotlib")


@pytest.fixture
def run(call: Any) -> Any:
    """Run the command line; returns (exit status, stdout, stderr)."""
    return lambda *words: call(main, *words)


# --- inspect ------------------------------------------------------------------------------------------


def test_inspect(run: Any) -> None:
    status, out, err = run("inspect", LENET)
    assert (status, err) == (0, "")
    assert "bottom-up bu2td:lenet_fc (LeNetFC), image 1x28x28" in out
    assert "float32, batch size 32: memory of forward activations" in out
    rows = [line.split() for line in out.splitlines()]
    assert ["td", "32", "16", "6"] in rows
    assert ["uni", "16", "16", "16"] in rows
    assert ["rev", "6", "16", "32"] in rows
    costs = {row[0]: row[1] for row in rows if row and row[0] in ("bottom-up", "td", "uni", "rev")}
    assert costs == {"bottom-up": "7,670", "td": "14,452", "uni": "23,486", "rev": "57,846"}


def test_inspect_json(run: Any) -> None:
    words = ("inspect", LENET, "--json", "--batch-size", "2", "--arrangement", "rev", "--arrangement", "8,4,2")
    status, out, _ = run(*words)
    answer = json.loads(out)
    assert status == 0
    assert answer["image_shape"] == [1, 1, 28, 28]
    before = answer["bottom_up"]
    assert [level["level"] for level in before["levels"]] == ["r4", "r2", "r1"]
    rev, custom = answer["arrangements"]
    assert (rev["arrangement"], custom["arrangement"]) == ("rev", [8, 4, 2])
    assert custom["widths"] == [8, 4, 2]
    assert rev["macs_ratio"] == pytest.approx(rev["macs"] / before["macs"])
    assert rev["activation_mib"] == pytest.approx(rev["activations"] * 4 * 2 / 2**20, abs=1e-3)
    assert rev["relaxations"] == []


def test_inspect_another_size(run: Any) -> None:
    status, out, _ = run("inspect", LENET, "--input-size", "1,32,48", "--arrangement", "td", "--json")
    assert status == 0
    assert json.loads(out)["image_shape"] == [1, 1, 32, 48]


def test_inspect_allocates_nothing_and_analyses_once(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    devices, analyses = [], []
    analyze, create_model = bu2td.analyze, structure.create_model

    def counted(*args: Any, **kwargs: Any) -> Any:
        analyses.append(1)
        return analyze(*args, **kwargs)

    def watched(word: str, *, device: str | None = None) -> Any:
        devices.append(device)
        return create_model(word, device=device)

    monkeypatch.setattr(bu2td, "analyze", counted)
    monkeypatch.setattr(structure, "create_model", watched)
    assert run("inspect", LENET)[0] == 0
    assert (devices, len(analyses)) == (["meta"], 1)


@needs_timm
def test_inspect_timm(run: Any) -> None:
    status, out, _ = run("inspect", "resnet18", "--arrangement", "td", "--json")
    assert status == 0
    assert json.loads(out)["arrangements"][0]["widths"] == [512, 256, 128, 64, 64, 64]


def test_json_stays_pure(run: Any, tmp_path: Path) -> None:
    """A model's own code may print and warn."""
    file = tmp_path / "loud.py"
    file.write_text(
        "import warnings\n"
        "from bu2td.models.baselines import lenet_fc\n"
        "def net():\n"
        "    print('building')\n"
        "    warnings.warn('beware')\n"
        "    return lenet_fc()\n"
    )
    status, out, err = run("inspect", f"{file}:net", "--json", "--arrangement", "td", "--input-size", "1,28,28")
    assert status == 0
    assert json.loads(out)["class"] == "LeNetFC"
    assert err == "building\n"


# --- convert ------------------------------------------------------------------------------------------


def test_convert(run: Any, tmp_path: Path) -> None:
    file = tmp_path / "td.pt"
    status, out, err = run("convert", LENET, "-o", file, "--seed", "3", "--arrangement", "uni", "--width", "8")
    assert (status, err) == (0, "")
    assert "arrangement uni, image 28x28" in out
    assert out.endswith(f"written to {file}\n")
    network = bu2td.load(file)
    assert network.plan.widths == (8, 8, 8)
    assert network(torch.rand(2, 1, 28, 28)).shape == (2, 10)


def test_convert_json(run: Any, tmp_path: Path) -> None:
    options = ("--reductions", "4,2", "--finest-reduction", "2", "--upsample", "bilinear", "--merge", "add")
    more = ("--merge-kernel", "1", "--pyramid", "average", "--sigma", "0.25", "--max-macs-ratio", "none")
    status, out, _ = run("convert", LENET, "-o", tmp_path / "td.pt", "--json", *options, *more)
    assert status == 0
    assert [level["level"] for level in json.loads(out)["levels"]] == ["r4", "r2"]
    recorded = bu2td.load(tmp_path / "td.pt").plan.options
    assert (recorded.reductions, recorded.finest_reduction, recorded.upsample) == ((4, 2), 2, "bilinear")
    assert (recorded.merge, recorded.merge_kernel, recorded.pyramid) == ("add", 1, "average")
    assert (recorded.sigma, recorded.max_macs_ratio) == (0.25, None)


def test_convert_repeats_with_a_seed(run: Any, tmp_path: Path) -> None:
    words = ("--inherit", "matching", "--seed", "5", "--stem", "coarse", "--input-size", "1,32,32")
    for name in ("a", "b"):
        torch.manual_seed(ord(name))
        assert run("convert", LENET, "-o", tmp_path / name, *words)[0] == 0
    a, b = (bu2td.load(tmp_path / name).state_dict() for name in ("a", "b"))
    assert all(torch.equal(a[key], b[key]) for key in a)


# --- draw ---------------------------------------------------------------------------------------------


@needs_matplotlib
def test_draw(run: Any, tmp_path: Path) -> None:
    file = tmp_path / "figure.svg"
    words = ("--arrangement", "rev", "--title", "A title", "--finest-reduction", "2", "--input-size", "1,32,32")
    status, out, err = run("draw", LENET, "-o", file, *words)
    assert (status, out, err) == (0, f"written to {file}\n", "")
    svg = file.read_text()
    assert "A title" in svg
    assert "Top-down LeNetFC, rev" in svg


# --- what goes wrong ----------------------------------------------------------------------------------

_NO_FOLDER = Path("no such folder") / "file"

WRONG = {
    "unknown baseline": (("inspect", "bu2td:lenet"), "UnknownModelError", "bu2td:lenet_fc"),
    "unknown arrangement": (("inspect", LENET, "--arrangement", "tdd"), "OptionError", "'td'"),
    "number of widths": (("inspect", LENET, "--arrangement", "8,4"), "WidthError", "3 levels"),
    "width in list": (("inspect", LENET, "--arrangement", "8,4,0"), "WidthError", "at least 1"),
    "batch size": (("inspect", LENET, "--batch-size", "0"), "OptionError", "at least 1"),
    "channels": (("inspect", LENET, "--input-size", "3,28,28"), "ExampleInputError", "3, 28, 28"),
    "no model": (("inspect", "collections:OrderedDict"), "UnknownModelError", "expected an nn.Module"),
    "convert: folder": (("convert", LENET, "-o", _NO_FOLDER), "FileError", "no folder"),
    "convert: a folder": (("convert", LENET, "-o", "."), "FileError", "is a folder"),
    "width": (("convert", LENET, "-o", "x", "--arrangement", "uni", "--width", "0"), "WidthError", "least 1"),
    "reduction": (("convert", LENET, "-o", "x", "--reductions", "32,1"), "ReductionError", "[4, 2, 1]"),
    "finest": (("convert", LENET, "-o", "x", "--finest-reduction", "3"), "ReductionError", "[4, 2, 1]"),
    "merge": (("convert", LENET, "-o", "x", "--merge", "ad"), "OptionError", "Did you mean 'add'"),
    "sigma": (("convert", LENET, "-o", "x", "--sigma", "0"), "SigmaError", "below the minimum"),
    "seed": (("convert", LENET, "-o", "x", "--seed", "-1"), "OptionError", "seed=-1"),
    "ratio": (("convert", LENET, "-o", "x", "--max-macs-ratio", "2"), "CostError", "max_macs_ratio=2"),
    "ratio nan": (("convert", LENET, "-o", "x", "--max-macs-ratio", "nan"), "OptionError", "positive"),
    "draw: suffix": (("draw", LENET, "-o", "x.pdf"), "OptionError", ".png or .svg"),
    "draw: folder": (("draw", LENET, "-o", f"{_NO_FOLDER}.png"), "FileError", "no folder"),
    "draw: width": (("draw", LENET, "-o", "x.png", "--width", "8"), "OptionError", "'uni'"),
}


@pytest.mark.parametrize(("words", "error", "says"), WRONG.values(), ids=WRONG)
def test_errors(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: Any, error: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, err = run(*words)
    assert (status, out) == (2, "")
    assert err.startswith(f"bu2td: {error}: ")
    assert says in err
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


@needs_timm
def test_unknown_model_names_the_nearest(run: Any) -> None:
    status, _, err = run("inspect", "resnet-18")
    assert status == 2
    assert "UnknownModelError" in err
    assert "'resnet18'" in err


@needs_timm
def test_expensive(run: Any, tmp_path: Path) -> None:
    status, _, err = run("convert", "mobilenetv2_100", "--arrangement", "rev", "-o", tmp_path / "x")
    assert status == 2
    assert err.startswith("bu2td: CostError: ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "required: COMMAND"),
        (("inspct", LENET), "Did you mean 'inspect'?"),
        (("inspect",), "required: MODEL"),
        (("inspect", LENET, "--arangement", "td"), "Did you mean '--arrangement'?"),
        (("inspect", LENET, "more"), "unrecognized arguments: more"),
        (("inspect", LENET, "--input-size", "28,28"), "C,H,W"),
        (("inspect", LENET, "--input-size", "1,28,0"), "at least 1"),
        (("convert", LENET), "-o/--output"),
        (("convert", LENET, "-o", "x", "--reductions", "a"), "'a' is not 32,16,.."),
        (("convert", LENET, "-o", "x", "--max-macs-ratio", "nil"), "neither a number nor 'none'"),
        (("convert", LENET, "-o", "x", "--inherit", "all"), "matching"),
        (("zoo", "--shard", "2"), "'2' is not I/N"),
        (("zoo", "--jobs", "two"), "invalid int value: 'two'"),
        (("zoo", "--resume", "--fresh"), "not allowed with"),
        (("zoo", "--famly", "vgg"), "Did you mean '--family'?"),
    ],
    ids=str,
)
def test_malformed_arguments(run: Any, words: Any, says: str) -> None:
    status, out, err = run(*words)
    assert (status, out) == (2, "")
    assert err.startswith("usage: bu2td")
    assert says in err


def test_version_and_help(run: Any) -> None:
    assert run("--version") == (0, f"bu2td {bu2td.__version__}\n", "")
    for command in ((), ("inspect",), ("convert",), ("draw",), ("zoo",)):
        status, out, _ = run(*command, "--help")
        assert status == 0
        assert out.startswith("usage: bu2td")


def test_interrupted(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(structure, "create_model", interrupt)
    assert run("inspect", LENET) == (130, "", "bu2td: interrupted\n")


def test_warnings_are_back_afterwards(run: Any) -> None:
    run("inspect", LENET, "--arrangement", "td")
    with pytest.raises(UserWarning, match="still an error"):
        warnings.warn("still an error", stacklevel=1)


def test_as_a_process_with_a_closed_pipe() -> None:
    """``python -m bu2td inspect ... | true`` ends without a word."""
    words = [sys.executable, "-m", "bu2td", "inspect", LENET, "--arrangement", "td"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 141
