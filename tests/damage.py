"""Reads damaged files, in a process that counts the memory that is asked for and watches what is called.

    python tests/damage.py SUBJECT:FIRST:COUNT ...

makes every subject's file, damages it by the ways of `mutations`, once for each seed, and prints what became of it,
a line of JSON for each seed. `faults` says what is wrong with it.
"""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent
#: Bytes of address space that reading a damaged file may take, and more that it may not get.
MOST, LIMIT = 2**30, 2**32
SECONDS = 30.0
#: What no reader of a file does (of Python's audit events): "open" is only counted where it writes.
CALLS = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.mkdir", "os.remove", "os.rename",
         "subprocess.Popen", "socket.connect", "socket.bind", "shutil.rmtree", "ctypes.dlopen", "open")  # fmt: skip


@dataclass(frozen=True)
class Subject:
    """A kind of file.

    Attributes:
        file: its name in a folder.
        make: writes it, and what belongs to it, into a folder.
        read: of a folder -> what it holds.
        ways: names of functions of `mutations` besides those of bytes.
        errors: names of what reading it may raise.
        same: whether two readings are equal; where it is given, damage of bytes is never read as something else.
    """

    file: str
    make: Callable[[Path], None]
    read: Callable[[Path], Any]
    ways: tuple[str, ...] = ()
    errors: tuple[str, ...] = ("FileError",)
    same: Callable[[Any, Any], bool] | None = None


def faults(row: dict[str, Any]) -> list[str]:
    """What is wrong with an outcome, in words."""
    found = [row["fault"]] if row["fault"] else []
    found += [f"calls {name}" for name in row["calls"]]
    found += ["takes more memory than it may"] if row["asked"] or row["mib"] > MOST / 2**20 else []
    return found + (["takes too long"] if row["seconds"] > SECONDS else [])


def run(orders: Sequence[str], timeout: float = 1800) -> list[dict[str, Any]]:
    """The outcomes of orders SUBJECT:FIRST:COUNT, read in one process."""
    process = subprocess.run(
        [sys.executable, __file__, *orders], capture_output=True, text=True, timeout=timeout, check=False
    )
    rows: list[dict[str, Any]] = [json.loads(line) for line in process.stdout.splitlines() if line[:1] == "{"]
    if process.returncode:
        end = process.stderr.strip().splitlines()[-1:]
        raise RuntimeError(f"{orders} ended with {process.returncode} after {rows[-1:]}: {end}")
    return rows


# --- subjects -----------------------------------------------------------------------------------------


def _networks() -> dict[str, Subject]:
    def lenet(arrangement: str) -> Any:
        from nets import convert_baseline

        return convert_baseline("lenet_fc", arrangement, seed=0)

    def made(kind: str) -> Any:
        import bu2td

        if kind == "optimized":
            return bu2td.optimize(lenet("uni"), "training")
        if kind == "fused":
            return bu2td.optimize(lenet("rev"))
        if kind == "patches":
            return bu2td.PatchNetwork(lenet("td"), share=0.5)
        return bu2td.dense(lenet("td"), 5) if kind == "dense" else lenet("td")

    def read(file: str) -> Callable[[Path], Any]:
        def reading(folder: Path) -> Any:
            import bu2td

            return bu2td.load(folder / file)

        return reading

    def make(file: str) -> Callable[[Path], None]:
        def making(folder: Path) -> None:
            import bu2td

            bu2td.save(made(file.partition(".")[0]), folder / file)

        return making

    def same(one: Any, other: Any) -> bool:
        import torch

        states = one.state_dict(), other.state_dict()
        if type(one).__mro__[1] is not type(other).__mro__[1] or states[0].keys() != states[1].keys():
            return False
        if not all(torch.equal(value, states[1][name]) for name, value in states[0].items()):
            return False
        images = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
        try:
            with torch.no_grad():
                return torch.equal(one.eval()(images), other.eval()(images))
        except RuntimeError:  # weights of several types, as the file has them
            return False

    names = ("td.pt", "td.safetensors", "optimized.pt", "fused.safetensors", "patches.pt", "dense.safetensors")
    ways = {"pt": "as_pt", "safetensors": "as_safetensors"}
    return {
        name: Subject(name, make(name), read(name), (ways[name.partition(".")[2]],) * 7, same=same)
        for name in names
    }


