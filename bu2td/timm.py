"""timm's habits: top-down networks by name, and timm's own scripts.

Importing this module registers ``td_NAME``, ``tduni_NAME`` and ``tdrev_NAME`` for every convolutional classifier
NAME of timm. Nothing is built or converted before a name is asked for::

    import bu2td.timm, timm
    td = timm.create_model("td_resnet18", num_classes=10, drop_path_rate=0.1)

What the bottom-up network takes goes to it, and the options of `bu2td.convert` to that. As a program it registers
the names and runs a script of timm's: ``python -m bu2td.timm train.py --model td_resnet18 ...``.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib
import runpy
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bu2td.conversion import analyze, convert
from bu2td.errors import OptionError, UnknownModelError
from bu2td.models.libraries import LIBRARIES
from bu2td.names import PREFIXES, explained, inheriting, is_name, parted, taken, tell_inherited, unknown
from bu2td.packages import imported
from bu2td.runtime import FeatureNames, FeatureNetwork, TopDownNetwork, feature_network, taken_indices

timm = imported("timm", why="bu2td.timm registers names there.")
_builder, _factory = imported("timm.models._builder"), imported("timm.models._factory")

#: How many features timm returns by default.
_FEATURES = 5
_OWN = ("features_only", "out_indices", "feature_cls", "device", "dtype")
_WEIGHTS = ("url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source")


# --- building -----------------------------------------------------------------------------------------


def build(name: str, **options: Any) -> nn.Module:
    """Build the network that a name means, as ``timm.create_model`` does.

    Args:
        name: such as "td_resnet18".
        options: of the bottom-up network (``num_classes``, ``in_chans``, ``drop_path_rate``, ..), of
            `bu2td.convert` (`OPTIONS`), and timm's own: ``pretrained``, ``pretrained_cfg``,
            ``pretrained_cfg_overlay``, ``cache_dir``, ``features_only``, ``out_indices``, ``feature_cls``,
            ``device``, ``dtype``.

    Returns:
        A `TopDownNetwork`; with ``features_only`` a `FeatureNetwork`.

    Raises:
        UnknownModelError: no such name.
        OptionError: an option is wrong, or there are no weights.
        TypeError: an option that neither the bottom-up network nor `bu2td.convert` takes.
        Bu2tdError: the bottom-up network cannot be converted.
    """
    if not is_name(name) or not timm.is_model(name):
        raise _unknown(name)
    chosen = taken(options)
    asked = {key: options.pop(key, None) for key in _OWN}
    device = torch.get_default_device() if asked["device"] is None else torch.device(asked["device"])
    weights = _Weights.of(name, options)
    if weights.inherited:
        inheriting(chosen, "pretrained=True")
        options |= {"pretrained": True, "pretrained_cfg": weights.tag, "cache_dir": weights.cache}
    removed = [options.pop("num_classes", None) if options.get("num_classes") == 0 else None]
    removed.append(options.pop("global_pool", None) if options.get("global_pool") == "" else None)
    model = _bottom_up(name, device, options)
    with torch.device("cpu"):  # what is built is moved, also where all that is made shall be elsewhere
        if asked["features_only"]:
            model = _stopped(model, chosen, asked)
        network = convert(model, parted(name)[0], device=device, **chosen)
        if removed != [None, None]:
            network.reset_classifier(network.num_classes if removed[0] is None else 0, removed[1])
        network.to(dtype=asked["dtype"])
        network.pretrained_cfg = {**(network.pretrained_cfg or {}), **weights.config, **_names(network)}
        weights.load(name, network)
        return _features(network, asked) if asked["features_only"] else network


def _bottom_up(name: str, device: torch.device, options: dict[str, Any]) -> Any:
    """The bottom-up network, with random weights unless others are asked for."""
    others = ("num_classes", "in_chans", "global_pool", "drop_rate", "drop_path_rate", "features_only")
    with explained(name, others), torch.device("meta" if device.type == "meta" else "cpu"):
        return timm.create_model(parted(name)[1], **options)


def _stopped(model: nn.Module, chosen: dict[str, Any], asked: dict[str, Any]) -> Any:
    """What is converted for features: unless others are asked for, the reductions of the bottom-up features."""
    analysis = analyze(model, example_inputs=chosen.pop("example_inputs", None))
    if {"finest_reduction", "reductions", "stem"} & set(chosen):
        return analysis
    ladder = sorted(level.reduction for level in analysis.levels)
    known = {entry["reduction"] for entry in (getattr(model, "feature_info", None) or [])[:_FEATURES]}
    wanted = [reduction for reduction in ladder if reduction in known] or [r for r in ladder if r > 1]
    chosen["finest_reduction"] = wanted[0]
    if asked["out_indices"] is None:
        levels = [reduction for reduction in ladder if reduction >= wanted[0]]
        asked["out_indices"] = tuple(levels.index(reduction) for reduction in wanted)
    return analysis


def _features(network: TopDownNetwork, asked: Mapping[str, Any]) -> FeatureNetwork:
    form = asked["feature_cls"]
    form = form if isinstance(form, str) else getattr(form, "__name__", "list")
    info = network.feature_info
    indices = tuple(sorted(taken_indices(len(info), asked["out_indices"])))
    names: FeatureNames = "modules" if "dict" in form.lower() else "none"
    found = feature_network(network, [info[index]["reduction"] for index in indices], names)
    found.feature_info = timm.models.FeatureInfo(info, indices)
    return found


def _names(network: TopDownNetwork) -> dict[str, Any]:
    own = network.pretrained_cfg or {}
    return {key: own[key] for key in ("first_conv", "classifier", "pool_size") if key in own}


# --- weights ------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Weights:
    """Where the weights of a network come from.

    Attributes:
        config: timm's configuration of the top-down network.
        given: whether they are its own, from where ``config`` says.
        inherited: whether they are inherited from the bottom-up network's.
        tag: of those.
        cache: where timm keeps what it downloads.
    """

    config: dict[str, Any]
    given: bool
    inherited: bool
    tag: str | None
    cache: Any

    @classmethod
    def of(cls, name: str, options: dict[str, Any]) -> _Weights:
        """Read, and take out, what ``create_model`` was asked for.

        Raises:
            OptionError: there are no weights.
        """
        pretrained, config, overlay, cache = (
            options.pop(key, None)
            for key in ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")
        )
        options.pop("pretrained_model_args", None)
        if dataclasses.is_dataclass(config) and not isinstance(config, type):
            config = dataclasses.asdict(config)
        found = _builder.resolve_pretrained_cfg(name, config, overlay).to_dict()
        own = any(found.get(key) for key in _WEIGHTS)
        source = parted(name)[1]
        tag = found.get("tag")
        if pretrained and not own and not timm.models.is_model_pretrained(f"{source}.{tag}" if tag else source):
            raise OptionError(
                f"{name}: there are no weights of this network, and timm has none of {source} to inherit; use "
                f"pretrained=False, and train it"
            )
        return cls(found, bool(pretrained and own), bool(pretrained and not own), tag, cache)

    def load(self, name: str, network: TopDownNetwork) -> None:
        """Load the network's own weights, or say what it has inherited."""
        if self.given:
            config = self.config | _names(network)
            sizes = {"num_classes": network.num_classes, "in_chans": network.in_chans}
            _builder.load_pretrained(network, pretrained_cfg=config, cache_dir=self.cache, **sizes)
        elif self.inherited:
            source = parted(name)[1]
            tell_inherited(name, f"{source}.{self.tag}" if self.tag else source, network)


