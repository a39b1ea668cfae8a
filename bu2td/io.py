"""Save and load converted networks: recipe and weights, never a pickled graph."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bu2td.capture.trace import capture
from bu2td.conversion import _FORMAT, _build, _device, _is_library_word, analyze
from bu2td.errors import FileError, NotAModelError, nearest
from bu2td.files import replacing
from bu2td.optimization.record import retransform
from bu2td.options import Options
from bu2td.rewrite.initialise import fill_buffers
from bu2td.runtime.network import TopDownNetwork


def save(network: TopDownNetwork, file: str | os.PathLike[str]) -> None:
    """Write a converted network as recipe and weights, atomically.

    Raises:
        NotAModelError: not a converted network.
        FileError: the file cannot be written.
    """
    if not isinstance(network, TopDownNetwork):
        raise NotAModelError(f"save takes a network that bu2td.convert returned, found {type(network)}")
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
    file: str | os.PathLike[str],
    model: nn.Module | None = None,
    *,
    device: str | torch.device | None = None,
) -> TopDownNetwork:
    """Rebuild a converted network from a file that `save` wrote.

    Args:
        file: the file.
        model: the bottom-up model (its weights do not matter); by default it is built by the factory that
            the recipe names.
        device: where to put the network; by default the CPU.

    Raises:
        FileError: the file is missing, not one of ours, or made from another bottom-up model.
        MissingPackageError, UnknownModelError: the recipe's factory cannot be called.
    """
    path = Path(file)
    content = _read(path)
    recipe = content["recipe"]
    try:
        options = Options(**{k: _tuple(v) for k, v in recipe["options"].items()})
        shape, fingerprint = tuple(recipe["image_shape"]), recipe["fingerprint"]
    except (KeyError, TypeError) as error:
        raise FileError(f"{path}: the recipe is incomplete ({error})") from error
    if model is None:
        if not _is_library_word(recipe.get("factory")):
            raise FileError(
                f"{path} was made from a {recipe.get('model')} whose factory is not known; pass the bottom-up "
                f"model: bu2td.load({str(path)!r}, model=...)"
            )
        from bu2td.models.words import create_model

        model = create_model(recipe["factory"], device="meta")
        if _differs(model, shape, fingerprint):
            raise FileError(
                f"{path} was made from a variant of {recipe['factory']} (other classes, channels or settings); "
                f"pass the bottom-up model: bu2td.load({str(path)!r}, model=...)"
            )
    elif _differs(model, shape, fingerprint):
        raise FileError(
            f"{path} was made from another bottom-up model than this {type(model).__name__}; pass a model built "
            f"in the same way as the {recipe.get('model')} that was converted"
        )
    images = torch.empty(shape, device="meta")
    network = _build(
        analyze(model, example_inputs=images),
        replace(options, inherit=None, max_macs_ratio=None),
        torch.device("meta"),
    )
    network.to_empty(device=_device(device) or "cpu")
    fill_buffers(network)
    if recipe.get("num_classes") != network.num_classes:
        network.reset_classifier(recipe["num_classes"])
    if recipe.get("optimize"):
        _retransform(network, recipe["optimize"], path)
    try:
        network.load_state_dict(content["state_dict"])
    except RuntimeError as error:
        raise FileError(f"{path}: the weights do not fit the network ({error})") from error
    network.plan = replace(network.plan, options=options)
    network.recipe = recipe
    return network


def _retransform(network: TopDownNetwork, data: Any, path: Path) -> None:
    try:
        retransform(network, data)
    except (KeyError, TypeError, AttributeError) as error:
        raise FileError(f"{path}: what the recipe says about optimisation is incomplete ({error})") from error


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _differs(model: nn.Module, shape: tuple[int, ...], fingerprint: str) -> bool:
    return capture(model, torch.empty(shape, device="meta")).fingerprint != fingerprint


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        beside = [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else []
        raise FileError(f"there is no file {path}.{nearest(path.name, beside)}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what torch.load raises on garbage depends on the garbage
        raise FileError(
            f"{path} is not a file that bu2td.save wrote ({type(error).__name__}); it may be truncated"
        ) from error
    recipe = content.get("recipe") if isinstance(content, dict) else None
    if not isinstance(recipe, dict) or recipe.get("format") != _FORMAT or "state_dict" not in content:
        raise FileError(f"{path} is not a file that bu2td.save wrote: it holds no recipe of format {_FORMAT}")
    return content
