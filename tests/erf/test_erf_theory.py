"""Theoretical receptive fields: published numbers, the paper's, the table and its errors."""

import csv
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nets
import pytest
import torch
from torch import Tensor, nn

import bu2td
from bu2td.erf import Fields, theory
from bu2td.errors import FileError, MissingPackageError, NotAModelError, OptionError, TopologyError


def row(fields: Fields, name: str) -> dict[str, Any]:
    return next(row for row in fields.rows if row["name"] == name)


def chain(*, classes: int = 10) -> nn.Sequential:
    """conv3-pool2-conv3-pool2-conv3, the paper's example."""
    parts: list[nn.Module] = []
    for inputs, outputs in ((1, 4), (4, 8), (8, 16)):
        parts += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*parts[:-1], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, classes))


IMAGES = torch.zeros(2, 1, 28, 28)


def square(*sides: int) -> list[tuple[int, int]]:
    return [(side, side) for side in sides]


# --- the paper ----------------------------------------------------------------------------------------


def test_bottom_up_of_the_paper() -> None:
    fields = theory(chain(), example_inputs=IMAGES, layers="all")
    sizes = [r["size"] for r in fields.rows if r["op"] in ("Conv2d", "MaxPool2d")]
    assert sizes == square(3, 4, 8, 10, 18)
    assert [r["jump"] for r in fields.rows if r["op"] == "Conv2d"] == [(1.0, 1.0), (2.0, 2.0), (4.0, 4.0)]
    assert not any(r["merged"] for r in fields.rows)


@pytest.mark.parametrize(
    ("sigma", "window", "k"),
    [(0.5, None, 12), (2 / 3, lambda factor, sigma: round(3 * sigma * factor) + 2, 10)],
    ids=["default pyramid", "the paper's count"],
)
def test_top_down_of_the_paper(sigma: float, window: Any, k: int) -> None:
    td = bu2td.convert(chain(), "td", example_inputs=IMAGES, merge_kernel=1, sigma=sigma, seed=0)
    fields = theory(td, layers="all", pyramid_field=window)
    assert row(fields, "pyramid[0]")["size"] == (k, k)
    assert row(fields, "r4.6")["size"] == (k + 8, k + 8)
    assert row(fields, "r1_merge.conv")["merged"] == square(3, k + 12)
    assert row(fields, "r1_merge.conv")["size"] == (k + 12, k + 12)
    if window is not None:
        assert row(fields, "r4.6")["size"] == (18, 18)  # 12 sigma + 10
        assert k + 12 == round(12 * sigma + 14)


def test_levels_of_both_networks() -> None:
    analysis = bu2td.analyze(chain(), example_inputs=IMAGES)
    assert [r["name"] for r in theory(analysis).rows] == ["0", "r1", "r2", "r4", "head"]
    td = bu2td.convert(analysis, "td", merge_kernel=1, seed=0)
    rows = theory(td).rows
    assert [r["name"] for r in rows] == ["r4.6", "r4", "r2", "r1", "head"]
    assert [r["size"] for r in rows] == [*square(20, 20, 24, 28), None]
    assert [r["reduction"] for r in rows] == [4, 4, 2, 1, None]


# --- published numbers --------------------------------------------------------------------------------

PUBLISHED = {
    ("torchvision:vgg16", "features.30"): (212, 32, 90),
    ("torchvision:vgg11", "features.20"): (150, 32, 59),
    ("torchvision:alexnet", "features.12"): (195, 32, 66),
    ("torchvision:inception_v3", "r32"): (1311, 32, None),
    ("inception_v4", "r32"): (2071, 32, None),
    ("inception_resnet_v2", "r32"): (3039, 32, None),
    ("mobilenetv1_100", "r32"): (315, 32, None),
    ("torchvision:resnet18", "r32"): (435, 32, 217),
    ("torchvision:resnet50", "layer4"): (427, 32, 213),
    ("torchvision:resnet101", "r32"): (971, 32, 485),
    ("torchvision:resnet152", "r32"): (1451, 32, 725),
}


@pytest.mark.parametrize(("word", "layer"), PUBLISHED)
def test_published_fields(word: str, layer: str) -> None:
    pytest.importorskip("timm")
    pytest.importorskip("torchvision")
    size, stride, padding = PUBLISHED[word, layer]
    found = row(theory(nets.make(word), layers=[layer]), layer)
    assert (found["size"], found["jump"]) == ((size, size), (stride, stride))
    if padding is not None:
        assert found["padding"] == (padding, padding)
    assert not found["gated"]


