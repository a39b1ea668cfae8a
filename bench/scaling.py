"""What a training step of an ImageNet network takes, level by level: memory and images per second.

    PYTHONPATH=. python bench/scaling.py [--device cuda] [--batch 64] [--amp] [--match resnet50]

A row is a network (timm's word; top-down as `bu2td.optimize` trains it, and bottom-up, both channels_last) and a
level of it:

macs            multiply-accumulates of an image, forwards, as converted (td.plan)
mib             what the level keeps of an image for the backward pass, each memory once
images_per_s    forwards and backwards through the level alone, on its own inputs

and a row "all" of a step of the whole network, loss and optimiser included. Times are medians over --repeat steps,
in seconds of the processor on one thread, of the clock on a GPU. Writes bench/results/scaling.csv and .json;
docs/scaling.md says what follows for many GPUs.
"""

from __future__ import annotations

import statistics
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import _results
import torch
import torch.nn.functional as F
from roofline import owners
from torch import Tensor, fx, nn

import bu2td
from bu2td.evaluate.rates import multiply_accumulates
from bu2td.models.words import create_model

NETWORKS = ("resnet18", "resnet50", "mobilenetv2_100")
SIZE = 224


def main() -> None:
    parser = _results.parser(__doc__, "scaling")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--amp", action="store_true", help="bfloat16 by autocast")
    args = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(args.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _results.processor()
    jobs = [(net, arrangement) for net in NETWORKS for arrangement in ("bu", "td") if args.match in net]

    def run(net: str, arrangement: str) -> list[_results.Row]:
        bench = Bench(device, args.batch, args.repeat, args.amp)
        return [{"network": net, "arrangement": arrangement, **row} for row in bench.rows(net, arrangement)]

    about = {"device": name, "batch": args.batch, "amp": args.amp, "size": SIZE}
    tables(_results.sweep(args, ("network", "arrangement"), jobs, run, **about))


#: A GPU of docs/scaling.md: operations a second that convolutions reach, bytes a second, bytes.
RATE, BANDWIDTH, MEMORY = 64e12, 1.5e12, 80e9
IMAGES = 1_281_167  # of ImageNet's training set
EPOCHS, GPUS = 100, 8


def tables(rows: list[_results.Row]) -> None:
    """Print the tables of docs/scaling.md."""
    levels = list(dict.fromkeys(row["level"] for row in rows if row["arrangement"] == "td"))
    levels.append(levels.pop(levels.index("all")))
    print("| MiB kept, images/s | " + " | ".join(levels) + " |")
    for key in dict.fromkeys((row["network"], row["arrangement"]) for row in rows):
        own = {row["level"]: row for row in rows if (row["network"], row["arrangement"]) == key}
        cells = [f"{own[n]['mib']:.1f}, {own[n]['images_per_s']:.3g}" if n in own else "" for n in levels]
        print(f"| {' '.join(key)} | " + " | ".join(cells) + " |")
    print()
    for row in (row for row in rows if row["level"] == "all"):
        half = row["mib"] / 2
        print(f"| {row['network']} {row['arrangement']} | {row['mib']:.0f} | {half:.0f} | "
              f"{MEMORY / half / 2**20:,.0f} |")  # fmt: skip
    print()
    for row in (row for row in rows if row["level"] == "all"):
        by_macs, by_bytes = RATE / (6 * row["macs"]), BANDWIDTH / (5 * row["mib"] / 2 * 2**20)
        days = EPOCHS * IMAGES / (GPUS * min(by_macs, by_bytes) * 86_400)
        print(f"| {row['network']} {row['arrangement']} | {6 * row['macs'] / 1e9:.1f} | {by_macs:,.0f} | "
              f"{5 * row['mib'] / 2:,.0f} | {by_bytes:,.0f} | {days:.2f} |")  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """Measures networks on one device."""

    device: torch.device
    batch: int
    repeat: int
    amp: bool

    def rows(self, word: str, arrangement: str) -> list[_results.Row]:
        """The levels of a network, coarse to fine, and the whole of it."""
        torch.manual_seed(0)
        network: nn.Module = create_model(word, device="cpu")
        if arrangement == "td":
            network = bu2td.convert(network, seed=0)
            network = bu2td.optimize(network, "training", batch_size=self.batch, image_size=SIZE)
        network = network.to(self.device, memory_format=torch.channels_last).train()
        images = torch.rand(self.batch, 3, SIZE, SIZE, device=self.device)
        images = images.contiguous(memory_format=torch.channels_last)
        found = self.levels(network, images) if isinstance(network, bu2td.TopDownNetwork) else []
        return [*found, {"level": "all", **self.whole(network, images)}]

    def levels(self, network: bu2td.TopDownNetwork, images: Tensor) -> list[_results.Row]:
        """A row per level, one of the pyramid, one of the head."""
        walk = _Walk(network, self)
        with self.precision():
            walk.run(images)
        macs = {level.name: level.cost.macs for level in network.plan.levels}
        return [
            {"level": level, **self.row(macs.get(level), seen.bytes, seen.seconds)}
            for level, seen in walk.seen.items()
        ]

    def whole(self, network: nn.Module, images: Tensor) -> _results.Row:
        """A step of the network."""
        labels = torch.arange(self.batch, device=self.device)
        own = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)

        def step() -> None:
            with self.precision():
                loss = F.cross_entropy(network(images), labels)
            own.zero_grad()
            loss.backward()
            own.step()

        if isinstance(network, bu2td.TopDownNetwork):
            macs = network.plan.cost.macs
        else:
            macs = multiply_accumulates(network, images[:1])
        seconds = statistics.median([_results.seconds(step, self.device) for _ in range(self.repeat + 1)][1:])
        return self.row(macs, _results.stored(step), seconds)

    def row(self, macs: int | None, kept: int, seconds: float) -> _results.Row:
        """Per image; macs are of one already."""
        return {
            "macs": macs,
            "mib": round(kept / self.batch / 2**20, 2),
            "images_per_s": float(f"{self.batch / seconds:.4g}"),
        }

    def precision(self) -> AbstractContextManager[Any]:
        """Autocast, where it is asked for."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.amp else nullcontext()


@dataclass
class _Seen:
    bytes: int = 0
    seconds: float = 0.0


class _Walk(fx.Interpreter):
    """Runs every call of the top graph forwards and backwards, on inputs of its own."""

    def __init__(self, network: bu2td.TopDownNetwork, bench: Bench) -> None:
        super().__init__(network)
        self.bench, self.owners = bench, owners(network)
        self.seen: dict[str, _Seen] = {}

    def run_node(self, n: fx.Node) -> Any:
        call = super().run_node
        if n.op != "call_module":
            return call(n)
        for source in n.all_input_nodes:
            self.env[source] = fx.node.map_aggregate(self.env[source], _apart)
        out = call(n)
        if not isinstance(out, Tensor) or not out.requires_grad:  # the pyramid: nothing goes back to the image
            return out
        gradient = torch.rand_like(out)

        def both() -> None:
            call(n).backward(gradient)

        seen = self.seen.setdefault(self.owners.get(n.name, n.name), _Seen())
        seen.bytes += _results.stored(lambda: call(n))
        seen.seconds += statistics.median(
            _results.seconds(both, self.bench.device) for _ in range(self.bench.repeat)
        )
        return out


def _apart(value: Any) -> Any:
    is_map = isinstance(value, Tensor) and value.is_floating_point()
    return value.detach().requires_grad_() if is_map else value


if __name__ == "__main__":
    main()
