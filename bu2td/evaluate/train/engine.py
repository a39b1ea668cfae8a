"""Where a training runs: one device or several processes, by Lightning Fabric.

Fabric rather than accelerate: under torchrun both processes of a CPU run take part without a launcher of its own,
a schedule steps once per epoch and not once per process, and the training loop stays ours.
"""

from __future__ import annotations

import atexit
import os
import sys
import warnings
from datetime import timedelta
from typing import Any

import torch
from torch import nn

from bu2td.errors import OptionError
from bu2td.evaluate.settings import Settings
from bu2td.options import as_device
from bu2td.packages import imported

_PRECISION = {"float16": "16-mixed", "bfloat16": "bf16-mixed"}
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
    fabric = imported("lightning_fabric", "lightning-fabric", "training needs it:")
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
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        atexit.unregister(_leave)  # once, however many engines there are
        atexit.register(_leave)
    return engine


def _leave() -> None:
    """Leave the other processes: one that ends with its threads still open is aborted now and then."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def is_shared(engine: Any) -> bool:
    """Whether more than one process takes part."""
    return bool(engine.world_size > 1)


def synchronise_norms(classifier: nn.Module, engine: Any) -> nn.Module:
    """Let batch normalisation see the batches of all processes on CUDA; PyTorch has it for no other device.

    On the CPU every process normalises its own share of a batch, so that a training by several processes is another
    one than by one; the running statistics that are kept are the first process's.
    """
    if not is_shared(engine) or engine.device.type != "cuda":
        return classifier
    if "timm" in sys.modules:  # knows its own BatchNormAct2d
        return imported("timm.layers").convert_sync_batchnorm(classifier)
    return nn.SyncBatchNorm.convert_sync_batchnorm(classifier)


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
