"""Places of a network where a convolution has more than one form, and what its forms cost."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from bu2td.nn import reduced

Pair = tuple[int, int]

#: What sets the rate of a convolution.
KINDS = ("dense", "grouped", "depthwise", "pointwise")
_PAIRS = ("kernel", "dilation")
#: The rule of the memory format.
CHANNELS_LAST = "channels_last"


@dataclass(frozen=True)
class Form:
    """What a form of a computation costs on one image.

    Attributes:
        macs: multiply-accumulates of one pass.
        moved: values written and read beside the convolution.
        weights: values of weights that are read, summed or transformed, whatever the number of images.
        maps: values of the maps that the convolution reads and writes.
    """

    macs: float
    moved: float = 0.0
    weights: float = 0.0
    maps: float = 0.0

    def terms(self, batch: int) -> tuple[float, ...]:
        """What the seconds of a batch are a sum of: a call, and the four numbers."""
        return 1.0, batch * self.macs, batch * self.moved, self.weights, batch * self.maps


@dataclass(frozen=True)
class Place:
    """A convolution for which a form is to be chosen, in all numbers that its time depends on.

    Attributes:
        rule: "upsample_conv", "merge", "winograd", or "channels_last" (the memory format of its maps).
        inputs, outputs, kernel, groups, dilation: of the convolution; a merge's reads twice its output's channels.
        size: (H, W) of the map that the new form reads; of a merge's map at low resolution.
        factor: of the upsampling in front of it.
        join: of a merge.
        bias: whether it has one.
        last: whether its maps are channels-last.
    """

    rule: str
    inputs: int
    outputs: int
    kernel: Pair
    size: Pair
    groups: int = 1
    dilation: Pair = (1, 1)
    factor: int = 1
    join: str = ""
    bias: bool = False
    last: bool = True

    @staticmethod
    def of(rule: str, conv: Any, size: Any, inner: int | None = None, **numbers: Any) -> Place:
        """The place of a `torch.nn.Conv2d` over a map of ``size``; ``inner`` input channels, where not all.

        ``numbers`` are those that the convolution does not have.
        """
        own: Any = {
            name: tuple(map(int, getattr(conv, f"{name}_size" if name == "kernel" else name))) for name in _PAIRS
        }
        inputs, bias = conv.in_channels if inner is None else inner, conv.bias is not None
        sides = (int(size[0]), int(size[1]))
        return Place(rule, inputs, conv.out_channels, size=sides, groups=conv.groups, bias=bias, **own, **numbers)

    @property
    def kind(self) -> str:
        """One of `KINDS`; "pointwise" is 1x1: a merge with no multiplications to save, weights in either format."""
        if self.groups == 1:
            alone = math.prod(self.kernel) == 1 and self.rule in ("merge", CHANNELS_LAST)
            return "pointwise" if alone else "dense"
        return "depthwise" if self.groups == self.inputs else "grouped"

    def forms(self, training: bool) -> tuple[Form, Form]:
        """The form as it is, and the new one."""
        if self.rule == "upsample_conv":
            return upsampled_forms(self, training)
        if self.rule == "merge":
            return merge_forms(self, training)
        if self.rule == "winograd":
            return winograd_forms(self, training)
        form = plain_form(self, self.size)
        return form, form


def plain_form(place: Place, size: Pair) -> Form:
    """A convolution of stride 1 over a map of ``size``."""
    pairs = place.inputs * place.outputs // place.groups
    kept, positions = pairs * math.prod(place.kernel), math.prod(size)
    return Form(positions * kept, 0, kept, positions * (place.inputs + place.outputs))


def upsampled_forms(place: Place, training: bool) -> tuple[Form, Form]:
    """A convolution over an upsampled map, and its form at low resolution.

    In a network that trains, every step sums the taps again.
    """
    pairs = place.inputs * place.outputs // place.groups
    factor, low = place.factor, math.prod(place.size)
    high = low * factor * factor
    plain = plain_form(place, (place.size[0] * factor, place.size[1] * factor))
    before = Form(plain.macs, 2 * high * place.inputs, plain.weights, plain.maps)
    maps = low * place.inputs + high * place.outputs
    if math.prod(place.kernel) == 1:
        return before, Form(low * pairs, high * place.outputs, pairs, maps)
    sums = math.prod(d * (k - 1) + factor for k, d in zip(place.kernel, place.dilation, strict=True))
    made = pairs * sums
    return before, Form(low * made, 0, made + (2 * (before.weights + made) if training else 0), maps)


def merge_forms(place: Place, training: bool) -> tuple[Form, Form]:
    """A merge as it is, with the upsampling before it, and in two terms."""
    width, out, factor = place.inputs // 2, place.outputs, place.factor
    size = (place.size[0] * factor, place.size[1] * factor)
    positions = math.prod(size)
    join = 4 * width + (3 * width if place.join == "add_concat" else 0)
    plain = plain_form(place, size)
    half = plain.weights / 2
    sums = 2 * half if training else 0
    read = positions * width
    if factor == 1:
        before = Form(plain.macs, positions * join, plain.weights, plain.maps)
        return before, Form(plain.macs, 3 * positions * out, plain.weights + sums, 2 * (read + positions * out))
    first = Place("upsample_conv", width, out, place.kernel, place.size, factor=factor)
    one, low = upsampled_forms(first, training)
    before = Form(plain.macs, positions * join + one.moved, plain.weights, plain.maps)
    moved = 3 * positions * out + low.moved
    return before, Form(plain.macs / 2 + low.macs, moved, half + sums + low.weights, low.maps + read)


def winograd_forms(place: Place, training: bool) -> tuple[Form, Form]:
    """A 3x3 convolution as it is, and by minimal filtering.

    Tiles hold four values for one of the map, and are written and read about three times. A network that trains
    also transforms its kernels and their gradients in every step.
    """
    before = plain_form(place, place.size)
    pairs, channels = place.inputs * place.outputs, place.inputs + place.outputs
    tiles = reduced(place.size[0], 2) * reduced(place.size[1], 2)
    return before, Form(16 * tiles * pairs, 48 * tiles * channels, (64 if training else 16) * pairs, before.maps)
