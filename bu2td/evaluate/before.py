"""What can be known before the first training is checked before it: packages, networks, data, the folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bu2td.errors import DataError, FileError
from bu2td.evaluate.data.corrupted import open_corrupted
from bu2td.evaluate.data.pictures import FileImages
from bu2td.evaluate.data.sets import Data, Images
from bu2td.evaluate.robustness.frequency import frequencies
from bu2td.evaluate.robustness.registry import GROUPS, find_attack
from bu2td.evaluate.settings import Settings
from bu2td.evaluate.train.accuracy import naming
from bu2td.evaluate.train.model import build_classifier
from bu2td.evaluate.train.weights import load_weights
from bu2td.packages import imported

#: Per stage the packages that it imports when it gets there, and what to install.
PACKAGES: dict[str, tuple[tuple[str, str], ...]] = {
    "train": (("lightning_fabric", "lightning-fabric"), ("tqdm", "tqdm")),
    "robustness": (("foolbox", "foolbox"), ("tqdm", "tqdm")),
    "corruptions": (("tqdm", "tqdm"),),
    "frequency": (("tqdm", "tqdm"),),
    "explain": (("tqdm", "tqdm"), ("pandas", "pandas")),
    "report": (("matplotlib", "matplotlib"), ("jinja2", "jinja2"), ("pandas", "pandas")),
}
_NAMED = 3


def check_before(settings: Settings, data: Data, stages: Sequence[str], folder: Path | None) -> None:
    """See that nothing that is known to be missing ends a run after hours.

    Args:
        settings: of the call.
        data: what is learned.
        stages: what will run, "report" among them where one is written.
        folder: where results go; None: nothing is written.

    Raises:
        MissingPackageError: a package of a stage.
        OptionError: an attack is unknown, a frequency step too large, or a network cannot be built so.
        DataError: a picture or the corrupted data cannot be read.
        FileError: the folder cannot be written, or given weights cannot be read.
        Bu2tdError: a network cannot be built for these data.
    """
    for stage in stages:
        for module, pip in PACKAGES.get(stage, ()):
            imported(module, pip, f"{stage} needs it:")
    for word in settings.attacks:
        if word not in GROUPS:
            find_attack(word)
    frequencies(*data.shape[1:], settings.frequency_step)
    if settings.corrupted_data is not None:
        open_corrupted(settings.corrupted_data, data)
    if folder is not None:
        check_writable(folder)
    for part, images in (("train", data.train), ("test", data.test)):
        check_pictures(images, f"{data.name}, {part}")
    if "train" in stages:
        for arrangement in settings.arrangements:
            own = settings.for_arrangement(arrangement)
            with naming(arrangement, 0):
                classifier = build_classifier(own, data, arrangement, settings.seed, (None, None))
                file = settings.checkpoint.get(arrangement)
                if file is not None and not (folder and (folder / "runs" / f"{arrangement}-0").is_dir()):
                    load_weights(classifier, Path(file))  # what a run has taken may have gone since


def check_writable(folder: Path) -> None:
    """A folder can be written, or made.

    Raises:
        FileError: it cannot.
    """
    existing = next((place for place in (folder, *folder.absolute().parents) if place.exists()), Path("/"))
    if not existing.is_dir():
        raise FileError(f"{folder} cannot be made: {existing} is a file; name another folder with -o")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise FileError(f"{folder} cannot be written: no permission for {existing}; name another folder with -o")


def check_pictures(images: Images, name: str) -> None:
    """Open every file of a set that is read from files, as far as its header, and read the first one whole.

    Raises:
        DataError: there are no images, or the message names those that cannot be read.
    """
    if not len(images):
        raise DataError(f"{name} has no images")
    listed = images.samples if isinstance(images, FileImages) else ()
    pictures = imported("PIL.Image", "pillow", "pictures need it:") if listed else None
    bad = [(path, reason) for path, _ in listed if (reason := _unreadable(path, pictures))]
    if bad:
        more = f" and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
        named = ", ".join(f"{path} ({reason})" for path, reason in bad[:_NAMED])
        raise DataError(f"{len(bad)} files cannot be read as images: {named}{more}; repair or remove them")
    images[0]


def _unreadable(path: str, pictures: Any) -> str:
    """Why a file is no image, or nothing."""
    try:
        if not os.path.getsize(path):
            return "empty"
        with pictures.open(path):
            return ""
    except Exception as error:  # PIL raises what the format's reader happens to
        return str(error).replace(f" {path!r}", "") or type(error).__name__
