"""Faithfulness against closed forms, and explanations of small trained networks from end to end."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nets import head, unit
from torch import Tensor, nn

import bu2td
from bu2td import errors
from bu2td.evaluate.explain.explanations import (
    Explained,
    explain,
    load_explanations,
    pick_samples,
    save_explanations,
    shared_correct,
)
from bu2td.evaluate.explain.faithfulness import blur_images, deletion, insertion, pointing_game, ranking
from bu2td.evaluate.explain.gradcam import grad_cam
from bu2td.evaluate.explain.localise import box_masks, localisation, object_masks


class Brightness(nn.Module):
    """Two logits: the mean of the pixels times a gain, and 0. What deletion does to it can be written down."""

    def __init__(self, gain: float = 8.0) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))

    def forward(self, x: Tensor) -> Tensor:
        y = self.gain * x.mean((1, 2, 3))
        return torch.stack([y, torch.zeros_like(y)], 1)


# --- pointing game ------------------------------------------------------------------------------------


def test_pointing_game() -> None:
    heat = torch.zeros(5, 4, 6)
    heat[0, 1, 2], heat[1, 3, 5], heat[2, 0, :4] = 1, 1, 0.7  # inside, outside, four of which one inside
    heat[4] = 0.5
    masks = torch.zeros(5, 4, 6, dtype=torch.bool)
    masks[:, :2, 2:4] = True
    masks[4] = False
    masks[2, 0, 3] = False
    assert pointing_game(heat, masks).tolist() == [1, 0, 0.25, 0, 0]
    keep = torch.tensor([False, True, True, False, False])
    assert pointing_game(heat, masks, keep=keep).tolist() == [0, 0.25]


def test_a_flat_map_points_everywhere() -> None:
    """Its score is the share of the object in the image: chance."""
    masks = torch.zeros(1, 4, 4, dtype=torch.bool)
    masks[0, 0, :3] = True
    assert pointing_game(torch.full((1, 4, 4), 0.3), masks).tolist() == [3 / 16]


@pytest.mark.parametrize(("tolerance", "hit"), [(0, 0), (1, 0), (1.4, 0), (1.5, 1), (2.9, 1), (3, 1)])
def test_tolerance_is_a_distance(tolerance: float, hit: int) -> None:
    heat, masks = torch.zeros(1, 7, 7), torch.zeros(1, 7, 7, dtype=torch.bool)
    heat[0, 4, 4], masks[0, 3, 3] = 1, True  # sqrt(2) apart
    assert pointing_game(heat, masks, tolerance=tolerance).tolist() == [hit]


# --- deletion and insertion ---------------------------------------------------------------------------


def test_deletion_in_closed_form() -> None:
    """After k of 16 pixels the mean is what is left of the sorted pixels."""
    torch.manual_seed(1)
    heat = torch.rand(3, 4, 4)
    images = torch.rand(3, 1, 4, 4)
    found = deletion(Brightness(), images, torch.zeros(3, dtype=torch.int64), heat, steps=8)
    assert found.shares.tolist() == [k / 8 for k in range(9)]
    for i in range(3):
        pixels = [p for _, p in sorted(zip(heat[i].flatten().tolist(), images[i].flatten().tolist(), strict=True))]
        curve = []
        for k in range(9):
            mean = sum(pixels[: 16 - 2 * k]) / 16
            curve.append(float(torch.sigmoid(torch.tensor(8 * mean, dtype=torch.float64))))
        assert found.probability[i].tolist() == pytest.approx(curve, abs=1e-6)
        area = sum((curve[k] + curve[k + 1]) / 2 / 8 for k in range(8))
        assert float(found.auc[i]) == pytest.approx(area, abs=1e-6)


def test_insertion_in_closed_form() -> None:
    torch.manual_seed(1)
    heat, images = torch.rand(2, 4, 4), torch.rand(2, 3, 4, 4)
    found = insertion(Brightness(), images, torch.tensor([0, 1]), heat, steps=16, blur=1.0)
    blurred = blur_images(images, 1.0)
    for i, sign in enumerate((1, -1)):
        order = sorted(range(16), key=lambda p: -float(heat[i].flatten()[p]))
        state = blurred[i].flatten(1).clone()
        curve = [float(torch.sigmoid(sign * 8 * state.mean()))]
        for p in order:
            state[:, p] = images[i].flatten(1)[:, p]
            curve.append(float(torch.sigmoid(sign * 8 * state.mean())))
        assert found.probability[i].tolist() == pytest.approx(curve, abs=1e-6)


def test_a_good_map_beats_a_bad_one() -> None:
    images = torch.zeros(2, 1, 16, 16)
    images[:, :, 4:9, 5:10] = 1
    heat, targets = images[:, 0], torch.zeros(2, dtype=torch.int64)
    model = Brightness(20.0)
    assert (deletion(model, images, targets, heat).auc < deletion(model, images, targets, 1 - heat).auc).all()
    good, bad = (insertion(model, images, targets, h) for h in (heat, 1 - heat))
    assert (good.auc > bad.auc).all()
    torch.testing.assert_close(good.probability[:, -1], F.softmax(model(images), 1)[:, 0].detach().double())


def test_ends_of_the_curves_do_not_depend_on_the_map() -> None:
    images, targets = torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 0, 1])
    model = Brightness()
    curves = [deletion(model, images, targets, torch.rand(4, 8, 8), steps=5, baseline=0.5) for _ in range(2)]
    for end in (0, -1):
        torch.testing.assert_close(curves[0].probability[:, end], curves[1].probability[:, end])
    grey = F.softmax(model(torch.full_like(images, 0.5)), 1).detach().double()
    torch.testing.assert_close(curves[0].probability[:, -1], grey[range(4), targets])
    assert curves[0].shares.tolist() == [0, 13 / 64, 26 / 64, 38 / 64, 51 / 64, 1]


def test_batches_do_not_matter_and_ties_are_seeded() -> None:
    images, heat = torch.rand(5, 1, 6, 6), (torch.rand(5, 6, 6) > 0.5).float()
    targets = torch.zeros(5, dtype=torch.int64)
    one, other = (deletion(Brightness(), images, targets, heat, batch_size=b).probability for b in (1, 64))
    torch.testing.assert_close(one, other)
    assert not torch.equal(deletion(Brightness(), images, targets, heat, seed=1).probability, other)
    places = ranking(heat)
    assert all(sorted(p.flatten().tolist()) == list(range(36)) for p in places)
    for i in range(5):
        hot = int(heat[i].sum())
        assert bool((places[i][heat[i] == 1] < hot).all())
    assert not torch.equal(ranking(torch.zeros(1, 6, 6))[0].flatten(), torch.arange(36))


def test_blur_keeps_the_mean_and_lowers_the_contrast() -> None:
    images = torch.rand(2, 3, 16, 16)
    for blur in (None, 0.5, 4):
        found = blur_images(images, blur)
        assert found.dtype == images.dtype
        torch.testing.assert_close(found.mean((2, 3)), images.mean((2, 3)), rtol=0, atol=0.02)
        assert bool((found.std((2, 3)) < images.std((2, 3))).all())
    one = torch.full((1, 1, 9, 9), 0.25)
    torch.testing.assert_close(blur_images(one, 3), one)


# --- from end to end ----------------------------------------------------------------------------------


def blobs(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images of a square on dim noise, dark (class 0) or bright (class 1). With boxes."""
    generator = torch.Generator().manual_seed(seed)
    images = 0.15 * torch.rand(count, 1, 16, 16, generator=generator)
    labels = torch.randint(2, (count,), generator=generator)
    boxes = []
    for image, label in zip(images, labels, strict=True):
        y, x = torch.randint(0, 10, (2,), generator=generator).tolist()
        image[0, y : y + 6, x : x + 6] = 0.95 if label else 0.35
        boxes.append([x, y, x + 6, y + 6])
    return images, labels, torch.tensor(boxes)


