"""The rewrites of `bu2td.optimize`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """A rewrite.

    Attributes:
        does: what it does, in one line.
        inference_only: whether it is never part of a network that trains.
        by_machine: whether nothing is sure of it on a machine that nobody has measured.
        more_calls: whether a step of training makes more calls with it.
        needs_table: whether it trades multiplications for memory traffic, which libraries of GPUs do themselves.
        free: whether it costs nothing anywhere, so that no network is tried without it.
    """

    does: str
    inference_only: bool = False
    by_machine: bool = False
    more_calls: bool = False
    needs_table: bool = False
    free: bool = False


RULES: Mapping[str, Rule] = {
    "schedule": Rule("the lateral of a level is computed right before its merge", free=True),
    "upsample_conv": Rule(
        "a convolution reads a nearest-upsampled map at low resolution", by_machine=True, more_calls=True
    ),
    "merge": Rule("a merge in two terms, without sum and concatenation", by_machine=True, more_calls=True),
    "pool": Rule("the gradient of global average pooling is channels-last"),
    "in_place": Rule("an activation takes the memory of the convolution, norm or sum in front of it", free=True),
    "channels_last": Rule("maps are channels-last from the pyramid to the head", by_machine=True),
    "weights": Rule("weights of channels-last maps are so, too", by_machine=True),
    "branches": Rule("parallel linear branches of one map are one convolution", inference_only=True),
    "fold_norm": Rule(
        "a batch norm is part of the convolution in front of it, or one multiply-add",
        inference_only=True,
        free=True,
    ),
    "fuse": Rule("convolution, sum and activation are one call", inference_only=True),
    "winograd": Rule(
        "a wide 3x3 convolution by minimal filtering, 2.25 times fewer multiplications",
        by_machine=True,
        more_calls=True,
        needs_table=True,
    ),
}
BY_MACHINE = tuple(name for name, rule in RULES.items() if rule.by_machine)
