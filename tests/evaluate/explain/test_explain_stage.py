"""The experiment in a run's folder: it grows, is shared out, and agrees with captum and with loops over images."""

import csv
import dataclasses
import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

for package in ("lightning_fabric", "yaml", "sklearn"):
    pytest.importorskip(package)

from bu2td import errors
from bu2td.evaluate import Settings, evaluate, load_data
from bu2td.evaluate.data.sets import Data, first_images
from bu2td.evaluate.explain.objects import choose_objects, is_drawn
from bu2td.evaluate.explain.stage import STAGE, collect, plan
from bu2td.evaluate.folder import open_run
from bu2td.evaluate.parts import complete
from bu2td.evaluate.schema import LAYERS, NORMALISATIONS
from bu2td.evaluate.stages import Answer, Context
from bu2td.evaluate.train.engine import start

SETTINGS = Settings(
    model="bu2td:lenet_fc",
    data="digits-padded",
    input_size=(1, 16, 16),
    arrangements=("bu", "td"),
    repeats=2,
    epochs=2,
    explain_samples=60,
    device="cpu",
    measure_memory=False,
)
TABLES = ("localisation.csv", "explained_images.csv", "faithfulness.csv")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four small networks, trained and explained on 60 images."""
    place = tmp_path_factory.mktemp("explained") / "run"
    evaluate("train", SETTINGS, place)
    evaluate("explain", {}, place)
    return place


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def number(word: str) -> float:
    return float(word) if word else float("nan")


def tables(path: Path) -> dict[str, str]:
    return {name: (path / name).read_text() for name in TABLES}


def files(path: Path) -> dict[str, bytes]:
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in (path / "parts").rglob("*.npz")}


def context_of(path: Path, data: Data | None = None, **changes: Any) -> Context:
    opened = open_run(path)
    opened.settings = dataclasses.replace(opened.settings, **changes)
    data = data or load_data(opened.settings.data, input_size=(1, 16, 16))
    return Context(opened, data, start(opened.settings))


def explained(context: Context, shard: tuple[int, int] = (0, 1)) -> Answer:
    complete(plan(context), context.run.parts(STAGE.name), shard=shard, progress=False)
    return collect(context)


def by_network(path: Path) -> Iterator[tuple[str, int, str, str, list[dict[str, str]]]]:
    images = rows(path / "explained_images.csv")
    for arrangement in ("bu", "td"):
        for repeat in (0, 1):
            for layer in LAYERS:
                for kind in NORMALISATIONS:
                    key = [arrangement, str(repeat), layer, kind]
                    own = [r for r in images if [r[n] for n in list(r)[:4]] == key]
                    yield arrangement, repeat, layer, kind, own


# --- what is compared ---------------------------------------------------------------------------------


def test_networks_are_compared_on_what_all_classify_correctly(trained: Path) -> None:
    context = context_of(trained)
    positions, images, labels = context.sample(60)
    shared = {}
    for repeat in (0, 1):
        right = torch.ones(60, dtype=torch.bool)
        for arrangement in ("bu", "td"):
            right &= context.classifier(arrangement, repeat)(images).argmax(1) == labels
        shared[repeat] = {positions[i] for i in right.nonzero()[:, 0].tolist()}
    assert all(5 < len(own) < 60 for own in shared.values())
    for _, repeat, _, _, own in by_network(trained):
        assert {int(r["image"]) for r in own} == shared[repeat]
        assert len(own) == len(shared[repeat])


def test_tables_are_means_of_their_images(trained: Path) -> None:
    local, faithful = (
        {tuple(r[n] for n in list(r)[:4]): r for r in rows(trained / f"{name}.csv")}
        for name in ("localisation", "faithfulness")
    )
    assert len(local) == len(faithful) == 2 * 2 * 2 * 2
    for *key, own in by_network(trained):
        one, other = (table[tuple(map(str, key))] for table in (local, faithful))
        told = [r for r in own if r["empty"] == "0"]
        counts = [one["samples"], one["empty"], one["dropped"], other["samples"], other["empty"], other["pointed"]]
        empty = len(own) - len(told)
        assert list(map(int, counts)) == [len(own), empty, 0, len(own), empty, len(told)]
        assert int(one["without_prediction"]) == sum(float(r["tp"]) + float(r["fp"]) == 0 for r in own)
        for row, names in ((one, ("tp", "fp", "fn", "recall")), (other, ("pointing", "deletion", "insertion"))):
            for name in names:
                assert float(row[name]) == pytest.approx(np.mean([float(r[name]) for r in told]), rel=1e-4)
        precisions = [float(r["precision"]) for r in own if r["precision"]]
        assert number(one["precision"]) == pytest.approx(np.mean(precisions), rel=1e-4)


# --- captum on the other side -------------------------------------------------------------------------


@pytest.mark.parametrize("layer", LAYERS)
def test_precision_and_recall_from_captum_on_a_checkpoint(trained: Path, layer: str) -> None:
    """The saved bottom-up network as a plain module: captum's maps, resized, rectified, cut, counted by loops."""
    pytest.importorskip("captum")
    context = context_of(trained)
    model: Any = context.classifier("bu", 1)
    at: nn.Module = {"last-convolution": model.network.classifier, "last-level": model.network.unit3}[layer]
    found = {kind: own for a, k, la, kind, own in by_network(trained) if (a, k, la) == ("bu", 1, layer)}
    for place in range(len(found["plain"])):
        image, label = context.data.test[int(found["plain"][place]["image"])]
        raw = captum_map(model, at, image[None], label)
        spread = (raw - raw.mean()) / (raw - raw.mean()).norm()
        for kind, values in (("plain", raw.clamp(min=0)), ("centred", spread)):
            heat = F.interpolate(values, (16, 16), mode="bilinear", align_corners=False)[0, 0].clamp(min=0)
            row = found[kind][place]
            assert row["empty"] == str(int(heat.max() == 0))
            if heat.max() == 0:
                assert row["precision"] == row["recall"] == row["pointing"] == row["deletion"] == ""
                continue
            heat = heat / heat.max()
            tp = fp = fn = 0
            for y in range(16):
                for x in range(16):
                    hot, there = bool(heat[y, x] > 0.2), bool(image[0, y, x] > 0.2)
                    tp, fp, fn = tp + (hot and there), fp + (hot and not there), fn + (there and not hot)
            assert [float(row[n]) for n in ("tp", "fp", "fn")] == pytest.approx([tp, fp, fn], abs=1)  # at the cut
            assert float(row["precision"]) == pytest.approx(tp / (tp + fp), abs=0.02)
            assert float(row["recall"]) == pytest.approx(tp / (tp + fn), abs=0.02)
            hottest = (heat >= heat.max() * (1 - 1e-6)).nonzero().tolist()
            if len(hottest) == 1:
                [[y, x]] = hottest
                assert float(row["pointing"]) == float(image[0, y, x] > 0.2)


