"""Every hyper-parameter of an evaluation: presets, configuration files, flags.

A preset and a configuration file are the same thing, a YAML file whose keys are the fields of `Settings`; later
sources win: defaults, preset, file, flags. Presets hold the paper's settings (Lelekas et al., 2020, section 4, and
the authors' scripts), ``quick`` and ``full`` those for scikit-learn's digits.
"""

from __future__ import annotations

import collections
import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from bu2td.arguments import split_list
from bu2td.errors import FileError, OptionError, nearest, shown
from bu2td.evaluate.robustness.registry import BUDGETS
from bu2td.files import leaves
from bu2td.options import ARRANGEMENTS as TOP_DOWN
from bu2td.options import Options
from bu2td.packages import imported

ARRANGEMENTS = ("bu", *TOP_DOWN)
INITIALISATIONS = ("default", "glorot_uniform", "he_normal")
NORMALISATIONS = ("none", "pixel-mean", "mean-std")
AMP_DTYPES = ("float16", "bfloat16")
OBJECTS = ("auto", "bright", "boxes", "none")
DECAYED = ("all", "kernels")
FILLS = ("black", "edge")


_EMPTY: Mapping[str, Any] = {}
#: Settings of this ending count test images; this word, or 0, is all of them.
_SAMPLES, ALL = "_samples", "all"


def _about(default: Any, text: str, group: str = "training", **more: Any) -> Any:
    metadata = {"help": text, "group": group, **more}
    return (
        field(default_factory=dict, metadata=metadata)
        if default is _EMPTY
        else field(default=default, metadata=metadata)
    )