@pytest.fixture(scope="module")
def trained() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    images, labels, _ = blobs(64, 0)
    bottom_up = nn.Sequential(unit(1, 8), nn.MaxPool2d(2), unit(8, 8), head(8, 2))
    top_down = bu2td.convert(bottom_up, "td", example_inputs=images[:2], seed=0)
    networks: dict[str, nn.Module] = {"bu": bottom_up, "td": top_down}
    for network in networks.values():
        optimiser = torch.optim.Adam(network.parameters(), 0.02)
        for _ in range(60):
            optimiser.zero_grad()
            F.cross_entropy(network.train()(images), labels).backward()
            optimiser.step()
        optimiser.zero_grad()
    return networks


@pytest.fixture(scope="module")
def explained(trained: dict[str, nn.Module]) -> Explained:
    images, labels, _ = blobs(60, 1)
    return explain(trained, images, labels, pictures=6, steps=8, repeat=3)


def test_rows_of_the_tables(explained: Explained) -> None:
    keys = [("bu", 3, "plain"), ("bu", 3, "centred"), ("td", 3, "plain"), ("td", 3, "centred")]
    for rows in (explained.localisation, explained.faithfulness):
        assert [(r["arrangement"], r["repeat"], r["normalisation"]) for r in rows] == keys
        assert {r["samples"] for r in rows} == {len(explained.index)}
    words = "arrangement repeat normalisation threshold samples tp fp fn precision recall"
    assert list(explained.localisation[0]) == words.split()
    words = "arrangement repeat normalisation samples pointing deletion insertion"
    assert list(explained.faithfulness[0]) == words.split()
    assert explained.boxes == []
    assert all(0 <= r[k] <= 1 for r in explained.faithfulness for k in ("pointing", "deletion", "insertion"))


