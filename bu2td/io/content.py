"""What a file holds: a recipe and weights, as safetensors or as torch.save writes them."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bu2td.errors import Bu2tdError, FileError, MissingPackageError, first_line, nearest, shown
from bu2td.files import leaves, loads, replacing
from bu2td.io.seal import SEAL, seal
from bu2td.ir import Optimization
from bu2td.packages import imported
from bu2td.runtime import FORMAT, Recipe

#: The file name's ending that asks for safetensors.
SAFETENSORS = ".safetensors"
#: The entry of safetensors' metadata that holds the recipe, as JSON.
_ENTRY = "bu2td"
#: The largest image side and number of classes that a file may ask for.
_MOST = 2**20
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Saved:
    """The content of a file.

    Attributes:
        path: of the file.
        recipe: how the network is built.
        patches: settings of a `PatchNetwork`, if it is one.
        weights: the state_dict, on the CPU.
        training: settings that only training reads, as far as they were changed, by module.
    """

    path: Path
    recipe: Recipe
    patches: Mapping[str, Any] | None
    weights: Mapping[str, Tensor]
    training: Mapping[str, Any]


def write(path: Path, recipe: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Write a file, whole or not at all; its name's ending decides the format.

    Raises:
        FileError: it cannot be written.
        MissingPackageError: safetensors is not installed.
    """
    if path.is_dir():
        raise FileError(f"{path} cannot be written: it is a folder. td.save_pretrained(folder) writes into one")
    as_safetensors = path.suffix.lower() == SAFETENSORS
    tool = _safetensors() if as_safetensors else None
    recipe = {**recipe, SEAL: seal(recipe, weights)}
    with replacing(path) as temporary, _told(path, "cannot be written"):
        if tool is None:
            held = {name: value if _is_held(value) else value.contiguous() for name, value in weights.items()}
            torch.save({"recipe": recipe, "state_dict": held}, temporary)
        else:
            tool.save_file(_apart(weights), temporary, {"format": "pt", _ENTRY: json.dumps(recipe)})