def captum_map(model: nn.Module, layer: nn.Module, image: Tensor, label: int) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from captum.attr import LayerGradCam

        return LayerGradCam(model, layer).attribute(image, label, relu_attributions=False).detach()


# --- growing ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_more_images_add_to_what_is_there(run: Path) -> None:
    before, old = files(run), {tuple(list(r.values())[:5]): r for r in rows(run / "explained_images.csv")}
    evaluate("explain", {"explain_samples": 110}, run)
    after, new = files(run), {tuple(list(r.values())[:5]): r for r in rows(run / "explained_images.csv")}
    assert all(after[name] == content for name, content in before.items())
    assert len(new) > len(old)
    for key, row in old.items():
        for name, word in list(row.items())[5:]:
            assert number(new[key][name]) == pytest.approx(number(word), rel=1e-3, abs=1e-4, nan_ok=True)
    keys = {n.rpartition("/")[2] for n in after}
    assert keys == {"000000-000050.npz", "000050-000060.npz", "000050-000100.npz", "000100-000110.npz"}


@pytest.mark.slow
def test_another_arrangement_adds_and_the_comparison_follows(run: Path) -> None:
    both = tables(run), files(run)
    shutil.rmtree(run / "parts")
    evaluate("explain", {"explain_arrangements": ("bu",)}, run)
    alone = tables(run), files(run)
    compared = {(r["repeat"], r["image"]) for r in rows(run / "explained_images.csv")}
    evaluate("explain", {"explain_arrangements": ("bu", "td")}, run)
    assert tables(run) == both[0]
    assert {n.split("/")[2] for n in set(files(run)) - set(alone[1])} == {"td-0", "td-1"}
    assert all(files(run)[name] == content for name, content in alone[1].items())
    assert {(r["repeat"], r["image"]) for r in rows(run / "explained_images.csv")} < compared
    evaluate("explain", {"explain_arrangements": ("bu",)}, run)  # both are there, one is asked for
    assert tables(run) == alone[0]
    assert set(files(run)) == set(both[1])


@pytest.mark.slow
def test_shares_of_two_processes_are_the_whole(run: Path) -> None:
    old = tables(run)
    shutil.rmtree(run / "parts")
    explained(context_of(run), (0, 2))
    assert 0 < len(files(run)) < 8
    explained(context_of(run), (1, 2))
    assert tables(run) == old


def test_a_damaged_part_is_made_again(run: Path) -> None:
    old, part = tables(run), next((run / "parts").rglob("*.npz"))
    part.write_bytes(part.read_bytes()[:1000])
    evaluate("explain", {}, run)
    assert tables(run) == old


def test_other_settings_are_another_result(run: Path) -> None:
    with pytest.raises(errors.RunFolderError, match="differs in threshold"):
        evaluate("explain", {"threshold": 0.4}, run)


def test_a_repeat_without_a_shared_image_is_told(run: Path) -> None:
    for part in (run / "parts" / "explain" / "td-1").iterdir():
        with np.load(part) as archive:
            arrays = dict(archive)
        np.savez(part, **{**arrays, "right": np.zeros_like(arrays["right"])})
    answer = collect(context_of(run))
    assert list(answer)[1:] == ["no image that all networks of repeat 1 classify correctly"]
    assert {r["repeat"] for r in rows(run / "localisation.csv")} == {"0"}


