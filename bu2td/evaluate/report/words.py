"""Numbers and names as a report shows them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

from bu2td.evaluate.means import Statistic
from bu2td.evaluate.report.compare import PAPERS_LAYER, PAPERS_NORMALISATION, STRONGEST
from bu2td.evaluate.robustness.registry import ATTACKS

DASH, MINUS, TIMES = "\N{EN DASH}", "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"
#: Names that are not their words with a capital.
_TITLES = {
    STRONGEST: "Strongest attack",
    f"{STRONGEST}-white-box": "Strongest white box",
    f"{STRONGEST}-black-box": "Strongest black box",
    "unbounded": "White box without a bound",
    "black-box": "Black box against white box",
    "lenet_fc": "LeNetFC",
    "nin_light": "NIN-light",
    "nin": "NIN",
    "resnet32": "ResNet32",
    "resnet18": "ResNet18",
    "resnet18_imagenette": "ResNet18",
    "digits": "handwritten digits",
    "digits-padded": "handwritten digits with a border",
    "mnist": "MNIST",
    "fashion-mnist": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
    "imagenette": "Imagenette",
    "bu2td": "those of this report",
    "cifar10-c": "CIFAR-10-C",
    "imagenet-c": "ImageNet-C",
    PAPERS_LAYER: "last convolution",
    "last-level": "last level",
    PAPERS_NORMALISATION: "centred",
    "plain": "plain",
    "jpeg-compression": "JPEG compression",
    "lr": "learning rate",
    "batch_size": "batch size",
    "weight_decay": "weight decay",
    "none": "none",
    "all": "all",
}


def title(name: str) -> str:
    """What a name of a file or a command is called on the page; of names with a comma, every part."""
    for mark in (", ", ":"):
        if mark in name and name.replace(mark, "").replace("-", "").isalnum():
            return f"{mark.strip()} ".join(title(part) for part in name.split(mark))
    if name in ATTACKS:
        return ATTACKS[name].title
    if name in _TITLES:
        return _TITLES[name]
    if not re.fullmatch(r"[a-z0-9]+([-_][a-z0-9]+)*", name):
        return name  # no name of ours
    words = re.sub(r"[-_]", " ", name)
    return words[:1].upper() + words[1:]


def model_title(word: str) -> str:
    """A MODEL word without its library, the paper's networks by their names."""
    name = word.partition(":")[2] or word
    return _TITLES.get(name, name)


def listed(names: Iterable[str], most: int = 20) -> str:
    """Names in a sentence."""
    found = list(names)
    if len(found) > most:
        return f"{', '.join(found[:most])} and {len(found) - most} more"
    return ", ".join([*found[:-2], " and ".join(found[-2:])])


def digits(value: float, figures: int = 3) -> str:
    """A number with so many significant figures, thousands with commas; a dash for nan."""
    if math.isnan(value):
        return DASH
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    if not value:
        return "0"
    places = figures - 1 - math.floor(math.log10(abs(value)))
    return f"{round(value, places):,.{max(places, 0)}f}".replace("-", MINUS)


def fixed(value: float, places: int) -> str:
    """A number with so many places."""
    return f"{value:,.{places}f}".replace("-", MINUS) if math.isfinite(value) else digits(value)


def mean(found: Statistic, places: int | None = None) -> str:
    """Mean ± standard deviation, both to so many places; by default to three figures of the mean."""
    if not found.n or not math.isfinite(found.mean):
        return digits(found.mean)
    if places is None:
        places = max(2 - math.floor(math.log10(abs(found.mean))), 0) if found.mean else 0
    deviation = "" if math.isnan(found.std) else f" ± {found.std:,.{places}f}"
    return fixed(found.mean, places) + deviation


def share(found: Statistic, places: int = 2) -> str:
    """Mean ± standard deviation in per cent."""
    if not found.n or math.isnan(found.mean):
        return DASH
    deviation = "" if math.isnan(found.std) else f" ± {100 * found.std:.{places}f}"
    return f"{100 * found.mean:.{places}f}{deviation}"


def probability(p: float) -> str:
    """A p value with its sign: = or <; a dash for none."""
    if math.isnan(p):
        return DASH
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def together(text: str) -> str:
    """Numbers are not torn from what they belong to at the end of a line."""
    return re.sub(r"(?<=\d) (?=%)|(?<=\bp) (?=[=<])|(?<=p [=<]) ", "\N{NO-BREAK SPACE}", text)


def spread(values: Iterable[float]) -> str:
    """One number, or the smallest and the largest."""
    known = [v for v in values if not math.isnan(v)]
    if not known:
        return DASH
    low, high = (f"{v:,.4g}" if v % 1 else f"{v:,.0f}" for v in (min(known), max(known)))
    return low if low == high else f"{low}{DASH}{high}"


def shown(value: Any) -> str:
    """A value of run.json as words."""
    if value is None or value == {} or value == []:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(shown, value[:20])) + (f" and {len(value) - 20} more" if len(value) > 20 else "")
    if isinstance(value, dict):
        return ", ".join(f"{key} = {shown(entry)}" for key, entry in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)
