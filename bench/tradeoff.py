"""What the cheaper forms of a top-down LeNetFC keep of its gains, on Fashion-MNIST.

    PYTHONPATH=. python bench/tradeoff.py [--epochs 6] [--seeds 2] [--match add]

Every form is trained alike (the paper's settings with fewer epochs: SGD with Nesterov momentum, batch 128, learning
rate 0.1, a tenth of it after half and a hundredth after four fifths of the epochs), in the shape in which
`bu2td.optimize` trains it. A row is a form and a seed:

test_accuracy       on the 10,000 test images
ddn, gaussian       median L2 of the smallest perturbation under decoupled direction and norm (white box) and
                    additive Gaussian noise, the quick budget, on the first --attacked test images
precision, recall   of Grad-CAM at the last convolution, centred, cut at 0.2, on --explained images that are
                    classified correctly (not for patches, which have no map of the image)
parameters, macs    macs: of an image, forwards
step_ratio          CPU time of a training step of 128 images over that of the bottom-up network, median of --pairs
                    turns in one process
memory_ratio        bytes that a step keeps for its backward pass over those of the bottom-up network

Writes bench/results/tradeoff.csv and .json after every row and goes on where it was stopped, then draws
docs/tradeoff.png and prints the means. The 18 rows took 71 minutes of one core that others used, too.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _results
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

import bu2td
from bu2td.evaluate import Classifier, Data, explain_networks, load_data, logits_of, smallest_perturbations
from bu2td.evaluate.data.sets import first_images
from bu2td.evaluate.rates import multiply_accumulates
from bu2td.evaluate.train.model import initialise
from bu2td.ir import format_table
from bu2td.models.baselines import LeNetFC
from bu2td.runtime import PatchNetwork

FORMS: dict[str, dict[str, Any]] = {
    "bottom-up": {},
    "top-down": {"arrangement": "td"},
    "finest_reduction=2": {"arrangement": "td", "finest_reduction": 2},
    'merge="add"': {"arrangement": "td", "merge": "add"},
    "merge_kernel=1": {"arrangement": "td", "merge_kernel": 1},
    'merge="add", merge_kernel=1': {"arrangement": "td", "merge": "add", "merge_kernel": 1},
    "finest_reduction=2, merge_kernel=1": {"arrangement": "td", "finest_reduction": 2, "merge_kernel": 1},
    'arrangement="uni", width=6': {"arrangement": "uni", "width": 6},
    "patches, share=0.5": {"arrangement": "td", "share": 0.5},
}
BATCH = 128


def main() -> None:
    parser = _results.parser(__doc__, "tradeoff")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--attacked", type=int, default=200)
    parser.add_argument("--explained", type=int, default=200)
    parser.add_argument("--pairs", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = load_data("fashion-mnist")
    train = first_images(data.train)
    jobs = [(form, str(seed)) for seed in range(args.seeds) for form in FORMS if args.match in form]
    about = {"epochs": args.epochs, "attacked": args.attacked, "explained": args.explained}

    def run(form: str, seed: str) -> list[_results.Row]:
        return [{"form": form, "seed": seed, **measured(form, int(seed), data, train, args)}]

    rows = _results.sweep(args, ("form", "seed"), jobs, run, **about)
    costs = compared(args.pairs)
    _results.write(args.out, [{**row, **costs[row["form"]]} for row in rows], **about)
    draw(rows, costs, Path(__file__).parent.parent / "docs" / "tradeoff.png")
    print(format_table(means(rows, costs)))


def build(form: str, seed: int) -> Classifier:
    """A form with the paper's initial weights."""
    options = dict(FORMS[form])
    torch.manual_seed(seed)
    network: nn.Module = LeNetFC()
    if options:
        share = options.pop("share", None)
        network = bu2td.convert(network, seed=seed, example_inputs=torch.zeros(1, 1, 28, 28), **options)
        initialise(network, "glorot_uniform", seed)
        if share is not None:
            network = PatchNetwork(network, share=share, seed=seed)
    else:
        initialise(network, "glorot_uniform", seed)
    return Classifier(network)


def trained_as(classifier: Classifier) -> Classifier:
    """The same weights in the form in which the suite trains."""
    if not isinstance(classifier.network, bu2td.TopDownNetwork):
        return classifier
    return Classifier(bu2td.optimize(classifier.network, "training", batch_size=BATCH, image_size=(28, 28)))


