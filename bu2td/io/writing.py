"""`bu2td.save`: a network -> a file, tried before it is written."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from bu2td.errors import Bu2tdError, CopyError, NotAModelError
from bu2td.graph import undisturbed
from bu2td.io.content import write
from bu2td.io.rebuild import captured_again, rebuilt
from bu2td.ir import Capture
from bu2td.models import Call, Origin, create_again, shapes_of_weights
from bu2td.optimization import retransform
from bu2td.runtime import PatchNetwork, Recipe, TopDownNetwork
from bu2td.settings import OF_TRAINING, settings, training_settings

#: What may differ: the file has it in words, or it says where a network runs.
_ASIDE = (*OF_TRAINING, "process_group")
_SHOWN = 3


@undisturbed()
def save(network: TopDownNetwork | PatchNetwork, file: str | os.PathLike[str]) -> None:
    """Write a converted network, or patches of one, as recipe and weights, whole or not at all.

    The recipe names the call that builds the bottom-up model, where the model shows it and making the call again
    builds the same network; elsewhere `bu2td.load` needs the model.

    Args:
        network: what `bu2td.convert` or `bu2td.optimize` returned, possibly trained, or patches of it.
        file: a name that ends in .safetensors asks for that format, any other for that of `torch.save`.

    Raises:
        NotAModelError: not a converted network.
        CopyError: layers were changed by hand since it was converted, or it has no weights.
        FileError: the file cannot be written.
        MissingPackageError: safetensors is not installed.
    """
    if not isinstance(network, TopDownNetwork | PatchNetwork):
        raise NotAModelError(
            f"save takes a network that bu2td.convert returned, or a PatchNetwork, found {type(network)}"
        )
    weights = network.state_dict()
    if any(tensor.is_meta for tensor in weights.values()):
        raise CopyError("the network is on the meta device: it has no weights to save")
    write(Path(file), tried_recipe(network), weights)


def tried_recipe(network: TopDownNetwork | PatchNetwork) -> dict[str, Any]:
    """The recipe of a network; what it says of the bottom-up model has been tried.

    Raises:
        CopyError: the recipe makes another network than this one.
    """
    said = network.recipe  # some networks have none, and say so
    whole = network.network if isinstance(network, PatchNetwork) else network
    origin, recipe = whole.record.origin, whole.record.recipe
    call, _, why = _found(origin, recipe.image_shape, recipe.identity)
    recipe = replace(recipe, call=call, why=why)
    training, usual = training_settings(whole), {}
    if call is not None:
        twin = _twin(origin, recipe)
        _check_unchanged(whole, twin)
        usual = training_settings(twin)
    changed = {path: own for path, own in training.items() if own != usual.get(path)}
    return {**said, **recipe.to_dict(), "training": changed}


@functools.lru_cache(maxsize=4)
def _found(origin: Origin, image_shape: Any, wanted: str) -> tuple[Call | None, Capture | None, str]:
    """The call that builds the bottom-up model again, and what it builds; or why there is none."""
    for call in origin.calls:
        found = _captured(call, image_shape, origin.shapes)
        if found is not None and found.identity == wanted:
            return call, found, ""
    if not origin.calls:
        return None, None, ""
    words = {call.word for call in origin.calls}
    builds = f"{words.pop()} builds another network" if len(words) == 1 else "no call of its library builds it"
    return None, None, f"{builds}: it was changed since, or built with arguments that it does not show"


def _captured(call: Call, image_shape: Any, shapes: str) -> Capture | None:
    """What a call builds, looked at; None if the shapes of its weights are others, or it fails."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = create_again(call, device="meta")
            return captured_again(model, image_shape) if shapes_of_weights(model) == shapes else None
        except Bu2tdError:
            return None


# --- unchanged since its conversion -------------------------------------------------------------------


@functools.lru_cache(maxsize=4)
def _twin(origin: Origin, recipe: Recipe) -> TopDownNetwork:
    """What loading a recipe makes, on the meta device."""
    _, found, _ = _found(origin, recipe.image_shape, recipe.identity)
    assert found is not None
    network = rebuilt(recipe, found)
    if recipe.optimization is not None:
        retransform(network, recipe.optimization)
    return network


def _check_unchanged(network: TopDownNetwork, twin: TopDownNetwork) -> None:
    """Refuse a network that was changed by hand: a file could not say so.

    Raises:
        CopyError: names the places.
    """
    own, made = dict(_rows(network)), dict(_rows(twin))
    odd = [path for path in {**made, **own} if own.get(path) != made.get(path)]
    inner = [path for path in odd if not any(other != path and _is_below(other, path) for other in odd)]
    if not inner:
        return
    named = ", ".join(path or "its graph" for path in inner[:_SHOWN])
    more = f" and {len(inner) - _SHOWN} more" if len(inner) > _SHOWN else ""
    raise CopyError(
        f"the network was changed since it was converted ({named}{more}), which a file of recipe and weights does "
        f"not hold: bu2td.load would build it as it was. torch.save(td, file) keeps it as it is; or change the "
        f"bottom-up model, and convert that"
    )


def _is_below(path: str, above: str) -> bool:
    return not above or path.startswith(f"{above}.")


def _rows(network: TopDownNetwork) -> Iterator[tuple[str, Any]]:
    """What is at every place of a network: its class and settings, or its graph."""
    for path, module in network.named_modules(remove_duplicate=False):
        if isinstance(module, fx.GraphModule):
            chosen = network.record.checkpointing if module is network else None
            nodes = (chosen.graph if chosen else module.graph).nodes
            yield path, [(n.op, n.name, str(n.target), repr(n.args), repr(n.kwargs)) for n in nodes]
        else:
            own = {name: value for name, value in settings(module).items() if name not in _ASIDE}
            shapes = {n: tuple(t.shape) for n, t in module.named_parameters(recurse=False, remove_duplicate=False)}
            yield path, (_kind(module), own, shapes)


def _kind(module: nn.Module) -> str:
    """The class of a module; a norm is the same where its statistics are shared among processes."""
    name = type(module).__name__
    return "BatchNorm2d" if name == "SyncBatchNorm" else name
