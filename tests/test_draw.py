"""The figure of a conversion: what it shows, that nothing overlaps, and how it is written."""

import itertools
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import bu2td
from bu2td.errors import FileError, MissingPackageError, NotAModelError, OptionError
from bu2td.ir import Analysis, Plan
from bu2td.models import baselines
from bu2td.models.words import create_model

matplotlib = pytest.importorskip("matplotlib")

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.image import imread
from matplotlib.patches import FancyBboxPatch

from bu2td.draw import MIN_SIDE, WIDTH, _figure, _Layout, draw

TIMES = " \N{MULTIPLICATION SIGN} "
ARRANGEMENTS = ("td", "uni", "rev")


def deep_net() -> nn.Module:
    """Seven reductions, three of them with many conv units, and widths up to 2048."""
    layers: list[nn.Module] = []
    channels = 3
    for level, units in enumerate((1, 1, 2, 12, 11, 10, 3)):
        layers += [nn.MaxPool2d(2)] if level else []
        for _ in range(units):
            width = min(2048, 64 * 2**level)
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 21843))


@cache
def analysis(word: str) -> Analysis:
    if word == "deep":
        with torch.device("meta"):
            model = deep_net()
        return bu2td.analyze(model, example_inputs=torch.empty(1, 3, 224, 224, device="meta"))
    if not word.startswith("bu2td:"):
        pytest.importorskip("timm")
    size = baselines.INPUT_SIZES.get(word.removeprefix("bu2td:"))
    images = torch.empty(1, *size, device="meta") if size else None
    return bu2td.analyze(create_model(word, device="meta"), example_inputs=images)


@cache
def network(word: str, arrangement: Any = "td", **options: Any) -> bu2td.TopDownNetwork:
    return bu2td.convert(analysis(word), arrangement, device="meta", max_macs_ratio=None, **options)


def texts_of(plan: Plan, title: str | None = None) -> list[str]:
    return [t.get_text() for t in _figure(plan, 10, title).axes[0].texts]


def check_legible(plan: Plan, title: str | None = None) -> None:
    """Text is at least 7 pt, inside the figure, and clear of other text and of the edges of boxes."""
    figure = _figure(plan, 1000, title)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    axes = figure.axes[0]
    extents = {t: t.get_window_extent() for t in axes.texts}
    assert figure.get_figwidth() == WIDTH
    for text, box in extents.items():
        assert text.get_fontsize() >= 7
        assert box.x0 >= 0, text
        assert box.y0 >= 0, text
        assert box.x1 <= figure.bbox.x1, text
        assert box.y1 <= figure.bbox.y1, text
    for (one, a), (other, b) in itertools.combinations(extents.items(), 2):
        assert not a.overlaps(b), (one, other)
    shapes = [p.get_window_extent() for p in axes.patches if isinstance(p, FancyBboxPatch)]
    for (text, box), shape in itertools.product(extents.items(), shapes):
        inside = shape.x0 <= box.x0 and box.x1 <= shape.x1
        assert inside or not box.overlaps(shape), text


@pytest.mark.parametrize(
    ("word", "arrangement"),
    [*(("bu2td:lenet_fc", a) for a in ARRANGEMENTS), ("resnet18", "td"), ("resnet18", "rev")],
)
def test_legible(word: str, arrangement: str) -> None:
    check_legible(network(word, arrangement).plan)


def test_legible_deep_and_wide() -> None:
    check_legible(network("deep", "rev").plan, "a title")


@pytest.mark.slow
@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@pytest.mark.parametrize("word", ["resnet18", "vgg11_bn", "densenet121", "mobilenetv2_100"])
def test_legible_more(word: str, arrangement: str) -> None:
    check_legible(network(word, arrangement).plan)


@pytest.mark.parametrize(
    "options",
    [
        {"stem": "coarse", "merge": "concat", "finest_reduction": 2},
        {"merge": "add", "merge_kernel": 1, "pyramid": "max"},
        {"reductions": (16, 4, 1)},
    ],
    ids=str,
)
def test_options(options: dict[str, Any]) -> None:
    check_legible(network("bu2td:resnet18_imagenette", "td", **options).plan)


def test_long_and_wide_images() -> None:
    plan = network("bu2td:lenet_fc").plan
    for shape in ((1, 1, 256, 16), (1, 1, 16, 256)):
        check_legible(replace(plan, image_shape=shape))


