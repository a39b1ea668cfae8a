"""The options of a conversion: what each may be, checked before any model is looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bu2td.errors import OptionError, SigmaError, WidthError, nearest
from bu2td.nn import MIN_SIGMA, REDUCERS, UPSAMPLE_MODES

ARRANGEMENTS = ("td", "uni", "rev")


@dataclass(frozen=True)
class Options:
    """Every option of `bu2td.convert`, as recorded in the plan and in saved files."""

    arrangement: str | tuple[int, ...] = "td"
    width: int | None = None
    stem: str = "mirror"
    reductions: tuple[int, ...] | None = None
    finest_reduction: int = 1
    upsample: str = "nearest"
    merge: str = "add_concat"
    merge_kernel: int = 3
    pyramid: str = "gaussian"
    sigma: float = 0.5
    inherit: str | None = None
    max_macs_ratio: float | None = 64.0
    seed: int | None = None


MERGES = ("add_concat", "add", "concat")
STEMS = ("mirror", "coarse")


def check_options(options: Options) -> None:
    """Check everything about options that needs no model.

    Raises:
        OptionError, WidthError, SigmaError: name the option, what was found, and what it may be.
    """
    choices: dict[str, tuple[Any, Sequence[Any]]] = {
        "stem": (options.stem, STEMS),
        "upsample": (options.upsample, UPSAMPLE_MODES),
        "merge": (options.merge, MERGES),
        "pyramid": (options.pyramid, REDUCERS),
        "inherit": (options.inherit, (None, "matching")),
    }
    if isinstance(options.arrangement, str):
        choices["arrangement"] = (options.arrangement, ARRANGEMENTS)
    for name, (value, known) in choices.items():
        if value not in known:
            words = [k for k in known if isinstance(k, str)]
            raise OptionError(
                f"{name}={value!r} is unknown; it must be one of {', '.join(map(repr, known))}"
                f"{' or a list of level widths' if name == 'arrangement' else ''}."
                f"{nearest(str(value), words)}"
            )
    if not isinstance(options.arrangement, str):
        widths = options.arrangement
        if not widths or not all(isinstance(w, int) and not isinstance(w, bool) for w in widths):
            raise OptionError(f"arrangement={widths!r}: a custom arrangement is a list of whole widths")
        if min(widths) < 1:
            raise WidthError(f"arrangement={list(widths)}: every width must be at least 1")
    if options.width is not None and (not _whole_number(options.width) or options.width < 1):
        raise WidthError(f"width={options.width!r} must be a whole number of at least 1")
    if options.width is not None and options.arrangement != "uni":
        raise OptionError(
            f"width is the common width of arrangement 'uni'; with {options.arrangement!r} give a list of level "
            f"widths as arrangement instead"
        )
    if not _whole_number(options.merge_kernel) or options.merge_kernel < 1 or options.merge_kernel % 2 == 0:
        raise OptionError(f"merge_kernel={options.merge_kernel!r} must be an odd whole number")
    if not isinstance(options.sigma, int | float) or not options.sigma >= MIN_SIGMA:
        raise SigmaError(
            f"sigma={options.sigma!r} is below the minimum {MIN_SIGMA} (in units of the reduction): outputs "
            f"of the pyramid would fall between two pixels"
        )
    if options.max_macs_ratio is not None and not (
        isinstance(options.max_macs_ratio, int | float) and options.max_macs_ratio > 0
    ):
        raise OptionError(f"max_macs_ratio={options.max_macs_ratio!r} must be a positive number or None")


def _whole_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
