"""Folders as the hub of Hugging Face keeps them: weights with their recipe, the recipe to be read, a model card."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bu2td.errors import Bu2tdError, FileError
from bu2td.files import write_json, write_text
from bu2td.io.card import card
from bu2td.io.reading import load
from bu2td.io.writing import save, tried_recipe
from bu2td.packages import imported

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
_REPO = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")


def write(network: Any, folder: Path) -> None:
    """See `bu2td.runtime.sharing.Shelf`."""
    hub = _hub()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"the folder {folder} cannot be made: {error.strerror}") from error
    save(network, folder / WEIGHTS)
    write_json(tried_recipe(network), folder / CONFIG)
    _write_card(network, folder, str(folder), hub)


def _write_card(network: Any, folder: Path, place: str, hub: Any) -> None:
    write_text(card(network, tried_recipe(network), place, hub), folder / CARD)


def push(network: Any, repo_id: str, **options: Any) -> str:
    """See `bu2td.runtime.sharing.Shelf`."""
    hub = _hub()
    token, private = options.pop("token"), options.pop("private")
    with tempfile.TemporaryDirectory() as folder:
        write(network, Path(folder))  # what cannot be written makes no repository
        with _reached(f"{repo_id} cannot be uploaded to the hub"):
            api = hub.HfApi(token=token)
            made = str(api.create_repo(repo_id, private=private, exist_ok=True).repo_id)
            _write_card(network, Path(folder), made, hub)
            return str(api.upload_folder(repo_id=made, folder_path=folder, **options))


def read(place: str | os.PathLike[str], *, model: Any, trust: bool, device: Any, **of_hub: Any) -> Any:
    """See `bu2td.runtime.sharing.Shelf`."""
    path, name = Path(place), os.fspath(place)
    if path.is_dir():
        if not (path / WEIGHTS).is_file():
            raise FileError(f"the folder {path} holds no {WEIGHTS}; td.save_pretrained({name!r}) writes it")
        path = path / WEIGHTS
    elif not path.is_file():
        if not _REPO.fullmatch(name):
            raise FileError(f"there is no folder {path}, and {name!r} is not OWNER/NAME, a repository of the hub")
        hub = _hub()
        with _reached(f"there is no folder {name}, and no {WEIGHTS} of a repository of that name from the hub"):
            path = Path(hub.hf_hub_download(name, WEIGHTS, library_name="bu2td", **of_hub))
    return load(path, model, device=device, trust=trust).eval()


def _hub() -> Any:
    return imported("huggingface_hub", "bu2td[hub]", "save_pretrained, from_pretrained and push_to_hub need it:")


@contextmanager
def _reached(what: str) -> Iterator[None]:
    """Turn what the hub says into one line."""
    try:
        yield
    except Bu2tdError:
        raise
    except Exception as error:  # of http, of the hub's answers, of names that are none
        said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        raise FileError(f"{what} ({type(error).__name__}: {said})") from error