def test_only_what_all_classify_correctly_is_measured(trained: dict[str, nn.Module], explained: Explained) -> None:
    images, labels, _ = blobs(60, 1)
    right = torch.ones(60, dtype=torch.bool)
    for network in trained.values():
        right &= network.eval()(images).argmax(1) == labels
    assert explained.index.tolist() == right.nonzero()[:, 0].tolist()
    assert len(explained.index) > 20


def test_one_network_that_is_wrong_takes_a_sample_out() -> None:
    images = torch.stack([torch.full((1, 4, 4), value) for value in (0.0, 0.2, 0.5, 0.9)])
    first, second, third = Brightness(), Brightness(-8.0), Brightness()
    labels = torch.tensor([0, 0, 1, 0])
    assert shared_correct({"a": first, "c": third}, images, labels).tolist() == [True, True, False, True]
    for order in ((first, second), (second, first)):
        found = shared_correct(dict(zip("ab", order, strict=True)), images, labels)
        assert found.tolist() == [True, False, False, False]  # equal logits count as the first class


def test_rows_are_what_the_parts_give(trained: dict[str, nn.Module], explained: Explained) -> None:
    images, labels, _ = blobs(60, 1)
    images, labels = images[explained.index], labels[explained.index]
    for place, (name, kind) in enumerate([("bu", "plain"), ("bu", "centred"), ("td", "plain"), ("td", "centred")]):
        network = trained[name].eval()
        heat = grad_cam(network, images).resized(kind)[:, -1]
        expected = localisation(heat, object_masks(images)).row()
        found = explained.localisation[place]
        assert {k: found[k] for k in expected} == pytest.approx(expected)
        row = explained.faithfulness[place]
        assert row["deletion"] == pytest.approx(float(deletion(network, images, labels, heat, steps=8).auc.mean()))
        assert row["insertion"] == pytest.approx(
            float(insertion(network, images, labels, heat, steps=8).auc.mean())
        )
        assert row["pointing"] == pytest.approx(float(pointing_game(heat, object_masks(images)).mean()))


