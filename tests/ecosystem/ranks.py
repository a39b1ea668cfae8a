"""What two processes do in tests of distributed clients: a network each, and half a batch."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from ecosystem.kit import TRAIN, images, labels, loss, network
from torch import Tensor
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel

Named = Iterator[tuple[str, Tensor]]


def _ddp(net: Any) -> Any:
    wrapped = DistributedDataParallel(net)
    return wrapped, lambda: ((name, p.grad) for name, p in wrapped.module.named_parameters())


def _fsdp1(net: Any) -> Any:
    wrapped = FullyShardedDataParallel(net, use_orig_params=True, device_id=torch.device("cpu"))

    def whole() -> Named:
        with FullyShardedDataParallel.summon_full_params(wrapped, with_grads=True):
            yield from ((name, p.grad.clone()) for name, p in wrapped.module.named_parameters())

    return wrapped, whole


def _fsdp2(net: Any) -> Any:
    net = net.to(memory_format=torch.contiguous_format)  # it refuses others
    for stage in net.stages.levels:
        fully_shard(net.get_submodule(stage.output))
    wrapped = fully_shard(net)
    return wrapped, lambda: ((name, p.grad.full_tensor()) for name, p in wrapped.named_parameters())


CLIENTS = {"ddp": _ddp, "fsdp1": _fsdp1, "fsdp2": _fsdp2}


def _rank(rank: int, place: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{place}/store", rank=rank, world_size=2)
    found: dict[str, Any] = {}
    half = slice(2 * rank, 2 * rank + 2)
    for client, wrap in CLIENTS.items():
        for form in TRAIN:
            try:
                wrapped, gradients = wrap(network(form))
                loss(wrapped(images()[half]), labels()[half]).backward()
                found[f"{client} {form}"] = {name: tensor.clone() for name, tensor in gradients()}
            except Exception as error:
                found[f"{client} {form}"] = f"{type(error).__name__}: {error}"
    if rank == 0:
        torch.save(found, Path(place) / "found.pt")
    dist.barrier()
    dist.destroy_process_group()


def gradients_of_two() -> dict[str, Any]:
    """By client and form: the gradients of two processes with half a batch each, or what went wrong."""
    with tempfile.TemporaryDirectory() as place:
        mp.spawn(_rank, (place,), nprocs=2)
        found: dict[str, Any] = torch.load(Path(place) / "found.pt")
    return found
