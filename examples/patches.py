"""Patches: the finest levels of a top-down network run only where its coarser levels look.

    python examples/patches.py
    python examples/patches.py --epochs 4 --share 0.4

Handwritten digits somewhere in a noisy image of ten times their area. Trains one network that sees whole images
and one whose two finest levels see crops, and prints their test accuracy, multiply-accumulates and time per image;
and the accuracy with crops where the coarser levels look in another image.
"""

import argparse
import time
from collections.abc import Callable

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import bu2td
from bu2td.models.baselines import PreActResNet

SIDE, DIGIT = 64, 20


def scenes(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return images (N, 1, 64, 64) in random order and their labels."""
    data = load_digits()
    generator = torch.Generator().manual_seed(seed)
    digits = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    digits = F.interpolate(digits, size=DIGIT, mode="bilinear", align_corners=False)
    images = 0.3 * torch.rand(len(digits), 1, SIDE, SIDE, generator=generator)
    for image, digit in zip(images, digits, strict=True):
        top, left = torch.randint(0, SIDE - DIGIT + 1, (2,), generator=generator).tolist()
        image[:, top : top + DIGIT, left : left + DIGIT] += digit
    order = torch.randperm(len(images), generator=generator)
    return images[order], torch.tensor(data.target)[order]


def network(seed: int = 0) -> bu2td.TopDownNetwork:
    """Return a small top-down network of four levels, r8 to r1."""
    torch.manual_seed(seed)
    model = PreActResNet((16, 32, 64), 1, stem_width=16, stem_pool=True, in_channels=1)
    td = bu2td.convert(model, "td", example_inputs=torch.rand(1, 1, SIDE, SIDE), seed=seed)
    return bu2td.optimize(td, "training", batch_size=64)


def train(
    model: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    epochs: int,
    lr: float = 0.1,
) -> None:
    """Train by SGD with one cycle of the learning rate."""
    generator = torch.Generator().manual_seed(0)
    optimiser = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=1e-4)
    steps = epochs * -(-len(images) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=steps)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(images), generator=generator).split(64):
            optimiser.zero_grad()
            loss(images[batch], labels[batch]).backward()
            optimiser.step()
            schedule.step()
    model.eval()


@torch.no_grad()
def accuracy(forward: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return the accuracy, and milliseconds per image."""
    start = time.perf_counter()
    found = torch.cat([forward(batch).argmax(1) for batch in images.split(64)])
    return float((found == labels).float().mean()), 1e3 * (time.perf_counter() - start) / len(images)


def main() -> None:
    """Train both networks and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--share", type=float, default=0.5, help="of the image's height and width")
    parser.add_argument("--finest", type=int, default=2, help="levels that see crops")
    args = parser.parse_args()
    images, labels = scenes()
    train_images, train_labels, test = images[:1400], labels[:1400], (images[1400:], labels[1400:])

    whole = network()
    train(whole, lambda x, y: F.cross_entropy(whole(x), y), train_images, train_labels, args.epochs)
    patches = bu2td.PatchNetwork(network(), share=args.share, finest=args.finest)

    def both(x: Tensor, y: Tensor) -> Tensor:
        logits, auxiliary = patches.forward_both(x)
        return F.cross_entropy(logits, y) + F.cross_entropy(auxiliary, y)

    train(patches, both, train_images, train_labels, args.epochs)
    some, full = patches.macs((SIDE, SIDE))
    rows = {"whole images": (full, *accuracy(whole, *test)), "crops by Grad-CAM": (some, *accuracy(patches, *test))}
    generator = torch.Generator().manual_seed(0)

    def blind(x: Tensor) -> Tensor:
        windows = patches.windows(x)
        order = torch.randperm(len(x), generator=generator)  # those of other images
        return patches.forward_both(x, windows[order])[0]

    rows["crops of another image's place"] = (some, *accuracy(blind, *test))
    print(f"{'':32}{'accuracy':>9}{'MMACs':>8}{'ms':>7}")
    for name, (macs, share, milliseconds) in rows.items():
        print(f"{name:32}{share:9.1%}{macs / 1e6:8.1f}{milliseconds:7.2f}")


if __name__ == "__main__":
    main()