def test_arrays_of_a_few_samples(trained: dict[str, nn.Module], explained: Explained) -> None:
    arrays = explained.arrays
    assert arrays["images"].shape == (6, 1, 16, 16)
    assert arrays["labels"].tolist() == [0, 1, 0, 1, 0, 1]
    for name in ("bu", "td"):
        assert arrays[f"{name}_levels"].tolist() == ["r2", "r1"]  # coarse to fine
        expected = grad_cam(trained[name], torch.from_numpy(arrays["images"]))
        for kind in ("plain", "centred"):
            found = arrays[f"{name}_{kind}"]
            assert found.shape == (6, 2, 16, 16)
            own = expected.resized(kind, levels=["r2", "r1"]).numpy()
            np.testing.assert_allclose(found, own, rtol=1e-4, atol=1e-4)


def test_boxes_take_the_place_of_bright_pixels(trained: dict[str, nn.Module]) -> None:
    images, labels, boxes = blobs(30, 2)
    found = explain(trained, images, labels, boxes=boxes, steps=2, pictures=0)
    assert found.arrays == {}
    assert [r["arrangement"] for r in found.boxes] == ["bu", "bu", "td", "td"]
    assert all(0 <= r["max_box_acc_v2"] <= 1 and r["samples"] == len(found.index) for r in found.boxes)
    masks = box_masks(boxes[found.index], (16, 16))
    heat = grad_cam(trained["bu"], images[found.index]).plain()[:, -1]
    assert found.localisation[0]["recall"] == pytest.approx(localisation(heat, masks).row()["recall"])


