"""Segment scenes with FCN, U-Net and a top-down network of the same budget.

    python examples/segmentation.py --data fashion-mnist --out out/segmentation
    python examples/segmentation.py --quick

Scenes are several objects of a data set on a textured background; every pixel has a class. All three networks have
the same encoder, but for its width: FCN (Long et al., 2015) adds scores of its three coarsest levels, U-Net
(Ronneberger et al., 2015; written here) has a decoder with skip connections, and `bu2td.dense` turns the encoder,
as the classifier that it is, into a top-down network. FCN sets the budget; the others have the width with which an
image costs most nearly as many multiply-accumulates. Images, order, optimiser and epochs are the same; the networks
of a seed see the same scenes. Scores are those after the last epoch on scenes of other objects: nothing is chosen
by them.

A stopped run goes on where it was. Writes results.json, epochs.csv, results.md and two pictures to --out.
"""

import argparse
import itertools
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from _scenes import Scenes, boundary_f1, load_objects, make_scenes, mean_iou, outline_f1
from _scenes_report import save_report
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

import bu2td
from bu2td.files import write_json

#: Widths of the encoder's levels in units of its own, and the share by which a budget may be missed.
WIDTHS, SLACK = (1, 2, 4, 8, 8), 0.1
MEASURES = ("mean_iou", "boundary_f1", "outline_f1")
Make = Callable[[int, int, int], nn.Module]


@dataclass(frozen=True)
class Settings:
    """What a run is. ``width`` is that of FCN's finest level, ``learning_rate`` the largest of a cycle."""

    data: str = "digits"
    size: int = 48
    train: int = 2000
    test: int = 400
    epochs: int = 16
    batch_size: int = 16
    learning_rate: float = 0.004
    width: int = 12
    seeds: int = 3


QUICK = {"train": 16, "test": 8, "epochs": 2, "seeds": 2}


# --- networks -----------------------------------------------------------------------------------------


def unit(inputs: int, outputs: int) -> nn.Sequential:
    """A 3x3 convolution with its norm and activation."""
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


def double(inputs: int, outputs: int) -> nn.Sequential:
    """Two of them."""
    return nn.Sequential(unit(inputs, outputs), unit(outputs, outputs))


class Encoder(nn.Module):
    """A classifier: two convolutions a level, levels apart by max pools."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.widths = [width * times for times in WIDTHS]
        self.stages = nn.ModuleList(double(i, o) for i, o in zip([1, *self.widths], self.widths, strict=False))
        self.classifier = nn.Linear(self.widths[-1], classes)

    def maps(self, x: Tensor) -> list[Tensor]:
        """The features of every level, fine to coarse."""
        found: list[Tensor] = []
        for stage in self.stages:
            x = stage(F.max_pool2d(x, 2) if found else x)
            found.append(x)
        return found

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, classes)."""
        return self.classifier(self.maps(x)[-1].mean((2, 3)))