def _tables() -> dict[str, Subject]:
    def make(folder: Path) -> None:
        from run_folders import put_all, start

        put_all(start(folder))

    def read(file: str) -> Callable[[Path], Any]:
        def reading(folder: Path) -> Any:
            from bu2td.evaluate.report.read import read_table

            return read_table(folder / file)

        return reading

    names = ("accuracy.csv", "robustness.csv", "distances.csv", "branches.csv", "explained_images.csv", "bands.csv")
    errors = ("FileError", "RunFolderError")
    return {
        **{name: Subject(name, make, read(name), ("lines",) * 5) for name in names},
        "run.json": Subject("run.json", _make_run, _read_run, ("as_json",) * 7, errors),
        "explanations.npz": Subject("explanations.npz", make, _read_explanations, ("as_npz",) * 5),
        "zoo.csv": Subject("zoo.csv", _make_zoo, _read_zoo, ("lines",) * 5),
    }


def _make_run(folder: Path) -> None:
    from bu2td.evaluate.folder import create
    from bu2td.evaluate.settings import Settings

    create(folder, Settings(), "train").note(data={"name": "digits"})


def _read_run(folder: Path) -> Any:
    """By all that read it: those that go on with a run, and the report."""
    from bu2td.evaluate.folder import open_run, settings_of
    from bu2td.evaluate.report.read import read_run

    settings_of(folder, {"repeats": 2})
    return open_run(folder).record, read_run(folder).settings


def _read_explanations(folder: Path) -> Any:
    from bu2td.evaluate.report.read import read_explanations

    found = read_explanations(folder / "explanations.npz")
    return [found.order(name) for name in found.levels]


def _make_zoo(folder: Path) -> None:
    from bu2td.zoo.sweeps import write_rows
    from bu2td.zoo.zoo import Row

    rows = [
        Row(f"resnet{i}", "resnet", a, "verified", ladder="4 2 1") for i in range(9) for a in ("td", "uni", "rev")
    ]
    write_rows(folder / "zoo.csv", rows, {})


def _read_zoo(folder: Path) -> Any:
    from bu2td.zoo.sweeps import describe, read_rows, summarise

    rows = read_rows(folder / "zoo.csv")
    return rows, describe(summarise(rows))


def _parts() -> dict[str, Subject]:
    return {
        "predictions.npz": Subject("predictions.npz", _make_predictions, _read_predictions, ("as_npz",) * 5),
        "part.npz": Subject("part.npz", _make_part, _read_part, ("as_npz",) * 5),
        "checkpoint.pt": Subject(
            "checkpoint.pt", _make_checkpoint, _read_checkpoint, (), ("FileError", "RunFolderError"), _same_words
        ),
        "settings.yaml": Subject(
            "settings.yaml", _make_settings, _read_settings, ("as_yaml",) * 7, ("FileError", "OptionError")
        ),
        "result.json": Subject("result.json", _make_result, _read_result, ("as_json",) * 7),
        ".lock.json": Subject(".lock.json", _make_lock, _read_lock, ("as_json",) * 7, ("RunFolderError",)),
    }


def _make_predictions(folder: Path) -> None:
    import numpy as np

    from bu2td.evaluate.arrays import write_arrays

    names = ("label", "predicted", "rank")
    write_arrays({**{n: np.arange(50) for n in names}, "confidence": np.ones(50)}, folder / "predictions.npz")


def _read_predictions(folder: Path) -> Any:
    from bu2td.evaluate.train.accuracy import _read_arrays

    found = _read_arrays(folder / "predictions.npz")
    return list(zip(*(column.tolist() for column in found.values()), strict=True))


