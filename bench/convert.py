"""Time of `bu2td.convert` against building the bottom-up model, from a small to a 2,000-node network.

    python bench/convert.py [--repeat 5]

Per model, medians of paired runs in one process: building the bottom-up model on the CPU (its own initialisation
included), ``convert(model, device="meta")`` (capture, probe, analysis, arrangement, rewriting, verification, cost;
no initialisation), and the initialisation of the converted network apart. Writes bench/results/convert.csv/.json.
"""

import argparse
import os
import statistics
import time
import warnings
from collections.abc import Callable

import _results
import torch
from torch import nn
from tqdm import tqdm

import bu2td
from bu2td.models.baselines import PreActResNet
from bu2td.models.words import create_model
from bu2td.rewrite.initialise import initialise


def deep_resnet(blocks: int) -> Callable[[], nn.Module]:
    """A pre-activation ResNet of three stages, six graph nodes a block."""
    return lambda: PreActResNet((16, 32, 64), blocks, stem_width=16)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "bu2td:lenet_fc": lambda: create_model("bu2td:lenet_fc"),
    **{
        name: (lambda name=name: create_model(name))  # type: ignore[misc]
        for name in (
            "resnet18",
            "mobilenetv2_100",
            "resnet50",
            "efficientnet_b0",
            "densenet121",
            "resnet152",
            "densenet201",
        )
    },
    "preact resnet, 55 blocks a stage": deep_resnet(55),
    "preact resnet, 110 blocks a stage": deep_resnet(110),
}


def measure(build: Callable[[], nn.Module], repeat: int) -> dict:
    """Medians over paired runs."""
    creates, converts, ratios, starts = [], [], [], []
    nodes = 0
    for _ in range(repeat):
        start = time.perf_counter()
        model = build()
        created = time.perf_counter()
        network = bu2td.convert(model, device="meta", max_macs_ratio=None, seed=0)
        converted = time.perf_counter()
        creates.append(created - start)
        converts.append(converted - created)
        ratios.append((converted - created) / (created - start))
        started = time.perf_counter()
        initialise(network, {}, model, {}, 0)
        starts.append(time.perf_counter() - started)
        nodes = len(bu2td.analyze(model).capture.graph_module.graph.nodes)
    median = statistics.median
    return {
        "nodes": nodes,
        "create_s": round(median(creates), 4),
        "convert_s": round(median(converts), 4),
        "ratio": round(median(ratios), 2),
        "convert_ms_per_node": round(1000 * median(converts) / nodes, 2),
        "initialise_s": round(median(starts), 4),
    }


def slope(rows: list[dict]) -> float:
    """Exponent of the growth with the number of nodes."""
    return _results.exponent([row["nodes"] for row in rows], [row["convert_s"] for row in rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    bu2td.convert(create_model("resnet18"), device="meta")  # imports and caches
    rows = [{"model": name, **measure(build, args.repeat)} for name, build in tqdm(MODELS.items())]
    deep = [row for row in rows if "preact" in row["model"]]
    about = {
        "growth_exponent_all": round(slope(rows), 2),
        "growth_exponent_deep": round(slope(deep), 2),
        "repeat": args.repeat,
        "cores": os.cpu_count(),
        "threads": 1,
    }
    print(bu2td.ir.tables.format_table(rows))
    print(about)
    _results.write(_results.FOLDER / "convert", rows, **about)


if __name__ == "__main__":
    main()
