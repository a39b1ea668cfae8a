"""Size and time of `bu2td.erf.theory` beside the peers that still run.

    pip install --no-deps torchscan==0.1.2     # it asks for torch below 2, but runs on later ones
    python bench/erf_speed.py [--repeat 5] [--match resnet]

Per network, the receptive field of the last map that has one (its height, which is its width) and median times of

theory     `bu2td.erf.theory` of all nodes, capture and analysis included
torchscan  ``torchscan.crawl_module``: forward hooks, whose windows it takes for a chain in the order of the calls
           (since 0.2.0 it reports the windows of single modules only, and no field)
formula    Araujo et al. (2019), "Computing receptive fields of convolutional neural networks", by which their table
           was made: along a path r_l = r_(l-1) + (k_l - 1) j_(l-1), j_l = j_(l-1) s_l, at a merge the largest r;
           over the graph of ``torch.fx.symbolic_trace``. It knows no borders, offsets, gates and upsampling

and the size that the article's table gives for the same network. TensorFlow's ResNets stride at the end of a stage;
they are built here as "slim". All run on the meta device, in turn, on one thread; times are CPU seconds of the
process, which other processes do not lengthen. Deep ResNets show the growth with the number of nodes; a field above
some 5,000 pixels, which the deepest has, needs a second, larger canvas. Writes bench/results/erf_speed.csv, .json.
"""

import copy
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _results
import torch
import torch.nn.functional as F
from torch import fx, nn
from tqdm import tqdm

import bu2td
from bu2td.erf.subject import subject
from bu2td.erf.theory import theory
from bu2td.ir import format_table
from bu2td.models.baselines import PreActResNet
from bu2td.models.words import create_model

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from nets import slim_resnet

#: Networks of the article's table that PyTorch has too, and the size that it gives.
TABLE = {
    "torchvision:alexnet": 195,
    "torchvision:vgg16": 212,
    "torchvision:inception_v3": 1311,
    "inception_v4": 2071,
    "inception_resnet_v2": 3039,
    "mobilenetv1_100": 315,
    "slim resnet_v1_50": 483,
    "slim resnet_v1_101": 1027,
    "slim resnet_v1_152": 1507,
}

OTHERS = (
    *(f"torchvision:resnet{depth}" for depth in (18, 50, 101, 152)),
    *("torchvision:googlenet", "densenet121", "efficientnet_b0", "convnext_tiny", "hrnet_w18"),
    *("resnet18 top-down", "torchvision:resnet50 top-down"),
)

#: Blocks in each of the three stages.
DEPTHS = (9, 18, 36, 72, 144, 288)
DEEP = {f"preact resnet, {blocks} blocks a stage": blocks for blocks in DEPTHS}

IMAGE = (3, 224, 224)


def build(name: str) -> nn.Module:
    """A network of the lists on the meta device, in eval mode."""
    if name in DEEP:
        with torch.device("meta"):
            return PreActResNet((16, 32, 64), DEEP[name], stem_width=16).eval()
    if name.startswith("slim"):
        return slim_resnet(int(name.rpartition("_")[2])).eval()
    word, _, kind = name.partition(" ")
    model = create_model(word, device="meta").eval()
    if kind == "top-down":
        return bu2td.convert(model, device="meta", max_macs_ratio=None).eval()
    return model


# --- the three ----------------------------------------------------------------------------------------


def by_theory(model: nn.Module) -> list[dict[str, Any]]:
    """All rows of theory."""
    return theory(model, layers="all").rows


def by_torchscan(model: nn.Module) -> float:
    """The size that torchscan gives for the last map of more than one position."""
    import torchscan

    layers = torchscan.crawl_module(model, IMAGE)["layers"]
    if "rf" not in layers[0]:
        raise LookupError("reports the windows of single modules only; install torchscan==0.1.2")
    maps = [
        layer
        for layer in layers
        if len(layer["output_shape"]) == 4 and layer["output_shape"][-1] > 1 and layer["is_leaf"]
    ]
    return maps[-1]["rf"]


def by_formula(model: nn.Module) -> int:
    """The largest size of any map, by the formula along every path of the traced graph."""
    traced = fx.symbolic_trace(model)
    modules = dict(traced.named_modules())
    fields: dict[fx.Node, tuple[int, int]] = {}
    for node in traced.graph.nodes:
        sources = [fields[n] for n in node.all_input_nodes if n in fields]
        if node.op == "placeholder":
            fields[node] = (1, 1)
        elif sources and not _pools_all(node, modules):
            size, jump = max(sources)
            kernel, stride, dilation = _window(node, modules)
            fields[node] = (size + (kernel - 1) * dilation * jump, jump * stride)
    return max(size for size, _ in fields.values())


