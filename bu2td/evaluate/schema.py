"""Every table of an evaluation: a frozen dataclass is a row, its fields are the columns of a CSV file.

A stage makes rows and writes them with `write_table`; the report reads the same files by the same classes. What a
column holds stands in its type (`Annotated`), so that a cell of a damaged file is found by name and line.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

from bu2td.files import write_csv

#: Arrangements in the order of every table and figure, with the words that stand for them.
WORDS = {"bu": "bottom-up", "td": "top-down", "uni": "top-down (uni)", "rev": "top-down (rev)"}
ARRANGEMENTS = tuple(WORDS)
#: How a heat map is made of a raw map (`bu2td.evaluate.explain.gradcam`).
NORMALISATIONS = ("plain", "centred")
#: Where Grad-CAM looks: at the last convolution, as the paper, or at the last level, before the classifier's own.
LAYERS = ("last-convolution", "last-level")


@dataclass(frozen=True)
class Kind:
    """What a cell may hold: in words for a message, and as a test of the value that was read."""

    words: str
    holds: Callable[[Any], bool]


NAME = Kind("a name", lambda v: bool(v.strip()))
WORD = Kind("a word, or nothing", lambda v: True)
ARRANGEMENT = Kind(f"one of {', '.join(ARRANGEMENTS)}", lambda v: v in ARRANGEMENTS)
NORMALISATION = Kind(f"one of {', '.join(NORMALISATIONS)}", lambda v: v in NORMALISATIONS)
LAYER = Kind(f"one of {', '.join(LAYERS)}", lambda v: v in LAYERS)
COUNT = Kind("a whole number from 0 up", lambda v: math.isfinite(v) and v >= 0 and v == int(v))
SHARE = Kind("a number from 0 to 1", lambda v: 0 <= v <= 1)
SHARE_OR_NOTHING = Kind("a number from 0 to 1, or nothing", lambda v: math.isnan(v) or 0 <= v <= 1)
DISTANCE = Kind("a number from 0 up, or inf", lambda v: v >= 0)
NUMBER = Kind("a number, or nothing", lambda v: True)

Name = Annotated[str, NAME]
Word = Annotated[str, WORD]
Arrangement = Annotated[str, ARRANGEMENT]
Normalisation = Annotated[str, NORMALISATION]
Layer = Annotated[str, LAYER]
Count = Annotated[int, COUNT]
Share = Annotated[float, SHARE]
ShareOrNothing = Annotated[float, SHARE_OR_NOTHING]
Distance = Annotated[float, DISTANCE]
Number = Annotated[float, NUMBER]


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        file: the table's file in the folder of a run.
        key: the columns that name a row; no two rows share them. Empty: rows need no name.
    """

    file: ClassVar[str]
    key: ClassVar[tuple[str, ...]] = ()


@dataclass(frozen=True)
class NetworkRow(Row):
    """A row about one trained network."""

    arrangement: Arrangement
    repeat: Count


# --- training -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Training(NetworkRow):
    """One training: losses are means over images, macs those of one image, times seconds, memory MiB.

    `calibration_error` is the expected calibration error on the test images (Guo et al., 2017, 15 bins).
    """

    seed: Count
    parameters: Count
    macs: Number
    epochs: Count
    train_loss: Number
    validation_accuracy: ShareOrNothing
    test_accuracy: Share
    top5_accuracy: ShareOrNothing
    calibration_error: ShareOrNothing
    seconds: Number
    seconds_per_epoch: Number
    peak_memory_mib: Number
    file = "accuracy.csv"
    key = ("arrangement", "repeat")


@dataclass(frozen=True)
class Epoch(Row):
    """What one epoch came to; losses are means over images, accuracies shares of them, times seconds."""

    epoch: Count
    lr: Number
    train_loss: Number
    train_accuracy: ShareOrNothing
    validation_loss: Number
    validation_accuracy: ShareOrNothing
    seconds: Number
    file = "log.csv"
    key = ("epoch",)


