"""MODEL words: how the command line names a bottom-up model, and the live module that a word means.

==========================  =====================================================================
word                        model
==========================  =====================================================================
``resnet18``                timm's model of that name (``timm.create_model``)
``torchvision:resnet18``    torchvision's (``torchvision.models.get_model``)
``bu2td:lenet_fc``          one of the paper's baselines (`baselines`); ``lenet_fc`` alone means the same
``package.module:factory``  what ``factory()`` of an importable module returns
``path/to/file.py:factory`` what ``factory()`` of a Python file returns
==========================  =====================================================================

Weights are random in every case; nothing is downloaded.
"""

import difflib
import functools
import importlib
import importlib.util
import inspect
import operator
import os
import pkgutil
import re
import sys
import traceback
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from bu2td.errors import MissingPackageError, OptionError, UnknownModelError, nearest
from bu2td.models import baselines

__all__ = ["check_device", "create_model", "list_models"]

_FORMS = "A model is written NAME (timm), torchvision:NAME, bu2td:NAME, package.module:factory or file.py:factory."


def create_model(
    word: str, *, device: str | None = None, num_classes: int | None = None, in_channels: int | None = None
) -> nn.Module:
    """Build the model that a MODEL word names, with random weights.

    Args:
        word: ``NAME`` (timm), ``torchvision:NAME``, ``bu2td:NAME``, ``package.module:factory`` or
            ``file.py:factory``; a baseline's bare name where timm has none of this name. A factory is called
            without arguments, but for the two below.
        device: Where the parameters are: None leaves them where the constructor puts them, 'meta'
            allocates nothing (shapes only), any other device moves the finished model there.
        num_classes, in_channels: handed on to a constructor that takes arguments of these names (``in_chans``
            in timm); one that does not builds what it always builds.

    Returns:
        The live model, in the mode (train or eval) that its constructor leaves it in. Its attribute
        ``bu2td_factory`` is the word, from which `bu2td.load` can build it again.

    Raises:
        UnknownModelError: No such name, module, file or factory; or the factory raises, or does not
            return an `nn.Module`.
        MissingPackageError: The word needs timm or torchvision, which is not installed.
        OptionError: The device does not exist on this machine.
    """
    if not isinstance(word, str):
        raise UnknownModelError(f"Expected a model's name, got {_describe(word)}. {_FORMS}")
    target = None if device is None else check_device(device)
    model = _build(_constructor(word, {"num_classes": num_classes, "in_channels": in_channels}), target)
    if num_classes is None and in_channels is None:
        vars(model)["bu2td_factory"] = word
    return model


def list_models() -> list[str]:
    """Return every known MODEL word: timm's, torchvision's, bu2td's (of the installed packages)."""
    words = []
    if importlib.util.find_spec("timm") is not None:
        words += [str(name) for name in _package("timm").list_models()]
    if importlib.util.find_spec("torchvision") is not None:
        words += [f"torchvision:{name}" for name in _torchvision_classifiers()]
    return words + [f"bu2td:{name}" for name in baselines.INPUT_SIZES]


def _build(constructor: Callable[[], nn.Module], device: torch.device | None) -> nn.Module:
    if device is None:
        return constructor()
    if device.type == "meta":
        try:
            with _ParametersOnMeta():
                return constructor().to(device)
        except UnknownModelError:
            pass  # a constructor that calculates with its parameters: build them, then drop them
    return constructor().to(device)


class _ParametersOnMeta(TorchFunctionMode):
    """Allocate parameters on the meta device, but compute with real numbers.

    Under ``torch.device("meta")`` constructors that calculate with tensors fail (torchvision's
    regnets call ``arange(...).tolist()``); so only the factories of parameters are redirected.
    """

    _FACTORIES = frozenset((torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn))

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in self._FACTORIES and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def _constructor(word: str, wishes: dict[str, int | None]) -> Callable[[], nn.Module]:
    """Return the function that builds the model; everything but the model's own code is checked."""
    given = {name: value for name, value in wishes.items() if value is not None}
    source, colon, name = word.rpartition(":")
    if not colon:
        if word.endswith(".py"):
            raise UnknownModelError(f"{word!r} names a file but no factory in it: write {word}:FACTORY.")
        return _baseline(word, given) if word in baselines.INPUT_SIZES else _timm(word, given)
    if not source or not name:
        raise UnknownModelError(f"{word!r} is not a model: nothing stands before or after ':'. {_FORMS}")
    if source == "torchvision":
        return _torchvision(name, given)
    if source == "bu2td":
        return _baseline(name, given)
    if source.endswith(".py"):
        return _from_file(source, name, given)
    return _from_module(source, name, given)


