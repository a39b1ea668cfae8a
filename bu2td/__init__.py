"""bu2td turns any bottom-up convolutional network into its top-down network.

td = bu2td.convert(timm.create_model("resnet18"), arrangement="td")
"""

import importlib
from typing import Any

from bu2td.conversion import analyze, convert, verify
from bu2td.detection import DetectorBackbone, backbone
from bu2td.errors import Bu2tdError
from bu2td.io import load, save
from bu2td.ir import Analysis, Dim, Plan
from bu2td.maps import dense
from bu2td.measure import training_memory
from bu2td.ops import (
    Activation,
    Change,
    Converter,
    Convolution,
    Dropout,
    Expr,
    Field,
    Norm,
    NoRuleError,
    Rebuilt,
    Role,
    Site,
    System,
    Term,
    register_converter,
    register_family,
    resized,
    unregister_converter,
)
from bu2td.optimization import optimize
from bu2td.runtime import PatchNetwork, PixelNetwork, TopDownNetwork
from bu2td.version import __version__ as __version__

__all__ = [
    "Activation",
    "Analysis",
    "Bu2tdError",
    "Change",
    "Converter",
    "Convolution",
    "DetectorBackbone",
    "Dim",
    "Dropout",
    "Expr",
    "Field",
    "NoRuleError",
    "Norm",
    "PatchNetwork",
    "PixelNetwork",
    "Plan",
    "Rebuilt",
    "Role",
    "Site",
    "System",
    "Term",
    "TopDownNetwork",
    "analyze",
    "backbone",
    "convert",
    "dense",
    "erf",
    "evaluate",
    "load",
    "optimize",
    "register_converter",
    "register_family",
    "resized",
    "save",
    "training_memory",
    "unregister_converter",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Import `bu2td.erf` and `bu2td.evaluate` when they are first asked for."""
    if name in ("erf", "evaluate"):
        return importlib.import_module(f"bu2td.{name}")
    raise AttributeError(f"module 'bu2td' has no attribute {name!r}")
