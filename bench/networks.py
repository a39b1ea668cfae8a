"""24 networks, small ones of 24 families, and how fast `bu2td.optimize` makes them (`bench/speed.py --families`).

A row is a network, a task, a kind and a batch size. Eager, all networks run in batches of 1, 8 and 32 (on a GPU 1
and 32); compiled, six of them in batches of 8 (on a GPU 32). On a GPU, where convolutions round to TF32 as is
PyTorch's default, there are two more kinds: *bfloat16* is eager under autocast, *graphs* a replayed CUDA graph of
the whole step. Several processes may build networks side by side and take turns on the device (--lock).
With --others it is 20 other networks, some of the same families, eager in batches of 4: they were tried once the
rules were made, and no rule was changed for them.

The optimised network is compared with the better of "as converted" and "channels_last" (the same one, its weights
and images so): the one with the smaller median. ``speedup`` is the median over rounds of that one's time over ours
in the same round. Nothing is timed before the logits of all arms agree to 1e-4 in eval mode, and in training the
losses of the first step, without TF32.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import _results
import speed
import torch
from torch import Tensor, nn

import bu2td
from bu2td.errors import OptimizeError
from bu2td.graph import full_precision
from bu2td.ir import format_table
from bu2td.models.words import create_model

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from reference.fill import fill


@dataclass(frozen=True)
class Family:
    """A network: its MODEL word, what is special about it, and the height, width and channels of its images."""

    word: str
    about: str
    size: int = 64
    channels: int = 3

    @property
    def name(self) -> str:
        """The word without its library."""
        return self.word.rpartition(":")[2]

    def bottom_up(self) -> nn.Module:
        """The bottom-up network, with weights and statistics that all matter."""
        model: Any = create_model(self.word)
        if getattr(model, "aux_logits", False):  # heads that only training has, and no top-down network
            model.aux_logits, model.aux1, model.aux2 = False, None, None
        fill(model)
        return model

    def top_down(self) -> bu2td.TopDownNetwork:
        """The top-down network, as converted."""
        images = torch.zeros(2, self.channels, self.size, self.size)
        network = bu2td.convert(
            create_model(self.word), "td", example_inputs=images, max_macs_ratio=None, inherit="none", seed=0
        )
        fill(network)
        return network

    def images(self, batch: int) -> Tensor:
        """Images between 0 and 1."""
        generator = torch.Generator().manual_seed(1)
        return torch.rand((batch, self.channels, self.size, self.size), generator=generator)


FAMILIES = {
    family.name: family
    for family in (
        Family("bu2td:lenet_fc", "plain, narrow", 28, 1),
        Family("bu2td:nin_light", "1x1 convolutions", 28, 1),
        Family("bu2td:resnet32", "pre-activation, narrow", 32),
        Family("resnet10t", "residual"),
        Family("resnet18", "residual, wide"),
        Family("hardcorenas_a", "depthwise, hard-swish"),
        Family("fbnetc_100", "depthwise, mixed kernels"),
        Family("regnetx_002", "grouped"),
        Family("regnety_002", "grouped, narrow, squeeze-and-excite"),
        Family("mobilenetv2_050", "depthwise"),
        Family("mobilenetv3_small_050", "depthwise, squeeze-and-excite"),
        Family("efficientnet_lite0", "depthwise 5x5"),
        Family("mnasnet_small", "depthwise, narrow"),
        Family("ghostnet_050", "depthwise beside pointwise"),
        Family("rexnetr_100", "depthwise, partial shortcuts"),
        Family("torchvision:shufflenet_v2_x0_5", "channel shuffle"),
        Family("densenet121", "dense"),
        Family("ese_vovnet19b_slim_dw", "one-shot aggregation"),
        Family("dla46_c", "trees"),
        Family("torchvision:squeezenet1_1", "fire modules"),
        Family("torchvision:googlenet", "inception modules"),
        Family("repvgg_a0", "parallel branches"),
        Family("convnext_atto", "LayerNorm, depthwise 7x7"),
        Family("edgenext_xx_small", "attention, LayerNorm"),
    )
}
_OTHERS = """
    repvgg_a1 mobileone_s0 resnext26ts resnext50_32x4d res2net50_14w_8s resnest14d mobilenetv3_small_100
    mobilenetv4_conv_small tinynet_e mixnet_s ghostnetv2_100 xception41 selecsls42b cs3darknet_focus_s vgg11_bn
    gernet_s regnetz_b16 convnextv2_atto efficientvit_b0 poolformer_s12
