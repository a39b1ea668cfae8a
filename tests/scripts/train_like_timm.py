"""What timm's train.py and validate.py do with a model, at its smallest: no line of theirs, all of their calls."""

import argparse
import contextlib
import sys

import torch
from timm.data import create_dataset, create_loader, resolve_data_config
from timm.models import create_model, load_checkpoint, model_parameters, resume_checkpoint
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler_v2
from timm.utils import CheckpointSaver, ModelEmaV3, dispatch_clip_grad, random_seed
from torch import nn


def words() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    for name in ("--data-dir", "--model", "--output", "--resume", "--torchcompile", "--validate"):
        parser.add_argument(name)
    for name, kind, default in (("--layer-decay", float, None), ("--epochs", int, 2), ("--img-size", int, 64)):
        parser.add_argument(name, type=kind, default=default)
    for name in ("--amp", "--model-ema", "--grad-checkpointing"):
        parser.add_argument(name, action="store_true")
    parser.add_argument("--model-kwargs", nargs="*", default=[])
    parser.set_defaults(opt="adamw", lr=1e-3, weight_decay=0.05, momentum=0.9, num_classes=2, batch_size=8)
    return parser.parse_args()


def loader(args: argparse.Namespace, training: bool) -> object:
    data = args.data
    split = "train" if training else "validation"
    images = create_dataset("", root=args.data_dir, split=split, is_training=training)
    return create_loader(
        images, data["input_size"], args.batch_size, is_training=training, use_prefetcher=False, num_workers=0,
        mean=data["mean"], std=data["std"], interpolation=data["interpolation"], device=torch.device("cpu"),
    )  # fmt: skip


@torch.no_grad()
def accuracy(model: nn.Module, args: argparse.Namespace) -> float:
    model.eval()
    found = [model(images).argmax(1) == labels for images, labels in loader(args, False)]
    return float(torch.cat(found).float().mean())


def main() -> None:
    args = words()
    random_seed(0)
    options = {key: eval(value) for key, value in (word.split("=") for word in args.model_kwargs)}
    model = create_model(
        args.model, pretrained=False, in_chans=3, num_classes=args.num_classes, drop_rate=0.0, drop_path_rate=0.1,
        drop_block_rate=None, global_pool=None, bn_momentum=None, bn_eps=None, scriptable=False, checkpoint_path="",
        **options,
    )  # fmt: skip
    args.data = resolve_data_config(vars(args), model=model)
    if args.validate:
        load_checkpoint(model, args.validate, use_ema=args.model_ema)
        print(f"accuracy {accuracy(model, args):.4f}")
        return
    if args.grad_checkpointing:
        model.set_grad_checkpointing(enable=True)
    optimizer = create_optimizer_v2(model, **optimizer_kwargs(cfg=args))
    start = resume_checkpoint(model, args.resume, optimizer) if args.resume else 0
    ema = ModelEmaV3(model, decay=0.5) if args.model_ema else None
    if ema is not None and args.resume:
        load_checkpoint(ema.module, args.resume, use_ema=True)
    if args.torchcompile:
        model = torch.compile(model, backend=args.torchcompile)
    schedule, epochs = create_scheduler_v2(optimizer, num_epochs=args.epochs)
    saver = CheckpointSaver(model, optimizer, args, ema, checkpoint_dir=args.output, recovery_dir=args.output)
    context = torch.autocast("cpu", torch.bfloat16) if args.amp else contextlib.nullcontext()
    for epoch in range(start or 0, epochs):
        model.train()
        total = 0.0
        for images, labels in loader(args, True):
            with context:
                loss = nn.functional.cross_entropy(model(images).float(), labels)
            optimizer.zero_grad()
            loss.backward()
            dispatch_clip_grad(model_parameters(model, exclude_head=False), value=1.0)
            optimizer.step()
            total += float(loss.detach())
            if ema is not None:
                ema.update(model)
        schedule.step(epoch + 1)
        saver.save_checkpoint(epoch, metric=accuracy(model if ema is None else ema.module, args))
        print(f"epoch {epoch} loss {total:.6f} groups {len(optimizer.param_groups)}")


if __name__ == "__main__":
    sys.exit(main())
