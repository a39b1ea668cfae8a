"""Faithfulness against closed forms, and explanations of small trained networks from end to end."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nets import head, unit
from scipy import ndimage
from torch import Tensor, nn

import bu2td
from bu2td import errors
from bu2td.evaluate.explain.explanations import (
    Explained,
    explain_networks,
    pick_samples,
    save_explanations,
    shared_correct,
)
from bu2td.evaluate.explain.faithfulness import deletion, insertion, pointing_game, ranking
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


def numbers(values: Tensor) -> list[float | None]:
    """As a list, None for what is not defined."""
    return [None if math.isnan(v) else v for v in values.tolist()]


def test_pointing_game() -> None:
    heat = torch.zeros(5, 4, 6)
    heat[0, 1, 2], heat[1, 3, 5], heat[2, 0, :4] = 1, 1, 0.7  # inside, outside, four of which one inside
    heat[4] = 0.5
    masks = torch.zeros(5, 4, 6, dtype=torch.bool)
    masks[:, :2, 2:4] = True
    masks[4] = False
    masks[2, 0, 3] = False
    assert numbers(pointing_game(heat, masks)) == [1, 0, 0.25, None, None]  # no map, no object
    assert numbers(pointing_game(heat, masks, tolerance=1)) == [1, 0, 0.75, None, None]


def test_pointing_game_by_hand() -> None:
    """Pixel by pixel, where several pixels share the maximum."""
    heat = torch.randint(4, (40, 3, 4)).float() / 3
    heat[7] = 0
    masks = torch.rand(40, 3, 4) > 0.8
    expected: list[float | None] = []
    for one, mask in zip(heat.tolist(), masks.tolist(), strict=True):
        top = max(map(max, one))
        hottest = [(y, x) for y in range(3) for x in range(4) if one[y][x] == top]
        hits = sum(mask[y][x] for y, x in hottest)
        expected.append(hits / len(hottest) if top and any(map(any, mask)) else None)
    assert numbers(pointing_game(heat, masks)) == expected
    assert None in expected


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


def blurred_by_scipy(images: Tensor, sigma: float) -> Tensor:
    return torch.from_numpy(ndimage.gaussian_filter(images.numpy(), (0, 0, sigma, sigma), mode="reflect"))


def test_insertion_in_closed_form() -> None:
    torch.manual_seed(1)
    heat, images = torch.rand(2, 4, 4), torch.rand(2, 3, 4, 4)
    found = insertion(Brightness(), images, torch.tensor([0, 1]), heat, steps=16, blur=1.0)
    blurred = blurred_by_scipy(images, 1.0)
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


def test_insertion_starts_from_an_image_blurred_by_an_eighth_of_its_side() -> None:
    torch.manual_seed(2)
    images, heat = torch.rand(3, 3, 16, 24), torch.rand(3, 16, 24)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten())
    found = insertion(model, images, torch.tensor([0, 1, 2]), heat, steps=2)
    start = model(blurred_by_scipy(images, 2.0)).detach().double().softmax(1)
    torch.testing.assert_close(found.probability[:, 0], start.diagonal(), rtol=1e-4, atol=1e-5)
    with pytest.raises(errors.OptionError, match="blur"):
        insertion(model, images, torch.tensor([0, 1, 2]), heat, blur=0.0)


def test_a_map_of_zeros_has_no_curve() -> None:
    images, heat, targets = torch.rand(3, 1, 4, 4), torch.rand(3, 4, 4), torch.zeros(3, dtype=torch.int64)
    whole = deletion(Brightness(), images, targets, heat, steps=4)
    heat[1] = 0
    for call in (deletion, insertion):
        found = call(Brightness(), images, targets, heat, steps=4)
        assert found.auc.isnan().tolist() == [False, True, False]
        assert bool(found.probability[1].isnan().all())
    found = deletion(Brightness(), images, targets, heat, steps=4)
    assert torch.equal(found.auc[[0, 2]], whole.auc[[0, 2]])


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
    return explain_networks(trained, images, labels, objects="bright", pictures=6, steps=8, repeat=3)


KEYS = [
    (name, 3, layer, kind)
    for name in ("bu", "td")
    for layer in ("last-convolution", "last-level")
    for kind in ("plain", "centred")
]


def test_rows_of_the_tables(explained: Explained) -> None:
    for rows in (explained.localisation, explained.faithfulness):
        assert [(r.arrangement, r.repeat, r.layer, r.normalisation) for r in rows] == KEYS
        assert {r.samples for r in rows} == {len(explained.index)}
    assert explained.boxes == []
    keys = [(r.arrangement, r.repeat, r.layer, r.normalisation, r.image) for r in explained.images]
    assert keys == [(*key, i) for key in KEYS for i in explained.index.tolist()]
    assert all(math.isnan(r.max_box_acc_v2) for r in explained.images)


def test_means_of_the_tables_are_those_of_their_images(explained: Explained) -> None:
    for local, faithful in zip(explained.localisation, explained.faithfulness, strict=True):
        key = (local.arrangement, local.layer, local.normalisation)
        own = [r for r in explained.images if (r.arrangement, r.layer, r.normalisation) == key]
        told = [r for r in own if not r.empty]
        assert local.empty == faithful.empty == len(own) - len(told)
        assert local.without_prediction == sum(r.tp + r.fp == 0 for r in own)
        assert local.dropped == 0
        assert faithful.pointed == len(told)
        for name in ("tp", "fp", "fn", "precision", "recall"):
            assert getattr(local, name) == pytest.approx(sum(getattr(r, name) for r in told) / len(told))
        for name in ("pointing", "deletion", "insertion"):
            assert getattr(faithful, name) == pytest.approx(sum(getattr(r, name) for r in told) / len(told))


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


@pytest.mark.parametrize("layer", ["last-convolution", "last-level"])
def test_rows_are_what_the_parts_give(trained: dict[str, nn.Module], explained: Explained, layer: str) -> None:
    images, labels, _ = blobs(60, 1)
    images, labels = images[explained.index], labels[explained.index]
    for name, kind in (("bu", "plain"), ("bu", "centred"), ("td", "plain"), ("td", "centred")):
        network = trained[name].eval()
        heat = grad_cam(network, images, labels, levels=layer).resized(kind)[:, 0]
        own = [r for r in explained.images if (r.arrangement, r.layer, r.normalisation) == (name, layer, kind)]
        expected = {
            **vars(localisation(heat, object_masks(images))),
            "pointing": pointing_game(heat, object_masks(images)),
            "deletion": deletion(network, images, labels, heat, steps=8).auc,
            "insertion": insertion(network, images, labels, heat, steps=8).auc,
        }
        for column, values in expected.items():
            assert [getattr(r, column) for r in own] == pytest.approx(values.tolist(), nan_ok=True, abs=1e-5)


def test_arrays_of_a_few_samples(trained: dict[str, nn.Module], explained: Explained) -> None:
    arrays = explained.arrays
    assert arrays["images"].shape == (6, 1, 16, 16)
    assert arrays["labels"].tolist() == [0, 1, 0, 1, 0, 1]
    for name, levels in (("bu", ["r1", "r2"]), ("td", ["r2", "r1"])):
        shown = [*levels, "last-convolution"]
        assert arrays[f"{name}_levels"].tolist() == shown  # as the network computes them
        expected = grad_cam(trained[name], torch.from_numpy(arrays["images"]), levels=shown)
        for kind in ("plain", "centred"):
            found = arrays[f"{name}_{kind}"]
            assert found.shape == (6, 3, 16, 16)
            np.testing.assert_allclose(found, expected.resized(kind).numpy(), rtol=1e-4, atol=1e-4)


def test_boxes_take_the_place_of_bright_pixels(trained: dict[str, nn.Module]) -> None:
    images, labels, boxes = blobs(30, 2)
    found = explain_networks(trained, images, labels, boxes=boxes, steps=2, pictures=0)
    assert found.arrays == {}
    assert [(r.arrangement, r.layer, r.normalisation) for r in found.boxes] == [(k[0], *k[2:]) for k in KEYS]
    assert all(0 <= r.max_box_acc_v2 <= 1 and r.samples == len(found.index) for r in found.boxes)
    for row in found.boxes:
        key = (row.arrangement, row.layer, row.normalisation)
        own = [
            r.max_box_acc_v2
            for r in found.images
            if (r.arrangement, r.layer, r.normalisation) == key
            if not r.empty
        ]
        assert row.max_box_acc_v2 == pytest.approx(sum(own) / len(own))
    masks = box_masks(boxes[found.index], (16, 16))
    heat = grad_cam(trained["bu"], images[found.index], levels="last-convolution").plain()[:, 0]
    expected = localisation(heat, masks).recall.nanmean()
    assert found.localisation[0].recall == pytest.approx(float(expected))


def test_no_object_no_localisation(trained: dict[str, nn.Module], explained: Explained) -> None:
    images, labels, _ = blobs(60, 1)
    found = explain_networks(trained, images, labels, objects="none", steps=8, repeat=3, pictures=0)
    assert found.localisation == found.boxes == []
    assert [r.pointed for r in found.faithfulness] == [0] * 8
    for row, expected in zip(found.faithfulness, explained.faithfulness, strict=True):
        assert math.isnan(row.pointing)
        assert (row.deletion, row.insertion) == pytest.approx((expected.deletion, expected.insertion))
    for image in found.images:
        assert all(math.isnan(getattr(image, name)) for name in ("tp", "fp", "fn", "precision", "recall"))


def test_images_without_an_object_are_dropped_from_localisation_only(trained: dict[str, nn.Module]) -> None:
    images, labels, _ = blobs(40, 1)
    found = explain_networks(trained, images, labels, objects="bright", threshold=0.5, steps=2, pictures=0)
    dark = int((images[found.index].amax((1, 2, 3)) <= 0.5).sum())
    assert 0 < dark < len(found.index)
    for local, faithful in zip(found.localisation, found.faithfulness, strict=True):
        assert (local.samples, local.dropped) == (len(found.index) - dark, dark)
        assert faithful.samples == len(found.index)
        assert faithful.pointed == local.samples - local.empty


def test_a_network_without_a_map_is_counted_not_scored(trained: dict[str, nn.Module]) -> None:
    """All weights of the classifier are at most 0, so that no position speaks for class 0 by more than nothing."""
    import copy

    images, labels, _ = blobs(40, 1)
    mute: Any = copy.deepcopy(trained["bu"])
    with torch.no_grad():
        mute[3][2].weight[0].zero_()
        mute[3][2].weight[1] = 0
        mute[3][2].bias.copy_(torch.tensor([1.0, 0.0]))
    found = explain_networks({"bu": mute, "td": trained["td"]}, images, labels, steps=2, pictures=0)
    rows = [(a, b) for a, b in zip(found.localisation, found.faithfulness, strict=True) if a.arrangement == "bu"]
    assert len(rows) == 4
    for local, faithful in rows:
        assert local.empty == local.without_prediction == local.samples == faithful.empty == len(found.index)
        assert faithful.pointed == 0
        for row, names in ((local, ("precision", "recall", "fn")), (faithful, ("pointing", "deletion"))):
            assert all(math.isnan(getattr(row, name)) for name in names)


def test_count_draws_with_the_seed(trained: dict[str, nn.Module], explained: Explained) -> None:
    images, labels, _ = blobs(60, 1)
    drawn = [
        explain_networks(trained, images, labels, count=9, seed=s, steps=1, pictures=2).index.tolist()
        for s in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(drawn[0]) == 9
    assert set(drawn[0]) <= set(explained.index.tolist())


def test_a_bar_on_stderr(trained: dict[str, nn.Module], capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    images, labels, _ = blobs(10, 1)
    explain_networks(trained, images, labels, steps=1, pictures=0)
    assert capsys.readouterr() == ("", "")
    explain_networks(trained, images, labels, steps=1, pictures=0, progress=True)
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
    explain_networks(trained, images, labels, steps=2, count=4, pictures=2)
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
    found = explain_networks(moved, images.cuda(), labels.cuda(), objects="bright", pictures=6, steps=8, repeat=3)
    for row, expected in zip(found.localisation, explained.localisation, strict=True):
        assert row.precision == pytest.approx(expected.precision, abs=0.03)
    for one, other in zip(found.faithfulness, explained.faithfulness, strict=True):
        assert one.deletion == pytest.approx(other.deletion, abs=0.03)


# --- the file -----------------------------------------------------------------------------------------


def test_the_report_reads_the_file(explained: Explained, tmp_path: Path) -> None:
    from bu2td.evaluate.report.read import read_explanations

    save_explanations(tmp_path / "explanations.npz", explained.arrays)
    assert [p.name for p in tmp_path.iterdir()] == ["explanations.npz"]
    found = read_explanations(tmp_path / "explanations.npz")
    assert found.levels == {"bu": ["r1", "r2", "last-convolution"], "td": ["r2", "r1", "last-convolution"]}
    assert np.array_equal(found.maps["td"]["centred"], explained.arrays["td_centred"])
    with pytest.raises(errors.FileError, match="cannot be written"):
        save_explanations(tmp_path / "no" / "folder.npz", explained.arrays)


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
        ({"threshold": 1, "objects": "bright"}, errors.OptionError, "threshold"),
        ({"objects": "light"}, errors.OptionError, "Did you mean 'bright'"),
        ({"objects": "boxes"}, errors.DataError, "the data have no boxes"),
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
        explain_networks(*first, **given)


def test_networks_without_a_shared_correct_sample(trained: dict[str, nn.Module]) -> None:
    images, _, _ = blobs(20, 4)
    wrong = 1 - trained["bu"].eval()(images).argmax(1)
    with pytest.raises(
        errors.DataError, match=r"no image is classified correctly by all of bu, td \(accuracy: bu 0"
    ):
        shared_correct(trained, images, wrong)
    with pytest.raises(errors.DataError, match="no image"):
        explain_networks(trained, images, wrong)


def test_images_that_all_have_no_object(trained: dict[str, nn.Module]) -> None:
    images, labels, _ = blobs(20, 4)
    found = explain_networks(trained, images, labels, objects="bright", threshold=0.95, steps=2, pictures=0)
    for row in found.localisation:
        assert (row.samples, row.dropped) == (0, len(found.index))
        assert math.isnan(row.precision)