"""
OTHERS = {name: Family(name, "not in the bench that the rules were made with", 96) for name in _OTHERS.split()}
#: Of different kinds, for ``--quick``.
QUICK = ("lenet_fc", "regnetx_002", "mobilenetv3_small_050")
#: Also compiled, which takes most of its time.
COMPILED = ("nin_light", "resnet32", "resnet10t", "regnetx_002", "mnasnet_small", "repvgg_a0")

#: Kind -> batches of images, for each type of device.
BATCHES: dict[str, dict[str, tuple[int, ...]]] = {
    "cpu": {"eager": (8, 1, 32), "compiled": (8,)},
    "cuda": {"eager": (1, 32), "bfloat16": (32,), "graphs": (32,), "compiled": (32,)},
}
COLUMNS = ("network", "task", "kind", "batch")
#: What a network may be without us.
BEFORE = ("converted", "channels_last")
TOLERANCE = 1e-4


def jobs(chosen: Mapping[str, Family], tasks: tuple[str, ...], batches: Mapping[str, tuple[int, ...]]) -> list[Any]:
    """Words of every job, one batch after the other; those that are compiled come last."""
    return [
        (name, task, kind, str(batch))
        for kind in batches
        for batch in batches[kind]
        for name in chosen
        if kind != "compiled" or name in COMPILED
        for task in tasks
    ]


def arms(
    family: Family, task: str, batch: int, tune: str | None, device: torch.device
) -> dict[str, tuple[nn.Module, Tensor]]:
    """Arm -> its network and its images; ours is the first."""
    network, images = family.top_down().to(device), family.images(batch).to(device)
    last = copy.deepcopy(network).to(memory_format=torch.channels_last)
    options: dict[str, Any] = {} if tune is None else {"tune": tune, "example_inputs": images}
    if tune is None:
        options |= {"batch_size": batch, "image_size": family.size}
    return {
        speed.OURS: (bu2td.optimize(network, task, **options), images),
        "converted": (network, images),
        "channels_last": (last, images.contiguous(memory_format=torch.channels_last)),
    }


def difference(results: Mapping[str, Tensor]) -> float:
    """The largest difference from the network as converted, relative to its largest value."""
    expected = results["converted"]
    return max(float((found - expected).abs().max() / expected.abs().max()) for found in results.values())


def steps(
    family: Family, task: str, kind: str, batch: int, tune: str | None, device: torch.device
) -> tuple[dict[str, Callable[[], Tensor]], float]:
    """The step of every arm, which has run, and by how much their results differ in single precision."""
    with full_precision():
        made = arms(family, task, batch, tune, device)
        with torch.inference_mode():
            worst = difference({arm: model.eval()(images).float() for arm, (model, images) in made.items()})
        if kind == "compiled":
            torch._dynamo.reset()
        found, losses = {}, {}
        for arm, (model, images) in made.items():
            if task == "training":
                model.train()
            ready: Any = torch.compile(model) if kind == "compiled" else model
            step = (speed.training if task == "training" else speed.inference)(ready, images)
            losses[arm] = step().clone()
            found[arm] = FORMS.get(kind, lambda step: step)(step)
    if task == "training" and not any(
        isinstance(m, nn.Dropout) and m.p > 0 for m in made["converted"][0].modules()
    ):
        worst = max(worst, difference(losses))
    if not worst <= TOLERANCE:
        raise SystemExit(f"{family.name}, {task}, {kind}, {batch}: the arms differ by {worst:.1e} relative")
    return found, worst


def rounded(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The step under autocast to bfloat16."""

    def under() -> Tensor:
        with torch.autocast("cuda", torch.bfloat16):
            return step()

    return under


