"""bu2td turns any bottom-up convolutional network into its top-down network.

td = bu2td.convert(timm.create_model("resnet18"), arrangement="td")

Names are imported when they are first asked for, so that the command line answers without PyTorch.
"""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from bu2td.version import __version__ as __version__

if TYPE_CHECKING:
    from bu2td import erf, evaluate
    from bu2td.budget import propose
    from bu2td.conversion import analyze, convert, verify
    from bu2td.deployment import export
    from bu2td.detection import DetectorBackbone, backbone
    from bu2td.errors import Bu2tdError, PretrainedWarning
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
    "PretrainedWarning",
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
    "export",
    "load",
    "optimize",
    "propose",
    "register_converter",
    "register_family",
    "resized",
    "save",
    "training_memory",
    "unregister_converter",
    "verify",
]

#: Where a name is, for each of those that are no modules of this package.
_HOMES = {
    **dict.fromkeys(("analyze", "convert", "verify"), "bu2td.conversion"),
    **dict.fromkeys(("propose",), "bu2td.budget"),
    **dict.fromkeys(("export",), "bu2td.deployment"),
    **dict.fromkeys(("DetectorBackbone", "backbone"), "bu2td.detection"),
    **dict.fromkeys(("dense",), "bu2td.maps"),
    **dict.fromkeys(("Bu2tdError", "PretrainedWarning"), "bu2td.errors"),
    **dict.fromkeys(("load", "save"), "bu2td.io"),
    **dict.fromkeys(("Analysis", "Dim", "Plan"), "bu2td.ir"),
    **dict.fromkeys(("training_memory",), "bu2td.measure"),
    **dict.fromkeys(
        (
            "Activation",
            "Change",
            "Converter",
            "Convolution",
            "Dropout",
            "Expr",
            "Field",
            "Norm",
            "NoRuleError",
            "Rebuilt",
            "Role",
            "Site",
            "System",
            "Term",
            "register_converter",
            "register_family",
            "resized",
            "unregister_converter",
        ),
        "bu2td.ops",
    ),
    **dict.fromkeys(("optimize",), "bu2td.optimization"),
    **dict.fromkeys(("PatchNetwork", "PixelNetwork", "TopDownNetwork"), "bu2td.runtime"),
}

if not TYPE_CHECKING:  # type checkers read the imports above, and so notice a name that is not there

    def __getattr__(name: str) -> Any:
        """Import a name, or a module of this package, when it is first asked for."""
        if name in _HOMES:
            found = getattr(importlib.import_module(_HOMES[name]), name)
        elif not name.startswith("_") and importlib.util.find_spec(f"bu2td.{name}"):
            found = importlib.import_module(f"bu2td.{name}")
        else:
            raise AttributeError(f"module 'bu2td' has no attribute {name!r}")
        globals()[name] = found
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