def _granted(factory: Callable[..., Any], wishes: dict[str, int]) -> dict[str, int]:
    """The arguments among the wishes that a factory takes; ``in_chans`` is ``in_channels``."""
    try:
        taken = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return {}
    granted = {name: value for name, value in wishes.items() if name in taken}
    if "in_channels" in wishes and "in_channels" not in taken and "in_chans" in taken:
        granted["in_chans"] = wishes["in_channels"]
    return granted


# ----------------------------------------------------------------------------- named models


def _timm(word: str, wishes: dict[str, int]) -> Callable[[], nn.Module]:
    if not word.strip():
        raise UnknownModelError(f"The model's name is empty. {_FORMS}")
    if "/" in word or "\\" in word:
        raise UnknownModelError(f"{word!r} looks like a path, but not of a model. {_FORMS}")
    elsewhere = [w for w in (f"torchvision:{word}", f"bu2td:{word}") if _is_named(w)]
    also = f" Did you mean {' or '.join(map(repr, elsewhere))}?" if elsewhere else ""
    timm = _package("timm", f"Model {word!r} is timm's to build.{also}")
    name, dot, tag = word.partition(".")
    if not timm.is_model(name):
        raise UnknownModelError(
            f"timm {timm.__version__} has no model {name!r}.{also or nearest(name, list_models()) or ' ' + _FORMS}"
        )
    if dot:
        tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{name}.*")]
        if tag not in tags:
            raise UnknownModelError(
                f"timm's {name!r} has no weights tagged {tag!r}: write {name!r} alone (no weights are loaded)."
            )
    options = {"in_chans" if name == "in_channels" else name: value for name, value in wishes.items()}
    return lambda: _built(word, lambda: timm.create_model(word, pretrained=False, **options))


def _torchvision(name: str, wishes: dict[str, int]) -> Callable[[], nn.Module]:
    torchvision = _package("torchvision", f"Model 'torchvision:{name}' is torchvision's to build.")
    models = importlib.import_module("torchvision.models")
    if name not in models.list_models():
        raise UnknownModelError(
            f"torchvision {torchvision.__version__} has no model {name!r}."
            f"{_nearest_of('torchvision', name, models.list_models()) or ' ' + _FORMS}"
        )
    options: dict[str, Any] = {"weights": None, **{k: v for k, v in wishes.items() if k == "num_classes"}}
    accepted = inspect.signature(models.get_model_builder(name)).parameters
    if "weights_backbone" in accepted:  # segmentation and detection: a download by default
        options["weights_backbone"] = None
    if name.removeprefix("quantized_") in (
        "googlenet",
        "inception_v3",
    ):  # their own initialisation is slow, and warns
        options["init_weights"] = False
    return lambda: _built(f"torchvision:{name}", lambda: models.get_model(name, **options))


def _baseline(name: str, wishes: dict[str, int]) -> Callable[[], nn.Module]:
    if name not in baselines.INPUT_SIZES:
        words = [f"bu2td:{known}" for known in baselines.INPUT_SIZES]
        raise UnknownModelError(
            f"bu2td has no baseline {name!r}.{_nearest_of('bu2td', name, baselines.INPUT_SIZES)} "
            f"The baselines are {', '.join(words)}."
        )
    return functools.partial(getattr(baselines, name), **wishes)


def _is_named(word: str) -> bool:
    """Tell whether a word of torchvision or bu2td names a model, without importing in vain."""
    source, _, name = word.partition(":")
    if source == "bu2td":
        return name in baselines.INPUT_SIZES
    return importlib.util.find_spec("torchvision") is not None and name in _torchvision_classifiers()


def _torchvision_classifiers() -> list[str]:
    models = _package("torchvision") and importlib.import_module("torchvision.models")
    return [str(name) for name in models.list_models(module=models)]


def _package(name: str, reason: str = "") -> Any:
    """Import an optional package."""
    reason += " " if reason else ""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == name:
            message = f"{reason}{name} is not installed. Run: pip install {name}"
        else:
            message = (
                f"{reason}{name} is installed but cannot be imported ({_reason(error)}). "
                f"Run: pip install --force-reinstall {name}"
            )
    raise MissingPackageError(message)


# --------------------------------------------------------------------------- user's factories


