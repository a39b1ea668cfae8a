"""Save and load converted networks: recipe and weights, never a pickled graph."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bu2td.analyse import analyse
from bu2td.capture import capture
from bu2td.conversion import emit
from bu2td.errors import Bu2tdError, FileError, NotAModelError, nearest
from bu2td.files import replacing
from bu2td.graph import paused_collector
from bu2td.ir import Analysis, Optimization
from bu2td.models import is_library_word
from bu2td.optimization import retransform
from bu2td.options import as_device
from bu2td.probe import probe
from bu2td.rewrite import fill_buffers
from bu2td.runtime import FORMAT, PatchNetwork, Recipe, TopDownNetwork, pixel_network


def save(network: TopDownNetwork | PatchNetwork, file: str | os.PathLike[str]) -> None:
    """Write a converted network, or patches of one, as recipe and weights, atomically.

    Raises:
        NotAModelError: not a converted network.
        FileError: the file cannot be written.
    """
    if not isinstance(network, TopDownNetwork | PatchNetwork):
        raise NotAModelError(
            f"save takes a network that bu2td.convert returned, or a PatchNetwork, found {type(network)}"
        )
    with replacing(Path(file)) as temporary, _writable(Path(file)):
        torch.save({"recipe": network.recipe, "state_dict": network.state_dict()}, temporary)


@contextmanager
def _writable(path: Path) -> Iterator[None]:
    """Turn what torch.save raises where a folder is missing into our own error."""
    try:
        yield
    except RuntimeError as error:
        raise FileError(f"{path} cannot be written: {str(error).splitlines()[0]}") from error


def load(
    file: str | os.PathLike[str], model: nn.Module | None = None, *, device: str | torch.device | None = None
) -> TopDownNetwork | PatchNetwork:
    """Rebuild a network from a file that `save` wrote.

    Args:
        file: the file.
        model: the bottom-up model (its weights do not matter); by default it is built by the factory that
            the recipe names.
        device: where to put the network; by default the CPU.

    Returns:
        What was saved: a `TopDownNetwork` or a `PatchNetwork`.

    Raises:
        FileError: the file is missing, not one of ours, or made from another bottom-up model.
        MissingPackageError, UnknownModelError: the recipe's factory cannot be called.
        OptionError: the device is not there.
    """
    target = as_device(device) or torch.device("cpu")
    saved = _read(Path(file))
    with paused_collector():
        rebuilt = _rebuilt(saved, _analysis(saved, model), target)
    network = rebuilt if saved.patches is None else _patched(saved, rebuilt)
    try:
        network.load_state_dict(saved.weights)
    except RuntimeError as error:
        raise FileError(f"{saved.path}: the weights do not fit the network ({error})") from error
    return network


@dataclass(frozen=True)
class _Saved:
    """The content of a file; ``patches`` are the settings of a `PatchNetwork`."""

    path: Path
    recipe: Recipe
    patches: Mapping[str, Any] | None
    weights: Mapping[str, Any]


def _read(path: Path) -> _Saved:
    if not path.is_file():
        beside = [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else []
        raise FileError(f"there is no file {path}.{nearest(path.name, beside)}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what torch.load raises on garbage depends on the garbage
        raise FileError(
            f"{path} is not a file that bu2td.save wrote ({type(error).__name__}); it may be truncated"
        ) from error
    data = content.get("recipe") if isinstance(content, dict) else None
    if not isinstance(data, dict) or data.get("format") != FORMAT or "state_dict" not in content:
        raise FileError(f"{path} is not a file that bu2td.save wrote: it holds no recipe of format {FORMAT}")
    with _complete(path, "what the recipe says about optimisation"):
        optimization = Optimization.from_dict(data["optimize"]) if data.get("optimize") else None
    with _complete(path, "the recipe"):
        recipe = Recipe.from_dict(data, optimization)
    return _Saved(path, recipe, data.get("patches"), content["state_dict"])


@contextmanager
def _complete(path: Path, what: str) -> Iterator[None]:
    """Turn what reading damaged data raises into our own error."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, ValueError, Bu2tdError) as error:
        raise FileError(f"{path}: {what} is incomplete ({error})") from error


def _analysis(saved: _Saved, model: nn.Module | None) -> Analysis:
    """The bottom-up network that the file was made from: the user's, or built by its factory."""
    recipe, path = saved.recipe, saved.path
    again = f"bu2td.load({str(path)!r}, model=...)"
    given = model is not None
    if model is None:
        if not is_library_word(recipe.factory):
            raise FileError(
                f"{path} was made from a {recipe.model} whose factory is not known; pass the bottom-up "
                f"model: {again}"
            )
        from bu2td.models.words import create_model

        model = create_model(str(recipe.factory), device="meta")
    captured = capture(model, torch.empty(recipe.image_shape, device="meta"))
    if captured.fingerprint == recipe.fingerprint:
        return analyse(captured, probe(captured))
    if given:
        raise FileError(
            f"{path} was made from another bottom-up model than this {type(model).__name__}; pass a model built "
            f"in the same way as the {recipe.model} that was converted"
        )
    raise FileError(
        f"{path} was made from a variant of {recipe.factory} (other classes, channels or settings); "
        f"pass the bottom-up model: {again}"
    )


def _rebuilt(saved: _Saved, analysis: Analysis, device: torch.device) -> TopDownNetwork:
    """The network of a recipe, without weights."""
    recipe = saved.recipe
    network = emit(analysis, recipe.options).network.train()
    network.to_empty(device=device)
    fill_buffers(network)
    if recipe.num_classes != network.num_classes:
        network.reset_classifier(recipe.num_classes)
    if recipe.dense is not None:
        with _complete(saved.path, "what the recipe says about pixels"):
            network = pixel_network(network, *recipe.dense)
    if recipe.optimization is not None:
        with _complete(saved.path, "what the recipe says about optimisation"):
            retransform(network, recipe.optimization)
    network.record = replace(network.record, recipe=recipe)
    return network


def _patched(saved: _Saved, network: TopDownNetwork) -> PatchNetwork:
    assert saved.patches is not None
    with _complete(saved.path, "what the recipe says about patches"):
        return PatchNetwork(network, **saved.patches)
