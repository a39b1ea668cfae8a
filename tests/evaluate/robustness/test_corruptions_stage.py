"""The stage of corruptions: what is made here, data sets of them, sequences, and how a run grows."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

for package in ("foolbox", "lightning_fabric", "yaml", "sklearn", "torchvision"):
    pytest.importorskip(package)

from bu2td.errors import DataError
from bu2td.evaluate import evaluate
from bu2td.evaluate.data.sets import load_data
from bu2td.evaluate.folder import open_run
from bu2td.evaluate.report.read import read_run
from bu2td.evaluate.robustness.corruptions import CORRUPTIONS, corrupt
from bu2td.evaluate.robustness.corruptions_stage import corruption_errors, flip_probability
from bu2td.evaluate.schema import Corruption
from bu2td.evaluate.stages import Context
from bu2td.evaluate.train.engine import start

COUNT = 297  # test images of digits


def _tables(run: Path) -> dict[str, pd.DataFrame]:
    return {name: rows for name, rows in read_run(run).tables.items() if len(rows)}


def _context(run: Path) -> Context:
    folder = open_run(run)
    return Context(folder, load_data("digits", input_size=(1, 16, 16)), start(folder.settings))


def _write(place: Path, context: Context) -> None:
    """Digits that become darker, and sequences of which each frame is another digit."""
    place.mkdir()
    test = context.data.test
    images = torch.stack([test[i][0] for i in range(len(test))])[:, 0, :, :, None]
    labels = np.array([test[i][1] for i in range(len(test))])
    dark = torch.cat([images * (1 - severity / 10) for severity in range(1, 6)])
    np.save(place / "dark.npy", (255 * dark).round().numpy().astype(np.uint8))
    np.save(place / "labels.npy", np.tile(labels, 5))
    frames = (255 * images[:24]).round().numpy().astype(np.uint8).reshape(4, 6, 16, 16, 1)
    np.save(place / "turn.npy", frames)
    np.save(place / "shot_noise.npy", frames)


# --- formulas -----------------------------------------------------------------------------------------


def test_flips_by_hand() -> None:
    predicted = np.array([1, 1, 2, 2, 1])
    assert flip_probability(predicted) == 2 / 4  # 1-2 and 2-1
    assert flip_probability(predicted, noise=True) == 2 / 4  # the two that are not 1
    assert flip_probability(np.array([1, 2, 2, 2, 2])) == 1 / 4
    assert flip_probability(np.array([1, 2, 2, 2, 2]), noise=True) == 1


def _rows(arrangement: str, repeat: int, errors: dict[str, list[float]]) -> list[Corruption]:
    return [Corruption(arrangement, repeat, name, 0, 10, 1.0) for name in errors] + [
        Corruption(arrangement, repeat, name, severity, 10, 1 - e)
        for name, own in errors.items()
        for severity, e in enumerate(own, 1)
    ]


def test_mean_corruption_errors_by_hand() -> None:
    rows = _rows("bu", 0, {"fog": [0.1, 0.3], "C-10/fog": [0.5, 0.5], "C-10/snow": [0.2, 0.2]})
    rows += _rows("td", 0, {"fog": [0.2, 0.6], "C-10/fog": [0.5, 1.0], "C-10/snow": [0.1, 0.1]})
    rows += _rows("td", 1, {"fog": [0.2, 0.2]})
    found = {(e.arrangement, e.repeat, e.data): e for e in corruption_errors(rows)}
    assert found["bu", 0, "bu2td"].mce == found["bu", 0, "C-10"].mce == 1
    assert found["td", 0, "bu2td"].mce == pytest.approx(0.8 / 0.4)
    assert found["td", 0, "C-10"].mce == pytest.approx((1.5 / 1.0 + 0.2 / 0.4) / 2)
    assert found["td", 0, "C-10"].error == pytest.approx((0.75 + 0.1) / 2)
    assert found["td", 0, "C-10"].corruptions == 2
    assert math.isnan(found["td", 1, "bu2td"].mce)  # there is no bottom-up network of this repeat
    perfect = _rows("bu", 0, {"fog": [0.0, 0.0]}) + _rows("td", 0, {"fog": [0.1, 0.0]})
    assert all(math.isnan(e.mce) for e in corruption_errors(perfect))


# --- on a run -----------------------------------------------------------------------------------------


def test_tables_of_what_is_made_here(trained: Path) -> None:
    answer = evaluate("corruptions", {}, trained)
    tables, context = _tables(trained), _context(trained)
    rows = tables["corruptions"].set_index(["arrangement", "repeat", "corruption", "severity"]).sort_index()
    assert len(rows) == 2 * 2 * 5 * 6
    positions, images, labels = context.sample(10)
    by_image = tables["corrupted_images"].set_index(["arrangement", "repeat", "corruption", "image"])
    by_image = by_image.sort_index()
    for network in context.networks(("bu", "td"), 2):
        model = context.classifier(*network)
        for name in CORRUPTIONS:
            right = torch.stack([model(corrupt(images, name, s)).argmax(1) == labels for s in range(6)]).numpy()
            assert rows.loc[(*network, name)].accuracy.tolist() == pytest.approx(right.mean(1).tolist())
            own = by_image.loc[(*network, name)]
            assert own.right[positions].tolist() == right[1:].sum(0).tolist()
            assert set(own.severities) == {5}
    errors = tables["corruption_errors"].set_index(["arrangement", "repeat"])
    hit = tables["corruptions"][tables["corruptions"].severity > 0]
    for network, own in hit.groupby(["arrangement", "repeat"]):
        assert errors.error[network] == pytest.approx(1 - own.accuracy.mean(), abs=1e-5)
        if network[0] == "bu":  # without an error under some corruption there is nothing to compare with
            measured = (own.groupby("corruption").accuracy.mean() < 1).all()
            assert errors.mce[network] == 1 if measured else math.isnan(errors.mce[network])
    assert [list(rows[0]) for rows in answer["tables"].values()] == [
        ["corruption", "bu", "td"], ["corruptions of", "bu", "td"]
    ]  # fmt: skip


def test_more_images_are_added(trained: Path) -> None:
    evaluate("corruptions", {"corruption_samples": 100}, trained)
    parts = trained / "parts" / "corruptions"
    before = {path: path.stat().st_mtime_ns for path in parts.glob("*/*.npz")}
    first = _tables(trained)["corrupted_images"]
    evaluate("corruptions", {"corruption_samples": 120}, trained)
    more = _tables(trained)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(list(parts.glob("*/*.npz"))) == 2 * len(before)
    assert set(more["corruptions"].samples) == {120}
    both = first.merge(more["corrupted_images"], on=["arrangement", "repeat", "corruption", "image"])
    assert len(both) == len(first) == 4 * 5 * 100
    assert both.right_x.tolist() == both.right_y.tolist()


def test_a_folder_of_corrupted_images_and_sequences(trained: Path, tmp_path: Path) -> None:
    context = _context(trained)
    _write(tmp_path / "DIGITS-C", context)
    answer = evaluate("corruptions", {"corrupted_data": str(tmp_path / "DIGITS-C")}, trained)
    tables = _tables(trained)
    corruptions = tables["corruptions"]
    own = corruptions[corruptions.corruption == "DIGITS-C/dark"]
    assert sorted(set(own.severity)) == [1, 2, 3, 4, 5]
    assert len(corruptions) == 2 * 2 * (5 * 6 + 5)
    positions, images, labels = context.sample(10)
    model = context.classifier("td", 1)
    for severity in (1, 5):
        dark = (255 * images * (1 - severity / 10)).round() / 255
        expected = float((model(dark).argmax(1) == labels).float().mean())
        row = own[(own.arrangement == "td") & (own.repeat == 1) & (own.severity == severity)]
        assert row.accuracy.item() == pytest.approx(expected)
    images_of = tables["corrupted_images"]
    assert set(images_of[images_of.corruption == "DIGITS-C/dark"].image) == set(positions)
    assert set(tables["corruption_errors"].data) == {"bu2td", "DIGITS-C"}

    flips = tables["flips"].set_index(["arrangement", "repeat", "perturbation"])
    frames = torch.stack([context.data.test[i][0] for i in range(24)])
    predicted = model((255 * frames).round() / 255).argmax(1).reshape(4, 6)
    turn, noise = (flips.loc[("td", 1, f"DIGITS-C/{name}")] for name in ("turn", "shot_noise"))
    assert turn.probability == pytest.approx(float((predicted[:, 1:] != predicted[:, :-1]).float().mean()))
    assert noise.probability == pytest.approx(float((predicted[:, 1:] != predicted[:, :1]).float().mean()))
    assert turn.samples == 4
    baseline = flips.loc[("bu", 1, "DIGITS-C/turn")]
    assert baseline.rate == 1
    assert turn.rate == pytest.approx(turn.probability / baseline.probability, rel=1e-4)
    assert "flip probability" in answer["tables"]


def test_a_folder_that_is_none(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a folder"):
        evaluate("corruptions", {"corrupted_data": str(tmp_path / "nothing")}, trained)
    assert not (trained / "parts" / "corruptions").exists()
