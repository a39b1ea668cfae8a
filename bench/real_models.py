"""Convert the 25 real models in td, uni and rev, verify every network on real tensors, leave a table.

    python bench/real_models.py                       # all 75; resumes where it was interrupted
    python bench/real_models.py --match resnet --fresh

Per network: the meta checks of `convert`; forward and backward at 64 px; deepcopy, state_dict, channels_last,
torch.compile(fullgraph, aot_eager) and torch.export against the network; autocast; batch 1; an odd size.
``--onnx`` adds ONNX through onnxruntime. Writes bench/results/real_models.csv and .json.
"""

import argparse
import csv
import io
import json
import os
import platform
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import bu2td
from bu2td.models import create_model
from bu2td.plan import ARRANGEMENTS

TIMM = (
    "resnet18",
    "resnet50",
    "resnetv2_50",
    "seresnet50",
    "regnety_008",
    "resnext50_32x4d",
    "mobilenetv2_100",
    "mobilenetv3_small_100",
    "efficientnet_b0",
    "convnext_atto",
    "densenet121",
    "vgg11_bn",
    "res2net50_26w_4s",
    "cspresnet50",
    "dla34",
    "nf_resnet50",
)
TORCHVISION = (
    "resnet18",
    "vgg16",
    "alexnet",
    "squeezenet1_1",
    "googlenet",
    "inception_v3",
    "shufflenet_v2_x1_0",
    "mobilenet_v2",
    "mnasnet1_0",
)
MODELS = [*TIMM, *(f"torchvision:{name}" for name in TORCHVISION)]
RESULTS = Path(__file__).parent / "results"


def onnx_difference(network: bu2td.TopDownNetwork, size: int) -> float:
    """Largest relative difference between onnxruntime and the network."""
    import onnxruntime

    images = torch.rand(1, network.plan.image_shape[1], size, size)
    network.eval()
    file = io.BytesIO()
    torch.onnx.export(network, (images,), file, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    [found] = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.no_grad():
        expected = network(images).numpy()
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def check(word: str, arrangement: str, size: int, onnx: bool) -> dict:
    """Convert and verify one network; returns its row."""
    start = time.perf_counter()
    row = {"model": word, "arrangement": arrangement, "status": "ok", "cause": ""}
    try:
        model = create_model(word)
        network = bu2td.convert(model, arrangement, seed=0, max_macs_ratio=None)
        plan = network.plan
        row |= {
            "ladder": " ".join(map(str, plan.ladder)),
            "widths": " ".join(map(str, plan.widths)),
            "relaxations": len(plan.relaxations),
            "parameters": plan.cost.parameters,
            "parameters_ratio": round(plan.cost.parameters / plan.bottom_up_cost.parameters, 3),
            "macs_ratio": round(plan.cost.macs / plan.bottom_up_cost.macs, 2),
        }
        bu2td.verify(network, full=True, size=size)
        if onnx:
            row["onnx"] = f"{onnx_difference(network, size):.1e}"
    except Exception as error:  # a sweep reports what fails and goes on
        row |= {"status": "failed", "cause": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
    row["seconds"] = round(time.perf_counter() - start, 1)
    return row


def write(rows: list[dict], stem: Path) -> None:
    """Write CSV and JSON atomically."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    table = csv.DictWriter(text, names, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    about = {"torch": str(torch.__version__), "python": platform.python_version(), "device": "cpu", "seed": 0}
    for suffix, content in (
        (".csv", text.getvalue()),
        (".json", json.dumps({"about": about, "rows": rows}, indent=1) + "\n"),
    ):
        temporary = stem.with_suffix(suffix + ".tmp")
        temporary.write_text(content)
        os.replace(temporary, stem.with_suffix(suffix))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--match", default="", help="only models whose name contains this")
    parser.add_argument("--size", type=int, default=64, help="image size of the checks on real tensors")
    parser.add_argument("--onnx", action="store_true", help="also compare ONNX through onnxruntime")
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    parser.add_argument("--out", type=Path, default=RESULTS / "real_models")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    file = args.out.with_suffix(".json")
    rows = [] if args.fresh or not file.exists() else json.loads(file.read_text())["rows"]
    done = {(row["model"], row["arrangement"]) for row in rows}
    jobs = [(m, a) for m in MODELS if args.match in m for a in ARRANGEMENTS if (m, a) not in done]
    for word, arrangement in (bar := tqdm(jobs)):
        bar.set_description(f"{word} {arrangement}")
        rows.append(check(word, arrangement, args.size, args.onnx))
        write(rows, args.out)
    failed = [row for row in rows if row["status"] != "ok"]
    relaxed = sum(row.get("relaxations", 0) for row in rows)
    print(f"{len(rows) - len(failed)} of {len(rows)} networks verified, {relaxed} relaxations")
    for row in failed:
        print(f"  {row['model']} {row['arrangement']}: {row['cause']}")


if __name__ == "__main__":
    main()