def test_count_draws_with_the_seed(trained: dict[str, nn.Module], explained: Explained) -> None:
    images, labels, _ = blobs(60, 1)
    drawn = [
        explain(trained, images, labels, count=9, seed=s, steps=1, pictures=2).index.tolist() for s in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(drawn[0]) == 9
    assert set(drawn[0]) <= set(explained.index.tolist())


def test_a_bar_on_stderr(trained: dict[str, nn.Module], capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    images, labels, _ = blobs(10, 1)
    explain(trained, images, labels, steps=1, pictures=0)
    assert capsys.readouterr() == ("", "")
    explain(trained, images, labels, steps=1, pictures=0, progress=True)
    assert "2/2" in capsys.readouterr().err


def test_samples_of_different_classes_come_first() -> None:
    labels = torch.tensor([5] * 10 + [2, 2, 9])
    found = pick_samples(labels, 6, seed=3)
    assert labels[found].tolist() == [2, 5, 9, 2, 5, 5]
    assert len(set(found.tolist())) == 6
    assert len(pick_samples(labels, 50)) == 13
    assert pick_samples(labels, 0).tolist() == []


def test_networks_and_random_numbers_are_left_as_they_were(trained: dict[str, nn.Module]) -> None:
    images, labels, _ = blobs(60, 1)
    for network in trained.values():
        network.train()
        network.zero_grad()
    before = {name: {k: v.clone() for k, v in n.state_dict().items()} for name, n in trained.items()}
    random = torch.get_rng_state()
    explain(trained, images, labels, steps=2, count=4, pictures=2)
    assert torch.equal(torch.get_rng_state(), random)
    for name, network in trained.items():
        assert all(m.training for m in network.modules())
        assert all(p.grad is None for p in network.parameters())
        assert all(torch.equal(v, before[name][k]) for k, v in network.state_dict().items())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu(trained: dict[str, nn.Module], explained: Explained) -> None:
    import copy

    images, labels, _ = blobs(60, 1)
    moved = {name: copy.deepcopy(network).cuda() for name, network in trained.items()}
    found = explain(moved, images.cuda(), labels.cuda(), pictures=6, steps=8, repeat=3)
    for row, expected in zip(found.localisation, explained.localisation, strict=True):
        assert row["precision"] == pytest.approx(expected["precision"], abs=0.03)
    for row, expected in zip(found.faithfulness, explained.faithfulness, strict=True):
        assert row["deletion"] == pytest.approx(expected["deletion"], abs=0.03)


# --- the file -----------------------------------------------------------------------------------------


def test_file_of_explanations(explained: Explained, tmp_path: Path) -> None:
    path = tmp_path / "explanations.npz"
    save_explanations(path, explained.arrays)
    found = load_explanations(path)
    assert sorted(found) == sorted(explained.arrays)
    for name, array in explained.arrays.items():
        assert np.array_equal(found[name], array)
    assert [p.name for p in tmp_path.iterdir()] == ["explanations.npz"]


def test_the_report_reads_the_file(explained: Explained, tmp_path: Path) -> None:
    from bu2td.evaluate.report.read import read_explanations

    save_explanations(tmp_path / "explanations.npz", explained.arrays)
    found = read_explanations(tmp_path / "explanations.npz")
    assert found.levels == {"bu": ["r2", "r1"], "td": ["r2", "r1"]}
    assert [found.levels["bu"][i] for i in found.order("bu")] == ["r1", "r2"]


def test_files_that_are_none(explained: Explained, tmp_path: Path) -> None:
    with pytest.raises(errors.FileError, match="does not exist"):
        load_explanations(tmp_path / "none.npz")
    whole = tmp_path / "whole.npz"
    save_explanations(whole, explained.arrays)
    content = whole.read_bytes()
    bad: dict[str, Any] = {"empty.npz": b"", "text.npz": b"images", "cut.npz": content[: len(content) // 2]}
    for name, data in bad.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(errors.FileError, match="cannot be read"):
            load_explanations(tmp_path / name)
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(errors.FileError, match=r"no \.npz file"):
        load_explanations(tmp_path / "one.npy")
    np.savez(tmp_path / "pickled.npz", images=np.array([{}], dtype=object))
    with pytest.raises(errors.FileError, match="cannot be read"):
        load_explanations(tmp_path / "pickled.npz")
    damaged = bytearray(content)
    with zipfile.ZipFile(whole) as archive:
        start = archive.getinfo("td_plain.npy").header_offset + 60
    damaged[start : start + 40] = bytes(40)
    (tmp_path / "damaged.npz").write_bytes(damaged)
    with pytest.raises(errors.FileError, match="cannot be read"):
        load_explanations(tmp_path / "damaged.npz")
    with pytest.raises(errors.FileError, match="cannot be written"):
        save_explanations(tmp_path / "no" / "folder.npz", explained.arrays)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"labels": None}, "labels missing"),
        ({"td_levels": None, "bu_levels": None}, "heat maps"),
        ({"labels": np.zeros(3)}, "labels"),
        ({"td_plain": None}, "td_plain"),
        ({"bu_centred": np.zeros((6, 3, 16, 16))}, "bu_centred"),
    ],
)
def test_arrays_that_do_not_fit(explained: Explained, tmp_path: Path, change: dict[str, Any], words: str) -> None:
    arrays = {k: v for k, v in {**explained.arrays, **change}.items() if v is not None}
    with pytest.raises(errors.OptionError, match=words):
        save_explanations(tmp_path / "a.npz", arrays)
    np.savez(tmp_path / "b.npz", **arrays)
    with pytest.raises(errors.FileError, match=words):
        load_explanations(tmp_path / "b.npz")


# --- bad input ----------------------------------------------------------------------------------------

IMAGES = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
HEAT = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(1))
ZEROS = torch.zeros(3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"images": IMAGES * 255}, errors.ExampleInputError, r"\[0, 1\]"),
        ({"images": IMAGES[0]}, errors.ExampleInputError, "image batch"),
        ({"images": IMAGES / 0}, errors.NonFiniteError, "finite"),
        ({"heat": HEAT[:2]}, errors.OptionError, r"must be \(3, 8, 8\)"),
        ({"heat": HEAT[:, :4]}, errors.OptionError, r"\(3, 8, 8\)"),
        ({"heat": HEAT * 2}, errors.OptionError, r"\[0, 1\]"),
        ({"targets": ZEROS[:2]}, errors.OptionError, "one whole number per image"),
        ({"targets": ZEROS + 2}, errors.DataError, "2 classes"),
        ({"targets": ZEROS - 1}, errors.DataError, "count from 0"),
        ({"steps": 0}, errors.OptionError, "steps"),
        ({"steps": 65}, errors.OptionError, "64 pixels"),
        ({"seed": -1}, errors.OptionError, "seed"),
        ({"batch_size": True}, errors.OptionError, "batch_size"),
        ({"model": Brightness(float("nan"))}, errors.NonFiniteError, "weights"),
        ({"model": nn.Conv2d(1, 2, 3)}, errors.ModelOutputError, "logits"),
        ({"model": nn.Conv2d(3, 2, 3)}, errors.ExampleInputError, "does not run"),
    ],
)
def test_bad_curves(options: dict[str, Any], error: type[Exception], words: str) -> None:
    for curve in (deletion, insertion):
        given = {"model": Brightness(), "images": IMAGES, "targets": ZEROS, "heat": HEAT, **options}
        first = [given.pop(k) for k in ("model", "images", "targets", "heat")]
        with pytest.raises(error, match=words):
            curve(*first, **given)


