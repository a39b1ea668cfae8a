"""Localisation: pixel loops and flood fills on the other side, known boxes, and what counts in the denominators."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bu2td import errors
from bu2td.evaluate.explain.localise import (
    BoxAccuracy,
    box_accuracy,
    box_masks,
    box_overlaps,
    check_boxes,
    localisation,
    object_masks,
)

Pixels = list[list[bool]]


def rectangle(height: int, width: int, box: tuple[int, int, int, int], value: float = 1.0) -> Tensor:
    heat = torch.zeros(height, width)
    x0, y0, x1, y1 = box
    heat[y0:y1, x0:x1] = value
    return heat


def accuracy_of(heat: Tensor, boxes: Any, thresholds: Any = None, deltas: Any = (0.3, 0.5, 0.7)) -> BoxAccuracy:
    options = {} if thresholds is None else {"thresholds": thresholds}
    return box_accuracy(box_overlaps(heat, boxes, **options), deltas=deltas, **options)


# --- pixels -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_against_pixel_loops(channels: int, threshold: float) -> None:
    images, heat = torch.rand(6, channels, 5, 7), torch.rand(6, 5, 7)
    heat[1], images[2], images[:2, :, 0, 0], heat[3] = 0, 0, 1, heat[3] / 10
    rows = []
    for i in range(6):
        tp = fp = fn = 0
        for y in range(5):
            for x in range(7):
                pixel = images[i, :, y, x].tolist()
                grey = 0.299 * pixel[0] + 0.587 * pixel[1] + 0.114 * pixel[2] if channels == 3 else None
                there = (sum(pixel) / channels if grey is None else grey) > threshold
                hot = float(heat[i, y, x]) > threshold
                tp, fp, fn = tp + (hot and there), fp + (hot and not there), fn + (there and not hot)
        nothing = tp + fn == 0 or i == 1
        precision = tp / (tp + fp) if tp + fp and not nothing else float("nan")
        rows.append((tp, fp, fn, precision, float("nan") if nothing else tp / (tp + fn)))
    found = localisation(heat, object_masks(images, threshold), threshold=threshold)
    assert list(zip(found.tp, found.fp, found.fn, strict=True)) == [row[:3] for row in rows]
    assert found.precision.tolist() == pytest.approx([row[3] for row in rows], nan_ok=True)
    assert found.recall.tolist() == pytest.approx([row[4] for row in rows], nan_ok=True)


def test_what_is_not_defined_is_no_number() -> None:
    masks = torch.zeros(4, 4, 4, dtype=torch.bool)
    masks[0, :2], masks[1, :2], masks[3] = True, True, True
    heat = torch.zeros(4, 4, 4)
    heat[0, :1], heat[2], heat[3] = 1, 1, 0.1  # the second is zero, the fourth below the threshold
    found = localisation(heat, masks)
    assert found.precision.isnan().tolist() == [False, True, True, True]
    assert found.recall.isnan().tolist() == [False, True, True, False]
    assert (float(found.precision[0]), float(found.recall[0]), float(found.recall[3])) == (1, 0.5, 0)
    assert found.fn.tolist() == [4, 8, 0, 16]


def test_a_map_that_is_the_object_is_perfect() -> None:
    images = (torch.rand(3, 1, 8, 8) > 0.5).float()
    found = localisation(images[:, 0], object_masks(images))
    assert found.precision.tolist() == found.recall.tolist() == [1, 1, 1]
    assert found.fp.tolist() == found.fn.tolist() == [0, 0, 0]


def test_more_threshold_is_less_recall() -> None:
    images, heat = torch.rand(5, 1, 8, 8), torch.rand(5, 8, 8)
    masks = object_masks(images)
    recalls = [float(localisation(heat, masks, threshold=t).recall.mean()) for t in (0.0, 0.3, 0.6, 0.9)]
    assert recalls == sorted(recalls, reverse=True)


def test_an_object_is_brighter_than_the_threshold_not_as_bright() -> None:
    images = torch.tensor([0.25, 0.5, 0.75, 1.0]).view(1, 1, 2, 2)
    assert object_masks(images, 0.5)[0].tolist() == [[False, False], [True, True]]


# --- boxes --------------------------------------------------------------------------------------------


def flood(hot: Pixels) -> list[tuple[int, tuple[int, int, int, int]]]:
    """Size and box of every component over edges and corners, by flood fill."""
    height, width = len(hot), len(hot[0])
    seen = [[False] * width for _ in range(height)]
    found = []
    for y in range(height):
        for x in range(width):
            if not hot[y][x] or seen[y][x]:
                continue
            stack, part = [(y, x)], []
            seen[y][x] = True
            while stack:
                a, b = stack.pop()
                part.append((a, b))
                for c in range(max(a - 1, 0), min(a + 2, height)):
                    for d in range(max(b - 1, 0), min(b + 2, width)):
                        if hot[c][d] and not seen[c][d]:
                            seen[c][d] = True
                            stack.append((c, d))
            ys, xs = [a for a, _ in part], [b for _, b in part]
            found.append((len(part), (min(xs), min(ys), max(xs) + 1, max(ys) + 1)))
    return found


def overlap(a: Any, b: Any) -> float:
    inside = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
    return inside / (sum(areas) - inside)


def test_boxes_against_flood_fill() -> None:
    generator = np.random.default_rng(3)
    heat = torch.from_numpy(generator.random((8, 9, 11)) ** 2)
    boxes = []
    for _ in range(8):
        x, y = np.sort(generator.choice(12, 2, replace=False)), np.sort(generator.choice(10, 2, replace=False))
        boxes.append([[x[0], y[0], x[1], y[1]], [0.5, 1.5, 4.25, 6]])
    thresholds, deltas = [0.0, 0.15, 0.4, 0.7, 0.99], [0.1, 0.3, 0.5]
    expected = torch.zeros(5, 3, dtype=torch.float64)
    for t, threshold in enumerate(thresholds):
        for i in range(8):
            parts = flood((heat[i] > threshold).tolist())
            best = max((overlap(box, own) for _, box in parts for own in boxes[i]), default=0.0)
            expected[t] += torch.tensor([best >= delta for delta in deltas]) / 8
    found = accuracy_of(heat, boxes, thresholds, deltas)
    np.testing.assert_allclose(found.curve, expected)
    assert list(found.accuracy) == pytest.approx(expected.amax(0).tolist())
    assert found.mean == pytest.approx(float(expected.amax(0).mean())) == pytest.approx(found.right.mean())
    assert 0 < found.mean < 1
    assert found.right.shape == (8,)


def test_exact_boxes_are_found_at_every_overlap() -> None:
    boxes = torch.tensor([[2, 3, 9, 8], [0, 0, 4, 12], [5, 5, 12, 12]])
    heat = torch.stack([rectangle(12, 12, tuple(box)) for box in boxes.tolist()])  # type: ignore[arg-type]
    found = accuracy_of(heat, boxes, deltas=(0.3, 0.5, 0.7, 1.0))
    assert found.accuracy == (1, 1, 1, 1)
    assert found.best == (0, 0, 0, 0)


def test_one_threshold_serves_the_whole_set() -> None:
    """Each sample is right at a threshold of its own; no threshold is right for both."""
    boxes = torch.tensor([[2, 2, 6, 6], [0, 0, 8, 8]])
    first = rectangle(8, 8, (0, 0, 8, 8), 0.4) + rectangle(8, 8, (2, 2, 6, 6), 0.6)
    second = rectangle(8, 8, (0, 0, 8, 8), 0.2) + rectangle(8, 8, (2, 2, 3, 3), 0.8)
    found = accuracy_of(torch.stack([first, second]), boxes, deltas=(0.9,))
    assert found.accuracy == (0.5,)
    assert found.best == (0.0,)  # the lowest of equally good ones
    assert accuracy_of(first[None], boxes[:1], deltas=(0.9,)).best == (0.4,)
    assert accuracy_of(second[None], boxes[1:], deltas=(0.9,)).accuracy == (1.0,)


def test_any_component_may_be_the_one() -> None:
    heat = rectangle(10, 10, (0, 0, 2, 2)) + rectangle(10, 10, (5, 5, 10, 10))
    assert accuracy_of(heat[None], torch.tensor([[0, 0, 2, 2]])).mean == 1


def test_maps_of_zeros_are_left_out() -> None:
    boxes = torch.tensor([[0, 0, 3, 3]] * 3)
    heat = torch.stack([rectangle(6, 6, (0, 0, 3, 3)), torch.zeros(6, 6), rectangle(6, 6, (3, 3, 6, 6))])
    found = accuracy_of(heat, boxes)
    assert found.mean == 0.5
    assert found.right.tolist() == pytest.approx([1, float("nan"), 0], nan_ok=True)
    nothing = accuracy_of(heat[1:2], boxes[1:2])
    assert np.isnan(nothing.mean)
    assert np.isnan(nothing.right).all()


def test_thresholds_belong_to_the_overlaps() -> None:
    overlaps = box_overlaps(rectangle(6, 6, (0, 0, 3, 3))[None], [[0, 0, 3, 3]], thresholds=(0.1, 0.5))
    with pytest.raises(errors.OptionError, match="those of 3 thresholds"):
        box_accuracy(overlaps, thresholds=(0.1, 0.5, 0.9))


def test_pixels_inside_boxes() -> None:
    masks = box_masks([[(1, 0, 3, 2)], [(0, 0, 1, 1), (2.4, 1.5, 4, 3)]], (3, 4))
    assert masks[0].nonzero().tolist() == [[0, 1], [0, 2], [1, 1], [1, 2]]
    assert masks[1].nonzero().tolist() == [[0, 0], [1, 2], [1, 3], [2, 2], [2, 3]]
    assert not box_masks([[(0.6, 0.6, 1.4, 1.4)]], (3, 4)).any()  # between the centres of pixels


# --- bad input ----------------------------------------------------------------------------------------

HEAT = torch.rand(2, 4, 5, generator=torch.Generator().manual_seed(0))
MASKS = HEAT > 0.3
BOXES = [[0, 0, 2, 2], [1, 1, 5, 4]]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"heat": torch.rand(2, 1, 4, 5)}, errors.OptionError, r"\(N, H, W\)"),
        ({"heat": HEAT > 0.5}, errors.OptionError, "floating point"),
        ({"heat": HEAT.numpy()}, errors.OptionError, "ndarray"),
        ({"heat": HEAT + 0.5}, errors.OptionError, r"\[0, 1\]"),
        ({"heat": HEAT - 0.5}, errors.OptionError, r"\[0, 1\]"),
        ({"heat": HEAT / 0}, errors.NonFiniteError, "finite"),
        ({"masks": MASKS[:1]}, errors.OptionError, "masks must be bool"),
        ({"masks": MASKS.float()}, errors.OptionError, "float32"),
        ({"threshold": 1.0}, errors.OptionError, "nothing is above it"),
        ({"threshold": -0.1}, errors.OptionError, "threshold"),
        ({"threshold": float("nan")}, errors.OptionError, "threshold"),
        ({"threshold": "0.2"}, errors.OptionError, "threshold"),
    ],
)
def test_bad_pixels(options: dict[str, Any], error: type[Exception], words: str) -> None:
    given = {"heat": HEAT, "masks": MASKS, **options}
    with pytest.raises(error, match=words):
        localisation(given.pop("heat"), given.pop("masks"), **given)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"boxes": BOXES[:1]}, "each of 2 samples, found boxes for 1"),
        ({"boxes": torch.zeros(2, 5)}, r"sample 0 must be \(M, 4\)"),
        ({"boxes": [BOXES, [[0, 0, 1]]]}, r"sample 1 must be \(M, 4\)"),
        ({"boxes": [BOXES, []]}, r"sample 1 must be \(M, 4\)"),
        ({"boxes": [[0, 0, 2, 2], [3, 1, 3, 2]]}, "sample 1 must have 0 <= left < right <= 5"),
        ({"boxes": [[0, 0, 2, 2], [0, 0, 5, 5]]}, "bottom <= 4"),
        ({"boxes": [[0, 0, 2, 2], [-1, 0, 5, 4]]}, "sample 1"),
        ({"boxes": [[0, 0, 2, float("nan")], [0, 0, 2, 2]]}, "sample 0"),
        ({"boxes": 7}, "boxes must be"),
        ({"boxes": [["a", 0, 1, 1], [0, 0, 1, 1]]}, "boxes must be"),
        ({"thresholds": []}, "thresholds"),
        ({"thresholds": [0.1, 1.5]}, "every threshold"),
        ({"deltas": [0.0]}, "deltas"),
        ({"deltas": []}, "deltas"),
    ],
)
def test_bad_boxes(options: dict[str, Any], words: str) -> None:
    given = {"boxes": BOXES, **options}
    with pytest.raises(errors.OptionError, match=words):
        accuracy_of(HEAT, given.pop("boxes"), **given)


def test_bad_images() -> None:
    for images, error in (
        (torch.rand(4, 5), errors.ExampleInputError),
        (torch.rand(1, 1, 4, 5) + 1, errors.ExampleInputError),
        (torch.full((1, 1, 4, 5), float("inf")), errors.NonFiniteError),
    ):
        with pytest.raises(error):
            object_masks(images)


def test_boxes_as_arrays_tensors_and_lists() -> None:
    for boxes in (BOXES, np.array(BOXES), torch.tensor(BOXES), [torch.tensor([BOXES[0]]), np.array([BOXES[1]])]):
        assert [b.tolist() for b in check_boxes(boxes, 2, (4, 5))] == [[BOXES[0]], [BOXES[1]]]
