"""Receptive fields of the zoo: theory against the support of a positive copy's gradient, pixel by pixel.

    python bench/erf.py                     # resumes where it was interrupted
    python bench/erf.py --match resnet --fresh

The smallest model of every family of timm and torchvision, the models of real_models.txt and the paper's
baselines, bottom-up and top-down (td). A row per level: the field's side without borders, whether its box on the
canvas is that of the gradient (or the operation that has no rule), and the seconds that both took for the
network. Networks that cannot be turned upside down are compared bottom-up alone. Writes bench/results/erf.csv and
.json.
"""

import argparse
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import _results
import torch
from tqdm import tqdm

import bu2td
from bu2td.baselines import INPUT_SIZES
from bu2td.erf.gradient import compare_support
from bu2td.erf.theory import theory
from bu2td.errors import Bu2tdError, ExampleInputError
from bu2td.models import create_model

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from test_families import SMALLEST

REAL = (Path(__file__).parent / "real_models.txt").read_text().split()
MODELS = list(dict.fromkeys([*(f"bu2td:{name}" for name in INPUT_SIZES), *SMALLEST.values(), *REAL]))


def compare(network: Any, images: torch.Tensor | None, side: int) -> tuple[list[dict[str, Any]], int]:
    """The levels of one network; networks that are bound to their own image size are compared on it."""
    try:
        return compare_support(network, side, example_inputs=images), side
    except ExampleInputError:
        own = network.plan.image_shape[-1] if isinstance(network, bu2td.TopDownNetwork) else None
        own = own or bu2td.analyze(network).capture.image_shape[-1]
        return compare_support(network, own, example_inputs=images), own


def check(word: str, side: int) -> list[dict[str, Any]]:
    """The rows of one model."""
    size = INPUT_SIZES.get(word.removeprefix("bu2td:"))
    images = None if size is None else torch.empty(1, *size, device="meta")
    model = create_model(word, device="meta")
    rows: list[dict[str, Any]] = []
    try:
        network = bu2td.convert(model, device="meta", example_inputs=images, max_macs_ratio=None)
    except Bu2tdError as error:
        networks: dict[str, Any] = {"bottom-up": model}
        rows.append({"model": word, "network": "top-down", "status": "refused", "cause": type(error).__name__})
    else:
        networks = {"bottom-up": model, "top-down": network}
    for kind, network in networks.items():
        given = images if kind == "bottom-up" else None
        start = time.perf_counter()
        sizes = {row["name"]: row["size"] for row in theory(network, example_inputs=given).rows}
        middle = time.perf_counter()
        found, canvas = compare(network, given, side)
        seconds = {"theory_s": round(middle - start, 2), "compare_s": round(time.perf_counter() - middle, 2)}
        for row in found:
            status = "equal" if row["theory"] == row["support"] else "different"
            if row["theory"] is None or row["support"] is None:
                status = "no rule" if row["theory"] is None else "no positive copy"
            side_of = sizes.get(row["name"])
            rows.append(
                {
                    "model": word,
                    "network": kind,
                    "level": row["name"],
                    "size": "" if side_of is None else "x".join(map(str, side_of)),
                    "canvas": canvas,
                    "whole": row["whole"],
                    "status": status,
                    **seconds,
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--match", default="", help="only models whose name contains this")
    parser.add_argument("--side", type=int, default=640, help="of the canvas")
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    parser.add_argument("--out", type=Path, default=_results.FOLDER / "erf")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    file = args.out.with_suffix(".json")
    rows = [] if args.fresh or not file.exists() else json.loads(file.read_text())["rows"]
    done = {row["model"] for row in rows}
    for word in (bar := tqdm([m for m in MODELS if args.match in m and m not in done])):
        bar.set_description(word)
        try:
            rows += check(word, args.side)
        except Exception as error:  # a sweep reports what fails and goes on
            cause = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            rows.append({"model": word, "network": "", "status": "failed", "cause": cause})
        _results.write(args.out, rows, device="cpu", side=args.side)
    count = {status: sum(row["status"] == status for row in rows) for status in {row["status"] for row in rows}}
    equal = {row["model"] for row in rows if row["status"] == "equal"}
    wrong = {row["model"] for row in rows if row["status"] in ("different", "failed")}
    print(f"{len(equal - wrong)} of {len({row['model'] for row in rows})} models agree; levels: {count}")
    for row in rows:
        if row["status"] in ("different", "failed"):
            print(
                f"  {row['model']} {row['network']} {row.get('level', '')}: {row['status']} {row.get('cause', '')}"
            )


if __name__ == "__main__":
    main()
