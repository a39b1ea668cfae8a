"""Your own training loop, with a top-down network in it.

    python examples/train_loop.py --model bu2td:lenet_fc --arrangement td
    python examples/train_loop.py --model torchvision:resnet18 --device cuda --resume

Mixed precision on CUDA, a cosine schedule, checkpoints to go on from. Nothing but the one call of
`bu2td.convert` is particular to top-down networks. The data are scikit-learn's handwritten digits.
"""

import argparse
import os
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, random_split

import bu2td
from bu2td.models.words import create_model


def digits(channels: int, size: int = 32) -> TensorDataset:
    """Return images (channels, size, size) in [0, 1] and their labels."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    images = F.interpolate(images, size=size, mode="bilinear", align_corners=False)
    return TensorDataset(images.expand(-1, channels, -1, -1), torch.tensor(data.target))


@torch.no_grad()
def evaluate(model: nn.Module, loader: DataLoader, device: torch.device) -> float:
    """Return the test accuracy."""
    model.eval()
    correct = total = 0
    for images, labels in loader:
        correct += int((model(images.to(device)).argmax(1).cpu() == labels).sum())
        total += len(labels)
    return correct / total


def main() -> None:
    """Train, and write a checkpoint after every epoch."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="bu2td:lenet_fc", help="a MODEL word, see bu2td.models")
    parser.add_argument("--arrangement", default="td", help="td, uni or rev")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--checkpoint", type=Path, default=Path("out/train_loop/checkpoint.pt"))
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint")
    args = parser.parse_args()
    device = torch.device(args.device)
    use_amp = device.type == "cuda"

    torch.manual_seed(args.seed)
    model = create_model(args.model)
    td = bu2td.convert(model, arrangement=args.arrangement, seed=args.seed)
    if td.num_classes != 10:
        td.reset_classifier(10)
    td.to(device)
    print(td.plan)

    data = digits(channels=td.plan.image_shape[1])
    shuffled = torch.Generator().manual_seed(args.seed)
    train_data, test_data = random_split(data, [0.8, 0.2], generator=shuffled)
    train_loader = DataLoader(train_data, args.batch_size, shuffle=True, drop_last=True)
    test_loader = DataLoader(test_data, 256)

    optimizer = torch.optim.SGD(td.parameters(), lr=args.lr, momentum=0.9, nesterov=True)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=args.epochs)
    scaler = torch.amp.GradScaler(device.type, enabled=use_amp)
    state = {"model": td, "optimizer": optimizer, "scheduler": scheduler, "scaler": scaler}
    done = 0
    if args.resume:
        checkpoint = torch.load(args.checkpoint, map_location=device, weights_only=True)
        for name, part in state.items():
            part.load_state_dict(checkpoint[name])
        done = checkpoint["epoch"]

    for epoch in range(done + 1, args.epochs + 1):
        td.train()
        for images, labels in train_loader:
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device.type, enabled=use_amp):
                loss = F.cross_entropy(td(images.to(device)), labels.to(device))
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        scheduler.step()
        accuracy = evaluate(td, test_loader, device)
        print(f"epoch {epoch:3d}  loss {loss.item():.3f}  test accuracy {accuracy:.1%}")

        args.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        temporary = args.checkpoint.with_suffix(".tmp")
        torch.save({"epoch": epoch, **{k: v.state_dict() for k, v in state.items()}}, temporary)
        os.replace(temporary, args.checkpoint)


if __name__ == "__main__":
    main()
