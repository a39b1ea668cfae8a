"""Where a training runs: one device or several processes, by Lightning Fabric.

Fabric rather than accelerate: under torchrun both processes of a CPU run take part without a launcher of its own,
a schedule steps once per epoch and not once per process, and the training loop stays ours.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from bu2td.errors import MissingPackageError, OptionError
from bu2td.evaluate.settings import Settings
from bu2td.options import as_device
from bu2td.packages import imported

_PRECISION = {"float16": "16-mixed", "bfloat16": "bf16-mixed"}
_MIB = 2**20
_PATIENCE = timedelta(days=30)


def choose_device(word: str) -> torch.device:
    """The device of a word; "auto" is CUDA where there is one.

    Raises:
        OptionError: this machine has no such device.
    """
    if word == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = as_device(word)
    if device.type == "meta":
        raise OptionError("device 'meta' computes nothing: expected cpu or cuda")
    return device


def start(settings: Settings) -> Any:
    """Make the engine: this process alone, or one of those that torchrun started.

    Returns:
        A launched `lightning_fabric.Fabric`.

    Raises:
        MissingPackageError: Lightning Fabric is not installed.
        OptionError: the device does not exist, or the processes cannot share a batch evenly.
    """
    fabric = _package("lightning_fabric", "lightning-fabric")
    device = choose_device(settings.device)
    options: dict[str, Any] = {
        "accelerator": device.type,
        "devices": 1 if device.index is None else [device.index],
        "precision": _PRECISION[settings.amp_dtype] if settings.amp else "32-true",
    }
    if device.type == "cpu" and settings.amp and settings.amp_dtype == "float16":
        raise OptionError("amp_dtype = 'float16': mixed precision on the CPU needs bfloat16")
    if "LOCAL_WORLD_SIZE" in os.environ:  # torchrun
        local, world = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
        # a process may have to wait for hours for another one's attack; torchrun ends all of them where one fails
        strategy = imported("lightning_fabric.strategies").DDPStrategy(timeout=_PATIENCE)
        options |= {"devices": local, "num_nodes": world // local, "strategy": strategy}
        for part in (settings, settings.for_arrangement("td")):
            if part.batch_size % world:
                raise OptionError(f"batch_size = {part.batch_size} cannot be shared evenly by {world} processes")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice about processors and launchers
        engine = fabric.Fabric(**options)
        engine.launch()
    return engine


def is_shared(engine: Any) -> bool:
    """Whether more than one process takes part."""
    return bool(engine.world_size > 1)


def synchronise_norms(classifier: nn.Module, engine: Any) -> nn.Module:
    """Let batch normalisation see the batches of all processes, on CUDA (on the CPU: `training_context`)."""
    if not is_shared(engine) or engine.device.type != "cuda":
        return classifier
    if "timm" in sys.modules:  # knows its own BatchNormAct2d
        return _package("timm.layers", "timm").convert_sync_batchnorm(classifier)
    return nn.SyncBatchNorm.convert_sync_batchnorm(classifier)


def training_context(engine: Any) -> AbstractContextManager[Any]:
    """What a training step's forward pass runs in."""
    if is_shared(engine) and engine.device.type != "cuda":
        return _SharedBatchNorm()
    return contextlib.nullcontext()


class _SharedBatchNorm(TorchFunctionMode):
    """Batch normalisation over the batches of all processes, which PyTorch offers on GPUs only.

    With n_p values per channel in process p, n = sum n_p: mean = sum_p sum x / n, var = sum_p sum (x - mean)^2 / n,
    the running variance gets var n / (n - 1), as `torch.nn.BatchNorm2d` does for one batch. The sums are reduced by
    differentiable operations.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is F.batch_norm:
            return self._normalise(*args, **kwargs)
        return func(*args, **kwargs)

    def _normalise(
        self,
        x: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if not training:
            return F.batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
        from torch.distributed.nn.functional import all_reduce

        dims = [0, *range(2, x.ndim)]
        shape = [1, -1] + [1] * (x.ndim - 2)
        count = torch.tensor(float(x.numel() // x.shape[1]))
        torch.distributed.all_reduce(count)
        mean = all_reduce(x.sum(dims)) / count
        centred = x - mean.view(shape)
        var = all_reduce((centred**2).sum(dims)) / count
        if running_mean is not None and running_var is not None:
            with torch.no_grad():
                running_mean.lerp_(mean, momentum)
                running_var.lerp_(var * count / (count - 1), momentum)
        out = centred * torch.rsqrt(var + eps).view(shape)
        out = out if weight is None else out * weight.view(shape)
        return out if bias is None else out + bias.view(shape)


# --- memory -------------------------------------------------------------------------------------------


@contextmanager
def peak_memory(device: torch.device) -> Iterator[list[float]]:
    """Measure how far memory rises above where it was, in MiB (one value, there when the block has ended).

    On CUDA it is what PyTorch allocates; elsewhere the resident memory of the process (on Linux; NaN where the
    kernel does not tell).
    """
    measured: list[float] = []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield measured
        measured.append((torch.cuda.max_memory_allocated(device) - before) / _MIB)
        return
    before_kib = _reset_resident_peak()
    yield measured
    measured.append((_resident("VmHWM") - before_kib) / 1024)


def _reset_resident_peak() -> float:
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        return float("nan")
    return _resident("VmRSS")


def _resident(key: str) -> float:
    try:
        with open("/proc/self/status") as file:
            lines = dict(line.split(":", 1) for line in file)
        return float(lines[key].split()[0])
    except (OSError, KeyError, ValueError):
        return float("nan")


def processor() -> str:
    """The name of the CPU, or an empty string."""
    try:
        with open("/proc/cpuinfo") as file:
            return next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), "")
    except OSError:
        return ""


def device_name(device: torch.device) -> str:
    """A device in words: "cpu (Intel ..., 2 threads)", "cuda (NVIDIA H100)"."""
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    name = processor()
    return f"{device.type} ({name + ', ' if name else ''}{torch.get_num_threads()} threads)"


def _package(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingPackageError(f"training needs {package}. Run: pip install {package}") from error
