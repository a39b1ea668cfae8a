"""What a report shows as heat: Grad-CAM of every level (the paper's figure 7) and of the last (figure 8)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bu2td.evaluate.report.figures import COLORS, COLUMN, INK, PAGE, new_figure, plain, styled
from bu2td.evaluate.report.read import Explanations
from bu2td.evaluate.schema import ARRANGEMENTS, NORMALISATIONS, WORDS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["images_figure", "levels_figure"]

OBJECT = 0.2  # pixels above it are the object (section 4.3 of the paper)
CMAP = "magma"


@styled
def levels_figure(
    found: Explanations, normalisation: str = "plain", samples: Sequence[int] = (0,), classes: Sequence[str] = ()
) -> Figure | None:
    """Heat map of every level, bottom-up above top-down, in the order of each network (figure 7).

    Args:
        found: the heat maps.
        normalisation: ``plain`` or ``centred``.
        samples: indices of the images to show.
        classes: names of the labels.
    """
    arrangements = [a for a in ARRANGEMENTS if a in found.levels]
    samples = [i for i in samples if i < len(found.images)]
    columns = 1 + max((len(found.levels[a]) for a in arrangements), default=0)
    if not samples or columns == 1:
        return None
    side = min(0.85, (PAGE - 0.5) / columns)
    lines = len(samples) * len(arrangements)
    width = max(COLUMN, 0.95 + side * columns)
    figure = new_figure(width, 0.1 + (side * _ratio(found) + 0.19) * lines)
    grid = figure.subplots(lines, columns, squeeze=False)
    line = 0
    for sample in samples:
        for arrangement in arrangements:
            axes = grid[line]
            _image(axes[0], found.images[sample])
            axes[0].set_title(_label(found, sample, classes) if arrangement == arrangements[0] else "", pad=2)
            axes[0].set_ylabel(_word(arrangement), color=COLORS[arrangement], fontweight="bold")
            order = found.order(arrangement)
            for place, level in zip(axes[1:], order, strict=False):
                _heat(place, found.maps[arrangement][normalisation][sample, level], found.images[sample])
                place.set_title(found.levels[arrangement][level], pad=2)
            for place in axes[1 + len(order) :]:
                place.axis("off")
            line += 1
    _finish(figure, grid)
    return figure


@styled
def images_figure(found: Explanations, samples: Sequence[int], classes: Sequence[str] = ()) -> Figure | None:
    """Images, and the heat maps of the last level of each network, in both normalisations (figure 8)."""
    arrangements = [a for a in ARRANGEMENTS if found.levels.get(a)]
    samples = [i for i in samples if i < len(found.images)]
    if not samples or not arrangements:
        return None
    kinds = [(a, kind) for kind in NORMALISATIONS for a in arrangements]
    side = min(0.8, (PAGE - 1.3) / len(samples))
    width = max(COLUMN, 1.3 + side * len(samples))
    figure = new_figure(width, 0.25 + (side * _ratio(found) + 0.03) * (1 + len(kinds)))
    grid = figure.subplots(1 + len(kinds), len(samples), squeeze=False)
    for place, sample in zip(grid[0], samples, strict=True):
        _image(place, found.images[sample])
        place.set_title(_label(found, sample, classes), pad=2)
    for line, (arrangement, kind) in zip(grid[1:], kinds, strict=True):
        last = found.order(arrangement)[-1]
        for place, sample in zip(line, samples, strict=True):
            _heat(place, found.maps[arrangement][kind][sample, last], found.images[sample])
        text = f"{_word(arrangement)}\n{kind}\n{found.levels[arrangement][last]}"
        line[0].set_ylabel(text, color=COLORS[arrangement], rotation=0, ha="right", va="center")
    grid[0][0].set_ylabel("image", rotation=0, ha="right", va="center")
    _finish(figure, grid)
    return figure


def _word(arrangement: str) -> str:
    return WORDS[arrangement].replace(" (", "\n(")


def _ratio(found: Explanations) -> float:
    """Height of an image over its width."""
    return min(2.0, max(0.5, found.images.shape[2] / found.images.shape[3]))


def _label(found: Explanations, sample: int, classes: Sequence[str]) -> str:
    label = int(found.labels[sample])
    return plain(str(classes[label]) if 0 <= label < len(classes) else str(label), 12)


def _image(axes: Axes, image: np.ndarray) -> None:
    shown = np.clip(image, 0, 1)
    if len(shown) == 3:
        axes.imshow(shown.transpose(1, 2, 0), interpolation="nearest")
    else:
        axes.imshow(shown[0], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    _bare(axes)


def _heat(axes: Axes, heat: np.ndarray, image: np.ndarray) -> None:
    """A heat map; over it the outline of a drawn object, or under it the colour image in grey."""
    options: dict[str, Any] = {"cmap": CMAP, "vmin": 0, "vmax": 1, "interpolation": "nearest"}
    grey = np.clip(image, 0, 1).mean(axis=0)
    if len(image) == 3:
        axes.imshow(grey, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.imshow(heat, alpha=0.6, **options)
    else:
        axes.imshow(heat, **options)
        if grey.min() <= OBJECT < grey.max():
            axes.contour(grey, levels=[OBJECT], colors="white", linewidths=0.6)
    _bare(axes)


def _bare(axes: Axes) -> None:
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def _finish(figure: Figure, grid: np.ndarray) -> None:
    """Little room between the pictures, and a scale of heat."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    bar = figure.colorbar(
        ScalarMappable(Normalize(0, 1), CMAP),
        ax=grid.ravel().tolist(),
        fraction=0.03,
        pad=0.02,
        aspect=25,
        shrink=0.8,
    )
    bar.set_label("heat", color=INK)
    bar.set_ticks([0, 0.5, 1])
    bar.outline.set_visible(False)
    engine: Any = figure.get_layout_engine()
    engine.set(h_pad=0.02, w_pad=0.05, hspace=0.01, wspace=0.01)
