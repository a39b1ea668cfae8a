"""`python -m bu2td.erf` and `bu2td erf`: tables, files, figures, and one line for everything that can go wrong."""

import csv
import importlib.util
import json
import runpy
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
import torch

from bu2td import cli
from bu2td.erf import command

LENET = "bu2td:lenet_fc"

needs_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="no timm")
needs_matplotlib = pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="no matplotlib")


@pytest.fixture
def run(call: Any) -> Any:
    """Run the command; returns (exit status, stdout, stderr)."""
    return lambda *words, main=command.main: call(main, *words)


def cells(out: str) -> dict[str, list[str]]:
    return {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.strip()}


# --- tables ---------------------------------------------------------------------------------------------


def test_side_by_side(run: Any) -> None:
    status, out, err = run(LENET)
    assert (status, err) == (0, "")
    assert out.startswith(
        "receptive fields of bu2td:lenet_fc (LeNetFC) and its top-down network (td), image 1x28x28"
    )
    rows = cells(out)
    assert rows["level"] == ["bottom-up", "jump", "meet", "top-down", "jump", "meet"]
    assert rows["r4"] == ["24", "4", "20", "4"]
    assert rows["r2"] == ["14", "2", "32", "2", "{14,", "20}"]
    assert rows["r1"] == ["5", "1", "40", "1", "{5,", "32}"]
    assert "gradients" not in out


def test_both_commands_are_one(run: Any) -> None:
    assert run("erf", LENET, main=cli.main) == run(LENET)
    assert "erf" in run("--help", main=cli.main)[1]


