"""Which frequencies trained networks are sensitive to: maps, bands, spectra of the attacks, filtered images."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from bu2td.evaluate.means import aggregate
from bu2td.evaluate.parts import Found, Part, load, path_of
from bu2td.evaluate.robustness import frequency as f
from bu2td.evaluate.robustness.gather import cuts, gather, part_name
from bu2td.evaluate.robustness.judged import Judged, Network, by_network, joined
from bu2td.evaluate.schema import ARRANGEMENTS, Band, BandImage, Filtered, FourierCell, Spectrum, write_table
from bu2td.evaluate.stages import Answer, Context, Stage, digest, digest_model
from bu2td.evaluate.train.model import Classifier

#: Frequencies of a part.
BLOCK = 64


def plan(context: Context) -> list[Part]:
    """A part per network, batch of images and block of frequencies, and one for the filters of a batch.

    Raises:
        OptionError: frequency_step leaves no frequency of these images.
    """
    settings = context.settings
    _, height, width = context.data.shape
    chosen = f.frequencies(height, width, settings.frequency_step)
    norm = f.norm_for(settings.frequency_norm, height, width)
    positions, images, labels = context.sample(settings.frequency_samples)
    size, parts = settings.attack_batch_size, []
    for arrangement, repeat in context.networks(settings.attack_arrangements, settings.repeats):
        model = context.classifier(arrangement, repeat)
        weights = digest_model(model)
        for start in range(0, len(positions), size):
            batch = _Batch(
                images[start : start + size], labels[start : start + size], positions[start : start + size]
            )
            mark = {
                "weights": weights,
                "images": digest((batch.images, batch.labels)),
                "positions": batch.positions,
            }
            place = f"{arrangement}-{repeat}/%s-{start:06d}-{start + len(batch.positions):06d}"
            parts.append(Part(place % "filter", mark, partial(_filtered, model, batch)))
            for first in range(0, len(chosen), BLOCK):
                block = chosen[first : first + BLOCK]
                own = {**mark, "seed": settings.seed, "norm": norm, "frequencies": block.tolist()}
                name = place % f"map-{norm:.6g}-{settings.frequency_step}-{first:05d}"
                parts.append(Part(name, own, partial(_perturbed, model, batch, block, norm, settings.seed)))
    return parts


@dataclass(frozen=True)
class _Batch:
    """Images (N, C, H, W), their labels (N,), and their positions among the test images."""

    images: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    positions: list[int] = field(repr=False)


def _perturbed(model: Classifier, batch: _Batch, chosen: np.ndarray, norm: float, seed: int) -> Found:
    wrong = f.basis_errors(model, batch.images, batch.labels, chosen, norm, numbers=batch.positions, seed=seed)
    return Found(arrays={"frequencies": chosen, "positions": np.array(batch.positions), "wrong": wrong})


def _filtered(model: Classifier, batch: _Batch) -> Found:
    radii = f.filter_radii(*batch.images.shape[2:])
    right = np.stack([f.filtered_right(model, batch.images, batch.labels, kept, radii) for kept in f.KEPT])
    return Found(arrays={"radii": np.array(radii), "positions": np.array(batch.positions), "right": right})


# --- tables -------------------------------------------------------------------------------------------


def _maps(context: Context) -> Iterator[tuple[Network, float, Judged]]:
    """For every network and norm that was measured with the step of the settings: what is wrong."""
    for network, parts in by_network(context, STAGE.name, f"map-*-{context.settings.frequency_step}-*").items():
        by_norm: dict[float, list[Found]] = defaultdict(list)
        for part in parts:
            by_norm[part.mark["norm"]].append(part)
        for norm, own in sorted(by_norm.items()):
            yield (
                network,
                norm,
                joined((p.arrays["frequencies"], p.arrays["positions"], p.arrays["wrong"]) for p in own),
            )


def _cells(network: Network, norm: float, table: Judged, height: int, width: int) -> list[FourierCell]:
    """The map of a network; frequencies that were not measured have the error of those that they mirror."""
    cells = {}
    for index, frequency in enumerate(table.things):
        known = table.known(index)
        one = (int(frequency[0]), int(frequency[1]))
        for k, m in (one, f.mirrored(one, height, width)):
            cells[k, m] = FourierCell(*network, k, m, norm, len(known), float(known.mean()))
    return [cells[place] for place in sorted(cells)]


def _bands(
    network: Network, norm: float, table: Judged, clean: Mapping[int, float], height: int, width: int
) -> tuple[list[Band], list[BandImage]]:
    """Errors by band, each basis perturbation counted once, of the images of which the whole band is there."""
    without = np.array([clean.get(position, math.nan) for position in table.positions])
    radii = f.radii_of(np.array(table.things), height, width)
    bands, images = [], []
    for low, high in f.bands_of(height, width):
        own = table.values[f.in_band(radii, low, high)]
        whole = ~np.isnan(own).any(0)
        if len(own) and whole.any():
            errors = own[:, whole].mean(0)
            means = (float(errors.mean()), float(without[whole].mean()))
            bands.append(Band(*network, low, high, norm, int(whole.sum()), *means))
            places = np.array(table.positions)[whole].tolist()
            images += [
                BandImage(*network, low, high, norm, *one)
                for one in zip(places, errors.tolist(), without[whole].tolist(), strict=True)
            ]
    return bands, images


def _clean_errors(context: Context) -> dict[Network, dict[int, float]]:
    """1 for every image that is wrong as it is, else 0: what a high-pass filter of radius 0 leaves."""
    high = f.KEPT.index("high")
    return {
        network: {
            int(position): 1.0 - float(right)
            for part in parts
            for position, right in zip(part.arrays["positions"], part.arrays["right"][high, 0], strict=True)
        }
        for network, parts in by_network(context, STAGE.name, "filter-*").items()
    }


def _filters(context: Context) -> list[Filtered]:
    rows = []
    for network, parts in by_network(context, STAGE.name, "filter-*").items():
        for index, kept in enumerate(f.KEPT):
            table = joined(
                (p.arrays["radii"][:, None], p.arrays["positions"], p.arrays["right"][index]) for p in parts
            )
            for place, (radius,) in enumerate(table.things):
                known = table.known(place)
                rows.append(Filtered(*network, kept, radius, len(known), float(known.mean())))
    return rows


def _spectra(context: Context) -> list[Spectrum]:
    """The spectra of what the attacks of the robustness experiment found; nothing without it."""
    folder, rows = context.run.parts("robustness"), []
    for network, own in gather(folder).attacks.items():
        for attack, found in own.items():
            powers = [
                power
                for start, end in cuts(folder, network, attack, len(found.positions), len(found.positions))
                for power in _powers(context, load(path_of(part_name(network, attack, start, end), folder)))
            ]
            if powers:
                power, white = np.mean(powers, axis=0), f.white_power(*context.data.shape[1:])
                rows += [
                    Spectrum(*network, attack, radius, len(powers), min(float(p), 1.0), float(w))
                    for radius, (p, w) in enumerate(zip(power, white, strict=True))
                ]
    return rows


def _powers(context: Context, part: Found) -> list[np.ndarray]:
    """The radial power of the perturbation of every image of a batch that has one."""
    arrays = part.arrays
    there = arrays["clean"] & np.isfinite(arrays["distance"]) & (arrays["distance"] > 0)
    if not there.any():
        return []
    clean = torch.stack([context.data.test[int(p)][0] for p in arrays["positions"][there]])
    return list(f.radial_power(arrays["images"][there].astype(np.float64) - clean.double().numpy()))


def collect(context: Context) -> Answer:
    """Tables of all that is there, for the step of the settings."""
    _, height, width = context.data.shape
    cells: list[FourierCell] = []
    bands: list[Band] = []
    images: list[BandImage] = []
    clean = _clean_errors(context)
    for network, norm, table in _maps(context):
        cells += _cells(network, norm, table, height, width)
        more, by_image = _bands(network, norm, table, clean.get(network, {}), height, width)
        bands, images = [*bands, *more], [*images, *by_image]
    path = context.run.path
    write_table(FourierCell, cells, path)
    write_table(Band, bands, path)
    write_table(BandImage, images, path)
    write_table(Spectrum, _spectra(context), path)
    write_table(Filtered, _filters(context), path)
    return _answer(bands)


def _answer(bands: Sequence[Band]) -> Answer:
    found = aggregate([vars(row) for row in bands], ["norm", "low", "high", "arrangement"], "error")
    arrangements = [a for a in ARRANGEMENTS if any(row.arrangement == a for row in bands)]
    answer: Answer = {}
    for norm in sorted({row.norm for row in bands}):
        answer[f"error under basis perturbations of L2 norm {norm:.3g}, by radius in cycles per image"] = [
            {
                "radius": f"{low:g} to {high:g}",
                **{a: f"{s.mean:.2%}" for a in arrangements if (s := found.get((norm, low, high, a)))},
            }
            for low, high in sorted({(row.low, row.high) for row in bands if row.norm == norm})
        ]
    return answer


STAGE = Stage("frequency", (FourierCell, Band, BandImage, Spectrum, Filtered), plan, collect)
