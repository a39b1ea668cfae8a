"""Folders of a hub, as methods of networks: what reads and writes files stands above, and registers itself here."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Shelf:
    """Who reads and writes folders.

    Attributes:
        write: (network, folder) -> writes a network, and a card that tells of it.
        push: (network, repo_id, options) -> uploads such a folder, and returns the address of the commit.
        read: (folder or repository, options) -> the network.
    """

    write: Callable[..., None]
    push: Callable[..., str]
    read: Callable[..., Any]


_SHELVES: list[Shelf] = []


def register_shelf(shelf: Shelf) -> None:
    """Let a shelf be the one that networks use."""
    _SHELVES[:] = [shelf]


def _shelf() -> Shelf:
    """The shelf; that of bu2td registers itself when it is imported, which nobody may have done yet."""
    if not _SHELVES:
        importlib.import_module("bu2td.io")
    return _SHELVES[0]


class Shared:
    """The habits of Hugging Face's hub: `save_pretrained`, `from_pretrained`, `push_to_hub`."""

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write ``model.safetensors``, ``config.json`` and a model card, ``README.md``, into a folder.

        Raises:
            Bu2tdError: as `bu2td.save`.
            MissingPackageError: safetensors or huggingface_hub is not installed.
        """
        _shelf().write(self, Path(folder))

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        commit_message: str = "Upload a top-down network",
        create_pr: bool = False,
    ) -> str:
        """Upload what `save_pretrained` writes to a repository of the hub, which is made if there is none.

        Args:
            repo_id: OWNER/NAME.
            private: whether a new repository is private; by default as the owner's settings say.
            token: of the hub; by default the one that you are logged in with.
            revision: the branch.
            commit_message: of the commit.
            create_pr: propose the upload instead of committing it.

        Returns:
            The address of the commit.

        Raises:
            FileError: the hub refuses, or cannot be reached.
            Bu2tdError, MissingPackageError: as `save_pretrained`.
        """
        options = {"private": private, "token": token, "revision": revision}
        return _shelf().push(self, repo_id, **options, commit_message=commit_message, create_pr=create_pr)

    @staticmethod
    def from_pretrained(
        folder_or_repo: str | os.PathLike[str],
        *,
        model: nn.Module | None = None,
        trust: bool = False,
        device: Any = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
    ) -> Any:
        """Rebuild a network from a folder that `save_pretrained` wrote, or from a repository of the hub.

        Args:
            folder_or_repo: a folder, or OWNER/NAME.
            model: as in `bu2td.load`.
            trust: as in `bu2td.load`.
            device: as in `bu2td.load`.
            revision: as in ``huggingface_hub.hf_hub_download``, as are those that follow.
            token: of the hub.
            cache_dir: where downloads are kept.
            force_download: download again what is there.
            local_files_only: download nothing.

        Returns:
            What was saved, in eval mode.

        Raises:
            FileError: nothing is there, or the hub refuses or cannot be reached.
            Bu2tdError, MissingPackageError: as `bu2td.load`.
        """
        of_hub = {"revision": revision, "token": token, "cache_dir": cache_dir}
        of_hub |= {"force_download": force_download, "local_files_only": local_files_only}
        return _shelf().read(folder_or_repo, model=model, trust=trust, device=device, **of_hub)
