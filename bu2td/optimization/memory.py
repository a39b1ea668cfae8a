"""What was measured on this machine, kept in the user's cache folder.

A file holds what one device, one version of torch and one number of threads measured. It is read whole and written
whole; a file that cannot be read or makes no sense is as good as none, and where none can be written none is.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from bu2td.errors import FileError
from bu2td.files import replacing
from bu2td.optimization.places import Place

#: Opens every file; another one for files that this version does not read.
FORMAT = "bu2td.times.2"
#: Names the folder, in place of the user's cache folder.
VARIABLE = "BU2TD_CACHE"


def cache_folder() -> Path | None:
    """The folder of measurements: ``BU2TD_CACHE``, else ``bu2td`` in ``XDG_CACHE_HOME``, else in ``~/.cache``.

    None: there is no home.
    """
    own = os.environ.get(VARIABLE)
    if own:
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    if base and Path(base).is_absolute():
        return Path(base) / "bu2td"
    try:
        return Path.home() / ".cache" / "bu2td"
    except RuntimeError:
        return None


def device_name(device: torch.device) -> str:
    """The name of a processor or a GPU, as far as the system tells."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} {processor()}"


def processor() -> str:
    """The name of the processor, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine() or "unknown"


def place_key(place: Place, mode: str, batch: int, dtype: torch.dtype) -> str:
    """All that the time of a place depends on, on one machine."""
    return json.dumps([*asdict(place).values(), mode, batch, str(dtype)])


class Memory:
    """Measurements of one device.

    Args:
        device: whose.

    Attributes:
        times: key of a place -> seconds of its form as it is and of the new one.
        networks: key of a network -> what was found for it as a whole.
    """

    def __init__(self, device: torch.device) -> None:
        threads = torch.get_num_threads() if device.type == "cpu" else 0
        about = {"device": device_name(device), "torch": str(torch.__version__), "threads": threads}
        self.about: dict[str, Any] = {"format": FORMAT, **about}
        name = hashlib.sha256(json.dumps(self.about).encode()).hexdigest()[:16]
        home = cache_folder()
        self.file = None if home is None else home / f"times-{name}.json"
        self.times: dict[str, tuple[float, float]] = {}
        self.networks: dict[str, dict[str, Any]] = {}
        self._read()

    def _read(self) -> None:
        data = _content(self.file)
        if any(data.get(name) != value for name, value in self.about.items()):
            return
        times, networks = data.get("times"), data.get("networks")
        if isinstance(times, dict):
            self.times = {key: tuple(pair) for key, pair in times.items() if _is_pair(pair)} | self.times
        if isinstance(networks, dict):
            self.networks = {key: d for key, d in networks.items() if _is_finding(d)} | self.networks

    def write(self) -> None:
        """Keep what was measured, together with what others have since; a folder that is closed keeps none."""
        if self.file is None:
            return
        self._read()
        data = {**self.about, "times": self.times, "networks": self.networks}
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self.file) as temporary:
                temporary.write_text(json.dumps(data, indent=0), encoding="utf-8")
        except (OSError, FileError):
            return


def _content(file: Path | None) -> Mapping[str, Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8")) if file is not None else None
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(_is_time(v) for v in value)


def _is_time(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value > 0


def _is_finding(value: Any) -> bool:
    """Whether an entry of a network is what `bu2td.optimization.tuning` writes."""
    if not isinstance(value, dict) or set(value) != {"declined", "seconds", "batch"}:
        return False
    declined, seconds = value["declined"], value["seconds"]
    rules = isinstance(declined, list) and all(isinstance(rule, str) for rule in declined)
    return rules and (seconds is None or _is_pair(seconds)) and type(value["batch"]) is int
