"""Optional packages: imported where they are used, and what to install where they are missing."""

from __future__ import annotations

import importlib
import re
import warnings
from typing import Any

from bu2td.errors import MissingPackageError, first_line


def advice(extra: str) -> str:
    """What installs an extra of bu2td, from a package index and from a checkout."""
    return f"pip install 'bu2td[{extra}]' (in a checkout: pip install -e '.[{extra}]')"


def imported(module: str, pip: str | None = None, why: str = "") -> Any:
    """Import a module of an optional package.

    Args:
        module: its full name, such as "torchvision.datasets".
        pip: what to install; by default the package's name.
        why: what needs it, as the start of a sentence: "drawing needs it:".

    Raises:
        MissingPackageError: the package is not installed, or broken.
    """
    package = module.partition(".")[0]
    pip = pip or package
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of the package about its own imports
            return importlib.import_module(module)
    except ImportError as error:
        extra = re.fullmatch(r"'?bu2td\[([\w,]+)\]'?", pip)
        command = advice(extra[1]) if extra else f"pip install {pip}"
        if isinstance(error, ModuleNotFoundError) and error.name == package:
            message = f"{package} is not installed. Run: {command}"
        else:
            message = (
                f"{package} is installed but cannot be imported ({first_line(error)}). "
                f"Run: pip install --force-reinstall {pip}"
            )
    raise MissingPackageError(f"{why} {message}" if why else message)
