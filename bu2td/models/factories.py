"""A user's own models: factories in Python files and importable modules."""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.util
import inspect
import operator
import os
import pkgutil
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from bu2td.errors import OptionError, UnknownModelError, nearest
from bu2td.models.library import FORMS, Wishes, built, describe, reason

__all__ = ["from_file", "from_module"]


def from_module(source: str, name: str, wishes: Wishes) -> Callable[[], nn.Module]:
    """What builds the model of ``package.module:factory``; the module is imported now.

    Raises:
        UnknownModelError: no such module or factory, or importing it fails.
    """
    if not all(part.isidentifier() for part in source.split(".")):
        raise UnknownModelError(f"{source!r} is neither a known source nor the name of a Python module. {FORMS}")
    with _importable(Path.cwd()):
        try:
            module = importlib.import_module(source)
        except (Exception, SystemExit) as error:
            missing = error.name if isinstance(error, ModuleNotFoundError) else None
            if missing is not None and f"{source}.".startswith(f"{missing}."):
                message = f"There is no module {missing!r}.{_nearest_module(missing)}"
                message += " Is its folder the current one, or its package installed?"
            else:
                message = f"Importing {source!r} failed: {reason(error, own=True)}"
        else:
            return _factory(module, name, f"module {source!r}", f"{source}:{name}", Path.cwd(), wishes)
    raise UnknownModelError(message)


def from_file(source: str, name: str, wishes: Wishes) -> Callable[[], nn.Module]:
    """What builds the model of ``path/to/file.py:factory``; the file is run now.

    Raises:
        UnknownModelError: no such file or factory, or running it fails.
    """
    path = Path(source).expanduser()
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        neighbours = path.parent.glob("*.py") if path.parent.is_dir() else ()
        raise UnknownModelError(
            f"The file {source!r} {found} (current folder: {Path.cwd()})."
            f"{nearest(path.name, (p.name for p in neighbours))}"
        )
    path = path.resolve()
    with _importable(path.parent):
        module = _load_file(path, source)
        return _factory(module, name, f"file {source!r}", f"{source}:{name}", path.parent, wishes)


def _load_file(path: Path, source: str) -> ModuleType:
    """Run a file as a module of its own name; an unchanged file runs once in a process."""
    name = f"_bu2td_{path.stem}_{zlib.crc32(os.fsencode(path)):08x}"
    stamp = path.stat().st_mtime_ns
    loaded = sys.modules.get(name)
    if loaded is not None and getattr(loaded, "__bu2td_stamp__", None) == stamp:
        return loaded
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a class's module up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        message = f"Running {source!r} failed: {reason(error, own=True)}"
    else:
        vars(module)["__bu2td_stamp__"] = stamp
        return module
    raise UnknownModelError(message)


def _factory(
    module: ModuleType, name: str, where: str, word: str, folder: Path, wishes: Wishes
) -> Callable[[], nn.Module]:
    try:
        factory = operator.attrgetter(name)(module)
    except AttributeError:
        raise UnknownModelError(f"There is no {name!r} in {where}.{_hint(module, name)}") from None
    if isinstance(factory, nn.Module):
        raise UnknownModelError(
            f"{name!r} in {where} is a model ({type(factory).__name__}), not a factory: "
            f"write a function that builds and returns it."
        )
    if not callable(factory):
        raise UnknownModelError(f"{name!r} in {where} is {describe(factory)}, not a factory.")

    def build() -> nn.Module:
        with _importable(folder):
            return built(word, functools.partial(factory, **_granted(factory, wishes)))

    return build


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Let the user's code import its neighbours, as `python file.py` would."""
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        if str(folder) in sys.path:
            sys.path.remove(str(folder))


def _granted(factory: Callable[..., Any], wishes: Wishes) -> dict[str, int]:
    """The arguments among the wishes that a factory takes; ``in_chans`` is ``in_channels``."""
    try:
        taken = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return {}
    granted = {name: value for name, value in wishes.items() if name in taken}
    if "pretrained" in wishes and "pretrained" not in taken:
        raise OptionError(f"{getattr(factory, '__name__', factory)} takes no argument 'pretrained'")
    if "in_channels" in wishes and "in_channels" not in taken and "in_chans" in taken:
        granted["in_chans"] = wishes["in_channels"]
    return granted


def _nearest_module(name: str) -> str:
    parent, _, leaf = name.rpartition(".")
    paths: Iterable[str] | None = None
    if parent:
        paths = getattr(sys.modules.get(parent), "__path__", ())
    names = [m.name for m in pkgutil.iter_modules(paths) if not m.name.startswith("_")]
    close = difflib.get_close_matches(leaf, names, n=1, cutoff=0.75)
    return f" Did you mean {(parent + '.' if parent else '') + close[0]!r}?" if close else ""


def _hint(module: ModuleType, name: str) -> str:
    if module.__name__ == "timm":
        return " A model of timm is written without 'timm:'."
    known = {k: v for k, v in vars(module).items() if callable(v) and not k.startswith("_")}
    own = [k for k, v in known.items() if getattr(v, "__module__", "") == module.__name__]
    listed = f" It has {_join(own)}." if own else " It defines no function or class."
    return nearest(name, known) or listed


def _join(names: list[str], limit: int = 8) -> str:
    shown = ", ".join(map(repr, names[:limit]))
    return f"{shown} and {len(names) - limit} more" if len(names) > limit else shown