@dataclass(frozen=True)
class Settings:
    """All settings of an evaluation (see the help of every field: ``bu2td evaluate all --help``)."""

    model: str = _about("bu2td:lenet_fc", "MODEL word of the bottom-up network", "data")
    data: str = _about("digits", "data set: digits, digits-padded, mnist, fashion-mnist, cifar10, imagenette, "
                       "folder:PATH", "data")  # fmt: skip
    data_dir: str = _about("data", "folder of torchvision's data sets", "machine")
    input_size: tuple[int, ...] | None = _about(None, "C,H,W of the images", "data")
    normalise: str = _about("none", "subtract the training images' mean image (pixel-mean), or their mean "
                            "per channel and divide by their standard deviation (mean-std)", "data",
                            choices=NORMALISATIONS)  # fmt: skip
    arrangements: tuple[str, ...] = _about(ARRANGEMENTS, "networks to train: bu, td, uni, rev", "data")
    convert: Mapping[str, Any] = _about(_EMPTY, "options of bu2td.convert as KEY=VALUE", "data")
    repeats: int = _about(4, "trainings of every network, each with another split and other weights", "data")
    validation_share: float = _about(0.1, "share of the training images kept for validation", "data")
    seed: int = _about(0, "of weights, splits, batches and noise; repeat k uses seed + k", "data")
    checkpoint: Mapping[str, Any] = _about(_EMPTY, "own weights as NETWORK=FILE (bu=mine.pt): such a network is "
                                           "measured and not trained", "data")  # fmt: skip
    pretrained: bool = _about(False, "take the bottom-up network with its library's weights, and do not train it",
                              "data")  # fmt: skip

    epochs: int = _about(15, "passes over the training images")
    batch_size: int = _about(32, "images per step, over all processes", flags=("-b",))
    lr: float = _about(0.1, "learning rate at the start")
    momentum: float = _about(0.9, "of SGD with Nesterov momentum")
    weight_decay: float = _about(0.0, "L2 penalty")
    decay_milestones: tuple[float, ...] = _about((0.5, 0.8), "shares of the epochs after which lr is multiplied by "
                                                 "decay-rate")  # fmt: skip
    decay_rate: float = _about(0.1, "factor of lr at a milestone")
    init: str = _about("default", "initial weights of convolutions and linear layers", choices=INITIALISATIONS)
    hflip: float = _about(0.0, "probability of a horizontal flip")
    hshift: float = _about(0.0, "largest horizontal shift, as a share of the width")
    vshift: float = _about(0.0, "largest vertical shift, as a share of the height")
    random_crop: float = _about(0.0, "zero padding before a random crop, as a share of the side")
    pca_color: float = _about(0.0, "standard deviation of noise along the principal colours")
    amp: bool = _about(False, "automatic mixed precision")
    amp_dtype: str = _about("bfloat16", "its number format", choices=AMP_DTYPES)
    grad_checkpointing: bool = _about(False, "recompute activations in the backward pass")
    top_down: Mapping[str, Any] = _about(_EMPTY, "training settings of td, uni and rev, as "
                                         "KEY=VALUE, where they differ")  # fmt: skip
    weight_decay_of: str = _about("all", "what the L2 penalty is on: all parameters, or kernels (no biases, no "
                                  "norms)", choices=DECAYED)  # fmt: skip
    shift_fill: str = _about("black", "what moves in at shifts and crops: black, or the image's edge",
                             choices=FILLS)  # fmt: skip

    attacks: tuple[str, ...] = _about(
        ("paper", "gradient"), "attacks, or groups of them (paper, gradient, autoattack)", "robustness"
    )
    attack_budget: str = _about("quick", "how hard the attacks try", "robustness", choices=BUDGETS)
    attack_samples: int = _about(100, "test images that are attacked, or all", "robustness")
    attack_repeats: int = _about(3, "runs of every attack; the smallest perturbation is kept", "robustness")
    attack_batch_size: int = _about(
        50, "images that are attacked at once, and shared among processes", "robustness"
    )
    attack_runs: int = _about(1, "trainings of every network that are attacked", "robustness")
    attack_arrangements: tuple[str, ...] = _about(("bu", "td"), "networks that are attacked", "robustness")
    corruption_samples: int = _about(300, "test images that are corrupted, or all", "corruptions")
    corrupted_data: str | None = _about(
        None, "folder of corrupted images or sequences, as CIFAR-10-C, CIFAR-10-P or ImageNet-C have", "corruptions"
    )

    frequency_samples: int = _about(100, "test images that are perturbed or filtered", "frequency")
    frequency_norm: float = _about(5.0, "L2 norm of a basis perturbation, per channel of an image of 32x32; grows "
                                   "as sqrt(pixels), so that its contrast stays", "frequency")  # fmt: skip
    frequency_step: int = _about(1, "measure every k-th frequency along both axes", "frequency")

    explain_samples: int = _about(300, "test images that are explained, or all", "explain")
    threshold: float = _about(0.2, "cut of objects and heat maps", "explain")
    objects: str = _about("auto", "what the object in an image is: boxes of the data, bright pixels, or auto: "
                          "boxes, else bright pixels where images are grey on black", "explain",
                          choices=OBJECTS)  # fmt: skip
    explain_arrangements: tuple[str, ...] = _about(
        ("bu", "td"), "networks that are explained and compared", "explain"
    )

    workers: int = _about(0, "processes that read images", "machine", flags=("-j",))
    device: str = _about("auto", "cpu, cuda, or auto: cuda where there is one", "machine")
    optimize: bool = _about(True, "train top-down networks as bu2td.optimize makes them: the same numbers, "
                            "faster", "machine")  # fmt: skip
    channels_last: bool | None = _about(None, "channels-last memory format; by default for top-down networks",
                                        "machine")  # fmt: skip
    torchcompile: bool = _about(False, "compile the training step with torch.compile", "machine")
    measure_memory: bool = _about(True, "measure the memory of a training step, in a process of its own", "machine")

    def for_arrangement(self, arrangement: str) -> Settings:
        """The settings with which one network is trained."""
        if arrangement == "bu" or not self.top_down:
            return self
        return dataclasses.replace(self, **self.top_down, top_down={})

    def identity(self, *groups: str) -> dict[str, Any]:
        """What decides the numbers (not: where data lie, how many processes read them, the device)."""
        wanted = groups or ("data", "training", "robustness", "corruptions", "frequency", "explain")
        return {f.name: _plain(getattr(self, f.name)) for f in FIELDS.values() if f.metadata["group"] in wanted}

    def to_dict(self) -> dict[str, Any]:
        """All fields, as JSON and YAML write them."""
        return {name: _plain(getattr(self, name)) for name in FIELDS}


FIELDS: dict[str, dataclasses.Field[Any]] = {f.name: f for f in dataclasses.fields(Settings)}
_TYPES = typing.get_type_hints(Settings)


def list_presets() -> list[str]:
    """The names of the presets."""
    return sorted(p.name.removesuffix(".yaml") for p in _presets().iterdir() if p.name.endswith(".yaml"))


def read_settings(
    preset: str | None = None, config: str | Path | None = None, flags: Mapping[str, Any] | None = None
) -> Settings:
    """Put settings together: defaults, then a preset, then a configuration file, then flags.

    Raises:
        OptionError: an unknown preset, key or value (with the nearest known one).
        FileError: the configuration file is missing or is not YAML.
        MissingPackageError: PyYAML is not installed.
    """
    return check(Settings(**given(preset, config, flags)))