@pytest.mark.parametrize(("depth", "size"), [(50, 483), (101, 1027), (152, 1507)])
def test_published_fields_of_slim_resnets(depth: int, size: int) -> None:
    """Araujo et al. (2019), resnet_v1."""
    pytest.importorskip("torchvision")
    model = nets.slim_resnet(depth)
    assert row(theory(model, layers=["layer4"]), "layer4")["size"] == (size, size)


def test_speed() -> None:
    pytest.importorskip("torchvision")
    model = nets.make("torchvision:resnet152")
    times = []
    for _ in range(3):
        start = time.process_time()
        fields = theory(model, layers="all")
        times.append(time.process_time() - start)
    assert len(fields.rows) > 500
    assert min(times) < 2


def test_speed_with_attention() -> None:
    """Maps of thousands of pixels are never written out as tokens times channels."""
    pytest.importorskip("timm")
    td = bu2td.convert(nets.make("edgenext_xx_small"), device="meta", max_macs_ratio=None)
    start = time.process_time()
    fields = theory(td)
    assert time.process_time() - start < 5
    assert [r["size"] for r in fields.rows if r["name"].startswith("r")][-1] == (1472, 1472)


# --- what a row says ----------------------------------------------------------------------------------


class Branches(nn.Module):
    """Two branches, one of them shifted by half a pixel, and a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 2, 1)
        self.odd = nn.Conv2d(4, 4, 5, padding=2)
        self.even = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(4, 4, 2))
        self.squeeze = nn.Conv2d(8, 8, 1)
        self.down = nn.Conv2d(8, 8, 3, 2, 1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([self.odd(x), self.even(x)], 1)
        x = self.down(x)
        x = x * self.squeeze(x.mean((2, 3), keepdim=True)).sigmoid()
        return self.fc(x.mean((2, 3)))


def test_merge_alignment_and_gate() -> None:
    rows = {r["name"]: r for r in theory(Branches(), example_inputs=torch.zeros(1, 3, 32, 32), layers="all").rows}
    assert rows["cat"]["merged"] == square(5, 11)
    assert not rows["cat"]["aligned"]
    assert not rows["cat"]["gated"]
    assert rows["odd"]["aligned"]
    assert rows["mul"]["gated"]
    assert rows["mul"]["size"] == rows["down"]["size"] == (15, 15)
    assert rows["squeeze"]["size"] is None  # nothing but the gate
    assert rows["squeeze"]["gated"]
    assert rows["fc"]["size"] is None


def test_offset_and_padding() -> None:
    rows = theory(chain(), example_inputs=IMAGES, layers="all").rows
    assert [r["offset"][0] for r in rows if r["op"] == "MaxPool2d"] == [1.0, 2.0]
    assert [r["padding"][0] for r in rows if r["op"] == "Conv2d"] == [1, 3, 7]


def test_fields_at_the_border() -> None:
    first = row(theory(chain(), example_inputs=IMAGES, borders=True, layers=["0"]), "0")
    assert first["height"][:2] == [(0, 1), (0, 2)]
    assert first["width"][-2:] == [(25, 27), (26, 27)]
    model = nn.Sequential(nn.Conv2d(1, 2, 1, 1, 2), nn.Conv2d(2, 2, 2, 2), *chain()[-3:-1])
    first = row(theory(model, example_inputs=IMAGES, borders=True, layers=["0"]), "0")
    assert first["height"][:3] == [None, None, (0, 0)]


def test_pools_to_a_fixed_number_of_positions_see_everything() -> None:
    class Pyramid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, 2, 1)
            self.pool = nn.AdaptiveAvgPool2d(3)
            self.last = nn.Conv2d(8, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            seen = nn.functional.interpolate(self.pool(x), size=x.shape[-2:], mode="bilinear")
            return self.last(torch.cat([x, seen], 1))

    fields = theory(Pyramid(), example_inputs=torch.zeros(1, 3, 24, 24), layers="all", borders=True)
    last = row(fields, "last")
    assert (last["size"], last["gated"]) == ((7, 7), True)
    assert last["height"][5] == (0, 23)  # on an image of the model's own size, bins are windows
    assert "the whole image" in str(fields)


def test_an_operation_without_a_rule_is_named() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1))
            self.last = nn.Sequential(nn.Conv2d(4, 8, 3, 2, 1), nn.ReLU())
            self.fc = nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.flip(self.body(x), [2])
            return self.fc(self.last(x).mean((2, 3)))

    fields = theory(Net(), example_inputs=torch.zeros(1, 3, 32, 32), layers="all")
    assert row(fields, "body.1")["size"] == (7, 7)
    for name in ("last.0", "last.1", "fc"):
        assert row(fields, name)["size"] is None
        assert row(fields, name)["unknown"] == "flip (flip)"
    assert "unknown: flip (flip) has no rule" in str(fields)


def test_a_network_without_a_trunk_has_levels() -> None:
    pytest.importorskip("timm")
    names = [r["name"] for r in theory(nets.make("hrnet_w18_small")).rows]
    assert {"r4", "r8", "r16", "r32"} <= set(names)


def test_an_encoder_has_levels() -> None:
    """A network without logits: its output is a level too."""
    encoder = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, 2, 1))
    rows = theory(encoder, example_inputs=IMAGES).rows
    assert [(r["name"], r["size"]) for r in rows] == [("0", (3, 3)), ("r2", (3, 3)), ("r4", (7, 7))]


def test_the_canvas_grows_with_the_field() -> None:
    layers = [nn.Conv2d(1, 1, 3, 2, 1), *(nn.Conv2d(1, 1, 3, 1, 600, dilation=600) for _ in range(4))]
    fields = theory(nn.Sequential(*layers), example_inputs=IMAGES, layers=["4"])
    assert fields.rows[0]["size"] == (9603, 9603)


# --- the table ----------------------------------------------------------------------------------------


def test_table_as_text_and_files(tmp_path: Path) -> None:
    fields = theory(chain(), example_inputs=IMAGES)
    assert "bottom-up Sequential" in str(fields)
    assert "18" in str(fields)
    fields.to_json(tmp_path / "fields.json")
    document = json.loads((tmp_path / "fields.json").read_text())
    assert document["rows"][3]["size"] == [18, 18]
    fields.to_csv(tmp_path / "fields.csv")
    rows = list(csv.DictReader((tmp_path / "fields.csv").read_text().splitlines()))
    assert [r["size"] for r in rows] == ["3x3", "3x3", "8x8", "18x18", ""]
    with pytest.raises(FileError):
        fields.to_csv(tmp_path / "nowhere" / "fields.csv")


def test_pandas() -> None:
    pytest.importorskip("pandas")
    fields = theory(chain(), example_inputs=IMAGES)
    table = fields.to_pandas()
    assert list(table.columns) == list(fields.rows[0])
    assert list(table["name"]) == ["0", "r1", "r2", "r4", "head"]
    assert table.set_index("name").loc["r4", "size"] == (18, 18)
    assert table["size"].isna().tolist() == [False, False, False, False, True]


def test_pandas_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    fields = theory(chain(), example_inputs=IMAGES)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingPackageError, match="pandas"):
        fields.to_pandas()


def test_layers_by_name() -> None:
    model = nn.Sequential(nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.ReLU()), nn.Sequential(*chain()[-3:-1]))
    fields = theory(model, example_inputs=IMAGES, layers=["0", "0.0"])
    assert [(r["name"], r["op"]) for r in fields.rows] == [("0.0", "Conv2d"), ("0", "ReLU")]


# --- bad input ----------------------------------------------------------------------------------------


def test_bad_input() -> None:
    with pytest.raises(NotAModelError, match="found"):
        theory("resnet18")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="Did you mean 'r4'"):
        theory(chain(), example_inputs=IMAGES, layers=["r44"])
    with pytest.raises(OptionError, match="no rows and columns"):
        theory(chain(), example_inputs=IMAGES, layers=["10"])
    for layers in (3, None, [], ["r4", 2], [None]):
        with pytest.raises(OptionError, match="must be the name of a layer, or a list of such names"):
            theory(chain(), example_inputs=IMAGES, layers=layers)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="example_inputs"):
        theory(bu2td.analyze(chain(), example_inputs=IMAGES), example_inputs=IMAGES)
    td = bu2td.convert(chain(), "td", example_inputs=IMAGES, seed=0)
    with pytest.raises(OptionError, match=r"borders=tensor.* must be True or False"):
        theory(td, borders=torch.ones(2))  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="pyramid_field"):
        theory(td, pyramid_field=lambda factor, sigma: 2.5)  # type: ignore[arg-type, return-value]


def test_a_network_of_one_image_size() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(1, 4, 4, 4), nn.Linear(4, 5)
            self.places = nn.Parameter(torch.zeros(1, 4, 7, 7))

        def forward(self, x: Tensor) -> Tensor:
            return self.fc((self.conv(x) + self.places).mean((2, 3)))

    with pytest.raises(TopologyError, match=r"Fixed runs on images of 28x28 only.*canvas of any size"):
        theory(Fixed(), example_inputs=IMAGES)


def test_import_is_lazy() -> None:
    code = "import sys, bu2td; print('bu2td.erf' in sys.modules); print(bu2td.erf.theory.__name__)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "theory"]
