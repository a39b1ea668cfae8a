"""Frequencies: the basis against the Fourier transform, errors that formulas foretell, spectra, filters."""

import math
import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bu2td.errors import DataError, ExampleInputError, ModelOutputError, OptionError
from bu2td.evaluate.robustness.frequency import (
    _unclipped,
    bands_of,
    basis,
    basis_errors,
    filter_radii,
    filtered_right,
    frequencies,
    in_band,
    keep_frequencies,
    mirrored,
    norm_for,
    radial_power,
    radii_of,
    spectrum_radii,
    white_power,
)

SIZES = [(8, 8), (7, 7), (6, 9), (9, 4), (1, 6), (2, 2)]


def some_images(count: int = 5, channels: int = 1, height: int = 8, width: int = 8) -> Tensor:
    return torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(1))


class Linear(nn.Module):
    """Two classes: the sign of <w, x> + b."""

    def __init__(self, weight: Tensor, bias: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        answer = (x * self.weight).sum((1, 2, 3)) + self.bias
        return torch.stack([torch.zeros_like(answer), answer], 1)


# --- the basis ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_half_of_the_plane_stands_for_all_of_it(size: tuple[int, int]) -> None:
    chosen = [tuple(one) for one in frequencies(*size).tolist()]
    assert chosen[0] == (0, 0)
    every = set(chosen) | {mirrored(one, *size) for one in chosen}
    height, width = size
    assert every == {(k, m) for k in range(-(height // 2), (height + 1) // 2)
                     for m in range(-(width // 2), (width + 1) // 2)}  # fmt: skip
    alone = sum(mirrored(one, *size) == one for one in chosen)
    assert 2 * len(chosen) - alone == height * width  # none but those that mirror themselves stands twice
    assert all(mirrored(mirrored(one, *size), *size) == one for one in every)


@pytest.mark.parametrize(("size", "step"), [((8, 8), 2), ((9, 12), 3), ((10, 10), 4), ((128, 128), 8)])
def test_steps(size: tuple[int, int], step: int) -> None:
    fine = {tuple(one) for one in frequencies(*size).tolist()}
    coarse = {tuple(one) for one in frequencies(*size, step).tolist()}
    assert coarse == {one for one in fine if one[0] % step == 0 and one[1] % step == 0}
    assert all(part % step == 0 for one in coarse for part in mirrored(one, *size))  # a regular grid, mirrored too


@pytest.mark.parametrize("size", SIZES)
def test_the_basis_is_orthonormal_and_real_and_of_one_frequency(size: tuple[int, int]) -> None:
    chosen = frequencies(*size)
    waves = basis(chosen, *size)
    assert waves.dtype == torch.float64
    flat = waves.flatten(1)
    torch.testing.assert_close(flat @ flat.T, torch.eye(len(chosen), dtype=torch.float64))
    for (k, m), wave in zip(chosen.tolist(), np.fft.fft2(waves.numpy()), strict=True):
        places = {(k % size[0], m % size[1]), (-k % size[0], -m % size[1])}
        assert {(i, j) for i, j in np.argwhere(np.abs(wave) > 1e-9)} == places


@pytest.mark.parametrize("size", SIZES)
def test_the_basis_is_an_inverse_transform(size: tuple[int, int]) -> None:
    """The image whose transform is sqrt(H W) (1 - i) / 2 at one place and its conjugate at the mirrored one."""
    chosen = frequencies(*size)
    for one, wave in zip(chosen.tolist(), basis(chosen, *size).numpy(), strict=True):
        transform = np.zeros(size, complex)
        for (k, m), value in ((one, 0.5 - 0.5j), (mirrored(one, *size), 0.5 + 0.5j)):
            transform[k % size[0], m % size[1]] += value * math.sqrt(math.prod(size))
        np.testing.assert_allclose(np.fft.ifft2(transform), wave, atol=1e-12)


@pytest.mark.parametrize("size", SIZES)
def test_a_shift_to_either_side_is_a_factor(size: tuple[int, int]) -> None:
    """U(x + 1) + U(x - 1) = 2 cos(2 pi m / W) U(x): an eigenfunction of every symmetric filter."""
    chosen = frequencies(*size)
    waves = basis(chosen, *size)
    for axis in (0, 1):
        both = waves.roll(1, axis + 1) + waves.roll(-1, axis + 1)
        factor = 2 * np.cos(2 * np.pi * chosen[:, axis] / size[axis])
        torch.testing.assert_close(both, torch.from_numpy(factor)[:, None, None] * waves)


def test_radii_and_bands() -> None:
    chosen = frequencies(32, 32)
    radii = radii_of(chosen, 32, 32)
    assert radii[[tuple(one) == (3, 4) for one in chosen.tolist()]].item() == pytest.approx(5)
    bands = bands_of(32, 32)
    assert bands == [(0, 1), (1, 2), (2, 4), (4, 8), (8, 16), (16, 32)]
    counts = [int(in_band(radii, *band).sum()) for band in bands]
    assert sum(counts) == len(chosen) == 514
    assert counts[:2] == [1, 4]  # the mean; (0, 1), (1, -1), (1, 0), (1, 1)
    assert bands_of(28, 28) == [(0, 1), (1, 1.75), (1.75, 3.5), (3.5, 7), (7, 14), (14, 28)]
    for size in SIZES:
        radii = radii_of(frequencies(*size), *size)
        found = np.sum([in_band(radii, *band) for band in bands_of(*size)], axis=0)
        assert found.tolist() == [1] * len(radii)


def test_the_norm_keeps_the_contrast() -> None:
    assert norm_for(5, 32, 32) == 5
    for size in ((32, 32), (128, 64)):
        wave = norm_for(5, *size) * basis(np.array([[2, 1]]), *size)
        assert float(wave.square().mean().sqrt()) == pytest.approx(5 / 32)


# --- sensitivity --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(8, 8), (7, 9)])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_linear_model_errs_as_a_formula_says(size: tuple[int, int], channels: int) -> None:
    """A margin m = <w, x> + b falls by v |<w, U>| at most; the sign decides whether it does.

    For three channels the signs make eight sums, of which the image meets one.
    """
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(channels, *size, generator=generator)
    images, norm = some_images(60, channels, *size), 0.7
    model = Linear(weight, -float((images * weight).sum((1, 2, 3)).mean()))
    chosen = frequencies(*size)
    waves = basis(chosen, *size).numpy()
    margin = model(images)[:, 1].detach().double().numpy()
    labels = torch.from_numpy(margin > 0).long()
    found = basis_errors(model, images, labels, chosen, norm, seed=2)
    assert found.shape == (len(chosen), 60)
    reach = norm * np.abs(np.einsum("chw,fhw->fc", weight.numpy(), waves))  # (F, C)
    signs = np.array(np.meshgrid(*[[-1, 1]] * channels)).reshape(channels, -1)
    shifts = reach @ signs  # (F, 2^C), each as likely as the others
    crosses = np.sign(margin[None, :, None] + shifts[:, None]) != np.sign(margin[None, :, None])  # (F, N, 2^C)
    assert not found[~crosses.any(2)].any()  # too far away for any sign
    assert found[crosses.all(2)].all()
    expected, spread = crosses.mean(2).sum(), math.sqrt((crosses.mean(2) * (1 - crosses.mean(2))).sum())
    assert 0.01 < crosses.mean() < 0.5
    assert abs(found.sum() - expected) < 4 * spread


def test_a_model_of_the_mean_is_blind_to_all_but_zero() -> None:
    images = some_images(40, 1, 8, 6)
    model = Linear(torch.full((1, 8, 6), 1 / 48), -0.5)
    labels = (model(images)[:, 1] > 0).long()
    chosen = frequencies(8, 6)
    errors = basis_errors(model, images, labels, chosen, 3.0).mean(1)
    assert errors[0] > 0.3
    assert not errors[1:].any()


def test_a_model_of_one_wave_is_blind_to_all_others() -> None:
    chosen = frequencies(8, 8)
    place = [tuple(one) for one in chosen.tolist()].index((3, -2))
    images = some_images(20)
    model = Linear(basis(chosen[[place]], 8, 8).float())
    labels = (model(images)[:, 1] > 0).long()
    errors = basis_errors(model, images, labels, chosen, 100.0).mean(1)
    assert 0.2 < errors[place] < 0.8  # one of two signs turns the class
    assert not np.delete(errors, place).any()


@pytest.mark.parametrize("channels", [1, 3])
def test_perturbations_have_the_norm_and_are_not_clipped(channels: int) -> None:
    seen = []

    class Recorder(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return torch.zeros(len(x), 2)

    images, chosen = torch.zeros(30, channels, 6, 5), frequencies(6, 5)
    basis_errors(Recorder(), images, torch.zeros(30).long(), chosen, 2.5, batch_size=7)
    change = torch.cat(seen).reshape(len(chosen), 30, channels, 6, 5)
    torch.testing.assert_close(change.flatten(3).norm(dim=3), torch.full((len(chosen), 30, channels), 2.5))
    assert change.min() < 0
    waves = 2.5 * basis(chosen, 6, 5).float()[:, None, None]
    sign = (change * waves).sum((3, 4), keepdim=True).sign()
    torch.testing.assert_close(change, sign * waves)
    assert 0.4 < float((sign > 0).float().mean()) < 0.6
    if channels == 3:  # channels by themselves
        assert not bool((sign == sign[:, :, :1]).all())


def test_batches_shares_and_order_change_nothing() -> None:
    images = some_images(9, 2, 6, 5)
    model = Linear(torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0)))
    labels = (model(images)[:, 1] > 0.2).long()
    chosen = frequencies(6, 5)
    whole = basis_errors(model, images, labels, chosen, 1.0, seed=4)
    assert 0 < whole.mean() < 1
    for size in (1, 7, 1000):
        assert np.array_equal(whole, basis_errors(model, images, labels, chosen, 1.0, seed=4, batch_size=size))
    parts = [basis_errors(model, images, labels, chosen[i::3], 1.0, seed=4) for i in range(3)]
    assert np.array_equal(whole, np.stack([parts[i % 3][i // 3] for i in range(len(chosen))]))
    order = torch.tensor([3, 8, 0])
    some = basis_errors(model, images[order], labels[order], chosen, 1.0, seed=4, numbers=order.tolist())
    assert np.array_equal(whole[:, order], some)
    assert not np.array_equal(whole, basis_errors(model, images, labels, chosen, 1.0, seed=5))


def test_the_caller_is_left_alone() -> None:
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    model = Linear(torch.ones(1, 8, 8)).train()
    images = some_images()
    before = images.clone()
    basis_errors(model, images, torch.ones(5).long(), frequencies(8, 8), 1.0)
    filtered_right(model, images, torch.ones(5).long(), "low", [2])
    assert model.training
    assert model.weight.requires_grad
    assert torch.equal(images, before)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (np.random.get_state()[1].tolist(), random.getstate())


# --- spectra ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "frequency", "radius"), [
    ((16, 16), (3, 4), 5), ((16, 16), (0, 0), 0), ((15, 15), (0, -7), 7), ((8, 16), (2, 3), 5),
    ((16, 16), (-8, -8), 11),
])  # fmt: skip
def test_a_wave_lies_at_its_radius(size: tuple[int, int], frequency: tuple[int, int], radius: int) -> None:
    wave = basis(np.array([frequency]), *size).numpy()[:, None]
    power = radial_power(np.concatenate([wave, -3 * wave], 1))
    assert power.shape == (1, spectrum_radii(*size).max() + 1)
    assert power[0].argmax() == radius  # (8, 16): (2 / 8, 3 / 16) of 16 is (4, 3)
    assert power[0, radius] == pytest.approx(1)


def test_shares_of_power_are_those_of_the_squared_norm() -> None:
    """Parseval: of a sum of waves each has its own square."""
    chosen = np.array([[0, 1], [2, 0], [3, 3]])  # radii 1, 2, 4
    waves = basis(chosen, 9, 9).numpy()
    change = (np.array([1.0, 2.0, 3.0])[:, None, None] * waves).sum(0)[None, None]
    assert float((change**2).sum()) == pytest.approx(14)
    power = radial_power(change)[0]
    assert power[[1, 2, 4]].tolist() == pytest.approx([1 / 14, 4 / 14, 9 / 14])
    many = np.random.default_rng(0).standard_normal((2000, 1, 8, 6))
    shares = radial_power(many)
    np.testing.assert_allclose(shares.sum(1), 1)
    np.testing.assert_allclose(shares.mean(0), white_power(8, 6), atol=0.005)
    assert white_power(8, 6).sum() == pytest.approx(1)


# --- filters ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [1, 3])
def test_low_and_high_add_up(size: tuple[int, int], channels: int) -> None:
    images = some_images(3, channels, *size)
    mean = images.mean((2, 3), keepdim=True)
    for radius in filter_radii(*size):
        low, high = (_unclipped(images, kept, radius) for kept in ("low", "high"))
        torch.testing.assert_close(low + high, images + mean)
        torch.testing.assert_close(low.mean((2, 3), keepdim=True), mean)
        torch.testing.assert_close(high.mean((2, 3), keepdim=True), mean)
        for kept in ("low", "high"):
            found = keep_frequencies(images, kept, radius)
            assert 0 <= found.min() <= found.max() <= 1
    last = filter_radii(*size)[-1]
    torch.testing.assert_close(keep_frequencies(images, "low", 0), mean.expand_as(images))
    torch.testing.assert_close(keep_frequencies(images, "high", 0), images)
    torch.testing.assert_close(keep_frequencies(images, "low", last), images)
    torch.testing.assert_close(keep_frequencies(images, "high", last), mean.expand_as(images))


def test_a_filter_keeps_waves_up_to_its_radius() -> None:
    chosen = frequencies(10, 10)
    radii = radii_of(chosen, 10, 10)
    images = (0.5 + 0.2 * basis(chosen, 10, 10)).float()[:, None]
    for radius in (1, 2.5, 5):
        low, high = keep_frequencies(images, "low", radius), keep_frequencies(images, "high", radius)
        kept = radii <= radius
        torch.testing.assert_close(low[kept], images[kept])
        torch.testing.assert_close(low[~kept], torch.full_like(low[~kept], 0.5))
        torch.testing.assert_close(high[~kept], images[~kept])


def test_accuracy_of_filtered_images() -> None:
    wave = basis(np.array([[2, 1]]), 8, 8).float()  # its radius is sqrt(5)
    model = Linear(wave, -0.1)
    images = torch.cat([0.5 + wave[None], 0.5 - wave[None]])
    labels = torch.tensor([1, 0])
    low = filtered_right(model, images, labels, "low", [0, 2.2, 2.3, 9], batch_size=1)
    assert low.tolist() == [[False, True], [False, True], [True, True], [True, True]]
    high = filtered_right(model, images, labels, "high", [0, 2.2, 2.3, 9])
    assert high.tolist() == [[True, True], [True, True], [False, True], [False, True]]


def test_radii_of_filters() -> None:
    assert filter_radii(32, 32) == [0, 1, 2, 3, 4, 6, 8, 11, 16, 23]


# --- what is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"norm": -1.0}, OptionError, "norm must be"),
        ({"norm": math.nan}, OptionError, "norm must be"),
        ({"seed": -1}, OptionError, "seed"),
        ({"chosen": [(0, 1)]}, OptionError, "frequencies must be"),
        ({"chosen": np.zeros((3, 2))}, OptionError, "frequencies must be"),
        ({"batch_size": 0}, OptionError, "batch_size"),
        ({"labels": torch.zeros(4).long()}, OptionError, "labels"),
        ({"labels": torch.full((5,), 2)}, DataError, "0 to 1"),
        ({"images": some_images() + 1}, ExampleInputError, r"\[0, 1\]"),
        ({"model": nn.Identity()}, ModelOutputError, "logits"),
    ],
)
def test_bad_input(change: dict[str, object], error: type[Exception], message: str) -> None:
    given = {"model": Linear(torch.ones(1, 8, 8)), "images": some_images(), "labels": torch.zeros(5).long(),
             "chosen": frequencies(8, 8), "norm": 1.0} | change  # fmt: skip
    with pytest.raises(error, match=message):
        basis_errors(**given)  # type: ignore[arg-type]


def test_bad_words() -> None:
    with pytest.raises(OptionError, match=r"every 40th.*at most 16"):
        frequencies(32, 32, 40)
    with pytest.raises(OptionError, match="low or high"):
        keep_frequencies(some_images(), "middle", 2)