# --- objects ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_objects_as_asked_for_are_on_record(run: Path) -> None:
    assert json.loads((run / "run.json").read_text())["objects"]["kind"] == "bright"
    shutil.rmtree(run / "parts")
    answer = explained(context_of(run, objects="none"))
    assert "without localisation and pointing game: 'none' was asked for" in next(iter(answer))
    assert not (run / "localisation.csv").exists()
    assert {r["pointing"] for r in rows(run / "faithfulness.csv")} == {""}
    assert all(0 < float(r["deletion"]) < 1 for r in rows(run / "faithfulness.csv"))
    assert json.loads((run / "run.json").read_text())["objects"]["kind"] == "none"


@pytest.mark.slow
def test_boxes_of_the_data_are_objects(run: Path) -> None:
    """MaxBoxAccV2 from the images' own rows, and recall from the pixels inside."""
    shutil.rmtree(run / "parts")
    data = load_data("digits-padded", input_size=(1, 16, 16))
    boxes = []
    for image, _ in (data.test[i] for i in range(len(data.test))):
        there = (image[0] > 0.2).nonzero()
        (y0, x0), (y1, x1) = there.amin(0).tolist(), there.amax(0).tolist()
        boxes.append([(float(x0), float(y0), x1 + 1.0, y1 + 1.0)])
    context = context_of(run, dataclasses.replace(data, boxes=tuple(boxes)))
    assert "the data have boxes" in next(iter(explained(context)))
    table = {tuple(r[n] for n in list(r)[:4]): r for r in rows(run / "boxes.csv")}
    for *key, own in by_network(run):
        row = table[tuple(map(str, key))]
        told = [float(r["max_box_acc_v2"]) for r in own if r["empty"] == "0"]
        assert float(row["max_box_acc_v2"]) == pytest.approx(np.mean(told), rel=1e-4)
        assert (int(row["samples"]), int(row["empty"])) == (len(own), len(own) - len(told))
        for r in own:
            [(x0, y0, x1, y1)] = boxes[int(r["image"])]
            assert float(r["tp"]) + float(r["fn"]) == (x1 - x0) * (y1 - y0)


def drawn(count: int = 40) -> Tensor:
    images = torch.zeros(count, 1, 12, 12)
    images[:, :, 3:9, 4:8] = torch.rand(count, 1, 6, 4)
    return images


def test_what_is_drawn_in_grey_on_black() -> None:
    torch.manual_seed(0)
    images = drawn()
    assert is_drawn(images)
    assert is_drawn(images.expand(-1, 3, -1, -1))  # grey in three channels
    touching = images.clone()
    touching[:, :, 0, 2:9] = 1
    assert is_drawn(touching)
    few = images.clone()
    few[:4] = torch.rand(4, 1, 12, 12) + 0.11
    assert is_drawn(few)
    few[4] = 0.5
    assert not is_drawn(few)
    coloured = images.repeat(1, 3, 1, 1)
    coloured[0, 1, 5, 5] += 0.1
    for other in (coloured, 1 - images, torch.rand(40, 1, 12, 12), torch.rand(40, 3, 12, 12)):
        assert not is_drawn(other)


def test_the_choice_of_objects() -> None:
    grey, photos = drawn(), torch.rand(10, 3, 8, 8)
    assert [choose_objects("auto", images, False).kind for images in (grey, photos)] == ["bright", "none"]
    assert [choose_objects("auto", images, True).kind for images in (grey, photos)] == ["boxes", "boxes"]
    assert "not drawn in grey on black" in choose_objects("auto", photos, False).why
    assert choose_objects("bright", photos, True).kind == "bright"
    with pytest.raises(errors.DataError, match=r"boxes\.csv"):
        choose_objects("boxes", grey, False)
    for name in ("digits", "digits-padded"):
        assert is_drawn(first_images(load_data(name).test, 256)[0])


# --- heat maps to look at -----------------------------------------------------------------------------


def test_heat_maps_of_the_first_training(trained: Path) -> None:
    from bu2td.evaluate.explain.gradcam import grad_cam

    context = context_of(trained)
    with np.load(trained / "explanations.npz") as archive:
        arrays = dict(archive)
    images, labels = torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"])
    shared = {int(r["image"]) for *_, own in by_network(trained) for r in own if r["repeat"] == "0"}
    known = [context.data.test[i] for i in context.drawn(50) if i in shared]
    assert images.shape == (min(10, len(known)), 1, 16, 16)
    assert all(any(torch.equal(image, one) for one, _ in known) for image in images)
    classes = len({label for _, label in known})
    assert len(set(labels[:classes].tolist())) == min(classes, len(labels))  # different classes first
    for arrangement in ("bu", "td"):
        levels = arrays[f"{arrangement}_levels"].tolist()
        order = ["r1", "r2", "r4"] if arrangement == "bu" else ["r4", "r2", "r1"]
        assert levels == [*order, "last-convolution"]
        expected = grad_cam(context.classifier(arrangement, 0), images, labels, levels=levels)
        for kind in NORMALISATIONS:
            np.testing.assert_allclose(arrays[f"{arrangement}_{kind}"], expected.resized(kind), atol=1e-3)