def replayed(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The step as a CUDA graph, captured with PyTorch's own precision when it is first called."""
    graph: list[torch.cuda.CUDAGraph] = []
    out: list[Tensor] = []

    def replay() -> Tensor:
        if not graph:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(3):
                    step()
            torch.cuda.current_stream().wait_stream(side)
            captured = torch.cuda.CUDAGraph()
            with torch.cuda.graph(captured):
                out.append(step())
            graph.append(captured)
        graph[0].replay()
        return out[0]

    return replay


#: Kind (one of `speed.GPU_KINDS`) -> what makes its step of an eager one.
FORMS: dict[str, Callable[[Callable[[], Tensor]], Callable[[], Tensor]]] = {"bfloat16": rounded, "graphs": replayed}


def run(*job: str, settings: speed.Settings, tune: str | None) -> list[dict[str, Any]]:
    """The row of a job."""
    name, task, kind, batch = job
    row: dict[str, Any] = dict(zip(COLUMNS, job, strict=True))
    try:
        found, worst = steps((FAMILIES | OTHERS)[name], task, kind, int(batch), tune, settings.device)
    except (ValueError, OptimizeError) as error:  # batch statistics of one value per channel
        return [{**row, "note": str(error).splitlines()[0]}]
    try:
        times = speed.compare(found, settings)
    except RuntimeError as error:  # what a network does in a pass cannot be captured
        if kind != "graphs":
            raise
        return [{**row, "note": str(error).splitlines()[0]}]
    better = min(BEFORE, key=lambda arm: statistics.median(times[arm]))
    ratios = sorted(theirs / ours for ours, theirs in zip(times[speed.OURS], times[better], strict=True))
    return [
        {
            **row,
            **{f"{arm}_ms": round(1e3 * statistics.median(seconds), 3) for arm, seconds in times.items()},
            "better": better,
            "speedup": round(statistics.median(ratios), 3),
            "slowest": round(ratios[0], 3),
            "fastest": round(ratios[-1], 3),
            "difference": float(f"{worst:.1e}"),
        }
    ]


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Geometric means of the speed-ups, and how many cases lose, for each task and kind."""
    groups: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        if "speedup" in row:
            groups.setdefault((row["task"], row["kind"]), []).append(row["speedup"])
    return {
        "speedups": [
            {
                "task": task,
                "kind": kind,
                "cases": len(found),
                "geometric_mean": round(statistics.geometric_mean(found), 3),
                "smallest": min(found),
                "below_0.97": sum(speedup < 0.97 for speedup in found),
            }
            for (task, kind), found in groups.items()
        ]
    }


def main(args: argparse.Namespace, settings: speed.Settings, about: dict[str, Any]) -> None:
    """Run every job that has no row yet, and print the rows, the worst of them, and geometric means."""
    known = OTHERS if args.others else FAMILIES
    chosen = {name: f for name, f in known.items() if args.match in name and (name in QUICK or not args.quick)}
    if args.out == _results.FOLDER / "speed":
        args.out = _results.FOLDER / ("families_others" if args.others else "families")
    batches = {
        kind: sizes
        for kind, sizes in BATCHES[settings.device.type].items()
        if kind in args.kinds and not (args.quick and kind == "compiled")
    }
    if args.others:
        batches = {"eager": (4,)}
    todo = jobs(chosen, tuple(args.tasks), batches)
    work = partial(run, settings=settings, tune=args.tune)
    rows = _results.sweep(args, COLUMNS, todo, work, summary, **about, tune=args.tune or "default")
    timed = sorted((row for row in rows if "speedup" in row), key=lambda row: row["speedup"])
    print(format_table(rows))
    print("\nworst cases")
    print(format_table(timed[:10]))
    print(f"\n{format_table(summary(rows)['speedups'])}")
