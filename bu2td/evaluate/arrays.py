"""Archives of arrays (.npz): written whole or not at all, and read no larger than they are."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from bu2td.errors import FileError, first_line
from bu2td.files import replacing

#: More than deflate packs: a member that is said to be larger than this many times what it takes is no member.
_PACKED = 1100
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def write_arrays(arrays: Mapping[str, Any], path: Path) -> None:
    """Write arrays by name.

    Raises:
        FileError: the file cannot be written.
    """
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read arrays by name; no array of objects is one.

    Raises:
        FileError: the file is missing or damaged; the message ends with the cause in brackets.
    """
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if sum(member.compress_size for member in members) > path.stat().st_size:
                raise ValueError("its members are larger than the file")
            for member in members:
                _check_member(archive, member)
        with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
            return {name: found[name] for name in found.files}
    except Exception as error:  # what damage raises depends on the damage
        said = (isinstance(error, OSError) and error.strerror) or first_line(error)
        raise FileError(f"{path} cannot be read as arrays ({said})") from error


def _check_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """Refuse an array larger than its member, or a member larger than its file can hold, before memory is taken.

    Raises:
        ValueError: it is.
    """
    if member.file_size > _PACKED * member.compress_size:
        raise ValueError(f"{member.filename} is larger than its archive can hold")
    with archive.open(member) as stream:
        read_header = _HEADERS.get(npy.read_magic(stream))
        if read_header is None:
            raise ValueError(f"{member.filename} is an array of another version")
        shape, _, dtype = read_header(stream)
    if math.prod(shape) * dtype.itemsize > member.file_size or min(shape, default=0) < 0:
        raise ValueError(f"{member.filename} is said to be of shape {shape}, and is cut off")