def test_what_it_says() -> None:
    texts = texts_of(network("bu2td:lenet_fc", "rev").plan)
    assert "Bottom-up LeNetFC" in texts
    assert "Top-down LeNetFC, rev" in texts
    assert texts.count("r4") == texts.count("r2") == texts.count("r1") == 2
    assert texts.count("1 block") == 4
    assert {"1 block of r1", "1 block of r4"} <= set(texts)
    # bottom-up and top-down, 28 x 28 and 7 x 7
    assert {TIMES.join(s) for s in (("6", "28", "28"), ("32", "7", "7"))} <= set(texts)
    assert {TIMES.join(s) for s in (("32", "28", "28"), ("6", "7", "7"))} <= set(texts)
    assert texts.count("head, 10 classes") == 2
    assert "level without blocks" not in texts
    assert any("resolution" in t and "channels" in t for t in texts)


def test_stem_levels_are_lighter() -> None:
    plan = network("bu2td:resnet18_imagenette").plan
    layout = _Layout(plan, None)
    assert layout.shade(None) is None
    shades = [layout.shade(level.source) for level in plan.levels if level.blocks]
    assert len(set(shades)) == 4
    texts = texts_of(plan)
    assert "level without blocks" in texts
    assert "stem" in texts  # its stem convolution works at full resolution, so r1 is not the bare image


def test_boxes_are_to_scale() -> None:
    layout = _Layout(network("bu2td:lenet_fc").plan, None)
    assert layout.box_width(32) / layout.box_width(8) == pytest.approx(2)
    assert layout.box_height((28, 28)) / layout.box_height((7, 7)) == pytest.approx(2)
    assert layout.box_width(0) == MIN_SIDE


def test_a_bottom_up_size_of_its_own_is_shown() -> None:
    """Valid padding shaves pixels: rows that say their size are believed."""
    plan = network("bu2td:lenet_fc").plan
    levels = tuple(replace(level, size=(5, 6)) for level in plan.bottom_up)
    assert TIMES.join(("32", "5", "6")) in texts_of(replace(plan, bottom_up=levels))


def test_title_is_no_markup() -> None:
    assert "costs $1 <b> & $x" in texts_of(network("bu2td:lenet_fc").plan, "costs $1 <b> & $x")


def test_png(tmp_path: Path) -> None:
    file = tmp_path / "figure.PNG"
    draw(network("bu2td:lenet_fc"), file)
    assert imread(file).shape[1] == pytest.approx(WIDTH * 300)
    assert [p.name for p in tmp_path.iterdir()] == ["figure.PNG"]


def test_svg_has_text_and_is_reproducible(tmp_path: Path) -> None:
    first, second = tmp_path / "a.svg", tmp_path / "b.svg"
    draw(network("bu2td:lenet_fc"), first, title="LeNetFC & co")
    draw(network("bu2td:lenet_fc").plan, second, title="LeNetFC & co")
    assert first.read_bytes() == second.read_bytes()
    tree = ElementTree.fromstring(first.read_text())
    words = [e.text for e in tree.iter("{http://www.w3.org/2000/svg}text")]
    assert "LeNetFC & co" in words
    assert "image pyramid" in words


def test_user_settings_stay(tmp_path: Path) -> None:
    with matplotlib.rc_context({"font.size": 31, "text.color": "red", "figure.facecolor": "black"}):
        before = dict(matplotlib.rcParams)
        draw(network("bu2td:lenet_fc"), tmp_path / "a.svg")
        assert dict(matplotlib.rcParams) == before
    draw(network("bu2td:lenet_fc"), tmp_path / "b.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.png"
    file.write_text("old")

    def fail(figure: Any, path: Path, **settings: Any) -> None:
        Path(path).write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    with pytest.raises(FileError, match="No space left"):
        draw(network("bu2td:lenet_fc"), file)
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("name", ["figure.pdf", "figure", "png"])
def test_other_suffix(tmp_path: Path, name: str) -> None:
    with pytest.raises(OptionError, match=r"\.png or \.svg"):
        draw(network("bu2td:lenet_fc"), tmp_path / name)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no folder"):
        draw(network("bu2td:lenet_fc"), tmp_path / "missing" / "figure.png")


def test_the_file_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    with pytest.raises(FileError, match="cannot be written"):
        draw(network("bu2td:lenet_fc"), tmp_path / "a.png")


@pytest.mark.parametrize("value", [nn.Linear(1, 1), None, "resnet18"])
def test_neither_network_nor_plan(tmp_path: Path, value: Any) -> None:
    with pytest.raises(NotAModelError, match=r"network that bu2td\.convert returned"):
        draw(value, tmp_path / "figure.png")


def test_no_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingPackageError, match="pip install matplotlib"):
        draw(network("bu2td:lenet_fc"), tmp_path / "figure.png")