def test_as_a_module(run: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["erf", LENET, "--no-topdown"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("bu2td.erf", run_name="__main__")
    assert end.value.code == 0
    assert capsys.readouterr().out == run(LENET, "--no-topdown")[1]


def test_bottom_up_alone(run: Any) -> None:
    status, out, _ = run(LENET, "--no-topdown")
    assert status == 0
    assert "top-down" not in out
    assert cells(out)["r4"] == ["24", "4"]


def test_arrangements(run: Any) -> None:
    assert "(rev)" in run(LENET, "--arrangement", "rev")[1]
    assert "(8,4,2)" in run(LENET, "--arrangement", "8,4,2")[1]


def test_all_layers(run: Any) -> None:
    status, out, _ = run(LENET, "--layers", "all")
    assert status == 0
    assert "bottom-up:" in out
    assert "top-down:" in out
    assert cells(out.partition("top-down:")[0])["unit3.0"] == ["24", "4"]


def test_named_layers_need_not_be_in_both(run: Any) -> None:
    status, out, _ = run(LENET, "--layers", "unit1,r2,r1_merge.conv")
    before, after = out.split("top-down:")
    assert status == 0
    assert cells(before)["unit1"] == ["5", "1"]
    assert "r1_merge.conv" not in before
    assert "r1_merge.conv" in after
    assert "unit1" not in after


def test_theory_allocates_no_weights(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    devices = []
    create_model = command.create_model

    def watched(word: str, *, device: str | None = None) -> Any:
        devices.append(device)
        return create_model(word, device=device)

    monkeypatch.setattr(command, "create_model", watched)
    assert run(LENET)[0] == 0
    assert devices == ["meta"]


def test_gradients(run: Any) -> None:
    words = (LENET, "--mode", "both", "--count", "2", "--input-size", "1,32,32")
    state = torch.get_rng_state()
    status, out, err = run(*words)
    assert (status, err) == (0, "")
    assert torch.equal(torch.get_rng_state(), state)
    assert "gradients of the centre unit (pixels), 2 images, weights as built (seed 0)" in out
    assert out.count("100.0%") == 6
    assert run(*words)[1] == out
    assert run(*words, "--seed", "1")[1] != out
    assert "theory (pixels)" not in run(LENET, "--mode", "gradient", "--count", "1")[1]


@needs_timm
def test_gates_are_told(run: Any) -> None:
    status, out, _ = run("test_efficientnet")
    assert status == 0
    assert "+ sees the whole image besides" in out
    assert cells(out)["r32"][0] == "67+"


@needs_timm
def test_a_network_without_a_trunk(run: Any) -> None:
    status, out, _ = run("hrnet_w18_small", "--no-topdown")
    assert status == 0
    assert cells(out)["r32"]
    status, out, err = run("hrnet_w18_small")
    assert (status, out) == (2, "")
    assert "--no-topdown shows" in err


# --- files ------------------------------------------------------------------------------------------------


def test_json(run: Any) -> None:
    status, out, _ = run(LENET, "--json", "--mode", "both", "--count", "1", "--arrangement", "8,4,2")
    answer = json.loads(out)
    assert status == 0
    assert (answer["model"], answer["image_shape"], answer["arrangement"]) == (LENET, [1, 1, 28, 28], [8, 4, 2])
    rows = {row["name"]: row for row in answer["top_down"]["theory"]}
    assert rows["r1"]["size"] == [40, 40]
    assert [row["name"] for row in answer["bottom_up"]["gradient"]] == ["r4", "r2", "r1"]


def test_csv(run: Any, tmp_path: Path) -> None:
    file = tmp_path / "fields.csv"
    assert run(LENET, "--csv", file, "--mode", "both", "--count", "1")[0] == 0
    with file.open() as text:
        rows = list(csv.DictReader(text))
    by_name = {(row["network"], row["name"]): row for row in rows}
    assert by_name["top-down", "r2"]["size"] == "32x32"
    assert by_name["top-down", "r2"]["merged"] == "14x14 20x20"
    assert float(by_name["bottom-up", "r4"]["gradient_sigma"]) > 1
    assert list(tmp_path.iterdir()) == [file]


@needs_matplotlib
def test_figures(run: Any, tmp_path: Path) -> None:
    from matplotlib.image import imread

    for suffix, words in ((".svg", ["--mode", "both", "--count", "1"]), (".png", []), (".pdf", ["--no-topdown"])):
        assert run(LENET, "--plot", tmp_path / f"a{suffix}", *words)[0] == 0
    texts = [
        e.text
        for e in ElementTree.fromstring((tmp_path / "a.svg").read_text()).iter("{http://www.w3.org/2000/svg}text")
    ]
    assert {"bottom-up", "top-down", "r4: 24", "r1: 40", "receptive field (pixels)"} <= set(texts)
    assert any("gradient" in str(text) for text in texts)
    assert imread(tmp_path / "a.png").shape[1] == 990  # one column of 3.3 inches at 300 dpi
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")
    assert len(list(tmp_path.iterdir())) == 3


@needs_matplotlib
def test_figures_are_reproducible_and_leave_settings(run: Any, tmp_path: Path) -> None:
    import matplotlib

    with matplotlib.rc_context({"font.size": 31, "text.color": "red"}):
        before = dict(matplotlib.rcParams)
        for name in ("a.svg", "b.svg"):
            assert run(LENET, "--plot", tmp_path / name)[0] == 0
        assert dict(matplotlib.rcParams) == before
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


@needs_matplotlib
@pytest.mark.parametrize("words", [(), ("--no-topdown",), ("--mode", "both", "--count", "1")], ids=str)
@pytest.mark.parametrize("model", [LENET, pytest.param("resnet18", marks=needs_timm)])
def test_figures_are_legible(
    model: str, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run: Any
) -> None:
    """Text is at least 6 pt, inside the figure, and on no other text."""
    from itertools import combinations

    from matplotlib.text import Text

    from bu2td.erf import plot

    drawn = []
    figure_of = plot._figure
    monkeypatch.setattr(plot, "_figure", lambda *args: drawn.append(figure_of(*args)) or drawn[-1])
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, path, **_: Path(path).touch())
    assert run(model, "--plot", tmp_path / "a.png", *words)[0] == 0
    [figure] = drawn
    figure.draw_without_rendering()
    shown = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]
    boxes = [(t.get_text(), t.get_window_extent(), t.get_fontsize()) for t in shown]
    for text, box, size in boxes:
        assert size >= 6, text
        assert box.x0 >= -1, text
        assert box.y0 >= -1, text
        assert box.x1 <= figure.bbox.x1 + 1, text
        assert box.y1 <= figure.bbox.y1 + 1, text
    for (one, a, _), (other, b, _) in combinations(boxes, 2):
        assert not a.overlaps(b), (one, other)


@needs_matplotlib
def test_tables_draw_themselves(tmp_path: Path) -> None:
    import bu2td.erf
    from bu2td.models.baselines import lenet_fc

    images = torch.zeros(1, 1, 28, 28)
    for layers in ("levels", "all"):
        bu2td.erf.theory(lenet_fc(), example_inputs=images, layers=layers).plot(tmp_path / f"{layers}.png")
    bu2td.erf.gradient(lenet_fc(), example_inputs=images, layers=["unit1", "r4"], count=1).plot(tmp_path / "g.png")
    assert len(list(tmp_path.iterdir())) == 3


# --- what can go wrong --------------------------------------------------------------------------------------

FAULTS: list[tuple[tuple[str, ...], str]] = [
    (("bu2td:lenet",), "UnknownModelError.*'bu2td:lenet_fc'"),
    (
        (LENET, "--layers", "r3"),
        r"OptionError: --layers: there is no layer 'r3'. Did you mean 'r\d'.*levels are r4",
    ),
    ((LENET, "--layers", "unit"), "no layer 'unit'.*Did you mean 'unit"),
    ((LENET, "--layers", ""), "no layer ''"),
    ((LENET, "--layers", "flatten"), "rows and columns"),
    ((LENET, "--layers", "all", "--mode", "both"), "--layers all is for --mode theory"),
    ((LENET, "--arrangement", "dt"), "Did you mean 'td'"),
    ((LENET, "--csv", "missing/a.csv"), "FileError.*no folder missing"),
    ((LENET, "--csv", "."), "FileError.*it is a folder"),
    ((LENET, "--count", "0", "--mode", "gradient"), "--count 0 must be"),
    ((LENET, "--seed", "-1"), "--seed -1"),
    ((LENET, "--device", "cpu"), "--mode gradient"),
    ((LENET, "--device", "gpu", "--mode", "gradient"), "The device 'gpu' cannot be used: torch knows no device"),
    ((LENET, "--input-size", "3,32,32"), "ExampleInputError"),
]


@pytest.mark.parametrize(("words", "match"), FAULTS, ids=[" ".join(w) for w, _ in FAULTS])
def test_faults(run: Any, words: tuple[str, ...], match: str) -> None:
    import re

    status, out, err = run(*words)
    assert (status, out) == (2, "")
    assert err.startswith("bu2td: ")
    assert re.search(match, err.replace("\n", " ")), err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ((LENET, "--mode", "gradients"), "Did you mean 'gradient'"),
        ((LENET, "--input-size", "32"), "is not C,H,W"),
        ((LENET, "--layer", "all"), "Did you mean '--layers'"),
        ((), "MODEL"),
    ],
    ids=str,
)
def test_malformed_arguments(run: Any, words: tuple[str, ...], match: str) -> None:
    status, out, err = run(*words)
    assert (status, out) == (2, "")
    assert match in err


@needs_matplotlib
@pytest.mark.parametrize(
    ("file", "match"), [("a.gif", r"must end in \.png, \.svg or \.pdf"), ("missing/a.png", "no folder missing")]
)
def test_unwritable_figures(run: Any, file: str, match: str) -> None:
    import re

    status, out, err = run(LENET, "--plot", file)
    assert (status, out) == (2, "")
    assert re.search(match, err)


def test_no_matplotlib(run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, out, err = run(LENET, "--plot", tmp_path / "a.png")
    assert (status, out) == (2, "")
    assert "MissingPackageError" in err
    assert "pip install matplotlib" in err
