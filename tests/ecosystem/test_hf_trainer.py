"""Hugging Face Trainer (transformers): train and save have the weights of a step by hand."""

from pathlib import Path
from typing import Any

import pytest
from ecosystem.kit import client, images, labels, loss, same, state, step
from torch import nn


class WithLoss(nn.Module):
    """What the Trainer trains: it is given images and labels by name, and returns a loss."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, pixel_values: Any, labels: Any = None) -> Any:
        logits = self.net(pixel_values)
        return {"logits": logits, "loss": loss(logits, labels)}


@pytest.mark.slow
def test_train(trainable: Any, plain: Any, tmp_path: Path) -> None:
    transformers = client("transformers")
    client("accelerate")
    data = [{"pixel_values": x, "labels": y} for x, y in zip(images(), labels(), strict=True)]
    options = {"use_cpu": True, "report_to": [], "disable_tqdm": True, "lr_scheduler_type": "constant"}
    arguments = transformers.TrainingArguments(
        str(tmp_path), max_steps=1, per_device_train_batch_size=4, learning_rate=0.1, optim="sgd", **options,
        max_grad_norm=0.0,
    )  # fmt: skip
    trainer = transformers.Trainer(WithLoss(trainable), arguments, train_dataset=data)
    trainer.train()
    step(plain.train())
    same(state(trainable), state(plain))
    trainer.save_model(str(tmp_path / "saved"))
    weights = client("safetensors.torch").load_file(str(tmp_path / "saved" / "model.safetensors"))
    same({k.removeprefix("net."): t for k, t in weights.items() if t.is_floating_point()}, state(plain))
