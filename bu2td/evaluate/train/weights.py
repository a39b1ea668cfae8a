"""Weights that a user has: of their own training loop, of `bu2td.save`, of another evaluation, of a library."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bu2td.errors import FileError
from bu2td.evaluate.data.sets import Data
from bu2td.evaluate.settings import Settings
from bu2td.evaluate.train.model import Classifier, build_classifier
from bu2td.io import is_safetensors, read_safetensors
from bu2td.models.libraries import library_of
from bu2td.models.words import create_model
from bu2td.packages import imported
from bu2td.runtime import TopDownNetwork

#: Under which names training loops keep weights in a checkpoint.
_KEYS = ("model", "state_dict", "model_state_dict", "net")
#: What wrappers put in front of every name: DataParallel, torch.compile, Lightning, `Classifier`.
_PREFIXES = ("module.", "_orig_mod.", "model.", "network.")
#: Options of a conversion that decide no function of the network.
_ASIDE = ("seed", "inherit", "max_macs_ratio")
_SHOWN = 3


def given_classifier(
    settings: Settings, data: Data, arrangement: str, normalisation: tuple[Tensor | None, Tensor | None]
) -> Classifier:
    """A network whose weights are given: from its checkpoint, or pretrained.

    Args:
        settings: `checkpoint` or `pretrained`, and what builds the network.
        data: what it has to classify.
        arrangement: "bu", "td", "uni" or "rev".
        normalisation: mean and standard deviation (C, 1, 1) of images, where the weights do not bring their own.

    Raises:
        FileError: as `load_weights`.
        Bu2tdError: as `bu2td.evaluate.train.model.build_classifier`.
    """
    classifier = build_classifier(settings, data, arrangement, settings.seed, normalisation)
    if arrangement in settings.checkpoint:
        load_weights(classifier, Path(settings.checkpoint[arrangement]))
        return classifier
    model = create_model(settings.model, device="cpu", pretrained=True)
    classifier.network.load_state_dict(model.state_dict())
    norms = pretrained_norms(settings.model, model)
    return classifier if norms is None else Classifier(classifier.network, *norms, channels=classifier.channels)


def load_weights(classifier: Classifier, path: Path) -> None:
    """Load the weights of a file into a classifier, strictly.

    Args:
        classifier: its network gets them; a checkpoint of another evaluation brings mean and deviation too.
        path: a state_dict, a dictionary that holds one as a training loop saves it, or what `bu2td.save` wrote.

    Raises:
        FileError: missing, damaged, no weights, or weights of another network: names and shapes are listed.
    """
    content = _read(path)
    if "recipe" in content:
        _check_recipe(classifier.network, content["recipe"], path)
    weights = _weights(content, path)
    norms = {k: weights.pop(k) for k in ("mean", "std") if k in weights and "network." in " ".join(weights)}
    weights = _stripped(weights, classifier.network.state_dict())
    _check_names(classifier.network.state_dict(), weights, path)
    classifier.network.load_state_dict(weights)
    for name, value in norms.items():
        classifier.register_buffer(name, value)


def pretrained_norms(word: str, network: nn.Module) -> tuple[Tensor | None, Tensor | None] | None:
    """Mean and standard deviation (C, 1, 1) that a library's weights were trained with; None if unknown."""
    found = library_of(word)
    if found is not None and found[0].prefix == "torchvision":
        models = imported("torchvision.models")
        config: Any = vars(models.get_model_weights(found[1]).DEFAULT.transforms())
    else:
        config = getattr(network, "pretrained_cfg", None) or {}
    pair = [config.get(name) for name in ("mean", "std")]
    if any(values is None for values in pair):
        return None
    mean, std = (torch.tensor(values, dtype=torch.float32).reshape(-1, 1, 1) for values in pair)
    return mean, std


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileError(f"there is no file {path} with weights")
    if is_safetensors(path):
        recipe, weights = read_safetensors(path)
        return {"recipe": recipe, "state_dict": weights} if recipe else weights
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what torch.load raises on garbage depends on the garbage
        raise FileError(
            f"{path} cannot be read as weights ({type(error).__name__}): expected what "
            f"torch.save(model.state_dict(), FILE) or bu2td.save(network, FILE) writes; whole modules are not "
            f"loaded, for they could run code"
        ) from error
    if not isinstance(content, dict):
        raise FileError(f"{path} holds {type(content).__name__}, expected a state_dict")
    return content


def _weights(content: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    inner = next((content[k] for k in _KEYS if isinstance(content.get(k), Mapping)), content)
    if not inner or not all(isinstance(value, Tensor) for value in inner.values()):
        raise FileError(
            f"{path} holds no state_dict: found {', '.join(map(str, list(content)[:8])) or 'nothing'}, expected "
            f"tensors by name, or such a dictionary under {', '.join(map(repr, _KEYS))}"
        )
    return dict(inner)


def _stripped(weights: dict[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights without what wrappers have put in front of their names."""
    while not set(weights) & set(wanted):
        prefix = next((p for p in _PREFIXES if weights and all(k.startswith(p) for k in weights)), None)
        if prefix is None:
            break
        weights = {k.removeprefix(prefix): v for k, v in weights.items()}
    return weights


def _check_names(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], path: Path) -> None:
    shapes = [
        f"{k} {tuple(found[k].shape)} instead of {tuple(v.shape)}"
        for k, v in wanted.items()
        if k in found and found[k].shape != v.shape
    ]
    faults = {
        "missing": [k for k in wanted if k not in found],
        "unexpected": [k for k in found if k not in wanted],
        "of another shape": shapes,
    }
    said = [f"{len(names)} {what} ({_some(names)})" for what, names in faults.items() if names]
    if said:
        raise FileError(f"{path} has the weights of another network: {'; '.join(said)}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _check_recipe(network: nn.Module, recipe: Mapping[str, Any], path: Path) -> None:
    """Refuse a converted network of other options: its weights might fit and mean something else."""
    if not isinstance(network, TopDownNetwork):
        raise FileError(f"{path} holds a top-down network, expected weights of the bottom-up network")
    if (recipe.get("optimize") or {}).get("mode") == "inference" or "patches" in recipe:
        raise FileError(
            f"{path} holds a network for inference or patches; save the one that bu2td.convert returned"
        )
    own, other = network.recipe["options"], recipe.get("options", {})
    odd = [k for k in own if k not in _ASIDE and own[k] != other.get(k)]
    if odd:
        changes = "; ".join(f"{k} is {other.get(k)!r} there, {own[k]!r} here" for k in odd)
        raise FileError(f"{path} was converted with other options ({changes}); give them with --convert")
