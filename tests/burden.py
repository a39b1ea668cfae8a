"""What converting costs a process besides time: memory, open files, and the state that all of its code shares."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import random
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from nets import head, unit
from torch import nn

import bu2td
from bu2td.io.seal import digest

ARRANGEMENTS = ("td", "uni", "rev")


def model(seed: int) -> nn.Sequential:
    """A small network of its own for every seed."""
    rng = random.Random(seed)
    widths = [rng.randrange(6, 9) for _ in range(3)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        more = (unit(widths[1], widths[1]) for _ in range(seed % 3))
        layers = [unit(3, widths[0]), unit(widths[0], widths[1], stride=2), *more]
        return nn.Sequential(*layers, unit(widths[1], widths[2], stride=2), head(widths[2], 5))


def converted(network: nn.Module, seed: int) -> bu2td.TopDownNetwork:
    """The top-down network of a bottom-up one."""
    images = torch.zeros(1, 3, 16, 16)
    return bu2td.convert(network, ARRANGEMENTS[seed % 3], example_inputs=images, seed=seed, inherit="none")


def convert(seed: int) -> bu2td.TopDownNetwork:
    """The top-down network of `model`."""
    return converted(model(seed), seed)


def put_digest(queue: Any, seed: int) -> None:
    """Put a hash of the network of a seed into a queue; for other processes."""
    torch.set_num_threads(1)
    network = convert(seed)
    queue.put(digest(list(network.state_dict().values()), f"{network.plan}{network.graph}"))


def resident() -> int:
    """Bytes that this process has in memory, once what is not used is given back."""
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def open_files() -> int:
    """How many files this process holds open."""
    return len(os.listdir("/proc/self/fd"))


def shared_state() -> dict[str, Any]:
    """What all code of a process shares, and a library must leave as it is."""
    return {
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "gradients": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "threads": (torch.get_num_threads(), threading.active_count()),
        "deterministic": torch.get_deterministic_debug_mode(),
        "cudnn": (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark),
        "precision": torch.get_float32_matmul_precision(),
        "filters of warnings": list(warnings.filters),
        "showwarning": warnings.showwarning,
        "generator of torch": torch.get_rng_state().tolist(),
        "generator of Python": random.getstate(),
        "generator of numpy": str(np.random.get_state()),
        "folder": os.getcwd(),
        "path": list(sys.path),
        "environment": dict(os.environ),
        "collector": (gc.isenabled(), gc.get_threshold()),
        "recursion": sys.getrecursionlimit(),
        "torch's functions": {name: id(value) for name, value in vars(torch).items() if callable(value)},
        "calls of modules": (nn.Module.__call__, nn.Module.__getattr__, nn.Module.forward),
        "hooks": (sys.excepthook, sys.displayhook, sys.settrace, threading.excepthook),
    }  # fmt: skip


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """The names of what has changed."""
    return [name for name, value in before.items() if after[name] != value]


def memory(count: int, warm: int) -> dict[str, Any]:
    """How memory and open files grow while networks are converted, trained for a step and forgotten."""
    for seed in range(warm):
        _used(seed)
    before, files = resident(), open_files()
    for seed in range(warm, warm + count):
        _used(seed)
    return {"cases": count, "memory": round(resident() / before, 3), "open files": open_files() / files}


def _used(seed: int) -> None:
    network = convert(seed)
    network(torch.ones(2, 3, 16, 16)).sum().backward()


def threads(count: int, workers: int = 8) -> list[str]:
    """What differs between networks that one thread makes and those of several at once, while another one runs."""
    alone = [convert(seed) for seed in range(count)]
    models = [model(seed) for seed in range(count)]  # made here: torch's own fork_rng is not for several threads
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = alone[0].eval()(images)
    before, faults, done = shared_state(), [], threading.Event()

    def work() -> None:
        while not done.is_set():
            with torch.no_grad():
                drawn = torch.rand(2, generator=torch.Generator().manual_seed(0))
                if type(drawn) is not torch.Tensor or not torch.equal(alone[0](images), expected):
                    faults.append("what runs in another thread is disturbed")

    beside = threading.Thread(target=work)
    beside.start()
    try:
        with ThreadPoolExecutor(workers) as pool:
            together = list(pool.map(converted, models, range(count)))
    finally:
        done.set()
        beside.join()
    pairs = zip(alone, together, strict=True)
    faults += [f"network {i} is another one" for i, (a, b) in enumerate(pairs) if not same(a, b)]
    return faults + [f"{name} changed" for name in differences(before, shared_state())]


def same(one: bu2td.TopDownNetwork, other: bu2td.TopDownNetwork) -> bool:
    """Whether two networks have one plan, one graph and the same weights, to the bit."""
    states = one.state_dict(), other.state_dict()
    graphs = [str(network.graph) for network in (one, other)]
    if str(one.plan) != str(other.plan) or graphs[0] != graphs[1] or states[0].keys() != states[1].keys():
        return False
    return all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def state(count: int) -> list[str]:
    """What converting, refusing, optimising, saving, loading and looking at networks changes for other code."""
    calls = _calls()
    for call in calls.values():  # what is imported and looked up once
        call()
    faults = []
    for name, call in calls.items():
        before = shared_state()
        call()
        faults += [f"{name} changes {what}" for what in differences(before, shared_state())]
    return faults


def _calls() -> dict[str, Callable[[], Any]]:
    network = convert(0)
    flat = nn.Sequential(nn.Conv2d(3, 4, 3), head(4))
    folder = tempfile.mkdtemp()

    def refused() -> None:
        with contextlib.suppress(bu2td.Bu2tdError):
            bu2td.convert(flat, seed=0)

    return {
        "convert": lambda: convert(0),
        "a refusal": refused,
        "optimize": lambda: [bu2td.optimize(network, mode) for mode in ("training", "inference")],
        "save": lambda: bu2td.save(network, f"{folder}/td.pt"),
        "load": lambda: bu2td.load(f"{folder}/td.pt", model(0)),
        "verify": lambda: bu2td.verify(network),
        "verify in full": lambda: bu2td.verify(network, full=True),
        "theory": lambda: bu2td.erf.theory(network),
        "gradient": lambda: bu2td.erf.gradient(network, count=1),
        "patches": lambda: bu2td.PatchNetwork(network, seed=0),
        "export": lambda: torch.export.export(network.eval(), (torch.ones(1, 3, 16, 16),)),
    }


def report(what: str, count: int, warm: int) -> None:
    """Print one of the above as JSON."""
    torch.set_num_threads(1)
    if what == "memory":
        found = memory(count, warm)
        bad = [name for name in ("memory", "open files") if found[name] > 1.05]
        print(json.dumps({**found, "faults": [f"{name} grows" for name in bad]}))
    else:
        faults = threads(count // 5) if what == "threads" else state(count)
        print(json.dumps({"cases": count // 5 if what == "threads" else len(_calls()), "faults": faults}))
