"""Corruptions: what they do to images, against numpy and scipy; accuracy row by row."""

import random

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn

from bu2td.errors import DataError, ExampleInputError, NonFiniteError, OptionError
from bu2td.evaluate.robustness.corruptions import (
    CORRUPTIONS,
    SEVERITIES,
    corrupt,
    corrupted_right,
    corruption_accuracy,
)


def some_images(count: int = 6, channels: int = 1, height: int = 24, width: int = 32) -> Tensor:
    return torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_stronger_and_stronger_and_always_in_bounds(name: str, channels: int) -> None:
    noise = some_images(channels=channels).numpy()
    images = torch.from_numpy(ndimage.gaussian_filter(noise, (0, 0, 2, 2)))
    assert corrupt(images, name, 0) is images
    before = images.clone()
    change = []
    for severity in range(1, 6):
        found = corrupt(images, name, severity)
        assert found.shape == images.shape
        assert found.dtype == images.dtype
        assert found.min() >= 0
        assert found.max() <= 1
        change.append(float((found - images).norm()))
    assert change[0] > 0
    assert len(set(change)) == 5
    if name == "pixelate":  # blocks of half a side fit the pixels better than blocks of 0.6
        change = [max(change[:2]), *change[2:]]
    assert change == sorted(change)
    assert torch.equal(images, before)


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_gaussian_noise(severity: int) -> None:
    images = torch.full((20, 1, 32, 32), 0.5)
    noise = corrupt(images, "gaussian-noise", severity) - images
    sigma = SEVERITIES["gaussian-noise"][severity - 1]
    inside = noise.abs() < 0.499
    assert abs(float(noise.mean())) < 0.01
    # Half of a normal distribution lies within 0.6745 sigma; clipping at 0 and 1 does not move the median.
    assert abs(float(noise.abs().median()) - 0.6745 * sigma) < 0.03 * sigma
    assert (float(inside.float().mean()) < 1) == (severity == 5 or sigma > 0.15)


@pytest.mark.parametrize("severity", [1, 5])
def test_impulse_noise(severity: int) -> None:
    images = torch.full((30, 1, 32, 32), 0.5)
    found = corrupt(images, "impulse-noise", severity)
    share = SEVERITIES["impulse-noise"][severity - 1]
    assert set(found.unique().tolist()) == {0.0, 0.5, 1.0}
    for value in (0.0, 1.0):
        assert abs(float((found == value).float().mean()) - share / 2) < 0.1 * share


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_blur_against_scipy(severity: int) -> None:
    images = some_images(2, 3)
    sigma = SEVERITIES["gaussian-blur"][severity - 1] * 24
    found = corrupt(images, "gaussian-blur", severity)
    for i in range(2):
        for channel in range(3):
            expected = ndimage.gaussian_filter(images[i, channel].numpy(), sigma, mode="reflect")
            np.testing.assert_allclose(found[i, channel].numpy(), expected, atol=1e-5)


def test_blur_scales_with_the_image() -> None:
    small = torch.zeros(1, 1, 32, 32)
    small[..., 16:] = 1
    large = small.repeat_interleave(4, 2).repeat_interleave(4, 3)
    ours = corrupt(large, "gaussian-blur", 5).reshape(1, 1, 32, 4, 32, 4).mean((3, 5))
    assert float((ours - corrupt(small, "gaussian-blur", 5)).abs().max()) < 0.05


@pytest.mark.parametrize("severity", [1, 5])
def test_contrast_keeps_the_mean(severity: int) -> None:
    images = some_images()
    factor = SEVERITIES["contrast"][severity - 1]
    mean = images.mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(corrupt(images, "contrast", severity), mean + factor * (images - mean))


def test_contrast_of_colours_keeps_luminance_of_grey() -> None:
    grey = some_images().expand(-1, 3, -1, -1)
    one = corrupt(grey[:, :1].contiguous(), "contrast", 3)
    torch.testing.assert_close(
        corrupt(grey.contiguous(), "contrast", 3), one.expand(-1, 3, -1, -1), atol=1e-3, rtol=0
    )


def test_pixelate_makes_blocks_of_the_mean() -> None:
    images = some_images(2, 1, 16, 32)
    found = corrupt(images, "pixelate", 5)  # a quarter: blocks of 4 x 4
    expected = images.reshape(2, 1, 4, 4, 8, 4).mean((3, 5)).repeat_interleave(4, 2).repeat_interleave(4, 3)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_an_image_does_not_depend_on_its_batch(name: str) -> None:
    images = some_images(7)
    whole = corrupt(images, name, 3, seed=5)
    parts = torch.cat([corrupt(images[:4], name, 3, 5), corrupt(images[4:], name, 3, 5, start=4)])
    assert torch.equal(whole, parts)
    assert torch.equal(whole, corrupt(images, name, 3, seed=5))
    assert torch.equal(whole, corrupt(images, name, 3, seed=6)) == (name not in ("gaussian-noise", "impulse-noise"))