# --- names --------------------------------------------------------------------------------------------


class _Configs(Mapping[str, Any]):
    """timm's configurations of names, made when they are asked for; without the bottom-up network's weights."""

    def __getitem__(self, name: str) -> Any:
        found = _config(parted(name)[1]) if is_name(name) else None
        if found is None:
            raise KeyError(name)
        return found

    def __iter__(self) -> Iterator[str]:
        return (prefix + name for name in _sources() for prefix in PREFIXES)

    def __len__(self) -> int:
        return len(_sources()) * len(PREFIXES)


@functools.cache
def _config(source: str) -> Any:
    known = timm.models.get_arch_pretrained_cfgs(source)
    tags = {full.partition(".")[2]: config for full, config in known.items()}
    without: dict[str, Any] = dict.fromkeys((*_WEIGHTS, "first_conv", "classifier", "pool_size"))
    configs = {tag: dataclasses.replace(config, **without, custom_load=False) for tag, config in tags.items()}
    return timm.models.DefaultCfg(tags=deque(configs), cfgs=configs) if configs else None


#: Read by timm's ``register_model``.
default_cfgs: Mapping[str, Any] = _Configs()


def _sources() -> Sequence[str]:
    """The convolutional classifiers of timm."""
    library: Any = LIBRARIES[""]
    return [str(name) for name in timm.list_models(module=library.modules)]


def _entry(name: str) -> Callable[..., nn.Module]:
    """What timm calls for a name."""

    def entry(pretrained: bool = False, **options: Any) -> nn.Module:
        return build(name, pretrained=pretrained, **options)

    entry.__name__ = entry.__qualname__ = name
    entry.__doc__ = f"The top-down network {name} (see `bu2td.timm.build`)."
    return entry


def register() -> None:
    """Register the names of all convolutional classifiers that timm has now; those that are known stay."""
    for name in _sources():
        for prefix in PREFIXES:
            if not timm.is_model(prefix + name):
                timm.models.register_model(_entry(prefix + name))
    _factory.is_model = _is_model


def _is_model(name: str) -> bool:
    """What ``timm.create_model`` asks of a name: a mistyped one of ours is told what it may have been.

    Raises:
        UnknownModelError: it begins as our names do, and is none.
    """
    if timm.is_model(name):
        return True
    if is_name(name):
        raise _unknown(name)
    return False


def _unknown(name: str) -> UnknownModelError:
    return unknown(name, _sources(), timm.is_model, "timm")


def __getattr__(name: str) -> Any:
    """What timm calls for a name, ``bu2td.timm.td_resnet18``."""
    if is_name(name) and timm.is_model(name):
        return timm.models.model_entrypoint(name)
    raise AttributeError(f"module 'bu2td.timm' has no attribute {name!r}")


# --- timm's scripts -----------------------------------------------------------------------------------


def main(words: Sequence[str] | None = None) -> None:
    """Run a script as ``python SCRIPT ...`` does, with the names registered.

    Args:
        words: the script and its arguments; by default those of the command line.
    """
    words = list(sys.argv[1:] if words is None else words)
    if not words or words[0] in ("-h", "--help") or not Path(words[0]).is_file():
        found = f"there is no file {words[0]}" if words and not words[0].startswith("-") else "no script is given"
        sys.exit(
            f"bu2td.timm: {found}. Usage: python -m bu2td.timm SCRIPT [ARGUMENTS of the script], where SCRIPT is "
            f"timm's train.py, validate.py, .. (of github.com/huggingface/pytorch-image-models)"
        )
    script = str(Path(words[0]).resolve())
    torch.serialization.add_safe_globals([argparse.Namespace])  # checkpoints of these scripts hold their arguments
    sys.argv[:] = [words[0], *words[1:]]
    sys.path[0] = str(Path(script).parent)
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    importlib.import_module("bu2td.timm").main()  # this module under the name by which others know it
else:
    register()
