"""Part of analyse: what a network does to the image before it looks for features in it.

A normalisation, a colour transform, coordinates or an edge map beside the image, attention on its pixels, a
denoiser in front of a classifier: as long as the result is an image still - as large as the image, and about as
wide - it is prepared, not read. A pyramid is then one of the prepared image.
"""

from __future__ import annotations

from collections.abc import Sequence

from bu2td.analyse.trunk import Region
from bu2td.graph import GraphView
from bu2td.ops import Role

#: What a colour image has, also where a grey one is made to one.
_COLOURS = 3

#: What reads a prepared image widens it so many times at least, and makes so many channels.
_WIDENING, _STEM = 2, 8


def count_preparing(view: GraphView, image: str, regions: Sequence[Region]) -> int:
    """How many of the first regions prepare the image.

    Needs: the regions of a trunk, and the node of the image.
    Returns: a number of regions; what the last of them makes is the prepared image.
    Guarantees: it has the resolution of the image, and a network follows that reads it. Layers only prepare where
        what they make is about as wide as an image, and what reads it makes it much wider: a first convolution of
        few filters is a level.
    """
    pure = 0
    while pure < len(regions) and _changes_values(view, regions[pure]):
        pure += 1
    for end in range(len(regions) - 1, pure, -1):
        if _is_image(view, image, regions[end - 1]) and _is_read(view, regions[:end], regions[end:]):
            while end < len(regions) and _changes_values(view, regions[end]):
                end += 1
            return end
    return pure if pure < len(regions) else 0


def _changes_values(view: GraphView, region: Region) -> bool:
    """Whether a region computes at every pixel alone, without layers, and in full resolution."""
    return bool(view.reduction(region.exit) == 1) and all(role.prepares for role in region.roles)


def _is_image(view: GraphView, image: str, region: Region) -> bool:
    """Whether a region of full resolution makes an image, wherever it went in between.

    A convolution makes as many channels as an image has, unless it filters each channel alone or is fixed; a
    region that puts something beside the image may be twice as wide.
    """
    layers = any(role.layer for role in region.roles)
    if (
        view.reduction(region.exit) != 1
        or Role.DROPOUT in region.roles
        or (Role.PAD in region.roles and not layers)
    ):
        return False  # padding belongs to the convolution behind
    width, colours = view.width(region.exit), view.width(image)
    if region.conv is None or view.grouped(region.conv) or _is_fixed(view, region.conv):
        return width <= max(2 * colours, colours + _COLOURS)
    return width in (colours, max(colours, _COLOURS))


def _is_fixed(view: GraphView, layer: str) -> bool:
    """Whether none of a layer's weights are trained, in a network whose others are."""
    module = view.module(layer)
    trains = any(p.requires_grad for p in view.graph_module.parameters())
    return trains and module is not None and not any(p.requires_grad for p in module.parameters())


def _is_read(view: GraphView, preparing: Sequence[Region], regions: Sequence[Region]) -> bool:
    """Whether a layer that follows, before anything reduces, makes an image much wider.

    A 1x1 convolution behind a grouped one is the second half of a separable convolution.
    """
    last = next((region.conv for region in reversed(preparing) if region.conv is not None), None)
    filtered = last is not None and view.grouped(last) and not _is_fixed(view, last)
    for region in regions:
        if any(role.layer for role in region.roles):
            if filtered and region.conv is not None and view.kernel(region.conv) == (1, 1):
                return False
            return view.width(region.exit) >= max(_WIDENING * view.width(preparing[-1].exit), _STEM)
        if view.reduction(region.exit) != 1:
            return False
    return False