@dataclass(frozen=True)
class Prediction(NetworkRow):
    """What one trained network says of one test image: `rank` is the place of the true class (1: right)."""

    image: Count
    label: Count
    predicted: Count
    rank: Count
    confidence: Share
    file = "predictions.csv"
    key = ("arrangement", "repeat", "image")


@dataclass(frozen=True)
class Trial(Row):
    """One training of a search; its accuracy is that of the last epoch on the validation images."""

    arrangement: Arrangement
    varied: Name
    lr: Number
    batch_size: Count
    weight_decay: Number
    validation_accuracy: Share
    best: Count
    file = "search.csv"


# --- robustness ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Robustness(NetworkRow):
    """One attack on one trained network.

    Of `samples` images; `clean_accuracy`, `auc` (area under accuracy against L2 from 0 to `limit`, over it) of all,
    `success_rate` and `median_l2` of those that are right. "strongest", "strongest-white-box" and
    "strongest-black-box" stand for the smallest perturbation of every image under all attacks (of a kind) in L2.
    `failures`: right images for which nothing was found;
    `dropped`: claims of success that a second look did not confirm; `queries`: per right image, on average.
    `converged`: share of the images whose search had come to rest (1 for attacks without a walk); below it the
    distances are upper bounds only.
    """

    attack: Name
    samples: Count
    clean_accuracy: Share
    success_rate: ShareOrNothing
    median_l2: Number
    auc: Number
    limit: Number
    failures: Count
    dropped: Count
    queries: Number
    converged: ShareOrNothing
    file = "robustness.csv"
    key = ("arrangement", "repeat", "attack")


@dataclass(frozen=True)
class ImageDistance(NetworkRow):
    """The smallest perturbation of one image: 0 where it is wrong without any, inf where none was found."""

    attack: Name
    image: Count
    distance: Distance
    file = "distances.csv"
    key = ("arrangement", "repeat", "attack", "image")


@dataclass(frozen=True)
class CurvePoint(NetworkRow):
    """Accuracy when every perturbation up to an L2 distance is applied."""

    attack: Name
    l2: Distance
    accuracy: Share
    file = "curves.csv"


@dataclass(frozen=True)
class Branch(NetworkRow):
    """Accuracy when perturbations, `scale` times as large as the smallest, enter some inputs of the pyramid.

    Of the `samples` images that the attack found a perturbation for; `failures`: right images for which it found
    none, which are left out, as those that are wrong without any.
    """

    attack: Name
    inputs: Name
    reductions: Word
    scale: Number
    samples: Count
    failures: Count
    accuracy: ShareOrNothing
    file = "branches.csv"
    key = ("arrangement", "repeat", "attack", "inputs", "scale")


@dataclass(frozen=True)
class RobustAccuracy(NetworkRow):
    """Share of the images that stay right under AutoAttack within a radius in L2 or Linf (`norm`)."""

    attack: Name
    norm: Name
    radius: Distance
    samples: Count
    accuracy: Share
    file = "robust_accuracy.csv"
    key = ("arrangement", "repeat", "attack", "radius")


@dataclass(frozen=True)
class Masking(NetworkRow):
    """Whether gradients may be masked, so that white-box attacks look weaker than they are (Athalye et al., 2018).

    Of `images` that are right. `check`: "more-steps:ATTACK": twice as many steps along the gradient must not find
    farther perturbations (`median_change`: of the median distance, as a share of it); "black-box": the best
    black-box perturbation must not be nearer than the best white-box one; "unbounded": white-box attacks without a
    bound must fool the network on every image. `violations`: images on which the stronger side is behind by more
    than 5 %, `largest`: by how much at most, as a share. `holds`: 1 if nothing points to masking: a median that
    grew by at most 5 % (more steps), no violation (the others).
    """

    check: Name
    images: Count
    violations: Count
    largest: Number
    median_change: Number
    holds: Count
    file = "masking.csv"
    key = ("arrangement", "repeat", "check")


