"""What an operation is: the converter interface, its registry, and what converters are written with."""

from bu2td.ops.converter import (
    Change,
    Converter,
    Expr,
    OpaqueConverter,
    Rebuilt,
    Site,
    System,
    Term,
    constants,
    pointwise,
    positions,
    to_size,
)
from bu2td.ops.fields import Field
from bu2td.ops.registry import (
    OPAQUE,
    converter_for,
    converter_for_type,
    register_converter,
    registered,
    unregister_converter,
)
from bu2td.ops.roles import Role
from bu2td.ops.surgery import drop_hooks, meta_copy, resized, resized_deeply

__all__ = [
    "Change",
    "Converter",
    "Expr",
    "Field",
    "OPAQUE",
    "OpaqueConverter",
    "Rebuilt",
    "Role",
    "Site",
    "System",
    "Term",
    "constants",
    "converter_for",
    "converter_for_type",
    "drop_hooks",
    "meta_copy",
    "pointwise",
    "positions",
    "register_converter",
    "registered",
    "resized",
    "resized_deeply",
    "to_size",
    "unregister_converter",
]
