"""What an operation is: roles, the converter interface, its registry, and what converters are written with."""

from bu2td.ops.bases import Activation, Convolution, ConvShape, Dropout, Norm, fitting, pair, same_padding, slide
from bu2td.ops.converter import (
    Converter,
    blaming,
    broadcast,
    channel_axis,
    constants,
    pinned,
    pointwise,
    positions,
    to_size,
)
from bu2td.ops.fields import Field
from bu2td.ops.registry import (
    OPAQUE,
    converter_for,
    converter_for_type,
    following,
    register_converter,
    register_family,
    register_following,
    registered,
    unregister_converter,
)
from bu2td.ops.roles import Role
from bu2td.ops.site import Change, Expr, NoRuleError, Rebuilt, Site, System, Term
from bu2td.ops.surgery import copied, meta_copy, resized, resized_deeply
