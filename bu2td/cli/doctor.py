"""``bu2td doctor``: what is installed here, and whether a conversion works."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import platform
import re
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bu2td
from bu2td.arguments import add_json, add_run
from bu2td.packages import advice

SOMETHING_WRONG = 1
#: Extras of those who work on bu2td itself.
DEVELOPERS = ("test", "docs", "dev")
#: Trainable parameters of the paper's LeNetFC, top-down.
PARAMETERS = 14_452
#: What the largest logit may differ by between two devices, relative to it.
TOLERANCE = 1e-3

_REQUIREMENT = re.compile(
    r"(?P<name>[\w.-]+)(?:\[(?P<extras>[\w,-]+)\])?\s*(?P<wanted>[^;]*?)\s*(?:;.*extra == .(?P<of>[\w-]+).)?"
)


@dataclass(frozen=True)
class Package:
    """A package that bu2td asks for: its name, the version wanted, and the one found (None: not installed)."""

    name: str
    wanted: str
    found: str | None

    @property
    def fits(self) -> bool:
        """Whether it is installed, and not older than what is wanted."""
        least = re.search(r">=\s*([\d.]+)", self.wanted)
        return self.found is not None and (least is None or _release(self.found) >= _release(least[1]))

    def __str__(self) -> str:
        said = f"{self.name} {self.found or 'is missing'}"
        return said if self.fits or not self.wanted else f"{said} (wanted: {self.wanted})"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    add_run(parser, run)
    add_json(parser)


def run(options: argparse.Namespace) -> str:
    """Look around; ``options.status`` says whether something is wrong."""
    answer = examine()
    if answer["problems"]:
        options.status = SOMETHING_WRONG
    return json.dumps(answer, indent=2) if options.json else _text(answer)


def examine() -> dict[str, Any]:
    """All that the command says, as JSON can hold it. Nothing is raised: what goes wrong is in "problems"."""
    asked = dict(requirements())
    required = asked.pop("", ())
    broken = [text for package in required if (text := _broken(package))]
    conversion = try_conversion()
    if not conversion["works"]:
        broken.append(f"a conversion fails: {conversion['error']}")
    return {
        "bu2td": bu2td.__version__,
        "folder": str(Path(bu2td.__file__).parent),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": [vars(p) | {"fits": p.fits} for p in required],
        "extras": [
            {
                "extra": extra,
                "packages": [vars(p) | {"fits": p.fits} for p in packages],
                "complete": all(p.fits for p in packages),
                "install": advice(extra),
            }
            for extra, packages in asked.items()
            if extra not in DEVELOPERS
        ],
        **_machine(),
        "conversion": conversion,
        "problems": broken,
    }


# --- packages -----------------------------------------------------------------------------------------


def requirements() -> Iterator[tuple[str, tuple[Package, ...]]]:
    """What bu2td's metadata ask for: (extra, its packages), "" first, which everybody needs; none without them."""
    try:
        lines = importlib.metadata.requires("bu2td") or []
    except importlib.metadata.PackageNotFoundError:  # a folder on the path, not installed
        return
    asked: dict[str, list[re.Match[str]]] = {"": []}
    for match in filter(None, map(_REQUIREMENT.fullmatch, lines)):
        asked.setdefault(match["of"] or "", []).append(match)
    for extra in asked:
        yield extra, tuple(sorted(_expanded(extra, asked), key=lambda package: package.name))


def _expanded(extra: str, asked: dict[str, list[re.Match[str]]]) -> Iterator[Package]:
    """The packages of an extra, those of the extras that it names among them."""
    for match in asked.get(extra, []):
        if match["name"] == "bu2td":
            for other in match["extras"].split(","):
                yield from _expanded(other, asked)
        else:
            yield Package(match["name"], match["wanted"], _version(match["name"]))


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _release(version: str) -> tuple[int, ...]:
    """The numbers of a version, without zeros at the end."""
    match = re.match(r"\d+(\.\d+)*", version)
    numbers = [int(number) for number in match[0].split(".")] if match else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def _broken(package: Package) -> str:
    """What is wrong with a package that everybody needs, and what to do; "" if nothing is."""
    if not package.fits:
        return f"{package}. Run: pip install '{package.name}{package.wanted}'"
    try:
        importlib.import_module(package.name)
    except Exception as error:
        return f"{package} cannot be imported ({_line(error)}). Run: pip install --force-reinstall {package.name}"
    return ""


