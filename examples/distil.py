"""Train a top-down network from one of three starts: scratch, inherited weights, or distillation.

    python examples/distil.py --start distilled            # Fashion-MNIST, or scikit-learn's digits without it
    python examples/distil.py --start inherited --steps 500
    python examples/distil.py --quick                      # all three, a few steps each, on digits

The teacher is the bottom-up network that was converted. Both networks have features at the same resolutions, so
that no pair of layers has to be chosen: every level of the top-down network learns from that of its own reduction.
`python bench/starts.py` compares the three starts over several seeds.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import bu2td
from bu2td.erf.subject import subject
from bu2td.errors import DataError
from bu2td.evaluate.data.sets import Data, first_images, load_data
from bu2td.models import create_model
from bu2td.models.baselines import PreActResNet

STARTS = ("scratch", "inherited", "distilled")
Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


def small_resnet() -> nn.Module:
    """A pre-activation ResNet of six blocks for grey images (44,410 parameters)."""
    return PreActResNet((8, 16, 32), 2, 8, in_channels=1)


def with_levels(model: nn.Module, images: Tensor) -> tuple[fx.GraphModule, list[int]]:
    """A frozen copy of a bottom-up network that returns logits and the features of its levels, coarse to fine."""
    known = subject(model, images[:2])
    nodes: dict[fx.Node, fx.Node] = {}
    graph = fx.Graph()
    logits = graph.graph_copy(known.graph_module.graph, nodes)
    named = {node.name: copied for node, copied in nodes.items()}
    graph.output((logits, [named[name] for name in known.levels.values()]))
    return fx.GraphModule(known.runnable(images.device), graph), [int(level[1:]) for level in known.levels]


class Distillation(nn.Module):
    """Labels, the teacher's logits at a temperature (Hinton et al., 2015), and its features level by level.

    Features are compared by the cosine of the channels at every position, which needs no scale; a 1x1 convolution
    for each level, trained beside the student and thrown away afterwards, maps its channels to the teacher's.
    """

    def __init__(
        self, teacher: nn.Module, td: bu2td.TopDownNetwork, images: Tensor, *, temperature: float = 4.0
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.teacher, reductions = with_levels(teacher, images)
        with torch.no_grad():
            _, levels = self.teacher(images[:2])
        widths = {level.reduction: level.width for level in td.plan.levels}
        self.shared = [reduction for reduction in reductions if reduction in widths]
        self.kept = [reductions.index(reduction) for reduction in self.shared]
        self.places = [td.plan.ladder.index(reduction) for reduction in self.shared]
        self.adapters = nn.ModuleList(
            nn.Conv2d(widths[r], levels[k].shape[1], 1) for r, k in zip(self.shared, self.kept, strict=True)
        )

    def forward(self, td: bu2td.TopDownNetwork, images: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch: half labels, half logits, and the mean distance of the levels' features."""
        own = td.features(images)
        logits = td.forward_head(own[-1])
        with torch.no_grad():
            wanted, levels = self.teacher(images)
        t = self.temperature
        soft = F.kl_div(
            F.log_softmax(logits / t, 1), F.log_softmax(wanted / t, 1), log_target=True, reduction="batchmean"
        )
        distances = []
        for adapter, place, kept in zip(self.adapters, self.places, self.kept, strict=True):
            mine, theirs = adapter(own[place]), levels[kept]
            if mine.shape[-2:] != theirs.shape[-2:]:  # a bottom-up network without padding loses a few pixels
                theirs = F.interpolate(theirs, mine.shape[-2:], mode="bilinear")
            distances.append(1 - F.cosine_similarity(mine, theirs, dim=1).mean())
        return F.cross_entropy(logits, labels) / 2 + t**2 * soft / 2 + torch.stack(distances).mean()


def from_labels(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """The loss without a teacher."""
    return F.cross_entropy(model(images), labels)


def start_network(
    start: str, model: nn.Module, images: Tensor, seed: int
) -> tuple[bu2td.TopDownNetwork, Loss, list[nn.Parameter]]:
    """A top-down network of a trained bottom-up one, the loss to train it with, and what is trained beside it."""
    inherit: Any = "matching" if start == "inherited" else "none"
    td = bu2td.convert(model, inherit=inherit, example_inputs=images[:1], seed=seed)
    if start != "distilled":
        return td, from_labels, []
    loss = Distillation(model, td, images).to(images.device)
    return td, loss, list(loss.adapters.parameters())


def batches(images: Tensor, labels: Tensor, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffled batches without end; the same seed gives the same ones."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        for chosen in torch.randperm(len(images), generator=generator).split(size):
            if len(chosen) == size:
                yield images[chosen], labels[chosen]


def train(
    model: nn.Module,
    data: Iterator[tuple[Tensor, Tensor]],
    steps: int,
    loss: Loss = from_labels,
    beside: list[nn.Parameter] | None = None,
    lr: float = 0.1,
    every: int = 0,
    look: Callable[[int], None] = lambda step: None,
) -> float:
    """Train in place: SGD, one cosine. Returns CPU seconds a step; ``look`` is called every so many steps."""
    parameters = [*model.parameters(), *(beside or [])]
    optimizer = torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    spent = 0.0
    for step, (images, labels) in zip(range(1, steps + 1), data, strict=False):
        begin = time.process_time()
        model.train()
        optimizer.zero_grad()
        loss(model, images, labels).backward()
        optimizer.step()
        schedule.step()
        spent += time.process_time() - begin
        if every and step % every == 0:
            look(step)
    return spent / steps


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The share of images that are classified correctly."""
    model.eval()
    parts = zip(images.split(250), labels.split(250), strict=True)
    return sum(int((model(x).argmax(1) == y).sum()) for x, y in parts) / len(labels)


def load(name: str | None) -> Data:
    """A data set; by default Fashion-MNIST where it is installed, else digits."""
    if name is not None:
        return load_data(name)
    try:
        return load_data("fashion-mnist")
    except DataError:
        return load_data("digits")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--start", choices=STARTS, default="distilled")
    parser.add_argument("--model", help="a MODEL word, see bu2td.models; default: a small ResNet")
    parser.add_argument("--data", help="fashion-mnist, digits, ...; see bu2td evaluate")
    parser.add_argument("--steps", type=int, default=1000, help="of the teacher, and of the top-down network")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="all starts, 10 steps, digits")
    args = parser.parse_args()
    if args.quick:
        args.data, args.steps = "digits", 10
    data = load(args.data)
    train_set, test_set = first_images(data.train), first_images(data.test)

    torch.manual_seed(args.seed)
    model = create_model(args.model, num_classes=len(data.classes)) if args.model else small_resnet()
    train(model, batches(*train_set, args.batch_size, args.seed), args.steps)
    print(f"bottom-up: {accuracy(model, *test_set):.2%} of the test images after {args.steps} steps")
    for start in STARTS if args.quick else (args.start,):
        td, loss, beside = start_network(start, model, train_set[0], args.seed)
        if td.plan.inherited:
            copied, total = td.plan.inherited
            print(f"{copied / total:.1%} of the top-down network's parameters are inherited")
        train(td, batches(*train_set, args.batch_size, args.seed + 1), args.steps, loss, beside)
        print(f"top-down, {start}: {accuracy(td, *test_set):.2%} after {args.steps} steps")


if __name__ == "__main__":
    main()
