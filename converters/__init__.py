"""bu2td's converters: one file per family of operations.

Importing this package registers them all. To add an operation, write a class in the file of its family
(see `bu2td.Converter` for what it may answer) and decorate it with `register_converter`.
"""

from bu2td_converters import (  # noqa: F401
    attention,
    conv,
    deform,
    einops,
    join,
    linear,
    norm,
    pointwise,
    pool,
    product,
    recurrent,
    reshape,
    timm,
    topdown,
)
