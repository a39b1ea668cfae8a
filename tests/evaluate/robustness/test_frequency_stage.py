"""The stage of frequencies: tables of a run, how it grows, what it shares out."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

for package in ("foolbox", "lightning_fabric", "yaml", "sklearn"):
    pytest.importorskip(package)

from bu2td.errors import DataError, OptionError
from bu2td.evaluate import evaluate
from bu2td.evaluate.command import main
from bu2td.evaluate.data.sets import load_data
from bu2td.evaluate.folder import open_run
from bu2td.evaluate.parts import complete, missing
from bu2td.evaluate.report.read import read_run
from bu2td.evaluate.robustness import frequency_stage
from bu2td.evaluate.robustness.frequency import basis_errors, frequencies, keep_frequencies
from bu2td.evaluate.schema import Band, BandImage, Filtered, FourierCell, Spectrum
from bu2td.evaluate.stages import Context
from bu2td.evaluate.train.engine import start

STEP = {"frequency_step": 4}  # 16 x 16: -8, -4, 0, 4
TABLES = (FourierCell, Band, BandImage, Filtered)


def _tables(run: Path) -> dict[str, pd.DataFrame]:
    return {name: rows for name, rows in read_run(run).tables.items() if len(rows)}


def _context(run: Path, **changes: Any) -> Context:
    folder = open_run(run).with_settings(**changes)
    data = load_data("digits", input_size=(1, 16, 16))
    return Context(folder, data, start(folder.settings))


def test_tables_are_what_the_functions_say(trained: Path) -> None:
    answer = evaluate("frequency", STEP, trained)
    tables = _tables(trained)
    context = _context(trained, **STEP)
    positions, images, labels = context.sample(6)
    chosen = frequencies(16, 16, 4)
    assert len(tables["fourier"]) == 2 * 2 * 16
    assert set(tables["fourier"].norm) == {2.5}  # 5 sqrt(16 16) / 32
    for network in context.networks(("bu", "td"), 2):
        model = context.classifier(*network)
        wrong = basis_errors(model, images, labels, chosen, 2.5, numbers=positions)
        own = {n: t[(t.arrangement == network[0]) & (t.repeat == network[1])] for n, t in tables.items()}
        cells = own["fourier"].set_index(["vertical", "horizontal"]).error
        for (k, m), errors in zip(chosen.tolist(), wrong, strict=True):
            assert cells[k, m] == pytest.approx(errors.mean(), abs=1e-5)
            assert cells[k, m] == cells[-k if k > -8 else k, -m if m > -8 else m]
        bands = own["bands"].set_index("low")
        assert bands.index.tolist() == [0, 4, 8]  # 0; 4, 5.7; 8, 8.9, 11.3
        radii = np.hypot(*chosen.T)
        for low, high in bands.high.items():
            there = (radii >= low) & (radii < high)
            assert bands.error[low] == pytest.approx(wrong[there].mean(), abs=1e-5)
            by_image = own["band_images"][own["band_images"].low == low].set_index("image").error
            assert by_image[positions].tolist() == pytest.approx(wrong[there].mean(0).tolist(), abs=1e-5)
            clean = (model(images).argmax(1) != labels).float().numpy()
            assert bands.clean_error[low] == pytest.approx(clean.mean(), abs=1e-5)
            rows = own["band_images"][own["band_images"].low == low].set_index("image")
            assert rows.clean_error[positions].tolist() == clean.tolist()
        kept = own["filtered"].set_index(["kept", "radius"]).accuracy
        for one in ("low", "high"):
            right = model(keep_frequencies(images, one, 3)).argmax(1) == labels
            assert kept[one, 3] == pytest.approx(float(right.float().mean()), abs=1e-5)
        assert kept["high", 0] == kept["low", 12]
    (title,) = answer["tables"]
    assert "norm 2.5" in title
    assert [row["radius"] for row in answer["tables"][title]] == ["0 to 1", "4 to 8", "8 to 16"]
    assert "spectra" not in tables


def test_spectra_of_what_the_attacks_found(trained: Path) -> None:
    evaluate("robustness", {}, trained)
    evaluate("frequency", STEP, trained)
    tables = _tables(trained)
    spectra, attacked = tables["spectra"], tables["robustness"]
    single = attacked[~attacked.attack.str.startswith("strongest")]
    networks = {tuple(one) for one in single[["arrangement", "repeat", "attack"]].to_numpy()}
    assert {tuple(one) for one in spectra[["arrangement", "repeat", "attack"]].to_numpy()} == networks
    sums = spectra.groupby(["arrangement", "repeat", "attack"]).power.sum()
    np.testing.assert_allclose(sums, 1, atol=1e-4)
    distances = tables["distances"]
    for key, own in spectra.groupby(["arrangement", "repeat", "attack"]):
        same = (distances[["arrangement", "repeat", "attack"]] == list(key)).all(axis=1)
        found = distances[same].distance
        assert set(own.samples) == {int(((found > 0) & np.isfinite(found)).sum())}
    # less contrast is the image itself times a number, with another mean
    context = _context(trained)
    part = next((context.run.parts("robustness") / "bu-0").glob("contrast-reduction-000000*"))
    with np.load(part) as arrays:
        images = torch.stack([context.data.test[int(p)][0] for p in arrays["positions"]])
        there = arrays["clean"] & np.isfinite(arrays["distance"])
        change = arrays["images"] - images.numpy()
    power = np.abs(np.fft.fft2(change[there])) ** 2
    assert power[..., 0, 0].sum() / power.sum() > 0.2
    row = spectra[(spectra.attack == "contrast-reduction") & (spectra.arrangement == "bu") & (spectra.radius == 0)]
    assert float(row.power.iloc[0]) > 0.2


def test_growing_keeps_what_is_there(trained: Path) -> None:
    evaluate("frequency", STEP, trained)
    parts = trained / "parts" / "frequency"
    before = {path: path.stat().st_mtime_ns for path in parts.glob("*/*.npz")}
    first = _tables(trained)
    evaluate("frequency", {**STEP, "frequency_samples": 8}, trained)
    more = _tables(trained)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert set(more["fourier"].samples) == set(more["bands"].samples) == set(more["filtered"].samples) == {8}
    keys = ["arrangement", "repeat", "low", "image"]
    both = first["band_images"].merge(more["band_images"], on=keys, suffixes=("", "_more"))
    assert len(both) == len(first["band_images"])
    assert both.error.tolist() == both.error_more.tolist()
    # another norm stands beside it, another step in its place until it is asked for again
    evaluate("frequency", {**STEP, "frequency_norm": 1.0}, trained)
    assert set(_tables(trained)["bands"].norm) == {0.5, 2.5}
    evaluate("frequency", {"frequency_step": 8}, trained)
    assert len(_tables(trained)["fourier"]) == 2 * 2 * 4
    evaluate("frequency", STEP, trained)
    assert len(_tables(trained)["fourier"]) == 2 * 2 * 16 * 2


def test_shards_make_the_same_tables(trained: Path, tmp_path: Path) -> None:
    evaluate("frequency", STEP, trained)
    whole = {table.file: (trained / table.file).read_bytes() for table in TABLES}
    for table in TABLES:
        (trained / table.file).unlink()
    (trained / "parts" / "frequency").rename(tmp_path / "aside")
    context = _context(trained, **STEP)
    parts, folder = frequency_stage.plan(context), context.run.parts("frequency")
    complete(parts, folder, shard=(2, 3), progress=False)
    assert 0 < len(missing(parts, folder)) < len(parts)
    frequency_stage.collect(context)  # what is there
    assert 0 < len(_tables(trained).get("filtered", ())) < whole[Filtered.file].count(b"\n")
    for shard in ((0, 3), (1, 3)):
        complete(parts, folder, shard=shard, progress=False)
    assert not missing(parts, folder)
    frequency_stage.collect(context)
    assert {table.file: (trained / table.file).read_bytes() for table in TABLES} == whole


def test_as_it_is_typed(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--frequency-step", "8", "--frequency-samples", "4", "--frequency-norm", "10"]
    assert main(["frequency", "-o", str(trained), *words]) == 0
    assert "error under basis perturbations of L2 norm 5, by radius in cycles per image" in capsys.readouterr().out
    assert set(_tables(trained)["fourier"].samples) == {4}


def test_what_cannot_be_measured_is_said_before_training(trained: Path, tmp_path: Path) -> None:
    settings = open_run(trained).settings
    for change, error, message in (
        ({"frequency_step": 9}, OptionError, "at most 8"),
        ({"corrupted_data": str(tmp_path / "none")}, DataError, "not a folder"),
    ):
        with pytest.raises(error, match=message):
            evaluate("train", dataclasses.replace(settings, **change), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_step_too_large(trained: Path) -> None:
    with pytest.raises(OptionError, match="at most 8"):
        evaluate("frequency", {"frequency_step": 9}, trained)
    assert not (trained / Spectrum.file).exists()