def _from_module(source: str, name: str, wishes: dict[str, int]) -> Callable[[], nn.Module]:
    if not all(part.isidentifier() for part in source.split(".")):
        raise UnknownModelError(f"{source!r} is neither a known source nor the name of a Python module. {_FORMS}")
    with _importable(Path.cwd()):
        try:
            module = importlib.import_module(source)
        except (Exception, SystemExit) as error:
            missing = error.name if isinstance(error, ModuleNotFoundError) else None
            if missing is not None and f"{source}.".startswith(f"{missing}."):
                message = f"There is no module {missing!r}.{_nearest_module(missing)}"
                message += " Is its folder the current one, or its package installed?"
            else:
                message = f"Importing {source!r} failed: {_reason(error, own=True)}"
        else:
            return _factory(module, name, f"module {source!r}", f"{source}:{name}", Path.cwd(), wishes)
    raise UnknownModelError(message)


def _from_file(source: str, name: str, wishes: dict[str, int]) -> Callable[[], nn.Module]:
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
        message = f"Running {source!r} failed: {_reason(error, own=True)}"
    else:
        vars(module)["__bu2td_stamp__"] = stamp
        return module
    raise UnknownModelError(message)


def _factory(
    module: ModuleType, name: str, where: str, word: str, folder: Path, wishes: dict[str, int]
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
        raise UnknownModelError(f"{name!r} in {where} is {_describe(factory)}, not a factory.")

    def build() -> nn.Module:
        with _importable(folder):
            return _built(word, functools.partial(factory, **_granted(factory, wishes)))

    return build


def _built(word: str, factory: Callable[[], Any]) -> nn.Module:
    """Call the model's own code, and turn what it raises or returns wrongly into one line."""
    try:
        model = factory()
    except (Exception, SystemExit) as error:
        message = f"Building {word!r} failed: {_reason(error, own=True)}"
        if isinstance(error, TypeError) and "required positional argument" in str(error):
            message += ". A factory is called without arguments: give each a default"
        message += "."
    else:
        if isinstance(model, nn.Module):
            return model
        message = f"{word!r} returned {_describe(model)}; expected an nn.Module."
    raise UnknownModelError(message)


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


# ------------------------------------------------------------------------------------ wording


def check_device(device: str) -> torch.device:
    """The device of a word.

    Raises:
        OptionError: torch knows no such device, or this machine has none.
    """
    try:
        target = torch.device(device)
    except (RuntimeError, TypeError):
        message = "torch knows no device of this name"
    else:
        try:
            torch.empty(0, device=target)
        except (RuntimeError, AssertionError) as error:
            message = re.split(r"(?<=\.)\s|\n", str(error).strip())[0].rstrip(".")
        else:
            return target
    raise OptionError(
        f"The device {device!r} cannot be used: {message}. Expected 'cpu', 'meta' or a device of "
        f"this machine (torch.cuda.is_available() is {torch.cuda.is_available()})."
    )


def _describe(value: object) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__}"
    text = repr(value)
    short = f" ({text})" if len(text) <= 40 and "\n" not in text else ""
    return "None" if value is None else f"an object of type {type(value).__name__}{short}"


def _reason(error: BaseException, own: bool = False) -> str:
    """Return an exception on one line; with `own`, also where in the model's code it came from."""
    text = str(error).strip().partition("\n")[0].rstrip(".")
    reason = f"{type(error).__name__}: {text}" if text else type(error).__name__
    if isinstance(error, SyntaxError) and error.filename:
        return reason
    frames = traceback.extract_tb(error.__traceback__) if own else []
    frames = [f for f in frames if f.filename != __file__ and "importlib" not in f.filename]
    return f"{reason} ({frames[-1].filename}, line {frames[-1].lineno})" if frames else reason


def _nearest_of(source: str, name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    words = [repr(f"{source}:{match}") for match in close]
    return f" Did you mean {' or '.join(words)}?" if words else ""


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


def word_of(model: nn.Module) -> str | None:
    """The word that builds a model of a library again; None where it is not known, or builds a user's own."""
    config: Any = getattr(model, "pretrained_cfg", None)
    known = getattr(model, "bu2td_factory", None) or (
        config.get("architecture") if hasattr(config, "get") else None
    )
    return known if is_library_word(known) else None


def is_library_word(word: Any) -> bool:
    """Whether a word builds a model of a library: a file must not name a user's code, which `load` would run."""
    return isinstance(word, str) and (":" not in word or word.startswith(("torchvision:", "bu2td:")))