def test_bad_options_of_one_metric() -> None:
    for blur in (0, -1.0, float("nan"), "2", 9):
        with pytest.raises(errors.OptionError, match="blur"):
            insertion(Brightness(), IMAGES, ZEROS, HEAT, blur=blur)
    for baseline in (2, -0.1, None):
        with pytest.raises(errors.OptionError, match="baseline"):
            deletion(Brightness(), IMAGES, ZEROS, HEAT, baseline=baseline)  # type: ignore[arg-type]
    for tolerance in (-1, float("inf"), "1"):
        with pytest.raises(errors.OptionError, match="tolerance"):
            pointing_game(HEAT, HEAT > 0.5, tolerance=tolerance)  # type: ignore[arg-type]
    with pytest.raises(errors.OptionError, match="masks"):
        pointing_game(HEAT, HEAT)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"classifiers": {}}, errors.OptionError, "at least one"),
        ({"classifiers": [Brightness()]}, errors.OptionError, "dict"),
        ({"classifiers": {"bu": "lenet"}}, errors.OptionError, "dict"),
        ({"labels": torch.full((20,), 2)}, errors.DataError, "2 classes"),
        ({"labels": torch.zeros(19, dtype=torch.int64)}, errors.OptionError, "labels"),
        ({"labels": torch.zeros(20)}, errors.OptionError, "float32"),
        ({"count": 0}, errors.OptionError, "count"),
        ({"pictures": -1}, errors.OptionError, "pictures"),
        ({"repeat": None}, errors.OptionError, "repeat"),
        ({"seed": 0.5}, errors.OptionError, "seed"),
        ({"batch_size": 0}, errors.OptionError, "batch_size"),
        ({"boxes": torch.zeros(20, 3)}, errors.OptionError, r"\(M, 4\)"),
        ({"boxes": torch.tensor([[0, 0, 17, 17]] * 20)}, errors.OptionError, "right <= 16"),
        ({"threshold": 1}, errors.OptionError, "threshold"),
        ({"steps": 1000}, errors.OptionError, "256 pixels"),
    ],
)
def test_bad_explanations(
    trained: dict[str, nn.Module], options: dict[str, Any], error: type[Exception], words: str
) -> None:
    images, labels, _ = blobs(20, 4)
    given: dict[str, Any] = {"classifiers": trained, "images": images, "labels": labels, **options}
    first = [given.pop(k) for k in ("classifiers", "images", "labels")]
    with pytest.raises(error, match=words):
        explain(*first, **given)


def test_networks_without_a_shared_correct_sample(trained: dict[str, nn.Module]) -> None:
    images, _, _ = blobs(20, 4)
    wrong = 1 - trained["bu"].eval()(images).argmax(1)
    with pytest.raises(
        errors.DataError, match=r"no image is classified correctly by all of bu, td \(accuracy: bu 0"
    ):
        shared_correct(trained, images, wrong)
    with pytest.raises(errors.DataError, match="no image"):
        explain(trained, images, wrong)


def test_images_without_objects(trained: dict[str, nn.Module]) -> None:
    images, labels, _ = blobs(20, 4)
    with pytest.raises(errors.DataError, match="has an object pixel"):
        explain(trained, images, labels, threshold=0.95)