def _pools_all(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    module = modules[str(node.target)] if node.op == "call_module" else None
    return isinstance(module, nn.AdaptiveAvgPool2d) or node.target in ("mean", torch.mean, F.adaptive_avg_pool2d)


def _window(node: fx.Node, modules: dict[str, nn.Module]) -> tuple[int, int, int]:
    """Kernel, stride and dilation of a node; of all others 1."""
    module: Any = modules[str(node.target)] if node.op == "call_module" else None
    if isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
        dilation = getattr(module, "dilation", 1)
        return _first(module.kernel_size), _first(module.stride), _first(dilation)
    if getattr(node.target, "__name__", "") in ("max_pool2d", "boolean_dispatch", "avg_pool2d"):
        kernel: Any = node.args[1] if len(node.args) > 1 else node.kwargs["kernel_size"]
        stride: Any = node.args[2] if len(node.args) > 2 else node.kwargs.get("stride", kernel)
        return _first(kernel), _first(stride or kernel), 1
    if isinstance(module, nn.Upsample) or node.target is F.interpolate:
        raise LookupError("the formula has no rule for upsampling")
    return 1, 1, 1


def _first(value: Any) -> int:
    return value if isinstance(value, int) else value[0]


# --- measuring ----------------------------------------------------------------------------------------


def timed(run: Callable[[nn.Module], Any], model: nn.Module) -> tuple[Any, float]:
    """What it returns, or the error, and the seconds that it took."""
    start = time.process_time()
    try:
        found = run(model)
    except Exception as error:  # a peer that cannot read the network says so in the table
        found = error
    return found, time.process_time() - start


def measure(name: str, repeat: int) -> _results.Row:
    """The row of one network: medians over paired runs."""
    model = build(name)
    runs: dict[str, Callable[[nn.Module], Any]] = {
        "theory": by_theory,
        "torchscan": by_torchscan,
        "formula": by_formula,
    }
    seconds: dict[str, list[float]] = {peer: [] for peer in runs}
    found: dict[str, Any] = {}
    for _ in range(repeat):
        for peer, run in runs.items():
            # A copy each: torchscan leaves its hooks in a network that it cannot read.
            found[peer], taken = timed(run, copy.deepcopy(model))
            seconds[peer].append(taken)
    if isinstance(found["theory"], Exception):
        raise found["theory"]
    size = [row["size"][0] for row in found["theory"] if row["size"]][-1]
    nodes = len(subject(model).graph_module.graph.nodes)
    row: _results.Row = {"model": name, "nodes": nodes, "theory": size, "published": TABLE.get(name, "")}
    for peer in ("torchscan", "formula"):
        given = found[peer]
        failed = isinstance(given, Exception)
        row[peer] = "" if failed else f"{given:g}"
        row[f"{peer}_equal"] = "" if failed else "yes" if given == size else "no"
        row[f"{peer}_error"] = _results.cause(given) if failed else ""
    for peer in runs:
        row[f"{peer}_s"] = round(statistics.median(seconds[peer]), 4)
    return {**row, "theory_ms_per_node": round(1000 * row["theory_s"] / nodes, 3)}


def main() -> None:
    parser = _results.parser(__doc__, "erf_speed")
    parser.add_argument("--repeat", type=int, default=5, help="paired runs; default: %(default)s")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    names = [name for name in (*TABLE, *OTHERS, *DEEP) if args.match in name]
    measure("torchvision:resnet18", 1)  # imports and caches
    rows = [measure(name, args.repeat) for name in tqdm(names)]
    deep = [row for row in rows if row["model"] in DEEP]
    about: _results.Row = {"repeat": args.repeat, "threads": 1, "cores": os.cpu_count(), "device": "meta"}
    about |= {"cpu": _results.processor(), **_results.versions("torchscan", "timm", "torchvision")}
    if len(deep) > 1:
        sizes = [row["nodes"] for row in deep]
        about["growth_exponent"] = round(_results.exponent(sizes, [row["theory_s"] for row in deep]), 2)
    shown = [{k: v for k, v in row.items() if not k.endswith("_error")} for row in rows]
    print(format_table(shown))
    print(about)
    for row in rows:
        for peer in ("torchscan", "formula"):
            if row[f"{peer}_error"]:
                print(f"  {row['model']}, {peer}: {row[f'{peer}_error']}")
    if not args.match:
        _results.write(args.out, rows, **about)


if __name__ == "__main__":
    main()