# --- the machine --------------------------------------------------------------------------------------


def _machine() -> dict[str, Any]:
    """Devices, threads and folders; empty without PyTorch."""
    try:
        import torch
    except Exception:
        return {"devices": [], "threads": None, "cores": os.cpu_count(), "weights": None, "cache": None}
    from bu2td.optimization import cache_folder

    devices = [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append("mps")
    return {
        "devices": ["cpu", *devices],
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "weights": torch.hub.get_dir(),
        "cache": None if (cache := cache_folder()) is None else str(cache),
    }


def try_conversion() -> dict[str, Any]:
    """Convert the paper's LeNetFC, and run it on the CPU and on the first GPU.

    Returns:
        whether it "works", the "seconds" of a second conversion and what went wrong ("error").
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _convert()  # a process' first conversion imports what all need
            start = time.perf_counter()
            _convert()
            seconds = round(time.perf_counter() - start, 3)
            return {"works": True, "seconds": seconds, "error": ""}
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        return {
            "works": False,
            "seconds": None,
            "error": f"{_line(error)} ({frames[-1].filename}:{frames[-1].lineno})",
        }


def _convert() -> None:
    import torch

    from bu2td.models import baselines

    images = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    td = bu2td.convert(baselines.lenet_fc(), example_inputs=images, seed=0).eval()
    count = sum(p.numel() for p in td.parameters())
    with torch.no_grad():
        logits = td(images)
        if count != PARAMETERS or logits.shape != (2, 10) or not logits.isfinite().all():
            raise RuntimeError(
                f"the network has {count:,} parameters (right: {PARAMETERS:,}) and logits of shape "
                f"{tuple(logits.shape)} (right: (2, 10), finite)"
            )
        if torch.cuda.is_available():
            other = td.cuda()(images.cuda()).cpu()
            if not (other - logits).abs().max() <= TOLERANCE * logits.abs().max():
                raise RuntimeError(f"logits of {torch.cuda.get_device_name()} are not those of the CPU")


def _line(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


# --- text ---------------------------------------------------------------------------------------------


def _text(answer: dict[str, Any]) -> str:
    shown = [("bu2td", f"{answer['bu2td']} in {answer['folder']}")]
    shown.append(("Python", f"{answer['python']} on {answer['platform']}"))
    shown += [(p["name"], p["found"] or "missing") for p in answer["packages"]]
    shown.append(("devices", ", ".join(answer["devices"]) or "unknown"))
    shown.append(("threads", f"{answer['threads'] or 'unknown'} of {answer['cores']} cores"))
    shown.append(("weights", f"downloads go to {answer['weights'] or 'unknown'}"))
    shown.append(("cache", f"what bu2td.optimize measures goes to {answer['cache'] or 'unknown'}"))
    lines = [f"{name:<12} {value}" for name, value in shown]
    for extra in answer["extras"]:
        missing = [str(Package(p["name"], p["wanted"], p["found"])) for p in extra["packages"] if not p["fits"]]
        said = f"{', '.join(missing)}. Run: {extra['install']}" if missing else "complete"
        lines.append(f"{'[' + extra['extra'] + ']':<12} {said}")
    if not answer["packages"]:
        lines.append("packages     bu2td is not installed, but a folder on the path: what it needs is not known")
    conversion = answer["conversion"]
    if conversion["works"]:
        lines.append(f"conversion   works: LeNetFC in {conversion['seconds']:.2f} s")
    return "\n".join(lines + [f"problem      {text}" for text in answer["problems"]])