def _make_part(folder: Path) -> None:
    import numpy as np

    from bu2td.evaluate.parts import Found, Part, save
    from bu2td.evaluate.schema import ImageDistance

    rows = tuple(ImageDistance("td", 0, "pgd", i, 0.5) for i in range(20))
    found = Found(rows, {"a": np.ones((3, 4))})
    save(Part("part", {"weights": "x", "seed": 1}, lambda: found), found, folder)


def _read_part(folder: Path) -> Any:
    from bu2td.evaluate.parts import load

    return load(folder / "part.npz")


def _make_checkpoint(folder: Path) -> None:
    import torch
    from torch import nn

    from bu2td.evaluate.schema import Epoch
    from bu2td.evaluate.train.checkpoint import write_checkpoint

    model = nn.Linear(3, 2)
    state = torch.optim.SGD(model.parameters(), 0.1).state_dict()
    log = [Epoch(1, 0.1, 2.0, 0.5, 1.0, 0.1, 1.0)]
    write_checkpoint(folder / "checkpoint.pt", model, state, log, {"seed": 0})


def _read_checkpoint(folder: Path) -> Any:
    from bu2td.evaluate.train.checkpoint import read_checkpoint

    return read_checkpoint(folder / "checkpoint.pt", {"seed": 0})


def _same_words(one: Any, other: Any) -> bool:
    return repr(one) == repr(other)


def _make_settings(folder: Path) -> None:
    from bu2td.evaluate.settings import read_settings, to_yaml

    (folder / "settings.yaml").write_text(to_yaml(read_settings("quick")))


def _read_settings(folder: Path) -> Any:
    from bu2td.evaluate.settings import read_settings

    return read_settings(config=folder / "settings.yaml").to_dict()


def _make_result(folder: Path) -> None:
    from run_folders import row

    from bu2td.evaluate.schema import Training
    from bu2td.files import write_json

    result = vars(row(Training, ("td", 0), seed=7, parameters=10, epochs=2, test_accuracy=0.5))
    write_json({"identity": {"seed": 0}, "result": result}, folder / "result.json")


def _read_result(folder: Path) -> Any:
    from bu2td.evaluate.train.accuracy import read_result

    return read_result(folder)


def _make_lock(folder: Path) -> None:
    holder = {"pid": 1, "host": "elsewhere", "begin": "1", "since": "2026-01-01 00:00", "shard": "1/2"}
    (folder / ".lock.json").write_text(json.dumps(holder))


def _read_lock(folder: Path) -> Any:
    from bu2td.evaluate.locks import check_free, holders

    check_free(folder, (1, 2))
    return holders(folder)


def _data() -> dict[str, Subject]:
    images, labels = "train-images-idx3-ubyte", "train-labels-idx1-ubyte.gz"
    return {
        "idx": Subject(images, _make_idx, _read_idx, ("as_idx",) * 5, ("DataError",)),
        "idx.gz": Subject(labels, _make_idx, _read_idx, ("as_idx",) * 5, ("DataError",)),
        "boxes.csv": Subject("boxes.csv", _make_boxes, _read_boxes, ("lines",) * 5, ("DataError",)),
        "corrupted.npy": Subject("corrupted.npy", _make_npy, _read_npy, ("as_npy",) * 5, ("DataError",)),
    }


def _make_idx(folder: Path) -> None:
    import gzip
    import struct

    pixels = struct.pack(">BBBB3I", 0, 0, 8, 3, 10, 28, 28) + bytes(range(256)) * 30 + bytes(160)
    (folder / "train-images-idx3-ubyte").write_bytes(pixels)
    labels = struct.pack(">BBBBI", 0, 0, 8, 1, 10) + bytes(range(10))
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))


def _read_idx(folder: Path) -> Any:
    from bu2td.evaluate.data.idx import read_part

    return [array.shape for array in read_part(folder, "train")]


def _make_boxes(folder: Path) -> None:
    from PIL import Image

    lines = ["left,file,top,right,bottom"]
    for i in range(6):
        Image.new("L", (20, 10)).save(folder / f"{i}.png")
        lines.append(f"1,{i}.png,2,{5 + i},8")
    (folder / "boxes.csv").write_text("\n".join(lines) + "\n")