def given(
    preset: str | None = None, config: str | Path | None = None, flags: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The settings that a preset, a configuration file and flags hold, without defaults for the others.

    Raises:
        OptionError, FileError, MissingPackageError: as `read_settings`.
    """
    values: dict[str, Any] = {}
    if preset is not None:
        if preset not in list_presets():
            known = list_presets()
            raise OptionError(
                f"there is no preset {shown(preset)}.{nearest(preset, known)} Presets: {', '.join(known)}"
            )
        values |= _read(_presets() / f"{preset}.yaml", f"preset {preset}")
    if config is not None:
        values |= _read(Path(config), str(config))
    values |= dict(flags or {})
    return {name: converted(name, value) for name, value in values.items()}


def grown(stored: Settings, asked: Settings, stage: str, called: Sequence[str]) -> Settings:
    """The settings of a run after one more call: it holds what any call has asked for.

    Networks, attacks and numbers of images add up; every other setting is the last one that was given. What no call
    of a stage has asked for yet does not count.

    Args:
        stored: those of the run.
        asked: those of the call.
        stage: what was called.
        called: the stages of the calls before.
    """
    changes: dict[str, Any] = {}
    for name, item in FIELDS.items():
        group, old, new = item.metadata["group"], getattr(stored, name), getattr(asked, name)
        networks = group in ("data", "training")
        if networks or group == "machine" or group in called or "all" in called:
            changes[name] = _more(name, old, new)
        elif stage in (group, "all"):
            changes[name] = new
    return dataclasses.replace(stored, **changes)


def _more(name: str, old: Any, new: Any) -> Any:
    if name.endswith(_SAMPLES):  # 0 is all
        return 0 if 0 in (old, new) else max(old, new)
    if name in ("repeats", "attack_runs"):
        return max(old, new)
    if name in ("arrangements", "attacks", "attack_arrangements"):
        union = (*old, *(word for word in new if word not in old))
        return tuple(sorted(union, key=ARRANGEMENTS.index)) if name != "attacks" else union
    return new


def flag_type(name: str) -> str:
    """How a setting is written on the command line: "bool", "list", "mapping" or "word"."""
    kind = _TYPES[name]
    if kind in (bool, bool | None):
        return "bool"
    if kind == Mapping[str, Any]:
        return "mapping"
    if isinstance(kind, types.UnionType):  # T | None
        kind = typing.get_args(kind)[0]
    return "list" if typing.get_origin(kind) is tuple else "word"


def check(settings: Settings) -> Settings:
    """Refuse values that make no sense.

    Raises:
        OptionError: names the first such value.
    """
    for name in (
        "repeats",
        "epochs",
        "batch_size",
        "attack_repeats",
        "attack_runs",
        "attack_batch_size",
        "frequency_step",
    ):
        _require(getattr(settings, name) >= 1, settings, name, "at least 1")
    samples = [name for name in FIELDS if name.endswith(_SAMPLES)]
    for name in ("weight_decay", "momentum", "pca_color", "workers", "seed", *samples):
        _require(getattr(settings, name) >= 0, settings, name, "at least 0")
    for name in ("lr", "decay_rate", "frequency_norm"):
        _require(getattr(settings, name) > 0, settings, name, "above 0")
    for name in ("hflip", "hshift", "vshift", "random_crop"):
        _require(0 <= getattr(settings, name) <= 1, settings, name, "between 0 and 1")
    for name in ("validation_share", "threshold"):
        _require(0 < getattr(settings, name) < 1, settings, name, "between 0 and 1, both excluded")
    _require(settings.seed < 2**31, settings, "seed", "below 2**31")
    _require(
        all(0 < m < 1 for m in settings.decay_milestones), settings, "decay_milestones", "shares between 0 and 1"
    )
    _require(settings.input_size is None or (len(settings.input_size) == 3 and min(settings.input_size) > 0),
             settings, "input_size", "three whole numbers C, H, W")  # fmt: skip
    for name in ("arrangements", "attack_arrangements", "explain_arrangements"):
        words = getattr(settings, name)
        _require(bool(words) and len(set(words)) == len(words), settings, name, "at least one, each once")
        for word in words:
            if word not in ARRANGEMENTS:
                raise OptionError(
                    f"{name} = {shown(word)}: expected {', '.join(ARRANGEMENTS)}.{nearest(word, ARRANGEMENTS)}"
                )
    for name in FIELDS:
        choices = FIELDS[name].metadata.get("choices")
        if choices and getattr(settings, name) not in choices:
            word = getattr(settings, name)
            raise OptionError(f"{name} = {shown(word)}: expected {', '.join(choices)}.{nearest(word, choices)}")
    for key in settings.checkpoint:
        if key not in ARRANGEMENTS:
            raise OptionError(
                f"checkpoint = {shown(key)}: expected {', '.join(ARRANGEMENTS)}.{nearest(key, ARRANGEMENTS)}"
            )
    given = {*settings.checkpoint, *(["bu"] if settings.pretrained else [])}
    _require(given <= {*settings.arrangements}, settings, "arrangements",
             f"{', '.join(sorted(given))} among them, whose weights are given")  # fmt: skip
    _require(not (settings.pretrained and "bu" in settings.checkpoint), settings, "pretrained",
             "false, for checkpoint has the weights of bu")  # fmt: skip
    training = [n for n, f in FIELDS.items() if f.metadata["group"] == "training" and n != "top_down"]
    for key in settings.top_down:
        if key not in training:
            raise OptionError(
                f"top_down may hold training settings only, found {shown(key)}.{nearest(key, training)}"
            )
    convertible = [f.name for f in dataclasses.fields(Options) if f.name not in ("arrangement", "seed")]
    for key in settings.convert:  # the arrangement and the seed are settings of their own
        if key not in convertible:
            raise OptionError(
                f"convert may hold options of bu2td.convert, found {shown(key)}.{nearest(key, convertible)}"
            )
    if settings.top_down:
        check(settings.for_arrangement("td"))
    return settings


def _require(holds: bool, settings: Settings, name: str, expected: str) -> None:
    if not holds:
        raise OptionError(f"{name} = {shown(_plain(getattr(settings, name)))}: expected {expected}")


def to_yaml(settings: Settings) -> str:
    """The settings as a configuration file."""
    return _yaml().safe_dump(settings.to_dict(), sort_keys=False, width=116)


# --- reading ------------------------------------------------------------------------------------------


def _presets() -> Any:
    return resources.files("bu2td.evaluate") / "presets"


def _yaml() -> Any:
    return imported("yaml", "pyyaml", "configuration files need it:")


def _read(file: Any, name: str) -> dict[str, Any]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"the configuration {name} cannot be read: {getattr(error, 'strerror', error)}") from error
    yaml = _yaml()
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise FileError(f"{name}{where}: not YAML ({getattr(error, 'problem', None) or 'malformed'})") from error
    except (ValueError, OverflowError, RecursionError) as error:  # of dates and numbers that are none
        raise FileError(f"{name}: not YAML ({error or type(error).__name__})") from error
    try:
        collections.deque(leaves(content, 2**16), maxlen=0)
    except ValueError as error:
        raise FileError(f"{name}: no settings ({error})") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise FileError(f"{name}: expected lines of the form 'lr: 0.1', found {type(content).__name__}")
    return {str(key).replace("-", "_"): value for key, value in content.items()}


def converted(name: str, value: Any) -> Any:
    """A value of a file or a flag as its field has it.

    Raises:
        OptionError: an unknown name, or a value of another type.
    """
    if name not in FIELDS:
        raise OptionError(f"there is no setting {shown(name)}.{nearest(name, FIELDS)}")
    kind = _TYPES[name]
    if kind == Mapping[str, Any]:
        if not isinstance(value, Mapping):
            raise OptionError(f"{name} = {shown(value)}: expected a mapping of settings")
        inner = {str(key).replace("-", "_"): v for key, v in value.items()}
        if name == "checkpoint":
            return {str(key): str(file) for key, file in value.items()}
        return inner if name == "convert" else {key: converted(key, v) for key, v in inner.items()}
    target = kind
    if isinstance(kind, types.UnionType):  # T | None
        if value is None:
            return None
        target = typing.get_args(kind)[0]
    if name.endswith(_SAMPLES) and isinstance(value, str) and value == ALL:
        return 0
    if typing.get_origin(target) is tuple:
        element = typing.get_args(target)[0]
        items = _items(value)
        found = tuple(_scalar(name, element, item) for item in items)
        if name.endswith("arrangements") and set(found) <= set(
            ARRANGEMENTS
        ):  # whatever the order they are given in
            return tuple(sorted(found, key=ARRANGEMENTS.index))
        return found
    return _scalar(name, target, value)


def _items(value: Any) -> Sequence[Any]:
    """What a list holds, however it is written."""
    if isinstance(value, str):
        return split_list(value)
    return value if isinstance(value, list | tuple) else [value]


def _scalar(name: str, kind: type, value: Any) -> Any:
    if kind is str and isinstance(value, str):
        return value.strip()
    if kind is bool and isinstance(value, bool):
        return value
    if kind in (int, float) and not isinstance(value, bool):
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = float("nan")
        if kind is float and number == number and abs(number) != float("inf"):
            return number
        if kind is int and number.is_integer() and abs(number) < _LARGEST:
            return int(number)
    raise OptionError(f"{name} = {shown(value)}: expected {_WORDS[kind]}")


#: Whole numbers are below it.
_LARGEST = 2**53
_WORDS: dict[type, str] = {str: "a word", bool: "true or false", int: "a whole number", float: "a number"}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(v) for key, v in value.items()}
    return list(value) if isinstance(value, tuple) else value
