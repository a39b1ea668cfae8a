"""A recipe -> the network again, on the meta device and without weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bu2td.analyse import analyse
from bu2td.capture import capture
from bu2td.conversion import emit
from bu2td.errors import FileError, MissingPackageError, first_line
from bu2td.graph import paused_collector
from bu2td.io.content import Saved, complete
from bu2td.ir import Capture
from bu2td.models import Call, create_again, is_library_word
from bu2td.optimization import retransform
from bu2td.probe import probe
from bu2td.rewrite import fill_buffers
from bu2td.runtime import PatchNetwork, Recipe, TopDownNetwork, pixel_network
from bu2td.settings import set_training

#: How much larger than its file a network may be before memory is taken for it: bytes, and times.
_SPARE, _TIMES = 2**28, 8


def captured_again(model: nn.Module, image_shape: Sequence[int]) -> Capture:
    """A bottom-up model, looked at with images of a shape."""
    return capture(model, torch.empty(tuple(image_shape), device="meta"))


def bottom_up(saved: Saved, model: nn.Module | None, trust: bool) -> Capture:
    """The bottom-up network that a file was made from: the user's, or built as the recipe says.

    Raises:
        FileError: it is another one, or the file does not say how it is built, or says so in code of a user's own,
            without ``trust``.
        MissingPackageError: the recipe's call needs a library that is not installed.
    """
    recipe, path = saved.recipe, saved.path
    again = f"bu2td.load({str(path)!r}, model=...)"
    if model is not None:
        found = captured_again(model, recipe.image_shape)
        if _is_same(found, recipe):
            return found
        raise FileError(
            f"{path} was made from another bottom-up model than this {type(model).__name__}"
            f"{_settings_only(found, recipe)}; pass a model built in the same way as the {recipe.model} that was "
            f"converted{f', {recipe.call}' if recipe.call else ''}"
        )
    if recipe.call is None:
        why = f" ({recipe.why})" if recipe.why else ""
        raise FileError(
            f"{path} was made from a {recipe.model} whose factory is not known{why}; pass the bottom-up model: "
            f"{again}"
        )
    if not is_library_word(recipe.call.word) and not trust:
        raise FileError(
            f"{path} was made from a model that {recipe.call} builds, which is no library's: load runs that code "
            f"only with trust=True; or pass the bottom-up model: {again}"
        )
    call = _where_it_is(recipe.call, path)
    with _followed(path), torch.random.fork_rng(devices=[]):
        built = create_again(call, device="meta")
        found = captured_again(built, recipe.image_shape)
    if _is_same(found, recipe):
        return found
    raise FileError(
        f"{path} was made from a variant of {recipe.call}, which builds another network here"
        f"{_settings_only(found, recipe)}: the file is of bu2td {recipe.bu2td} and torch {recipe.torch}, and other "
        f"versions of the model's library may be installed; pass the bottom-up model: {again}"
    )


def _is_same(found: Capture, recipe: Recipe) -> bool:
    """Whether a network is the recipe's; old files know no settings of its layers."""
    if found.fingerprint != recipe.fingerprint:
        return False
    return not recipe.identity or found.identity == recipe.identity


def _settings_only(found: Capture, recipe: Recipe) -> str:
    same = found.fingerprint == recipe.fingerprint
    return " (of the same shapes; names or settings of its layers differ)" if same else ""


def _where_it_is(call: Call, path: Path) -> Call:
    """The call, of the Python file beside the saved one where it has moved with it."""
    source, _, name = call.word.rpartition(":")
    beside = path.parent / Path(source).name
    if is_library_word(call.word) or not source.endswith(".py") or Path(source).is_file() or not beside.is_file():
        return call
    return replace(call, word=f"{beside}:{name}")


def rebuilt(recipe: Recipe, found: Capture) -> TopDownNetwork:
    """The network of a recipe on the meta device, in train mode, before `bu2td.optimize`."""
    with paused_collector():
        network = emit(analyse(found, probe(found)), recipe.options).network.train()
    if recipe.num_classes != network.num_classes or recipe.global_pool is not None:
        network.reset_classifier(recipe.num_classes, recipe.global_pool)
    return network if recipe.dense is None else pixel_network(network, *recipe.dense)


def network_of(saved: Saved, found: Capture, device: torch.device) -> TopDownNetwork | PatchNetwork:
    """The network of a file, with its weights.

    Raises:
        FileError: the weights do not fit, or the recipe cannot be followed.
    """
    path, recipe = saved.path, saved.recipe
    with _followed(path):
        network = rebuilt(recipe, found)
        _check_size(saved, network)
        network.to_empty(device=device)
        fill_buffers(network)
    if recipe.optimization is not None:
        with complete(path, "what the recipe says about optimisation"):
            retransform(network, recipe.optimization)
    with complete(path, "what the recipe says about training"):
        set_training(network, saved.training)
    network.record = replace(network.record, recipe=recipe)
    whole = network if saved.patches is None else _patched(path, saved.patches, network)
    dtypes = {t.dtype for t in saved.weights.values() if t.is_floating_point()}
    if len(dtypes) == 1:
        whole.to(dtype=next(iter(dtypes)))
    try:
        # Where parts were cast, each weight keeps its type of the file; on meta nothing is copied.
        assign = len(dtypes) > 1 or device.type == "meta"
        weights = {name: t.to(device, copy=True) if assign else t for name, t in saved.weights.items()}
        whole.load_state_dict(weights, assign=assign)
    except (RuntimeError, AttributeError, TypeError) as error:
        said = " ".join(str(error).split())
        raise FileError(f"{path}: the weights do not fit the network ({said:.1000})") from error
    return whole


@contextmanager
def _followed(path: Path) -> Iterator[None]:
    """Turn what a recipe of numbers that nobody would choose raises into our own error."""
    try:
        yield
    except (FileError, MissingPackageError):
        raise
    except Exception as error:
        raise FileError(f"{path}: the recipe cannot be followed ({first_line(error)})") from error


def _check_size(saved: Saved, network: nn.Module) -> None:
    """Refuse a network that the file's weights cannot fill, before memory is taken for it.

    Raises:
        FileError: it is many times as large as the file.
    """
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    wanted = sum(tensor.nbytes for tensor in tensors.values())
    storages = [tensor.untyped_storage() for tensor in saved.weights.values()]
    held = sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
    if wanted > _TIMES * held + _SPARE:
        raise FileError(
            f"{saved.path}: the weights do not fit the network (it has {wanted:,} bytes, the file {held:,})"
        )
    for name, tensor in saved.weights.items():
        if name in tensors and tensors[name].is_floating_point() != tensor.is_floating_point():
            raise FileError(f"{saved.path}: the weights do not fit the network ({name} is {tensor.dtype})")


def _patched(path: Path, patches: Mapping[str, Any], network: TopDownNetwork) -> PatchNetwork:
    with complete(path, "what the recipe says about patches"):
        return PatchNetwork(network, **patches)