@dataclass(frozen=True)
class Corruption(NetworkRow):
    """Accuracy under a corruption; severity 0 is clean."""

    corruption: Name
    severity: Count
    samples: Count
    accuracy: Share
    file = "corruptions.csv"
    key = ("arrangement", "repeat", "corruption", "severity")


@dataclass(frozen=True)
class CorruptedImage(NetworkRow):
    """At how many of the severities from 1 up an image is classified correctly."""

    corruption: Name
    image: Count
    severities: Count
    right: Count
    file = "corrupted_images.csv"
    key = ("arrangement", "repeat", "corruption", "image")


@dataclass(frozen=True)
class CorruptionError(NetworkRow):
    """Errors under a set of corruptions ("bu2td": those made here), means over its `corruptions`.

    `error` is the plain mean over severities and corruptions. `mce` is the mean corruption error relative to the
    bottom-up network of the same repeat, 1 for that network (Hendrycks and Dietterich, 2019, section 4).
    """

    data: Name
    corruptions: Count
    samples: Count
    error: Share
    mce: Number
    file = "corruption_errors.csv"
    key = ("arrangement", "repeat", "data")


@dataclass(frozen=True)
class Flips(NetworkRow):
    """How often the predicted class flips along perturbation sequences (Hendrycks and Dietterich, 2019, section 4).

    `probability` is the mean over `samples` sequences of the share of their frames whose class is another than that
    of the frame before (noise: of the first frame); `rate` is relative to the bottom-up network of the same repeat.
    """

    perturbation: Name
    samples: Count
    probability: Share
    rate: Number
    file = "flips.csv"
    key = ("arrangement", "repeat", "perturbation")


# --- frequency ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FourierCell(NetworkRow):
    """Error under a Fourier basis perturbation of L2 norm `norm` per channel.

    Vertical and horizontal are frequencies in cycles per image, from -side/2 up; (-k, -l) has the error of (k, l).
    """

    vertical: Number
    horizontal: Number
    norm: Number
    samples: Count
    error: Share
    file = "fourier.csv"
    key = ("arrangement", "repeat", "vertical", "horizontal", "norm")


@dataclass(frozen=True)
class Band(NetworkRow):
    """Mean error under basis perturbations whose radius (cycles per image) lies in [low, high).

    `clean_error` is that of the same images without any.
    """

    low: Number
    high: Number
    norm: Number
    samples: Count
    error: Share
    clean_error: ShareOrNothing
    file = "bands.csv"
    key = ("arrangement", "repeat", "low", "high", "norm")


@dataclass(frozen=True)
class BandImage(NetworkRow):
    """Of one image, the share of the basis perturbations of a band under which it is misclassified.

    `clean_error` is 1 where it is misclassified without any.
    """

    low: Number
    high: Number
    norm: Number
    image: Count
    error: Share
    clean_error: ShareOrNothing
    file = "band_images.csv"
    key = ("arrangement", "repeat", "low", "high", "norm", "image")


@dataclass(frozen=True)
class Spectrum(NetworkRow):
    """Share of the power of an attack's perturbations at a radius in cycles per image, which rounds to `radius`.

    Mean over the `samples` images that the attack found a perturbation for; `white` is the share of white noise.
    """

    attack: Name
    radius: Number
    samples: Count
    power: Share
    white: Share
    file = "spectra.csv"
    key = ("arrangement", "repeat", "attack", "radius")


@dataclass(frozen=True)
class Filtered(NetworkRow):
    """Accuracy on images that keep the frequencies up to a radius (low), or those above it and the mean (high).

    Radius 0 of high is the clean image.
    """

    kept: Name
    radius: Number
    samples: Count
    accuracy: Share
    file = "filtered.csv"
    key = ("arrangement", "repeat", "kept", "radius")


