"""When a rewrite of `bu2td.optimize` is worth it: a cost model per kind of device, and what overrides it.

A form of a computation takes, by the model, ``macs / rate + bytes / bandwidth`` seconds, where bytes are those of
the intermediate maps and weights that the form writes and reads beside the convolution itself. A rewrite is chosen
where its form takes less than `MARGIN` of the time of the form that it replaces. Rates are those of one core; only
their ratio matters. A device without a table gets the rewrites that save work on any machine, and no others.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bu2td.errors import OptionError, nearest, shown
from bu2td.ir import Rewrite

MODES = ("training", "inference")
CHOICES = ("auto", "always", "never")

#: Every rewrite: what it does. Those marked (inference) are never part of a network that trains.
RULES: Mapping[str, str] = {
    "schedule": "the lateral of a level is computed right before its merge",
    "upsample_conv": "a convolution reads a nearest-upsampled map at low resolution",
    "merge": "a merge in two terms, without sum and concatenation",
    "pool": "the gradient of global average pooling is channels-last",
    "in_place": "an activation takes the memory of the convolution, norm or sum in front of it",
    "channels_last": "maps are channels-last from the pyramid to the head",
    "branches": "parallel linear branches of one map are one convolution (inference)",
    "fold_norm": "a batch norm is part of the convolution in front of it, or one multiply-add (inference)",
    "fuse": "convolution, sum and activation are one call (inference)",
    "winograd": "a wide 3x3 convolution by minimal filtering, 2.25 times fewer multiplications",
}
INFERENCE_ONLY = ("branches", "fold_norm", "fuse")
#: Trades multiplications for memory traffic, and GPU libraries do it themselves.
NEEDS_TABLE = ("winograd",)

#: A rewrite must take less than this share of the time that it replaces.
MARGIN = 0.9
#: The reason of what the model decided.
MODEL = "cost model"


@dataclass(frozen=True)
class Rates:
    """What a device reaches on the shapes of top-down networks.

    Attributes:
        macs: multiply-accumulates per second of dense convolutions.
        bandwidth: bytes per second of what only moves or adds numbers.
    """

    macs: float
    bandwidth: float


#: One core of an AMD EPYC (float32, oneDNN). ``--rates`` measures 27e9 to 56e9 multiply-accumulates, and 22e9 to
#: 70e9 bytes for maps that caches or freed memory hold but 4e9 for large fresh ones; the bandwidth here lies
#: between, and is judged by its choices: ``python bench/choices.py``.
RATES: Mapping[str, Rates] = {"cpu": Rates(macs=48e9, bandwidth=8e9)}


@dataclass(frozen=True)
class Form:
    """What a form of a computation costs: multiply-accumulates of one pass, values moved, values of weights."""

    macs: float
    moved: float = 0.0
    weights: float = 0.0


class Chooser:
    """Decides on every rewrite, and keeps what it decided.

    Args:
        mode: one of `MODES`.
        device: type of the device, as in `torch.device`.
        batch: images at once.
        rules: rule -> one of `CHOICES`.
        force: module path, or a pattern of paths -> whether to rewrite there, whatever the rules say.
        given: (rule, site) pairs that are to be chosen, and no others; from a saved file.
    """

    def __init__(
        self,
        mode: str,
        device: str,
        batch: int = 1,
        rules: Mapping[str, str] | None = None,
        force: Mapping[str, bool] | None = None,
        given: Sequence[Sequence[str]] | None = None,
    ) -> None:
        self.mode, self.device, self.batch = mode, device, batch
        self.rules, self.force = dict(rules or {}), dict(force or {})
        self.given = None if given is None else {(rule, site) for rule, site in given}
        self.made: list[Rewrite] = []

    @property
    def training(self) -> bool:
        """Whether the network is to be trained."""
        return self.mode == "training"

    def __call__(
        self, rule: str, site: str, before: Form | None = None, after: Form | None = None, sure: bool = True
    ) -> bool:
        """Whether to make a rewrite; forms are those of one image. A model that is not ``sure`` makes none."""
        gain = None
        if before is not None and after is not None and self.device in RATES:
            gain = self._seconds(before) / self._seconds(after)
        chosen, reason = self._decide(rule, site, before, after, gain)
        if chosen and not sure and reason == MODEL:
            chosen, reason = False, "too narrow"
        macs = (int(before.macs), int(after.macs)) if before and after else (0, 0)
        self.made.append(Rewrite(rule, site, macs, gain, chosen, reason))
        return chosen

    def _decide(self, rule: str, site: str, before: Any, after: Any, gain: float | None) -> tuple[bool, str]:
        if self.given is not None:
            return (rule, site) in self.given, "as saved"
        if self.training and rule in INFERENCE_ONLY:
            return False, "not in a network that trains"
        for pattern, wanted in self.force.items():
            if fnmatch.fnmatchcase(site, pattern):
                return wanted, f"force {shown(pattern)}"
        choice = self.rules.get(rule, "auto")
        if choice != "auto":
            return choice == "always", f"{rule}={shown(choice)}"
        if before is None:
            return True, "saves work everywhere"
        if gain is None and rule in NEEDS_TABLE:
            return False, f"no table for {self.device}"
        if gain is None:
            return after.macs < before.macs, f"no table for {self.device}: fewer multiplications"
        return gain > 1 / MARGIN, MODEL

    def _seconds(self, form: Form) -> float:
        """The model's time of a batch; a training step is three passes over maps and weights."""
        rates, passes = RATES[self.device], 3 if self.training else 1
        moved = 4.0 * (self.batch * form.moved + form.weights)
        return passes * (self.batch * form.macs / rates.macs + moved / rates.bandwidth)


def check_choices(rules: Mapping[str, str], force: Mapping[str, bool]) -> None:
    """Refuse rules and choices that do not exist.

    Raises:
        OptionError: names them, with the nearest known ones.
    """
    for name, given in (("rules", rules), ("force", force)):
        if not isinstance(given, Mapping):
            raise OptionError(f"{name}={shown(given)} must map names to choices")
    for rule, choice in rules.items():
        if rule not in RULES:
            raise OptionError(
                f"there is no rule {shown(rule)}; known: {', '.join(RULES)}.{nearest(shown(rule), RULES)}"
            )
        if not isinstance(choice, str) or choice not in CHOICES:
            raise OptionError(f"rules[{shown(rule)}]={shown(choice)} must be one of {CHOICES}")
    for pattern, wanted in force.items():
        if not isinstance(pattern, str) or not isinstance(wanted, bool):
            raise OptionError(
                f"force takes module paths and True or False, found {shown(pattern)}: {shown(wanted)}"
            )
