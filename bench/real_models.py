"""Convert the 25 real models in td, uni and rev, verify every network on real tensors, leave a table.

    python bench/real_models.py                       # all 75; resumes where it was interrupted
    python bench/real_models.py --match resnet --fresh

Per network: the meta checks of `convert`; forward and backward at 64 px; deepcopy, state_dict, channels_last,
torch.compile(fullgraph, aot_eager) and torch.export against the network; autocast; batch 1; an odd size.
``--onnx`` adds ONNX through onnxruntime. Writes bench/results/real_models.csv and .json.
"""

import io
import time
import warnings
from functools import partial
from pathlib import Path

import _results
import numpy as np
import torch

import bu2td
from bu2td.models.words import create_model
from bu2td.options import ARRANGEMENTS

MODELS = (Path(__file__).parent / "real_models.txt").read_text().split()


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


def check(word: str, arrangement: str, size: int, onnx: bool) -> list[_results.Row]:
    """Convert and verify one network; its row."""
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
            difference = onnx_difference(network, size)
            row["onnx"] = f"{difference:.1e}"
            if not difference <= 1e-4:
                row |= {"status": "failed", "cause": "onnxruntime gives other numbers"}
    except Exception as error:  # a sweep reports what fails and goes on
        row |= {"status": "failed", "cause": _results.cause(error)}
    row["seconds"] = round(time.perf_counter() - start, 1)
    return [row]


def main() -> None:
    parser = _results.parser(__doc__, "real_models")
    parser.add_argument("--size", type=int, default=64, help="image size of the checks on real tensors")
    parser.add_argument("--onnx", action="store_true", help="also compare ONNX through onnxruntime")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    jobs = [(model, arrangement) for model in MODELS if args.match in model for arrangement in ARRANGEMENTS]
    run = partial(check, size=args.size, onnx=args.onnx)
    rows = _results.sweep(args, ("model", "arrangement"), jobs, run, device="cpu", seed=0, size=args.size)
    failed = [row for row in rows if row["status"] != "ok"]
    relaxed = sum(row.get("relaxations", 0) for row in rows)
    print(f"{len(rows) - len(failed)} of {len(rows)} networks verified, {relaxed} relaxations")
    for row in failed:
        print(f"  {row['model']} {row['arrangement']}: {row['cause']}")


if __name__ == "__main__":
    main()