# --- explanation --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Localisation(NetworkRow):
    """Heat maps of one network against the object: of `samples` images that have one (`dropped`: those without).

    `empty`: images whose heat map is zero everywhere, `without_prediction`: those without a pixel above the
    threshold. tp, fp, fn (pixels) and recall are means over the images whose map is not empty, precision over those
    with a prediction; nothing of them is scored as 0.
    """

    layer: Layer
    normalisation: Normalisation
    threshold: Number
    samples: Count
    empty: Count
    without_prediction: Count
    dropped: Count
    tp: Number
    fp: Number
    fn: Number
    precision: ShareOrNothing
    recall: ShareOrNothing
    file = "localisation.csv"
    key = ("arrangement", "repeat", "layer", "normalisation", "threshold")


@dataclass(frozen=True)
class ExplainedImage(NetworkRow):
    """Measures of the heat map of one image, as in `Localisation` and `Faithfulness`; nothing where not defined.

    `image` is its place in the test set; every network that is compared classifies it correctly. `empty` is 1 for a
    heat map of zeros; `max_box_acc_v2` is the share of overlaps at which its box is found, whose mean is
    MaxBoxAccV2.
    """

    layer: Layer
    normalisation: Normalisation
    image: Count
    empty: Count
    tp: Number
    fp: Number
    fn: Number
    precision: ShareOrNothing
    recall: ShareOrNothing
    pointing: ShareOrNothing
    deletion: Number
    insertion: Number
    max_box_acc_v2: ShareOrNothing
    file = "explained_images.csv"
    key = ("arrangement", "repeat", "layer", "normalisation", "image")


@dataclass(frozen=True)
class Faithfulness(NetworkRow):
    """Pointing game, deletion and insertion of `samples` images.

    `empty`: images whose heat map is zero everywhere; deletion and insertion are means over the others, the
    pointing game one over the `pointed` images that have a map and an object.
    """

    layer: Layer
    normalisation: Normalisation
    samples: Count
    empty: Count
    pointed: Count
    pointing: ShareOrNothing
    deletion: Number
    insertion: Number
    file = "faithfulness.csv"
    key = ("arrangement", "repeat", "layer", "normalisation")


@dataclass(frozen=True)
class Boxes(NetworkRow):
    """MaxBoxAccV2 of heat maps against boxes: of `samples` images, but for those whose map is `empty`."""

    layer: Layer
    normalisation: Normalisation
    samples: Count
    empty: Count
    max_box_acc_v2: ShareOrNothing
    file = "boxes.csv"
    key = ("arrangement", "repeat", "layer", "normalisation")


#: All tables by file name; `Epoch` lies beside every training, the others in the run's folder.
TABLES: dict[str, type[Row]] = {
    table.file: table
    for table in (
        *(Training, Epoch, Prediction, Trial),
        *(Robustness, ImageDistance, CurvePoint, Branch, RobustAccuracy, Masking),
        *(Corruption, CorruptedImage, CorruptionError, Flips),
        *(FourierCell, Band, BandImage, Spectrum, Filtered),
        *(Localisation, ExplainedImage, Faithfulness, Boxes),
    )
}

R = TypeVar("R", bound=Row)


def columns(table: type[Row]) -> dict[str, tuple[type, Kind]]:
    """The columns of a table with the type of a cell and what it may hold."""
    hints = typing.get_type_hints(table, include_extras=True)
    return {f.name: typing.get_args(hints[f.name])[:2] for f in fields(table)}


def write_table(table: type[R], rows: Iterable[R], folder: Path) -> Path:
    """Write a table into a folder; returns its path.

    Raises:
        FileError: it cannot be written.
    """
    path = folder / table.file
    write_csv(
        [{k: _cell(v) for k, v in asdict(row).items()} for row in rows], path, [f.name for f in fields(table)]
    )
    return path


def _cell(value: Any) -> Any:
    """Nothing where nothing was measured; six digits are more than any number here is worth."""
    if isinstance(value, float):
        return None if math.isnan(value) else float(f"{value:.6g}")
    return value
