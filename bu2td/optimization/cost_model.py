"""When a rewrite of `bu2td.optimize` is worth it: measured times, or a cost model per kind of device.

Forms of a convolution are measured alone where `bu2td.optimization.tuning` is asked to; else the model of
`bu2td.optimization.rates` says how many seconds both take, and how far its gain is off where it was fitted. A
form is chosen where the model is sure of it; where not, the network stays as it is. What is chosen for all
convolutions and batch norms together (the memory format) is chosen where their sum gains: errors of many places
average out. A
rewrite of which only multiplications and bytes are known takes ``macs / rate + bytes / bandwidth`` seconds, and
must take less than `MARGIN` of the time before. A device without a table gets the rewrites that save
multiplications on any machine for inference, and in training those that make no more calls: on an H200 a step
waits for its calls (bench/results/families_h200.csv).
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bu2td.errors import OptionError, nearest, shown
from bu2td.ir import Rewrite
from bu2td.optimization.places import CHANNELS_LAST, Form, Place
from bu2td.optimization.rates import FITTED
from bu2td.optimization.rules import RULES

MODES = ("training", "inference")
CHOICES = ("auto", "always", "never")
#: What decides on forms whose worth depends on the machine.
TUNES = ("measure", "model", "off")

#: A rewrite must take less than this share of the time that it replaces.
MARGIN = 0.9
#: A measured form must take less than this share.
MEASURED_MARGIN = 0.97
#: How many times the model's error its gain must be.
SURE = 1.15
#: The reason of what the model decided, of what a stopwatch did, and of what was slower after all.
MODEL, MEASURED, DECLINED = "cost model", "measured", "slower in the whole network"

#: Seconds of both forms of a place; None where there is no time left to measure.
Clock = Callable[[Place], tuple[float, float] | None]


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


#: Seconds of a batch norm in a step of training, measured by hand on one core of an AMD EPYC: of a value of a
#: contiguous map; of a value of a channels-last one, and of a position, whose channels fill vectors of eight, or do
#: not.
NORM = (2.2e-9, 0.77e-9, 14e-9, 40e-9)


def norm_seconds(channels: int, positions: int) -> tuple[float, float]:
    """Seconds of a batch norm that trains, over contiguous and over channels-last maps."""
    value, last_value, filled, loose = NORM
    last = channels * last_value + (loose if channels % 8 else filled)
    return positions * channels * value, positions * last


def fitted_mode(rule: str, mode: str, batch: int) -> str:
    """Under what mode the model of a rule is fitted: PyTorch computes a step of one image in another way."""
    return f"{mode}, one image" if (rule, mode, batch) == (CHANNELS_LAST, "training", 1) else mode


class Chooser:
    """Decides on every rewrite, and keeps what it decided.

    Args:
        mode: one of `MODES`.
        device: type of the device, as in `torch.device`.
        batch: images at once.
        rules: rule -> one of `CHOICES`.
        force: module path, or a pattern of paths -> whether to rewrite there, whatever the rules say.
        given: (rule, site) pairs that are to be chosen, and no others; from a saved file.
        tune: one of `TUNES`.
        clock: measures places; needed for "measure".
        declined: rules that the network as a whole is slower with.
    """

    def __init__(
        self,
        mode: str,
        device: str,
        batch: int = 1,
        rules: Mapping[str, str] | None = None,
        force: Mapping[str, bool] | None = None,
        given: Sequence[Sequence[str]] | None = None,
        *,
        tune: str = "model",
        clock: Clock | None = None,
        declined: Sequence[str] = (),
    ) -> None:
        self.mode, self.device, self.batch = mode, device, batch
        self.rules, self.force = dict(rules or {}), dict(force or {})
        self.given = None if given is None else {(rule, site) for rule, site in given}
        self.tune, self.clock, self.declined = tune, clock, frozenset(declined)
        self.made: list[Rewrite] = []

    @property
    def training(self) -> bool:
        """Whether the network is to be trained."""
        return self.mode == "training"

    @property
    def measures(self) -> bool:
        """Whether places are measured."""
        return self.tune == "measure" and self.clock is not None

    def __call__(
        self,
        rule: str,
        site: str,
        before: Form | None = None,
        after: Form | None = None,
        sure: bool = True,
        place: Place | None = None,
        parts: Sequence[Place] = (),
        norms: Sequence[tuple[int, int]] = (),
    ) -> bool:
        """Whether to make a rewrite.

        Args:
            rule: one of `RULES`.
            site: path of the module.
            before, after: the forms for one image, of a rewrite that is not a place.
            sure: a model that is not sure makes none.
            place: the convolution whose form is chosen, which can be measured.
            parts: places that are changed together.
            norms: channels and positions of the batch norms that change their format with them, of one image.
        """
        places = [place] if place is not None else [*parts]
        if place is not None:
            before, after = place.forms(self.training)
        fixed = self._fixed(rule, site)
        seconds = self._measured(places) if fixed is None or fixed[1] == DECLINED else None
        if fixed is not None:
            (chosen, reason), gain = fixed, seconds and seconds[0] / seconds[1]
        elif seconds is not None:
            gain, reason = seconds[0] / seconds[1], MEASURED
            chosen = gain * MEASURED_MARGIN > 1
        else:
            chosen, gain, reason = self._modelled(rule, before, after, places, norms)
        if chosen and not sure and reason == MODEL:
            chosen, reason = False, "too narrow"
        macs = (int(before.macs), int(after.macs)) if before and after else (0, 0)
        self.made.append(Rewrite(rule, site, macs, gain, chosen, reason, seconds))
        return chosen

    def _fixed(self, rule: str, site: str) -> tuple[bool, str] | None:
        """What is decided without a look at times."""
        if self.given is not None:
            return (rule, site) in self.given, "as saved"
        if self.training and RULES[rule].inference_only:
            return False, "not in a network that trains"
        for pattern, wanted in self.force.items():
            if fnmatch.fnmatchcase(site, pattern):
                return wanted, f"force {shown(pattern)}"
        choice = self.rules.get(rule, "auto")
        if choice != "auto":
            return choice == "always", f"{rule}={shown(choice)}"
        if rule in self.declined:
            return False, DECLINED
        return (False, "not tuned") if self.tune == "off" and RULES[rule].by_machine else None

    def _measured(self, places: Sequence[Place]) -> tuple[float, float] | None:
        """Seconds of the forms of all places together."""
        if self.clock is None or not self.measures or not places:
            return None
        found = [self.clock(place) for place in places]
        times = [pair for pair in found if pair is not None]
        if len(times) < len(found):
            return None
        return sum(pair[0] for pair in times), sum(pair[1] for pair in times)

    def _modelled(
        self,
        rule: str,
        before: Form | None,
        after: Form | None,
        places: Sequence[Place],
        norms: Sequence[tuple[int, int]],
    ) -> tuple[bool, float | None, str]:
        if before is None and not places:
            return True, None, "saves work everywhere"
        fitted = self._fitted(places, norms)
        if fitted is not None:
            least = max(-math.log(MARGIN), SURE * fitted[1]) if len(places) == 1 else 0.0
            return math.log(fitted[0]) > least, fitted[0], MODEL
        if places and self.device in FITTED:
            return False, None, "unsure"
        if self.device not in RATES and self.training and RULES[rule].more_calls:
            return False, None, f"no table for {self.device}"
        if before is None or after is None:
            return True, None, f"no table for {self.device}"
        if self.device in RATES:
            gain = self._seconds(before) / self._seconds(after)
            return gain > 1 / MARGIN, gain, MODEL
        if RULES[rule].needs_table:
            return False, None, f"no table for {self.device}"
        return after.macs < before.macs, None, f"no table for {self.device}: fewer multiplications"

    def _fitted(self, places: Sequence[Place], norms: Sequence[tuple[int, int]]) -> tuple[float, float] | None:
        """The gain of all places together by the fitted model, and how far its logarithm is off; None without."""
        table = FITTED.get(self.device, {})
        keys = [(place.rule, fitted_mode(place.rule, self.mode, self.batch), place.kind) for place in places]
        if not places or any(key not in table for key in keys):
            return None
        total, off = [0.0, 0.0], 0.0
        for key, place in zip(keys, places, strict=True):
            *rates, error = table[key]
            times = [
                sum(rate * term for rate, term in zip(of_form, form.terms(self.batch), strict=True))
                for of_form, form in zip(rates, place.forms(self.training), strict=True)
            ]
            total = [total[0] + times[0], total[1] + times[1]]
            off += error * times[0]
        for channels, positions in norms:
            old, new = norm_seconds(channels, self.batch * positions)
            total = [total[0] + old, total[1] + new]
        return total[0] / total[1], off / total[0]

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
