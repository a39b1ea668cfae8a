"""Top-down networks by name: what a library's name of a bottom-up network becomes."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from bu2td.conversion import convert
from bu2td.errors import OptionError, UnknownModelError, nearest
from bu2td.options import Arrangement
from bu2td.runtime import TopDownNetwork

#: What a name begins with -> the arrangement.
PREFIXES: dict[str, Arrangement] = {"td_": "td", "tduni_": "uni", "tdrev_": "rev"}
#: Options of `bu2td.convert` that a name takes beside those of the bottom-up network.
OPTIONS = tuple(
    name for name in inspect.signature(convert).parameters if name not in ("model", "arrangement", "device")
)


def is_name(name: str) -> bool:
    """Whether a name begins as those of top-down networks do."""
    return name.startswith(tuple(PREFIXES))


def parted(name: str) -> tuple[Arrangement, str]:
    """The arrangement and the bottom-up network of a name."""
    prefix, _, source = name.partition("_")
    return PREFIXES[f"{prefix}_"], source


def unknown(name: str, sources: Sequence[str], known: Callable[[str], bool], library: str) -> UnknownModelError:
    """The error for a name that is none, with those that may have been meant.

    Args:
        name: that was asked for.
        sources: all bottom-up networks that have one.
        known: whether the library has a model of a name.
        library: what the library is called.
    """
    prefix = next((p for p in PREFIXES if name.startswith(p)), "td_")
    source = name.removeprefix(prefix)
    if known(source):
        hint = f" {library}'s {source} is no convolutional classifier."
    else:
        hint = nearest(name, [prefix + other for other in sources])
    return UnknownModelError(f"there is no {name!r}.{hint}")


def taken(options: dict[str, Any]) -> dict[str, Any]:
    """Take the options of `bu2td.convert` out of others."""
    return {key: options.pop(key) for key in OPTIONS if key in options}


@contextmanager
def explained(name: str, others: Sequence[str]) -> Iterator[None]:
    """Let the error for an option that a bottom-up network does not take name the nearest one.

    Args:
        name: of the network.
        others: options of bottom-up networks that may have been meant.
    """
    try:
        yield
    except TypeError as error:
        found = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if found is None:
            raise
        raise TypeError(
            f"{name} takes no option {found[1]!r}: neither {parted(name)[1]} nor bu2td.convert has one."
            f"{nearest(found[1], (*OPTIONS, *others))}"
        ) from error


def inheriting(chosen: dict[str, Any], asked: str) -> None:
    """Let a conversion inherit weights, since ``asked`` asks for them.

    Raises:
        OptionError: it is told not to.
    """
    if chosen.setdefault("inherit", "matching") != "matching":
        raise OptionError(f"{asked} inherits weights, which inherit={chosen['inherit']!r} excludes")


def tell_inherited(name: str, source: str, network: TopDownNetwork) -> None:
    """Warn that a network has weights of its bottom-up network, in part, and none of its own."""
    copied, total = network.plan.inherited or (0, 1)
    warnings.warn(
        f"{name}: there are no weights of this top-down network. It inherits {copied / max(total, 1):.1%} of its "
        f"values from {source}; the others are random, and it has to be trained",
        stacklevel=5,
    )