def _read_boxes(folder: Path) -> Any:
    from bu2td.evaluate.data.boxes import read_boxes

    files = [str(folder / f"{i}.png") for i in range(6)]
    return read_boxes(folder / "boxes.csv", folder, files, (10, 20))


def _make_npy(folder: Path) -> None:
    import numpy as np

    np.save(folder / "corrupted.npy", np.zeros((10, 8, 8, 3), np.uint8))


def _read_npy(folder: Path) -> Any:
    from bu2td.evaluate.data.corrupted import _mapped

    return _mapped(folder / "corrupted.npy").sum()


NETWORKS = _networks()
SUBJECTS = {**NETWORKS, **_tables(), **_parts(), **_data()}


# --- the process that reads ---------------------------------------------------------------------------


class Watch:
    """Calls that a reader makes, while it is on."""

    def __init__(self) -> None:
        self.on, self.calls = False, []  # type: tuple[bool, list[str]]
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: Any) -> None:
        if self.on and event in CALLS and (event != "open" or _writes(arguments)):
            self.calls.append(f"{event} {arguments!r}"[:200])


def _writes(arguments: Any) -> bool:
    return isinstance(arguments[2], int) and bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def _memory(name: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(f"{name}:"))


def outcomes(name: str, seeds: range, watch: Watch) -> Iterator[dict[str, Any]]:
    """What becomes of a subject's file, damaged once for each seed."""
    import mutations

    subject = SUBJECTS[name]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        subject.make(folder)
        path = folder / subject.file
        whole = path.read_bytes()
        original = subject.read(folder)
        os.environ["CANARY"] = place
        ways = (*mutations.BYTES, *(getattr(mutations, way) for way in subject.ways))
        resource.setrlimit(resource.RLIMIT_AS, (_memory("VmSize") + LIMIT, resource.RLIM_INFINITY))
        for seed in seeds:
            rng = random.Random(f"{name} {seed}")
            way = rng.choice(ways)
            path.write_bytes(way(rng, whole))
            if path.read_bytes() != whole:
                exact = way in mutations.BYTES
                yield {
                    "subject": name,
                    "seed": seed,
                    "way": way.__name__,
                    **_outcome(subject, folder, original, exact, watch),
                }
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def _outcome(subject: Subject, folder: Path, original: Any, exact: bool, watch: Watch) -> dict[str, Any]:
    before, start = _memory("VmPeak"), time.perf_counter()
    outcome, fault, error, value = "refused", "", None, None
    watch.calls, watch.on = [], True
    try:
        value = subject.read(folder)
    except Exception as caught:
        error = caught
    finally:
        watch.on = False
    row = {"seconds": round(time.perf_counter() - start, 2), "mib": (_memory("VmPeak") - before) >> 20}
    calls = [*watch.calls, *(["a canary's code"] if (folder / "canary").exists() else [])]
    if error is not None:
        said = f"{type(error).__name__}: {str(error)[:300]}"
        if type(error).__name__ not in subject.errors:
            fault = f"raises {said}"
        elif "\n" in str(error) or len(str(error)) > 3000:
            fault = f"says more than a line: {said}"
    else:
        outcome = "equal" if subject.same and subject.same(value, original) else "read"
        fault = "is read as something else" if outcome == "read" and exact and subject.same else ""
    return {**row, "outcome": outcome, "fault": fault, "calls": calls, "asked": _asked(error)}


def _asked(error: BaseException | None) -> bool:
    """Whether an error comes of memory that was not to be had."""
    while error is not None:
        if isinstance(error, MemoryError) or "allocate" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def main() -> None:
    sys.dont_write_bytecode = True
    warnings.simplefilter("ignore")
    sys.path.insert(0, str(TESTS))
    import torch

    torch.set_num_threads(1)
    watch = Watch()
    for order in sys.argv[1:]:
        name, first, count = order.split(":")
        for row in outcomes(name, range(int(first), int(first) + int(count)), watch):
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
