"""The numbers of one network in all its forms: optimised, exported, loaded, of other types and layouts."""

from __future__ import annotations

import copy
import functools
import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from burden import model
from nets import FlatResNet, ready
from torch import Tensor, nn

import bu2td
from bu2td.io.seal import digest
from bu2td.programs import program_of

#: Relative differences of the logits that rounding explains, by type.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 0.1}
#: (N, H, W): usual, odd, and as small as they come.
SHAPES = ((2, 16, 16), (1, 17, 23), (3, 5, 31), (1, 1, 1), (1, 1, 7))
#: What is converted, and how.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "plain td": (functools.partial(model, 0), "td"),
    "plain uni": (functools.partial(model, 1), "uni"),
    "residual td": (functools.partial(FlatResNet, (8, 10, 12), 1), "td"),
    "residual rev": (functools.partial(FlatResNet, (8, 10, 12), 1), "rev"),
}


@functools.cache
def network(name: str) -> bu2td.TopDownNetwork:
    """A network in eval mode, with statistics as one has that was trained; not to be changed."""
    build, arrangement = NETWORKS[name]
    images = torch.zeros(1, 3, 16, 16)
    found: Any = ready(bu2td.convert(build(), arrangement, example_inputs=images, seed=0, inherit="none"))  # type: ignore[arg-type]
    return found


def _loaded(file: str) -> Callable[[str, Tensor], Any]:
    def form(name: str, images: Tensor) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / file
            bu2td.save(_cast(name, images), path)
            return bu2td.load(path, NETWORKS[name][0]()).eval()

    return form


def _cast(name: str, images: Tensor) -> Any:
    return copy.deepcopy(network(name)).to(images.dtype)


def _optimised(mode: str) -> Callable[[str, Tensor], Any]:
    def form(name: str, images: Tensor) -> Any:
        wide = torch.float64 if images.dtype == torch.float64 else torch.float32
        return bu2td.optimize(copy.deepcopy(network(name)).to(wide), mode).eval().to(images.dtype)

    return form


#: Ways to have the same network again, for images of a type and size.
FORMS: dict[str, Callable[[str, Tensor], Any]] = {
    "optimised for training": _optimised("training"),
    "optimised for inference": _optimised("inference"),
    "exported": lambda name, images: program_of(_cast(name, images), images).module(),
    "optimised and exported": lambda name, images: program_of(
        _optimised("inference")(name, images), images
    ).module(),
    "loaded from td.pt": _loaded("td.pt"),
    "loaded from td.safetensors": _loaded("td.safetensors"),
    "unpickled": lambda name, images: pickle.loads(pickle.dumps(_cast(name, images))),
    "channels last": lambda name, images: _cast(name, images).to(memory_format=torch.channels_last),
}


def images_of(shape: tuple[int, int, int], dtype: torch.dtype) -> Tensor:
    """Images of a shape."""
    n, height, width = shape
    return torch.rand((n, 3, height, width), generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(
        dtype
    )


def compare(
    form: str, names: Sequence[str] = tuple(NETWORKS), shapes: Any = SHAPES
) -> dict[tuple[Any, ...], float]:
    """The largest relative difference of a form's logits, by type, network, shape of the images and layout."""
    found = {}
    for dtype in TOLERANCE:
        for name in names:
            whole = None if "export" in form else FORMS[form](name, images_of(shapes[0], dtype))
            for shape in shapes:
                images = images_of(shape, dtype)
                made = FORMS[form](name, images) if whole is None else whole
                for layout in (torch.contiguous_format, torch.channels_last):
                    with torch.no_grad():
                        expected, logits = _cast(name, images)(images), made(images.to(memory_format=layout))
                    difference = (logits - expected).abs().max() / expected.abs().max()
                    found[dtype, name, shape, layout] = float(difference)
    return found


# --- other processes ----------------------------------------------------------------------------------


def fingerprints() -> dict[str, Any]:
    """What a process makes of every network: a hash of its weights, and its logits."""
    found = {}
    for name in NETWORKS:
        images = images_of(SHAPES[1], torch.float32)
        with torch.no_grad():
            logits = network(name)(images).double().tolist()
        found[name] = [digest(list(network(name).state_dict().values()), str(network(name).graph)), logits]
    return found


def processes(threads: tuple[int, ...] = (1, 2)) -> dict[tuple[Any, ...], float]:
    """How far networks of other processes are from this one's: by number of threads and network.

    Returns:
        The largest relative difference of logits; infinity where a weight or the graph differs at all.
    """
    own, found = fingerprints(), {}
    for count in threads:
        script = "import json, numerics; print(json.dumps(numerics.fingerprints()))"
        script = f"import torch; torch.set_num_threads({count}); {script}"
        settings = {**os.environ, "PYTHONHASHSEED": str(count), "OMP_NUM_THREADS": str(count)}
        command = [sys.executable, "-W", "ignore", "-c", script]
        here = Path(__file__).parent
        done = subprocess.run(command, cwd=here, env=settings, capture_output=True, text=True, check=True)
        for name, (weights, logits) in json.loads(done.stdout.splitlines()[-1]).items():
            a, b = (torch.tensor(x, dtype=torch.float64) for x in (logits, own[name][1]))
            found[count, name] = (
                float((a - b).abs().max() / b.abs().max()) if weights == own[name][0] else float("inf")
            )
    return found