def test_the_callers_random_numbers_stay() -> None:
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    for name in CORRUPTIONS:
        corrupt(some_images(), name, 2)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (np.random.get_state()[1].tolist(), random.getstate())


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 4)])
def test_tiny_images(name: str, size: tuple[int, int]) -> None:
    for severity in range(6):
        assert corrupt(some_images(2, 1, *size), name, severity).isfinite().all()


class Bright(nn.Module):
    """Whether the left half is brighter than the right."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.drop = nn.Dropout(0.9)

    def forward(self, x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        difference = self.scale * (x[..., :half].mean((1, 2, 3)) - x[..., half:].mean((1, 2, 3)))
        return self.drop(torch.stack([difference, -difference], 1) + 1) - 1


def test_accuracy_rows() -> None:
    images = some_images(20)
    model = Bright().train()
    labels = (images[..., :16].mean((1, 2, 3)) < images[..., 16:].mean((1, 2, 3))).long()
    labels[:3] = 1 - labels[:3]
    rows = corruption_accuracy(model, images, labels, seed=3, batch_size=7)
    assert [(row["corruption"], row["severity"]) for row in rows] == [(c, s) for c in CORRUPTIONS for s in range(6)]
    assert all(row["samples"] == 20 for row in rows)
    assert [row["accuracy"] for row in rows if row["severity"] == 0] == [0.85] * 5
    assert rows == corruption_accuracy(model, images, labels, seed=3, batch_size=20)
    assert model.training
    model.eval()
    for row in rows:
        corrupted = corrupt(images, row["corruption"], row["severity"], seed=3)
        assert row["accuracy"] == pytest.approx(float((model(corrupted).argmax(1) == labels).float().mean()))
    assert min(row["accuracy"] for row in rows) < 0.85


def test_images_by_themselves() -> None:
    images, labels = some_images(20), torch.arange(20) % 2
    whole = corrupted_right(Bright(), images, labels, "impulse-noise", severities=(0, 2, 5), seed=3)
    assert whole.shape == (3, 20)
    rows = corruption_accuracy(
        Bright(), images, labels, corruptions=["impulse-noise"], severities=(0, 2, 5), seed=3
    )
    assert [row["accuracy"] for row in rows] == whole.mean(1).tolist()
    some = corrupted_right(
        Bright(), images[5:], labels[5:], "impulse-noise", severities=(0, 2, 5), seed=3, start=5, batch_size=4
    )
    assert np.array_equal(some, whole[:, 5:])


def test_some_rows_only() -> None:
    rows = corruption_accuracy(
        Bright(), some_images(), torch.zeros(6).long(), corruptions=["contrast"], severities=[0, 4]
    )
    assert [(row["corruption"], row["severity"]) for row in rows] == [("contrast", 0), ("contrast", 4)]


@pytest.mark.parametrize(
    ("name", "severity", "message"),
    [
        ("contrasts", 1, "unknown corruption 'contrasts'.*'contrast'"),
        ("fog", 1, "unknown corruption 'fog'"),
        ("contrast", 6, "severity must be .*found 6"),
        ("contrast", -1, "severity"),
        ("contrast", 1.5, "severity"),
        ("contrast", True, "severity"),
    ],
)
def test_bad_options(name: str, severity: int, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        corrupt(some_images(), name, severity)
    with pytest.raises(OptionError, match=message):
        corruption_accuracy(
            Bright(), some_images(), torch.zeros(6).long(), corruptions=[name], severities=[severity]
        )


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(0, 1, 4, 4),
        torch.zeros(4, 4),
        torch.zeros(2, 1, 4, 4, dtype=torch.uint8),
        torch.full((2, 1, 4, 4), 1.01),
        torch.full((2, 1, 4, 4), -0.01),
        torch.full((2, 1, 4, 4), torch.nan),
        [[0.0]],
    ],
)
def test_bad_images(images: Tensor) -> None:
    with pytest.raises((ExampleInputError, NonFiniteError), match="images"):
        corrupt(images, "contrast", 1)


def test_bad_models_and_labels() -> None:
    images = some_images()
    with pytest.raises(OptionError, match="labels"):
        corruption_accuracy(Bright(), images, torch.zeros(5).long())
    with pytest.raises(DataError, match=r"0 to 1.*found 2 to 2"):
        corruption_accuracy(Bright(), images, torch.full((6,), 2))
    with pytest.raises(OptionError, match="1 or 3 channels"):
        corrupt(some_images(channels=2), "contrast", 1)
    broken = Bright()
    broken.scale.data.fill_(torch.nan)
    with pytest.raises(NonFiniteError, match="not finite"):
        corruption_accuracy(broken, images, torch.zeros(6).long())


def test_missing_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from bu2td.errors import MissingPackageError

    monkeypatch.setitem(sys.modules, "torchvision.transforms.v2.functional", None)
    with pytest.raises(MissingPackageError, match="pip install"):
        corrupt(some_images(), "contrast", 1)