def loss_of(classifier: Classifier, images: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy; with patches that of the auxiliary classifier, too."""
    if isinstance(classifier.network, PatchNetwork):
        both = classifier.network.forward_both(images)
        return F.cross_entropy(both[0], labels) + F.cross_entropy(both[1], labels)
    return F.cross_entropy(classifier(images), labels)


def measured(form: str, seed: int, data: Data, train: tuple[Tensor, Tensor], args: Any) -> _results.Row:
    """Train one form, and look at it."""
    begin = time.process_time()
    plain = build(form, seed)
    twin = trained_as(plain).train()
    own = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    draws = torch.Generator().manual_seed(seed)
    for epoch in range(args.epochs):
        passed = epoch / args.epochs
        own.param_groups[0]["lr"] = 0.1 * 0.1 ** ((passed >= 0.5) + (passed >= 0.8))
        order = torch.randperm(len(train[1]), generator=draws).split(BATCH)[:-1]
        for index in tqdm(order, desc=f"{form} {seed}, epoch {epoch}", leave=False):
            own.zero_grad()
            loss_of(twin, train[0][index], train[1][index]).backward()
            own.step()
    if twin is not plain:
        plain.load_state_dict(twin.state_dict())
    return {**looked_at(plain.eval(), seed, data, args), "cpu_s": round(time.process_time() - begin)}


def looked_at(classifier: Classifier, seed: int, data: Data, args: Any) -> _results.Row:
    """Accuracy, robustness and localisation of a trained form."""
    images, labels = first_images(data.test)
    predicted = torch.cat([logits_of(classifier, part).argmax(1) for part in images.split(500)])
    found: _results.Row = {"test_accuracy": float((predicted == labels).float().mean())}
    few = images[: args.attacked], labels[: args.attacked]
    for name, attack in (("ddn", "ddn"), ("gaussian", "additive-gaussian")):
        distance = smallest_perturbations(
            classifier, *few, attack, repeats=3, budget="quick", seed=seed, batch_size=50
        )
        found[name] = float(np.median(distance.distance))
    found |= {"precision": None, "recall": None}
    if not isinstance(classifier.network, PatchNetwork):
        named = {"net": classifier}
        explained = explain_networks(named, images[: 2 * args.explained], labels[: 2 * args.explained],
                                     count=args.explained, pictures=0, objects="bright")  # fmt: skip
        for row in explained.localisation:
            if (row.layer, row.normalisation) == ("last-convolution", "centred"):
                found |= {"precision": row.precision, "recall": row.recall}
    return found


def compared(pairs: int) -> dict[str, _results.Row]:
    """Time and memory of a training step of every form beside the bottom-up network's, in turns."""
    images = torch.rand(BATCH, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(BATCH) % 10
    twins = {form: trained_as(build(form, 0)).train() for form in FORMS}

    def step(twin: Classifier) -> Callable[[], None]:
        return lambda: loss_of(twin, images, labels).backward()

    kept = {form: _results.stored(step(twin)) for form, twin in twins.items()}
    times: dict[str, list[float]] = {form: [] for form in FORMS}
    for _ in tqdm(range(pairs), desc="steps in turns"):
        for form, twin in twins.items():
            times[form].append(_results.seconds(step(twin), torch.device("cpu")))
    found = {}
    for form in FORMS:
        ratios = [mine / base for mine, base in zip(times[form], times["bottom-up"], strict=True)]
        network = build(form, 0).eval()
        found[form] = {
            "parameters": sum(p.numel() for p in network.parameters()),
            "macs": multiply_accumulates(network, images[:1]),
            "step_ratio": round(statistics.median(ratios), 3),
            "memory_ratio": round(kept[form] / kept["bottom-up"], 3),
        }
    return found


def means(rows: list[_results.Row], costs: dict[str, _results.Row]) -> list[_results.Row]:
    """A row for each form: what it costs, and means over the seeds."""
    measures = ("test_accuracy", "ddn", "gaussian", "precision", "recall")
    found = []
    for form, cost in costs.items():
        own = [row for row in rows if row["form"] == form]
        kept = {name: [row[name] for row in own if row[name] is not None] for name in measures}
        found.append(
            {
                "form": form,
                **{name: cost[name] for name in ("step_ratio", "memory_ratio")},
                **{name: round(statistics.fmean(values), 3) for name, values in kept.items() if values},
            }
        )
    return found


def draw(rows: list[_results.Row], costs: dict[str, _results.Row], path: Path) -> None:
    """What each form keeps, against the time of its training step; means, and a bar from the least to the most."""
    import matplotlib.pyplot as plt

    measures = {
        "test_accuracy": "test accuracy",
        "ddn": "median L2, white box (DDN)",
        "gaussian": "median L2, Gaussian noise",
        "precision": "Grad-CAM precision",
    }
    figure, axes = plt.subplots(1, len(measures), figsize=(15, 4), constrained_layout=True)
    for axis, (measure, title) in zip(axes, measures.items(), strict=True):
        for number, form in enumerate(FORMS):
            values = [row[measure] for row in rows if row["form"] == form and row[measure] is not None]
            if not values:
                continue
            mean, x = statistics.fmean(values), costs[form]["step_ratio"]
            spread = [[mean - min(values)], [max(values) - mean]]
            axis.errorbar(x, mean, spread, fmt="o", color=f"C{number}", label=form, capsize=2)
        axis.axvline(1.5, color="0.8", zorder=0)
        axis.set(title=title, xlabel="time of a training step, bottom-up = 1", xscale="log")
        axis.set_xticks([1, 1.5, 2, 3, 4], ["1", "1.5", "2", "3", "4"])
        axis.minorticks_off()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize="small")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