class FCN(nn.Module):
    """Scores of the three coarsest levels, each upsampled to the next and added."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.encoder = Encoder(width, 1)
        self.encoder.classifier = nn.Identity()
        self.scores = nn.ModuleList(nn.Conv2d(each, classes, 1) for each in self.encoder.widths[:-4:-1])

    def forward(self, x: Tensor) -> Tensor:
        """Return scores (N, classes, H, W)."""
        total = None
        for score, level in zip(self.scores, self.encoder.maps(x)[::-1], strict=False):
            own = score(level)
            total = own if total is None else own + resize(total, own)
        return resize(total, x)


class UNet(nn.Module):
    """An encoder, and a decoder that reads its levels again."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.encoder = Encoder(width, 1)
        self.encoder.classifier = nn.Identity()
        widths = self.encoder.widths[::-1]
        pairs = list(itertools.pairwise(widths))
        self.ups = nn.ModuleList(nn.ConvTranspose2d(coarse, fine, 2, stride=2) for coarse, fine in pairs)
        self.decoder = nn.ModuleList(double(2 * fine, fine) for _, fine in pairs)
        self.classifier = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores (N, classes, H, W)."""
        *skips, x = self.encoder.maps(x)
        for up, stage, skip in zip(self.ups, self.decoder, reversed(skips), strict=True):
            x = stage(torch.cat([up(x), skip], dim=1))
        return self.classifier(x)


def resize(x: Tensor, like: Tensor) -> Tensor:
    """Bring scores to the size of another map."""
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


def top_down(width: int, classes: int, size: int) -> nn.Module:
    """The same encoder upside down, with a head for every pixel."""
    example = torch.zeros(2, 1, size, size)
    return bu2td.dense(Encoder(width, classes), classes, example_inputs=example)


NETWORKS: dict[str, Make] = {
    "FCN": lambda width, classes, size: FCN(width, classes),
    "U-Net": lambda width, classes, size: UNet(width, classes),
    "top-down": top_down,
}


def macs(network: nn.Module, size: int) -> int:
    """Multiply-accumulates of an image."""
    network.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 1, size, size))
    return counter.get_total_flops() // 2


def fitted_width(make: Make, budget: int, classes: int, size: int) -> int:
    """The width with which a network costs most nearly what it may."""
    costs: dict[int, int] = {}
    while not costs or max(costs.values()) <= budget:
        costs[len(costs) + 1] = macs(make(len(costs) + 1, classes, size), size)
    return min(costs, key=lambda width: abs(costs[width] - budget))


# --- training -----------------------------------------------------------------------------------------


@torch.no_grad()
def predict(network: nn.Module, images: Tensor) -> Tensor:
    """The class of every pixel, in eval mode."""
    network.eval()
    return torch.cat([network(part).argmax(1) for part in images.split(50)])


def scores(network: nn.Module, test: Scenes, classes: int) -> dict[str, float]:
    """All measures on scenes."""
    found = predict(network, test.images)
    return {
        "mean_iou": mean_iou(found, test.labels, classes),
        "boundary_f1": boundary_f1(found, test.labels, classes),
        "outline_f1": outline_f1(found, test.labels),
    }


def train(
    network: nn.Module, seed: int, train_set: Scenes, test_set: Scenes, classes: int, settings: Settings, file: Path
) -> list[dict[str, float]]:
    """Train, from the last epoch in a checkpoint on; returns the measures after every epoch."""
    steps = settings.train // settings.batch_size
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=settings.learning_rate, total_steps=settings.epochs * steps
    )
    state = {"network": network, "optimizer": optimizer, "schedule": schedule}
    history: list[dict[str, float]] = []
    if file.exists():
        saved = torch.load(file, weights_only=True)
        if saved["settings"] | {"seeds": settings.seeds} != asdict(settings):
            raise SystemExit(f"{file} is of other settings; choose another --out, or remove it")
        history = saved["history"]
        for name, part in state.items():
            part.load_state_dict(saved[name])
    for epoch in range(len(history), settings.epochs):
        network.train()
        order = torch.randperm(settings.train, generator=torch.Generator().manual_seed(1000 * seed + epoch))
        total = 0.0
        for chosen in order[: steps * settings.batch_size].view(steps, -1):
            optimizer.zero_grad(set_to_none=True)
            images = train_set.images[chosen].contiguous(memory_format=torch.channels_last)
            loss = F.cross_entropy(network(images), train_set.labels[chosen])
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() / steps
        history.append({"epoch": epoch + 1, "loss": total, **scores(network, test_set, classes)})
        save(
            {"settings": asdict(settings), "history": history, **{k: v.state_dict() for k, v in state.items()}},
            file,
        )
    return history


def save(data: dict[str, Any], file: Path) -> None:
    """Write a file as a whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(data, file.with_suffix(".tmp"))
    os.replace(file.with_suffix(".tmp"), file)


def run(settings: Settings, out: Path) -> None:
    """Train all networks of all seeds, and write what came out."""
    objects = load_objects(settings.data, test=False)
    test_set = make_scenes(load_objects(settings.data, test=True), settings.test, settings.size, seed=2**31)
    classes = len(objects.classes) + 1
    budget = macs(FCN(settings.width, classes), settings.size)
    widths = {name: fitted_width(make, budget, classes, settings.size) for name, make in NETWORKS.items()}
    result: dict[str, Any] = {"settings": asdict(settings), "networks": {}, "runs": []}
    shown: dict[str, Tensor] = {}
    for name, width in widths.items():
        network = NETWORKS[name](width, classes, settings.size)
        cost, count = macs(network, settings.size), sum(p.numel() for p in network.parameters())
        if abs(cost - budget) > SLACK * budget:
            raise SystemExit(f"{name} costs {cost / budget:.2f} times the budget at its best width; change --width")
        result["networks"][name] = {"width": width, "macs": cost, "parameters": count}
    for seed in tqdm(range(settings.seeds), desc="seeds"):
        train_set = make_scenes(objects, settings.train, settings.size, seed)
        for name, width in widths.items():
            torch.manual_seed(seed)
            network = NETWORKS[name](width, classes, settings.size).to(memory_format=torch.channels_last)
            file = out / "checkpoints" / f"{name}-{seed}.pt"
            history = train(network, seed, train_set, test_set, classes, settings, file)
            result["runs"].append({"network": name, "seed": seed, "history": history})
            if seed == 0:
                shown[name] = predict(network, test_set.images[:6])
    write_json(result, out / "results.json")
    save_report(result, objects.classes, Scenes(test_set.images[:6], test_set.labels[:6]), shown, out)
    print((out / "results.md").read_text())


def parse_arguments() -> tuple[Settings, Path]:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("out/segmentation"))
    parser.add_argument("--quick", action="store_true", help="a minute's run that only shows that all works")
    for field in fields(Settings):
        flag = f"--{field.name.replace('_', '-')}"
        parser.add_argument(flag, type=type(field.default), help=f"default: {field.default}")
    options = vars(parser.parse_args())
    chosen = QUICK if options["quick"] else {}
    given = {f.name: options[f.name] for f in fields(Settings) if options[f.name] is not None}
    settings = Settings(**{**chosen, **given})
    if settings.size % 2 ** (len(WIDTHS) - 1):
        parser.error(f"--size must be a multiple of {2 ** (len(WIDTHS) - 1)}: U-Net's levels must meet")
    return settings, options["out"]


if __name__ == "__main__":
    run(*parse_arguments())
