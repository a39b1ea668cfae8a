"""Part of analyse: slices of the image that mean streams.

``rgb(x[:, :3])`` beside ``depth(x[:, 3:])`` reads parts of the image. At a level of the top-down network such a
block reads features, and no channels of those are depth: there every stream reads all of them. What depth is comes
in by the lateral, whose convolution reads the whole image.
"""

from __future__ import annotations

from collections.abc import Iterable

from bu2td.graph import GraphView
from bu2td.ir import Block, is_feature_map
from bu2td.ops import Role


def slices_of_image(view: GraphView, image: str, blocks: Iterable[Block]) -> dict[str, str]:
    """The slices of the image that blocks read, each with the image.

    Needs: the blocks of a network, and the node of the image that they read.
    Returns: slice -> image.
    Guarantees: nothing but convolutions that take any number of channels reads the slices.
    """
    nodes = {n for block in blocks for n in block.nodes}
    readers = [u.name for u in view.nodes[image].users if u.name in nodes]
    return {n: image for n in readers if _slices_channels(view, n, image) and _opens_streams(view, n)}


def _slices_channels(view: GraphView, name: str, image: str) -> bool:
    value = view.dims[name]
    return view.role(name) == Role.SPLIT and is_feature_map(value) and view.width(name) < view.width(image)


def _opens_streams(view: GraphView, name: str) -> bool:
    """Whether all that reads a slice are convolutions over all of its channels, at most pooled or normed before."""
    for user in view.nodes[name].users:
        role = view.role(user.name)
        if role == Role.CONV and not view.grouped(user.name):
            continue
        passes = (role.keeps_shape or role == Role.POOL) and len(view.inputs(user.name)) == 1
        if not (passes and _opens_streams(view, user.name)):
            return False
    return True