def read(path: Path) -> Saved:
    """Read a file.

    Raises:
        FileError: it is missing, damaged, or not one of ours.
        MissingPackageError: safetensors is not installed.
    """
    if path.is_dir():
        raise FileError(f"{path} is a folder; bu2td.TopDownNetwork.from_pretrained reads what a hub keeps in one")
    if not path.is_file():
        beside = [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else []
        raise FileError(f"there is no file {path}.{nearest(path.name, beside)}")
    data, weights = read_safetensors(path) if is_safetensors(path) else _read_torch(path)
    are_weights = isinstance(weights, dict) and all(_is_weight(name, value) for name, value in weights.items())
    if not isinstance(data, dict) or data.get("format") != FORMAT or not are_weights:
        raise FileError(f"{path} is not a file that bu2td.save wrote: it holds no recipe of format {FORMAT}")
    with complete(path, "the recipe"):
        _check_plain(data)
    with complete(path, "what the recipe says about optimisation"):
        optimization = Optimization.from_dict(data["optimize"]) if data.get("optimize") else None
    with complete(path, "the recipe"):
        _check(data)
        recipe = Recipe.from_dict(data, optimization)
    if not all(map(_is_held, weights.values())):
        raise FileError(f"{path} is damaged: its weights are larger than what it holds")
    with complete(path, "the recipe"):
        whole = SEAL not in data or data[SEAL] == seal(data, weights)
    if not whole:
        raise FileError(f"{path} is damaged: its content is not what bu2td.save wrote")
    return Saved(path, recipe, data.get("patches"), weights, data.get("training", {}))


@contextmanager
def complete(path: Path, what: str) -> Iterator[None]:
    """Turn what reading damaged data raises into our own error."""
    try:
        yield
    except MissingPackageError:
        raise
    except Exception as error:  # what a recipe raises that nobody wrote depends on what it says
        raise FileError(f"{path}: {what} is incomplete ({first_line(error)})") from error


def _check(data: Mapping[str, Any]) -> None:
    """Refuse what is no recipe before anything is built of it.

    Raises:
        ValueError: an entry is of another kind, or larger than any network's.
    """
    for name in ("fingerprint", "model", "bu2td", "torch"):
        if not isinstance(data[name], str):
            raise ValueError(f"{name} is no text: {shown(data[name])}")
    if not isinstance(data["factory"], str | None) or not isinstance(data.get("arguments", {}), dict):
        raise ValueError("factory and arguments are no call")
    shape, classes = data["image_shape"], data["num_classes"]
    sizes: list[Any] = [*shape, *([classes] if classes != 0 else []), *(data.get("dense") or ())[:1]]
    if len(shape) != 4 or any(type(size) is not int or not 0 < size <= _MOST for size in sizes):
        raise ValueError(
            f"image_shape is {shown(shape)}, num_classes {shown(classes)}, dense {shown(data.get('dense'))}"
        )


def _is_weight(name: Any, value: Any) -> bool:
    """Whether an entry of a state_dict is an ordinary tensor with values."""
    return (
        isinstance(name, str)
        and isinstance(value, Tensor)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and not (value.is_quantized or value.is_complex())
        and (value.dtype in _FLOATS or not value.is_floating_point())
    )


def _is_held(weight: Tensor) -> bool:
    """Whether every value of a tensor has memory of its own; a file can say a size that it does not hold."""
    return weight.nbytes <= weight.untyped_storage().nbytes()


def _check_plain(data: Any) -> None:
    """Refuse what JSON could not say, and what is small in a file and large once it is written out.

    Raises:
        ValueError: it is.
    """
    for leaf in leaves(data):
        if not (leaf is None or type(leaf) in (bool, int, float, str)):
            raise ValueError(f"it holds an object of type {type(leaf).__name__}")


# --- the two formats ----------------------------------------------------------------------------------


def is_safetensors(path: Path) -> bool:
    """Whether a file looks like safetensors: the length of a header, and the header."""
    with _told(path, "cannot be read"), path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _safetensors() -> Any:
    return imported("safetensors.torch", "safetensors", "files that end in .safetensors need it:")


def read_safetensors(path: Path) -> tuple[Any, dict[str, Tensor]]:
    """The recipe of a file, None if it has none, and its tensors by name.

    Raises:
        FileError: it is damaged.
        MissingPackageError: safetensors is not installed.
    """
    _safetensors()
    opened: Callable[..., Any] = imported("safetensors", "safetensors").safe_open
    damaged = _told(path, "is not a file that bu2td.save wrote", "; it may be truncated")
    with damaged, opened(path, framework="pt") as file:
        text = (file.metadata() or {}).get(_ENTRY)
        recipe = None if text is None else loads(text)
        return recipe, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _read_torch(path: Path) -> tuple[Any, Any]:
    with _told(path, "is not a file that bu2td.save wrote", "; it may be truncated"):
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
                raise ValueError("its members are larger than the file")
        # Mapped memory cannot grow, whatever sizes the tensors are said to have.
        content = torch.load(str(path), map_location="cpu", weights_only=True, mmap=True)
    return (content.get("recipe"), content.get("state_dict")) if isinstance(content, dict) else (None, None)


def _apart(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights that share no memory, as safetensors wants them: names that are tied get a copy each."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in weights.items()}


@contextmanager
def _told(path: Path, what: str, also: str = "") -> Iterator[None]:
    """Turn what reading or writing raises into one line; what that is depends on the damage."""
    try:
        yield
    except Bu2tdError:
        raise
    except Exception as error:
        reason = (isinstance(error, OSError) and error.strerror) or first_line(error)
        # Of damage, the reader's own words say nothing.
        said = f" ({type(error).__name__})" if also else f": {reason}"
        raise FileError(f"{path} {what}{said}{also}") from error
