"""Calls of public functions with options that are right, on the border, or of another kind; what they come to."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from mutations import VALUES
from nets import head, unit
from torch import nn

import bu2td
from bu2td.errors import Bu2tdError
from bu2td.optimization import RULES

#: Values of other kinds, for every option.
WRONG: tuple[Any, ...] = (
    *VALUES, object(), torch.ones(2), torch.tensor(2), torch.tensor(float("nan")), np.int64(2), np.array([4, 2, 1]),
    b"td", 1 + 2j, range(3), {4, 2, 1}, nn.Conv2d, len, ("td",), [True, True], [1.0, 2.0], "4,2,1", 10**5000,
)  # fmt: skip
SIDE = 16


@dataclass(frozen=True)
class Call:
    """A function with options.

    Attributes:
        run: calls it with some of them.
        accepts: what a success must satisfy, or raises; ``full`` asks for all that can be checked.
        options: by name, values that are right or on the border.
    """

    run: Callable[..., Any]
    accepts: Callable[[Any, bool], None]
    options: Mapping[str, Sequence[Any]]


def drawn(name: str, rng: random.Random) -> dict[str, Any]:
    """One to four options of a call, one in three of them of another kind."""
    options = CALLS[name].options
    chosen = rng.sample(sorted(options), min(len(options), rng.choice((1, 1, 2, 3, 4))))
    return {key: rng.choice(WRONG if rng.random() < 0.33 else options[key]) for key in chosen}


def outcome(name: str, options: Mapping[str, Any], full: bool = False) -> str:
    """The class of the error of bu2td, or "accepted".

    Raises:
        Exception: anything else that the call raises, or that its result does not satisfy.
    """
    call = CALLS[name]
    try:
        found = call.run(**options)
    except Bu2tdError as error:
        if not 0 < len(str(error)) < 5000:
            raise AssertionError(f"it says nothing, or more than anybody reads: {error}") from error
        return type(error).__name__
    call.accepts(found, full)
    return "accepted"


# --- what is called -----------------------------------------------------------------------------------


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(unit(3, 4), unit(4, 6, stride=2), unit(6, 8, stride=2), head(8, 5)).eval()


@functools.cache
def _analysis() -> bu2td.Analysis:
    return bu2td.analyze(net(), example_inputs=torch.zeros(2, 3, SIDE, SIDE))


@functools.cache
def _network() -> bu2td.TopDownNetwork:
    return bu2td.convert(_analysis(), seed=0)


def _convert(**options: Any) -> Any:
    looked_at = net() if "example_inputs" in options else _analysis()
    return bu2td.convert(looked_at, **{"device": "meta", "inherit": "none", **options})


def _verified(network: Any, full: bool) -> None:
    on_meta = any(p.is_meta for p in network.parameters())
    bu2td.verify(network, full=full and not on_meta and not network.is_fused)
    if not on_meta:
        _runs(network, full)


def _runs(network: Any, full: bool) -> None:
    with torch.no_grad():
        logits = network.eval()(torch.rand(1, 3, SIDE, SIDE + 3))
    assert logits.shape == (1, 5)
    assert bool(torch.isfinite(logits).all())


def _gradient(**options: Any) -> Any:
    looked_at = net() if "example_inputs" in options else _network()
    count = options.get("count", 2)
    if isinstance(count, int) and 2 < count <= 2**40:
        count = 3  # a million images are right, and take days
    return bu2td.erf.gradient(looked_at, **{**options, "count": count})


def _fields(found: Any, full: bool) -> None:
    assert found.rows
    assert str(found)


def _settings(**options: Any) -> Any:
    from bu2td.evaluate.settings import read_settings

    return read_settings(flags=options)


def _read_again(found: Any, full: bool) -> None:
    from bu2td.evaluate.settings import read_settings

    assert read_settings(flags=found.to_dict()) == found
    found.for_arrangement("td")


def _setting_values() -> dict[str, Sequence[Any]]:
    from bu2td.evaluate.settings import FIELDS, Settings

    border = (
        0,
        1,
        0.0,
        1.0,
        0.5,
        -1,
        2**31,
        2**53,
        1e300,
        "all",
        "0",
        "1",
        "bu",
        "bu,td",
        ["bu", "td"],
        {},
        {"lr": 1},
    )
    return {name: (getattr(Settings(), name), *border) for name in FIELDS}


def _on_device(**options: Any) -> Any:
    return bu2td.convert(_analysis(), **{"inherit": "none", **options})


_IMAGES = (
    torch.zeros(1, 3, SIDE, SIDE), torch.ones(2, 3, 17, 19), torch.ones(1, 3, 1, 1), torch.ones(1, 3, 4, 4), None,
    torch.ones(3, SIDE, SIDE), torch.ones(0, 3, SIDE, SIDE), torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8),
    torch.ones(1, 1, SIDE, SIDE), torch.full((1, 3, SIDE, SIDE), float("nan")), torch.ones(1, 3, 8, 8).double(),
)  # fmt: skip
_OF_CONVERT: dict[str, Sequence[Any]] = {
    "arrangement": ("td", "uni", "rev", [8, 6, 4], (3, 3, 3), [1, 1, 1], [8, 6], [2**24] * 3, [2**40] * 3, [0] * 3),
    "width": (None, 1, 7, 0, -1, 2**20, 2**31, 3.0),
    "stem": ("mirror", "coarse", "Mirror"),
    "reductions": (None, [4, 2, 1], (4, 1), [2, 1], [4], [1], [8, 1], [4, 4, 1], [1, 2, 4], []),
    "finest_reduction": (1, 2, 4, 0, 3, -1, 8, 2.0),
    "upsample": ("nearest", "bilinear", "transpose"),
    "merge": ("add_concat", "add", "concat"),
    "merge_kernel": (1, 3, 5, 9, 0, 2, -1, 101, 10**6 + 1),
    "pyramid": ("gaussian", "strided", "max", "max_blur", "average"),
    "sigma": (0.125, 0.5, 1, 3.0, 0.1249, 1e6, 1e308, float("inf")),
    "inherit": ("matching", "none", None),
    "device": (None, "cpu", "meta", torch.device("cpu"), "cuda", "cuda:99", "gpu", "cpu:0"),
    "seed": (None, 0, 1, 2**63 - 1, 2**63, -1),
    "max_macs_ratio": (64.0, 1, None, 1e-9, float("inf"), 0, -1),
}  # fmt: skip

CALLS: dict[str, Call] = {
    "convert": Call(_convert, _verified, {**_OF_CONVERT, "example_inputs": _IMAGES}),
    "convert on the CPU": Call(_on_device, _verified, {k: v for k, v in _OF_CONVERT.items() if k != "device"}),
    "optimize": Call(
        lambda **options: bu2td.optimize(_network(), **options),
        _verified,
        {
            "mode": ("training", "inference", "train"),
            "batch_size": (None, 1, 32, 0, -1, 2**40, 1.5),
            "image_size": (None, 32, (17, 19), 1, (4, 4), 0, (8, 8, 8), 2**20, 2**40, "32"),
            "rules": (None, {}, {"x": "auto"}, *({rule: w} for rule in RULES for w in ("always", "never", "x"))),
            "force": (None, {}, {"*": True}, {"*": False}, {"r2*": True}, {"nowhere": True}, {"*": 1}, {1: True}),
        },
    ),
    "patches": Call(
        lambda **options: bu2td.PatchNetwork(_network(), **options),
        _runs,
        {
            "share": (0.5, 1, 1.0, 0.01, 0, -0.5, 1.01, float("nan")),
            "finest": (1, 2, 0, 3, 99),
            "margin": (0, 1, 5, -1, 10**6, 2**70),
            "seed": (0, 1, 2**63 - 1, 2**63, -1),
        },
    ),
    "theory": Call(
        lambda **options: bu2td.erf.theory(net() if "example_inputs" in options else _network(), **options),
        _fields,
        {
            "layers": ("levels", "all", ["r2"], [], ["r2", "r2"], ["nowhere"], "r2"),
            "borders": (True, False, 1),
            "example_inputs": _IMAGES,
            "pyramid_field": (None, lambda f, s: 3, lambda f, s: -1, lambda f, s: "x", lambda f: 3, 3),
        },
    ),
    "gradient": Call(
        _gradient,
        _fields,
        {
            "layers": ("levels", ["r2"], [], ["r2", "r2"], ["nowhere"], "r2"),
            "count": (1, 2, 0, -1, 1.0),
            "batch_size": (1, 4, 0, -1, 2**40),
            "input_size": (None, SIDE, (17, 19), 1, 0, (3, 16, 16), 2**40, "16"),
            "device": (None, "cpu", "cuda", "meta", "gpu"),
            "seed": (0, 2**63 - 1, 2**63, -1),
            "images": _IMAGES,
            "example_inputs": _IMAGES,
        },
    ),
    "evaluate": Call(_settings, _read_again, _setting_values()),
}  # fmt: skip
