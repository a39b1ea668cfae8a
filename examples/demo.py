"""Convert two networks, train one of them bottom-up and top-down, and write a report.

    python examples/demo.py --out out/demo

LeNetFC, one of the paper's networks, is trained on scikit-learn's 1,797 handwritten digits, once as
it is and once as its top-down network, with the same loop and the same settings. ResNet18 is only
converted. The whole takes about a minute on two cores.
"""

import argparse
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import timm
import torch
from _report import curves_figure, features_figure, pyramid_figure, save_figure, save_report
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

import bu2td
from bu2td.draw import draw
from bu2td.files import write_json
from bu2td.models.baselines import LeNetFC
from bu2td.nn import gaussian_resample

IMAGE_SIZE = 32
BATCH_SIZE = 32
LEARNING_RATE = 0.1
MOMENTUM = 0.9
TEST_SHARE = 0.2
SHOWN_DIGIT = 3


def digits(seed: int) -> tuple[TensorDataset, TensorDataset]:
    """Return training and test set: images (1, 32, 32) in [0, 1] and their labels."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    images = F.interpolate(images, size=IMAGE_SIZE, mode="bilinear", align_corners=False)
    labels = torch.tensor(data.target)
    train, test = train_test_split(
        range(len(labels)), test_size=TEST_SHARE, stratify=data.target, random_state=seed
    )
    return TensorDataset(images[train], labels[train]), TensorDataset(images[test], labels[test])


@torch.no_grad()
def accuracy(model: nn.Module, data: TensorDataset, device: torch.device) -> float:
    """Return the share of images that the model classifies correctly."""
    model.eval()
    correct = 0
    for images, labels in DataLoader(data, batch_size=256):
        correct += int((model(images.to(device)).argmax(1).cpu() == labels).sum())
    return correct / len(data)


def train(
    model: nn.Module,
    train_data: TensorDataset,
    test_data: TensorDataset,
    *,
    epochs: int,
    seed: int,
    device: torch.device,
    name: str,
) -> list[dict[str, float]]:
    """Train a model in place; return loss and test accuracy of every epoch.

    A top-down network is an ordinary nn.Module: nothing here knows which of the two it trains.
    """
    order = torch.Generator().manual_seed(seed)
    loader = DataLoader(train_data, batch_size=BATCH_SIZE, shuffle=True, generator=order)
    steps = epochs * len(loader)
    model.to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM, nesterov=True)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[steps // 2, steps * 4 // 5], gamma=0.1)
    history = []
    with tqdm(total=steps, desc=f"{name:>9}", unit="step") as bar:
        for epoch in range(1, epochs + 1):
            model.train()
            total = 0.0
            for images, labels in loader:
                loss = F.cross_entropy(model(images.to(device)), labels.to(device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                scheduler.step()
                total += loss.item() * len(labels)
                bar.update()
            row = {
                "epoch": epoch,
                "loss": total / len(train_data),
                "test_accuracy": accuracy(model, test_data, device),
            }
            history.append(row)
            bar.set_postfix(loss=f"{row['loss']:.3f}", test=f"{row['test_accuracy']:.1%}")
    return history


@torch.no_grad()
def level_outputs(
    bottom_up: LeNetFC, top_down: bu2td.TopDownNetwork, image: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the features of one image at every level, coarse to fine, of both networks."""
    bottom_up.eval()
    top_down.eval()
    fine = bottom_up.unit1(image)
    middle = bottom_up.unit2(bottom_up.pool1(fine))
    coarse = bottom_up.unit3(bottom_up.pool2(middle))
    return [coarse, middle, fine], list(top_down.features(image))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder to write into")
    parser.add_argument("--epochs", type=int, default=16, help="of each training (default 16)")
    parser.add_argument("--seed", type=int, default=0, help="of data split, weights and batches")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, mps, ...")
    args = parser.parse_args()
    if args.epochs < 1:
        parser.error(f"--epochs must be at least 1, not {args.epochs}")
    try:
        args.device = torch.device(args.device)
        torch.empty(0, device=args.device)
    except (RuntimeError, AssertionError) as error:
        parser.error(f"--device: {str(error).partition(chr(10))[0]}")
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out: cannot write to {args.out}: {error.strerror}")
    return args


def main() -> None:
    args = parse_arguments()
    out: Path = args.out
    started = time.perf_counter()

    # 1. Convert. The bottom-up models stay as they are.
    torch.manual_seed(args.seed)
    lenet = LeNetFC(num_classes=10, in_channels=1)
    example = torch.zeros(1, 1, IMAGE_SIZE, IMAGE_SIZE)
    lenet_td = bu2td.convert(lenet, arrangement="td", example_inputs=example, seed=args.seed)
    resnet = timm.create_model("resnet18", pretrained=False)
    resnet_td = bu2td.convert(resnet, arrangement="td", seed=args.seed)
    for name, td in (("lenet_fc", lenet_td), ("resnet18", resnet_td)):
        print(f"{td.plan}\n")
        draw(td, out / f"{name}.png")

    # 2. Train both networks with the same loop.
    train_data, test_data = digits(args.seed)
    networks: dict[str, nn.Module] = {"bottom-up": lenet, "top-down": lenet_td}
    results: dict[str, dict[str, Any]] = {}
    for name, model in networks.items():
        begin = time.perf_counter()
        history = train(
            model, train_data, test_data, epochs=args.epochs, seed=args.seed, device=args.device, name=name
        )
        results[name] = {
            "parameters": sum(p.numel() for p in model.parameters()),
            "test_accuracy": history[-1]["test_accuracy"],
            "seconds": round(time.perf_counter() - begin, 1),
            "history": history,
        }

    # 3. Look inside: a test image at every level of the pyramid, and what the levels make of it.
    image = next(image for image, label in test_data if label == SHOWN_DIGIT)
    ladder = lenet_td.plan.ladder
    pyramid = [gaussian_resample(image[None], reduction) for reduction in ladder]
    bottom_up, top_down = level_outputs(lenet, lenet_td, image[None].to(args.device))
    save_figure(curves_figure(results), out / "accuracy.png")
    save_figure(pyramid_figure(pyramid, ladder), out / "pyramid.png")
    save_figure(features_figure(image, bottom_up, top_down, ladder), out / "features.png")

    # 4. Write it all down.
    record = {
        "configuration": {
            "data": "scikit-learn digits",
            "train_images": len(train_data),
            "test_images": len(test_data),
            "image_size": IMAGE_SIZE,
            "shown_digit": SHOWN_DIGIT,
            "epochs": args.epochs,
            "batch_size": BATCH_SIZE,
            "optimizer": f"SGD, momentum {MOMENTUM}, Nesterov",
            "learning_rate": f"{LEARNING_RATE}, divided by 10 after 50 % and 80 % of the steps",
            "seed": args.seed,
            "device": str(args.device),
        },
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("bu2td", "torch", "timm", "scikit-learn")},
        },
        "lenet_fc": results,
        "plans": {"lenet_fc": lenet_td.plan.to_dict(), "resnet18": resnet_td.plan.to_dict()},
        "seconds": round(time.perf_counter() - started, 1),
    }
    write_json(record, out / "results.json")
    save_report(record, {"lenet_fc": lenet_td.plan, "resnet18": resnet_td.plan}, out)

    for name, result in results.items():
        print(
            f"{name:>9}: test accuracy {result['test_accuracy']:.2%}, "
            f"{result['parameters']:,} parameters, trained in {result['seconds']:.0f} s"
        )
    print(f"Report: {out / 'report.html'}")


if __name__ == "__main__":
    main()
