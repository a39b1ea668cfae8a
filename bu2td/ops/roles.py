"""The part that an operation plays in a topology: a closed list, and what the members have in common.

Analysis, arrangement and verification reason in roles alone; which role an operation has, and everything else about
it, is said by its converter.
"""

from enum import Enum


class Role(Enum):
    """What an operation is to the network around it.

    Members:
        CONV: slides learned windows over the map; may stride, and sets its output's width.
        ATTENTION: reads the map from every position, by weights that depend on it; may stride.
        NORM: subtracts and scales by statistics, with a parameter per channel.
        ACT: a function of every value alone.
        NORM_ACT: a norm with its activation inside (which may be switched off, `Converter.has_activation`).
        POOL: reduces the map by windows, without weights.
        DROPOUT: drops at random in train mode, passes in eval mode.
        ADD: a sum of tensors: where a shortcut joins its main path.
        MUL: a product of tensors: gates, scales.
        CONCAT: joins tensors along a dimension; along the channels widths add up.
        SPLIT: cuts a tensor into parts.
        PASS: without weights, neither mixes positions nor changes what the tensor means (views, casts).
        LINEAR: learned weights over the last dimension.
        GATE: reads the whole map, or all channels, into few values.
        HEAD: reads a whole map of one size by learned weights.
        RESAMPLE: changes the resolution by interpolation.
        PAD: adds rows, columns or channels of constants or copies.
        ATTRIBUTE: a parameter or buffer that the forward reads itself.
        OPAQUE: unknown; its channels are pinned, and it stops every rewrite.
    """

    CONV = "conv"
    ATTENTION = "attention"
    NORM = "norm"
    ACT = "act"
    NORM_ACT = "norm_act"
    POOL = "pool"
    DROPOUT = "dropout"
    ADD = "add"
    MUL = "mul"
    CONCAT = "concat"
    SPLIT = "split"
    PASS = "pass"
    LINEAR = "linear"
    GATE = "gate"
    HEAD = "head"
    RESAMPLE = "resample"
    PAD = "pad"
    ATTRIBUTE = "attribute"
    OPAQUE = "opaque"

    @property
    def pointwise(self) -> bool:
        """Whether every element depends on the elements at the same place alone."""
        return self in _POINTWISE

    @property
    def local(self) -> bool:
        """Whether it works on every position of the map alone, so that it commutes with nearest upsampling."""
        return self in _POINTWISE | _BESIDE_THE_MAP

    @property
    def keeps_shape(self) -> bool:
        """Whether its output always has the shape of its input."""
        return self in _KEEPS_SHAPE

    @property
    def normalises(self) -> bool:
        """Whether it is a norm, with or without an activation inside."""
        return self in (Role.NORM, Role.NORM_ACT)

    @property
    def dense(self) -> bool:
        """Whether learned weights read all channels (of a group) at once."""
        return self in (Role.CONV, Role.LINEAR)

    @property
    def layer(self) -> bool:
        """Whether it may hold weights that work on a map."""
        return self in (Role.CONV, Role.LINEAR, Role.ATTENTION, Role.OPAQUE)

    @property
    def windowed(self) -> bool:
        """Whether it slides a window over the map."""
        return self in (Role.CONV, Role.POOL)

    @property
    def makes_width(self) -> bool:
        """Whether its output has a width of its own, whatever the width of its input."""
        return self in _MAKES_WIDTH

    @property
    def transforms(self) -> bool:
        """Whether what follows it is no longer the same map for a join in front of it."""
        return self in (Role.CONV, Role.LINEAR, Role.ATTENTION, Role.POOL)

    @property
    def on_shortcut(self) -> bool:
        """Whether a shortcut may consist of it, beside one pointwise convolution."""
        return self in _ON_SHORTCUT

    @property
    def rearranges(self) -> bool:
        """Whether it only moves or selects values; a region of such that reduces is a downsampler."""
        return self in _REARRANGES

    @property
    def prepares(self) -> bool:
        """Whether it may prepare an image in front of all layers."""
        return self in _PREPARES


_POINTWISE = {Role.ACT, Role.NORM, Role.NORM_ACT, Role.DROPOUT, Role.ADD, Role.MUL, Role.PASS}
_BESIDE_THE_MAP = {Role.CONCAT, Role.SPLIT, Role.LINEAR, Role.GATE, Role.ATTRIBUTE}
_KEEPS_SHAPE = {Role.NORM, Role.NORM_ACT, Role.ACT, Role.DROPOUT}
_MAKES_WIDTH = {*(Role.CONV, Role.LINEAR, Role.CONCAT, Role.SPLIT), *(Role.ATTENTION, Role.HEAD, Role.OPAQUE)}
_ON_SHORTCUT = (_POINTWISE - {Role.ADD}) | {Role.POOL, Role.PAD, Role.RESAMPLE}
_REARRANGES = {Role.POOL, Role.PASS, Role.SPLIT, Role.CONCAT, Role.PAD}
_PREPARES = (_POINTWISE | _BESIDE_THE_MAP) - {Role.DROPOUT, Role.LINEAR}
