"""The options of a conversion: what each may be, checked when they are made, before any model is looked at."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, ParamSpec, TypeVar, get_args, overload

import torch

from bu2td.errors import OptionError, SigmaError, WidthError, nearest, shown
from bu2td.nn import MIN_SIGMA, REDUCERS, UPSAMPLE_MODES, Reducer, UpsampleMode

# What type checkers know of the options that are words; what is checked when they run is read from the same lists.
Arrangement = Literal["td", "uni", "rev"]
Stem = Literal["mirror", "coarse"]
Merging = Literal["add_concat", "add", "concat"]
Inherit = Literal["matching", "none"]

ARRANGEMENTS: tuple[Arrangement, ...] = get_args(Arrangement)
STEMS: tuple[Stem, ...] = get_args(Stem)
MERGES: tuple[Merging, ...] = get_args(Merging)
INHERITS: tuple[Inherit, ...] = get_args(Inherit)

_MAX_SIGMA, _MOST_PIXELS, _MOST_COUNT = 1000, 2**31, 2**40

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Options:
    """Every option of `bu2td.convert`, as recorded in the plan and in saved files.

    Whatever needs no model is checked here, once.

    Raises:
        OptionError, WidthError, SigmaError: name the option, what was found, and what it may be.
    """

    arrangement: Arrangement | tuple[int, ...] = "td"
    width: int | None = None
    stem: Stem = "mirror"
    reductions: tuple[int, ...] | None = None
    finest_reduction: int = 1
    upsample: UpsampleMode = "nearest"
    merge: Merging = "add_concat"
    merge_kernel: int = 3
    pyramid: Reducer = "gaussian"
    sigma: float = 0.5
    inherit: Inherit | None = None
    max_macs_ratio: float | None = 64.0
    seed: int | None = None

    def __post_init__(self) -> None:
        _check_words(self)
        _check_widths(self)
        _check_numbers(self)


def _check_words(options: Options) -> None:
    choices: dict[str, Sequence[Any]] = {
        "stem": STEMS,
        "upsample": UPSAMPLE_MODES,
        "merge": MERGES,
        "pyramid": REDUCERS,
        "inherit": (*INHERITS, None),
        **({"arrangement": ARRANGEMENTS} if isinstance(options.arrangement, str) else {}),
    }
    for name, known in choices.items():
        value = getattr(options, name)
        if not isinstance(value, str | None) or value not in known:
            words = [k for k in known if isinstance(k, str)]
            raise OptionError(
                f"{name}={shown(value)} is unknown; it must be one of {', '.join(map(repr, known))}"
                f"{' or a list of level widths' if name == 'arrangement' else ''}."
                f"{nearest(value, words) if isinstance(value, str) else ''}"
            )


def _check_widths(options: Options) -> None:
    if not isinstance(options.arrangement, str):
        widths = options.arrangement
        if not widths or not all(_is_whole(w) for w in widths):
            raise OptionError(f"arrangement={shown(widths)}: a custom arrangement is a list of whole widths")
        if min(widths) < 1:
            raise WidthError(f"arrangement={list(widths)}: every width must be at least 1")
    if options.width is None:
        return
    if not _is_whole(options.width) or options.width < 1:
        raise WidthError(f"width={shown(options.width)} must be a whole number of at least 1")
    if options.arrangement != "uni":
        raise OptionError(
            f"width is the common width of arrangement 'uni'; with {shown(options.arrangement)} give a list of "
            f"level widths as arrangement instead"
        )


def _check_numbers(options: Options) -> None:
    if not _is_whole(options.finest_reduction):
        raise OptionError(f"finest_reduction={shown(options.finest_reduction)} must be a whole number")
    if not all(_is_whole(reduction) for reduction in options.reductions or ()):
        raise OptionError(f"reductions={shown(options.reductions)} must be a list of whole numbers")
    kernel, sigma, ratio, seed = options.merge_kernel, options.sigma, options.max_macs_ratio, options.seed
    if not _is_whole(kernel) or kernel < 1 or kernel % 2 == 0:
        raise OptionError(f"merge_kernel={shown(kernel)} must be an odd whole number")
    if not _is_number(sigma) or not sigma >= MIN_SIGMA:
        raise SigmaError(
            f"sigma={shown(sigma)} is below the minimum {MIN_SIGMA} (in units of the reduction): outputs "
            f"of the pyramid would fall between two pixels"
        )
    if sigma > _MAX_SIGMA:
        raise SigmaError(
            f"sigma={shown(sigma)} is above the maximum {_MAX_SIGMA} (in units of the reduction): all taps weigh "
            f"the same long before"
        )
    if ratio is not None and not (_is_number(ratio) and ratio > 0):
        raise OptionError(f"max_macs_ratio={shown(ratio)} must be a positive number or None")
    if seed is not None:
        as_seed(seed)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def as_seed(value: Any) -> int:
    """The seed of a generator.

    Raises:
        OptionError: it is none.
    """
    if not _is_whole(value) or not 0 <= value < 2**63:
        raise OptionError(f"seed={shown(value)} must be a whole number from 0 to 2**63 - 1")
    return int(value)


def as_count(name: str, value: Any) -> int:
    """A whole number, at least 1 and at most 2**40.

    Raises:
        OptionError: it is none.
    """
    if not _is_whole(value) or value < 1:
        raise OptionError(f"{name}={shown(value)} must be a whole number, at least 1")
    if value > _MOST_COUNT:
        raise OptionError(f"{name}={shown(value)} is more than there is of anything")
    return int(value)


def as_size(name: str, value: Any) -> tuple[int, int]:
    """Height and width, of two whole numbers or of one for both.

    Raises:
        OptionError: it is neither.
    """
    pair = (value, value) if isinstance(value, int) else tuple(value) if isinstance(value, Sequence) else ()
    if len(pair) != 2:
        raise OptionError(f"{name}={shown(value)} must be one whole number, or height and width")
    height, width = as_count(name, pair[0]), as_count(name, pair[1])
    if height * width > _MOST_PIXELS:
        raise OptionError(f"{name}={shown(value)} is larger than any image")
    return height, width


def as_sequence(name: str, value: Any) -> tuple[Any, ...]:
    """A list of widths or reductions as an option.

    Raises:
        OptionError: it is no list.
    """
    try:
        return tuple(value)
    except TypeError:
        raise OptionError(f"{name}={shown(value)} must be a word or a list of whole numbers") from None


@overload
def as_device(device: None) -> None: ...
@overload
def as_device(device: str | torch.device) -> torch.device: ...
@overload
def as_device(device: str | torch.device | None) -> torch.device | None: ...
def as_device(device: str | torch.device | None) -> torch.device | None:
    """A device that is there; None stays None.

    Raises:
        OptionError: torch knows no such device, or this machine has none.
    """
    if device is None:
        return None
    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError, ValueError):
        reason = "torch knows no device of this name"
    else:
        try:
            torch.empty(0, device=wanted)
        except (RuntimeError, AssertionError) as error:
            reason = re.split(r"(?<=\.)\s|\n", str(error).strip())[0].rstrip(".")
        else:
            return wanted
    raise OptionError(
        f"The device {shown(device)} cannot be used: {reason}. Expected 'cpu', 'meta' or a device of "
        f"this machine (torch.cuda.is_available() is {torch.cuda.is_available()})."
    )


def suggests_names(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function's own TypeError for an unknown keyword name the nearest one that it has."""
    known = inspect.signature(function).parameters

    @functools.wraps(function)
    def suggesting(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in kwargs:
            if name not in known:
                raise TypeError(
                    f"{function.__name__}() got an unexpected keyword argument {name!r}.{nearest(name, known)}"
                )
        return function(*args, **kwargs)

    return suggesting
